/* fixture.h: a connection to a daemon in a thread (fake_daemon.h), and what the tests of the client
 * library do with it again and again. To be included after cmocka.h. */
#ifndef TESTS_UNIT_CLIENT_FIXTURE_H
#define TESTS_UNIT_CLIENT_FIXTURE_H

#include "fake_daemon.h"

struct fixture {
    struct fake_daemon *daemon;
    struct infer_conn *conn;
};

static inline struct infer_conn *join(struct fake_daemon *d, uint32_t request_ring,
                                      uint32_t token_ring)
{
    struct infer_connect_options o = {
        .socket = d->path, .request_ring_bytes = request_ring, .token_ring_bytes = token_ring};
    struct infer_conn *c;
    assert_int_equal(infer_connect(&o, &c), 0);
    return c;
}

static inline int set_up(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    f->daemon = fake_new();
    f->conn = join(f->daemon, 0, 0);
    *state = f;
    return 0;
}

static inline int tear_down(void **state)
{
    struct fixture *f = *state;
    infer_close(f->conn);
    fake_free(f->daemon);
    free(f);
    return 0;
}

static inline uint32_t ask(struct infer_conn *c, const char *text)
{
    struct infer_request r;
    uint32_t id;
    infer_request_default(&r);
    r.text = text;
    assert_int_equal(infer_submit(c, &r, &id), 0);
    return id;
}

/* Reads to DONE; the text is compared when it is given. Number of tokens. */
static inline uint32_t read_all(struct infer_conn *c, uint32_t id, const char *text)
{
    struct infer_event e;
    size_t at = 0;
    uint32_t n = 0;
    for (;;) {
        assert_int_equal(infer_next(c, id, 10000, &e), 1);
        assert_int_equal(e.request, id);
        if (e.kind == INFER_EVENT_DONE)
            break;
        if (e.kind != INFER_EVENT_TOKEN)
            continue;
        assert_int_equal(e.index, n);
        assert_int_equal(e.text[e.text_bytes], '\0');
        if (text != NULL)
            assert_memory_equal(text + at, e.text, e.text_bytes);
        at += e.text_bytes;
        n++;
    }
    assert_int_equal(e.error, 0);
    assert_int_equal(e.finish, INFER_FINISH_STOP);
    assert_int_equal(e.n_generated, n);
    if (text != NULL)
        assert_int_equal(at, strlen(text));
    return n;
}

#define WITH_DAEMON(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)

#endif
