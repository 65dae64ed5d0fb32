/* test_ring.c: a ring that was restricted does what it was left, and nothing else. */
#include "io/ring.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cmocka.h>

static struct io_uring ring;
static char data[64];
static int file = -1;

static int make_ring(void **state)
{
    (void)state;
    int r = io_uring_queue_init(8, &ring, IORING_SETUP_R_DISABLED);
    if (r < 0) {
        print_message("skip - io_uring: %s\n", strerror(-r));
        ring.ring_fd = -1;
        return 0;
    }
    file = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    return file < 0 ? -1 : 0;
}

static int end_ring(void **state)
{
    (void)state;
    if (ring.ring_fd >= 0)
        io_uring_queue_exit(&ring);
    if (file >= 0)
        close(file);
    file = -1;
    return 0;
}

/* What comes of one operation. */
static int result_of(struct io_uring_sqe *sqe)
{
    struct io_uring_cqe *cqe;
    (void)sqe;
    assert_int_equal(io_uring_submit(&ring), 1);
    assert_int_equal(io_uring_wait_cqe(&ring, &cqe), 0);
    int r = cqe->res;
    io_uring_cqe_seen(&ring, cqe);
    return r;
}

static void only_what_was_named(void **state)
{
    (void)state;
    static const uint8_t opcodes[] = {IORING_OP_READ, IORING_OP_ASYNC_CANCEL};
    if (ring.ring_fd < 0)
        skip();
    assert_int_equal(ring_restrict(&ring, opcodes, sizeof opcodes), 0);
    assert_int_equal(ring_enable(&ring), 0);

    struct io_uring_sqe *sqe = io_uring_get_sqe(&ring);
    io_uring_prep_read(sqe, file, data, sizeof data, 0);
    assert_int_equal(result_of(sqe), sizeof data);
    assert_memory_equal(data + 1, "ELF", 3);

    sqe = io_uring_get_sqe(&ring);
    io_uring_prep_openat(sqe, AT_FDCWD, "/etc/passwd", O_RDONLY, 0);
    assert_int_equal(result_of(sqe), -EACCES);
    sqe = io_uring_get_sqe(&ring);
    io_uring_prep_write(sqe, file, data, sizeof data, 0);
    assert_int_equal(result_of(sqe), -EACCES);
    sqe = io_uring_get_sqe(&ring);
    io_uring_prep_nop(sqe);
    assert_int_equal(result_of(sqe), -EACCES);
    sqe = io_uring_get_sqe(&ring); /* a flag that would let it use a registered file */
    io_uring_prep_read(sqe, 0, data, sizeof data, 0);
    sqe->flags |= IOSQE_FIXED_FILE;
    assert_int_equal(result_of(sqe), -EACCES);
}

static void registers_nothing_more(void **state)
{
    (void)state;
    static const uint8_t opcodes[] = {IORING_OP_READ_FIXED};
    struct iovec all = {data, sizeof data};
    if (ring.ring_fd < 0)
        skip();
    assert_int_equal(io_uring_register_buffers(&ring, &all, 1), 0); /* before, it may */
    assert_int_equal(ring_restrict(&ring, opcodes, sizeof opcodes), 0);
    assert_int_equal(ring_enable(&ring), 0);
    struct io_uring_sqe *sqe = io_uring_get_sqe(&ring);
    io_uring_prep_read_fixed(sqe, file, data, sizeof data, 0, 0);
    assert_int_equal(result_of(sqe), sizeof data);
    assert_int_equal(io_uring_register_files(&ring, &file, 1), -EACCES);
    assert_int_equal(io_uring_unregister_buffers(&ring), -EACCES);
    /* Nor can it be loosened. */
    static const uint8_t more[] = {IORING_OP_OPENAT};
    assert_true(ring_restrict(&ring, more, sizeof more) < 0);
}

static void only_before_it_works(void **state)
{
    (void)state;
    static const uint8_t opcodes[17] = {IORING_OP_READ};
    if (ring.ring_fd < 0)
        skip();
    assert_int_equal(ring_restrict(&ring, opcodes, 0), -EINVAL);
    assert_int_equal(ring_restrict(&ring, opcodes, sizeof opcodes), -EINVAL);
    assert_int_equal(ring_enable(&ring), 0);
    assert_int_equal(ring_restrict(&ring, opcodes, 1), -EBADFD);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(only_what_was_named, make_ring, end_ring),
        cmocka_unit_test_setup_teardown(registers_nothing_more, make_ring, end_ring),
        cmocka_unit_test_setup_teardown(only_before_it_works, make_ring, end_ring),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
