/* test_gguf.c: the GGUF reader: what it reads, and every refusal with its sentence. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "gguf_writer.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static void opens(struct writer *w, struct gguf **ret)
{
    struct report report = {0};
    if (writer_open(w, ret, &report) < 0)
        fail_msg("refused: %s", report.text);
}

static void refused_bytes(const void *data, size_t n, int code, const char *says)
{
    struct gguf *g = (void *)1;
    struct report report = {0};
    assert_int_equal(writer_open_bytes(data, n, &g, &report), -code);
    assert_ptr_equal(g, (void *)1); /* out-parameters stay untouched */
    assert_int_equal(report.code, code);
    if (strstr(report.text, says) == NULL)
        fail_msg("'%s' does not say '%s'", report.text, says);
}

/* Takes w. */
static void refused(struct writer *w, int code, const char *says)
{
    struct writer_bytes b = writer_file(w, NULL);
    refused_bytes(b.data, b.n, code, says);
    free(b.data);
    writer_free(w);
}

/* ---- what is read ---------------------------------------------------------------------------- */

static void reads_keys(void **state)
{
    (void)state;
    struct writer *w = writer_new();
    static const int8_t i8 = -5;
    static const uint16_t u16 = 65535;
    static const int64_t i64 = INT64_MIN;
    static const uint64_t u64 = UINT64_MAX;
    static const double f64 = 0.25, huge = 1e300;
    static const uint8_t yes = 1;
    writer_set_u32(w, "a.u32", 7);
    bytes_put(writer_key(w, "a.i8", GGUF_INT8), &i8, 1);
    bytes_put(writer_key(w, "a.u16", GGUF_UINT16), &u16, 2);
    bytes_put(writer_key(w, "a.i64", GGUF_INT64), &i64, 8);
    bytes_put(writer_key(w, "a.u64", GGUF_UINT64), &u64, 8);
    bytes_put(writer_key(w, "a.f64", GGUF_FLOAT64), &f64, 8);
    bytes_put(writer_key(w, "a.huge", GGUF_FLOAT64), &huge, 8);
    bytes_put(writer_key(w, "a.yes", GGUF_BOOL), &yes, 1);
    writer_set_f32(w, "a.f32", 1.5f);
    writer_set_string(w, "a.text", "na\xc3\xafve\n");
    writer_set_strings(w, "a.strings", 3, "s");

    struct gguf *g = NULL;
    opens(w, &g);
    uint32_t u = 99;
    uint64_t v = 99;
    float f = 99;
    bool flag = false;
    struct gguf_string s;
    assert_true(gguf_get_u32(g, "a.u32", &u));
    assert_int_equal(u, 7);
    u = 99;
    assert_false(gguf_get_u32(g, "a.i8", &u));  /* negative */
    assert_false(gguf_get_u32(g, "a.u64", &u)); /* too large */
    assert_false(gguf_get_u32(g, "a.f32", &u)); /* not an integer */
    assert_false(gguf_get_u32(g, "a.yes", &u));
    assert_false(gguf_get_u32(g, "a.strings", &u));
    assert_false(gguf_get_u32(g, "a.absent", &u));
    assert_int_equal(u, 99);
    assert_true(gguf_get_u32(g, "a.u16", &u));
    assert_int_equal(u, 65535);
    assert_true(gguf_get_u64(g, "a.u64", &v));
    assert_true(v == UINT64_MAX);
    assert_false(gguf_get_u64(g, "a.i64", &v));
    assert_true(gguf_get_f32(g, "a.f32", &f) && f == 1.5f);
    assert_true(gguf_get_f32(g, "a.f64", &f) && f == 0.25f);
    assert_false(gguf_get_f32(g, "a.huge", &f));
    assert_false(gguf_get_f32(g, "a.u32", &f));
    assert_true(gguf_get_bool(g, "a.yes", &flag) && flag);
    assert_false(gguf_get_bool(g, "a.u32", &flag));
    assert_true(gguf_get_string(g, "a.text", &s));
    assert_int_equal(s.bytes, 7);
    assert_memory_equal(s.data, "na\xc3\xafve\n", 7);
    assert_false(gguf_get_string(g, "a.u32", &s));

    enum gguf_value_type type = GGUF_UINT8;
    assert_true(gguf_has(g, "a.huge", &type));
    assert_int_equal(type, GGUF_FLOAT64);
    assert_true(gguf_has(g, "a.huge", NULL));
    assert_false(gguf_has(g, "a", &type));
    gguf_free(g);
    writer_free(w);
}

static void reads_arrays(void **state)
{
    (void)state;
    struct writer *w = writer_new();
    writer_set_string(w, "a.text", "text");
    writer_set_strings(w, "a.strings", 1000, "s");
    writer_set_strings(w, "a.none", 0, "");
    struct writer_bytes *b = writer_key(w, "a.floats", GGUF_ARRAY);
    bytes_u32(b, GGUF_FLOAT32);
    bytes_u64(b, 2);
    bytes_put(b, (float[]){1, 2}, 8);

    struct gguf *g = NULL;
    struct gguf_string s;
    uint64_t v = 0;
    opens(w, &g);
    assert_true(gguf_get_array(g, "a.strings", GGUF_STRING, &v));
    assert_int_equal(v, 1000);
    assert_false(gguf_get_array(g, "a.strings", GGUF_UINT8, &v));
    assert_false(gguf_get_array(g, "a.text", GGUF_STRING, &v));
    s = gguf_array_string(g, "a.strings", 999);
    assert_int_equal(s.bytes, 4);
    assert_memory_equal(s.data, "s999", 4);
    s = gguf_array_string(g, "a.strings", 0);
    assert_memory_equal(s.data, "s0", 2);
    assert_int_equal(gguf_array_string(g, "a.strings", 1000).bytes, 0);
    assert_null(gguf_array_data(g, "a.strings"));
    assert_true(gguf_get_array(g, "a.none", GGUF_STRING, &v) && v == 0);
    assert_true(gguf_get_array(g, "a.floats", GGUF_FLOAT32, &v) && v == 2);
    float two[2];
    memcpy(two, gguf_array_data(g, "a.floats"), sizeof two);
    assert_true(two[0] == 1 && two[1] == 2);
    gguf_free(g);
    writer_free(w);
}

static void key_text_is_for_a_person(void **state)
{
    (void)state;
    struct writer *w = writer_new();
    static const int16_t i16 = -300;
    static const uint8_t no = 0;
    writer_set_string(w, "text", "ll\x1b[31mama");
    writer_set_strings(w, "strings", 16, "");
    bytes_put(writer_key(w, "i16", GGUF_INT16), &i16, 2);
    writer_set_f32(w, "f32", 10000.0f);
    bytes_put(writer_key(w, "bool", GGUF_BOOL), &no, 1);
    writer_set_string(w, "long", "0123456789\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9");
    struct gguf *g = NULL;
    opens(w, &g);
    static const char *const expected[] = {
        "\"ll?[31mama\"", "[16 strings]", "-300", "10000", "false", "\"0123456789\xc3\xa9\"..."};
    static const char *const names[] = {"text", "strings", "i16", "f32", "bool", "long"};
    assert_int_equal(gguf_n_keys(g), 6);
    for (uint64_t i = 0; i < 6; i++) {
        char text[19], tiny[3];
        enum gguf_value_type type;
        struct gguf_string key = gguf_key(g, i, &type);
        assert_int_equal(key.bytes, strlen(names[i]));
        assert_memory_equal(key.data, names[i], key.bytes);
        gguf_key_text(g, i, text, sizeof text);
        assert_string_equal(text, expected[i]);
        gguf_key_text(g, i, tiny, sizeof tiny); /* never writes beyond its room */
        assert_true(memchr(tiny, 0, sizeof tiny) != NULL);
    }
    gguf_free(g);
    writer_free(w);
}

static void reads_tensors(void **state)
{
    (void)state;
    for (uint32_t version = 2; version <= 3; version++) {
        struct writer *w = writer_model("llama", INFER_TYPE_Q8_0);
        struct gguf *g = NULL;
        float values[64];
        for (int i = 0; i < 64; i++)
            values[i] = (float)i;
        writer_find(w, "output_norm.weight")->values = values;
        w->version = version;
        w->alignment = 256;
        writer_set_u32(w, "general.alignment", 256);
        opens(w, &g);
        assert_int_equal(gguf_version(g), version);
        assert_int_equal(gguf_n_tensors(g), 11);
        assert_int_equal(gguf_n_parts(g), 1);
        assert_null(gguf_find_tensor(g, "output.weight"));
        assert_null(gguf_tensor(g, 11));
        const struct gguf_tensor *t = gguf_find_tensor(g, "blk.0.ffn_down.weight");
        assert_non_null(t);
        assert_ptr_equal(t, gguf_tensor(g, 10));
        assert_int_equal(t->tensor.n_dims, 2);
        assert_int_equal(t->tensor.ne[0], 96);
        assert_int_equal(t->tensor.ne[1], 64);
        assert_int_equal(t->tensor.ne[2], 1);
        assert_int_equal(t->tensor.n_rows, 64);
        assert_int_equal(t->tensor.row_bytes, 96 / 32 * 34);
        assert_int_equal(t->bytes, 64 * 102);
        assert_int_equal(t->offset % 256, 0);
        assert_true(t->offset + t->bytes <= gguf_part_bytes(g, 0));
        float got[64];
        t = gguf_find_tensor(g, "output_norm.weight");
        assert_int_equal(pread(gguf_part_fd(g, t->part), got, sizeof got, (off_t)t->offset),
                         sizeof got);
        assert_memory_equal(got, values, sizeof got);
        assert_int_equal(fcntl(gguf_part_fd(g, 0), F_GETFL) & O_NONBLOCK, 0);
        gguf_free(g);
        writer_free(w);
    }
}

/* The table against sizes written down independently (name, values and bytes of a block). */
static void knows_the_type_table(void **state)
{
    (void)state;
    static const struct {
        uint32_t id;
        const char *name;
        uint32_t block, bytes;
    } rows[] = {
        {0, "F32", 1, 4},
        {1, "F16", 1, 2},
        {2, "Q4_0", 32, 2 + 16},
        {3, "Q4_1", 32, 4 + 16},
        {6, "Q5_0", 32, 2 + 4 + 16},
        {7, "Q5_1", 32, 4 + 4 + 16},
        {8, "Q8_0", 32, 2 + 32},
        {10, "Q2_K", 256, 16 + 64 + 4},
        {11, "Q3_K", 256, 32 + 64 + 12 + 2},
        {12, "Q4_K", 256, 4 + 12 + 128},
        {13, "Q5_K", 256, 4 + 12 + 32 + 128},
        {14, "Q6_K", 256, 128 + 64 + 16 + 2},
        {20, "IQ4_NL", 32, 2 + 16},
        {21, "IQ3_S", 256, 2 + 64 + 8 + 32 + 4},
        {23, "IQ4_XS", 256, 2 + 2 + 4 + 128},
        {30, "BF16", 1, 2},
        {34, "TQ1_0", 256, 48 + 4 + 2},
        {35, "TQ2_0", 256, 64 + 2},
        {39, "MXFP4", 32, 1 + 16},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        const struct type_info *t = type_info(rows[i].id);
        assert_string_equal(t->name, rows[i].name);
        assert_int_equal(t->block, rows[i].block);
        assert_int_equal(t->block_bytes, rows[i].bytes);
        assert_true(t->readable);
    }
    uint32_t readable = 0;
    for (uint32_t id = 0; id < 42; id++) {
        assert_non_null(type_info(id));
        assert_non_null(type_info(id)->name);
        readable += type_info(id)->readable;
    }
    assert_int_equal(readable, 19);
    assert_string_equal(type_info(4)->name, "Q4_2");
    assert_string_equal(type_info(40)->name, "NVFP4");
    assert_null(type_info(42));
    assert_null(type_info(UINT32_MAX));
}

static void a_vocabulary_only_file_opens(void **state)
{
    (void)state;
    struct writer *w = writer_new();
    struct gguf *g = NULL;
    writer_set_string(w, "general.architecture", "llama");
    writer_set_strings(w, "tokenizer.ggml.tokens", 5, "t");
    opens(w, &g);
    assert_int_equal(gguf_n_tensors(g), 0);
    assert_null(gguf_tensor(g, 0));
    assert_null(gguf_find_tensor(g, "x"));
    gguf_free(g);
    writer_free(w);
}

/* 150,000 entries and as many merges: a few milliseconds; the bound allows for a loaded machine
 * and sanitizers and fails for anything quadratic. */
static void a_large_vocabulary_opens_fast(void **state)
{
    (void)state;
    struct writer *w = writer_new();
    struct gguf *g = NULL;
    struct timespec from, to;
    struct report report = {0};
    writer_set_strings(w, "tokenizer.ggml.tokens", 150000, "token");
    writer_set_strings(w, "tokenizer.ggml.merges", 150000, "some merge ");
    struct writer_bytes b = writer_file(w, NULL);
    clock_gettime(CLOCK_MONOTONIC, &from);
    assert_int_equal(writer_open_bytes(b.data, b.n, &g, &report), 0);
    uint64_t bytes = 0;
    for (uint64_t i = 0; i < 150000; i++)
        bytes += gguf_array_string(g, "tokenizer.ggml.tokens", i).bytes;
    clock_gettime(CLOCK_MONOTONIC, &to);
    double ms = (double)(to.tv_sec - from.tv_sec) * 1e3 + (double)(to.tv_nsec - from.tv_nsec) / 1e6;
    print_message("open and walk: %.1f ms\n", ms);
    assert_int_equal(bytes, 150000 * 5 + 10 + 90 * 2 + 900 * 3 + 9000 * 4 + 90000 * 5 + 50000 * 6);
    assert_true(ms < 1000);
    assert_memory_equal(gguf_array_string(g, "tokenizer.ggml.merges", 149999).data,
                        "some merge 149999", 17);
    gguf_free(g);
    free(b.data);
    writer_free(w);
}

/* ---- split models ---------------------------------------------------------------------------- */

static void set_split(struct writer *w, uint16_t no, uint16_t count, int32_t tensors)
{
    writer_drop(w, "split.no");
    writer_drop(w, "split.count");
    writer_drop(w, "split.tensors.count");
    bytes_put(writer_key(w, "split.no", GGUF_UINT16), &no, sizeof no);
    bytes_put(writer_key(w, "split.count", GGUF_UINT16), &count, sizeof count);
    bytes_put(writer_key(w, "split.tensors.count", GGUF_INT32), &tensors, sizeof tensors);
}

static void split_refused(const char *path, int code, const char *says)
{
    struct gguf *g = NULL;
    struct report report = {0};
    assert_int_equal(gguf_open(path, &g, &report), -code);
    if (strstr(report.text, says) == NULL)
        fail_msg("'%s' does not say '%s'", report.text, says);
}

static void reads_split_models(void **state)
{
    (void)state;
    char dir[] = "/tmp/test_gguf.XXXXXX", path[3][96], lone[96];
    assert_non_null(mkdtemp(dir));
    for (int i = 0; i < 3; i++)
        snprintf(path[i], sizeof path[i], "%s/m-%05d-of-00003.gguf", dir, i + 1);
    snprintf(lone, sizeof lone, "%s/lone.gguf", dir);
    struct writer *w[3];
    for (int i = 0; i < 3; i++) {
        char name[32];
        w[i] = writer_new();
        set_split(w[i], (uint16_t)i, 3, 4);
        for (int j = 0; j < i + (i > 0); j++) /* 0, 2 and 3 tensors: no, 4 in all below */
            if (i * 2 + j < 6) {
                snprintf(name, sizeof name, "t%d", i * 2 + j);
                writer_tensor(w[i], name, INFER_TYPE_F32, 8, 0);
            }
    }
    w[2]->n_tensors = 2;
    for (int i = 0; i < 3; i++)
        writer_save(w[i], path[i]);

    struct gguf *g = NULL;
    struct report report = {0};
    if (gguf_open(path[0], &g, &report) < 0)
        fail_msg("refused: %s", report.text);
    assert_int_equal(gguf_n_parts(g), 3);
    assert_int_equal(gguf_n_tensors(g), 4);
    const struct gguf_tensor *t = gguf_find_tensor(g, "t5");
    assert_non_null(t);
    assert_int_equal(t->part, 2);
    assert_string_equal(gguf_part_path(g, 2), path[2]);
    assert_int_equal(gguf_find_tensor(g, "t2")->part, 1);
    assert_true(gguf_part_fd(g, 1) >= 0 && gguf_part_fd(g, 1) != gguf_part_fd(g, 2));
    gguf_free(g);

    split_refused(path[1], INFER_E_MODEL_PARTS, "part 2 of 3; give the first part");
    writer_save(w[0], lone);
    split_refused(lone, INFER_E_MODEL_PARTS, "-00001-of-00003.gguf");
    set_split(w[2], 1, 3, 4);
    writer_save(w[2], path[2]);
    split_refused(path[0], INFER_E_MODEL_PARTS, "says that it is part 2 of 3, not part 3 of 3");
    set_split(w[2], 2, 3, 9);
    writer_save(w[2], path[2]);
    split_refused(path[0], INFER_E_MODEL_PARTS, "belongs to a model of 9 tensors");
    set_split(w[2], 2, 3, 4);
    w[2]->n_tensors = 1;
    writer_save(w[2], path[2]);
    split_refused(path[0], INFER_E_MODEL_PARTS, "hold 3 tensors");
    w[2]->n_tensors = 2;
    snprintf(w[2]->tensors[0].name, sizeof w[2]->tensors[0].name, "t2");
    writer_save(w[2], path[2]);
    split_refused(path[0], INFER_E_MODEL_FORMAT, "tensor 't2' appears twice");
    unlink(path[2]);
    split_refused(path[0], INFER_E_MODEL_PARTS, "m-00003-of-00003.gguf cannot be opened");
    set_split(w[0], 0, 60000, 4);
    writer_save(w[0], path[0]);
    split_refused(path[0], INFER_E_MODEL_FORMAT, "'split.count' is 60000");

    for (int i = 0; i < 3; i++) {
        writer_free(w[i]);
        unlink(path[i]);
    }
    unlink(lone);
    rmdir(dir);
}

/* ---- refusals -------------------------------------------------------------------------------- */

/* ---- by descriptor --------------------------------------------------------------------------- */

struct reading {
    unsigned calls;
    int fails; /* negative errno of every call */
};

static ssize_t read_slowly(void *ctx, int fd, void *to, size_t bytes, uint64_t offset)
{
    struct reading *r = ctx;
    r->calls++;
    if (r->fails < 0)
        return r->fails;
    return pread(fd, to, bytes < 700 ? bytes : 700, (off_t)offset);
}

static int open_fds(const char *name, const int *fds, uint32_t n, const struct gguf_reader *reader,
                    struct report *report)
{
    struct gguf *g;
    int rc = gguf_open_files(name, fds, n, reader, &g, report);
    if (rc == 0) {
        assert_int_equal(gguf_n_parts(g), n);
        assert_true(gguf_n_tensors(g) > 0);
        for (uint32_t i = 0; i < n; i++)
            assert_true(gguf_part_fd(g, i) >= 0 && gguf_part_fd(g, i) != fds[i]);
        gguf_free(g);
    }
    return rc;
}

static void reads_descriptors(void **state)
{
    (void)state;
    char path[] = "/tmp/inferd-gguf.XXXXXX";
    struct report report = {0};
    struct reading reading = {0};
    struct gguf_reader reader = {read_slowly, &reading};
    struct writer *w = writer_model("llama", INFER_TYPE_F32);
    int fd = mkstemp(path), pipes[2];
    assert_true(fd >= 0);
    writer_save(w, path);
    writer_free(w);
    int readable = open(path, O_RDONLY | O_CLOEXEC), twice[2] = {readable, readable};
    int only_write = open(path, O_WRONLY | O_CLOEXEC), no_file = open(path, O_PATH | O_CLOEXEC);
    unlink(path); /* nobody looks for it */
    assert_int_equal(open_fds("x", &readable, 1, NULL, &report), 0);
    assert_int_equal(open_fds("x", &fd, 1, &reader, &report), 0);
    assert_true(reading.calls > 1);
    reading.fails = -EIO;
    assert_int_equal(open_fds("x", &fd, 1, &reader, &report), -INFER_E_MODEL_UNREADABLE);
    assert_non_null(strstr(report.text, "x cannot be read"));
    assert_int_equal(open_fds("x", twice, 2, NULL, &report), -INFER_E_MODEL_PARTS);
    assert_non_null(strstr(report.text, "a whole model, but 2 files"));
    assert_int_equal(pipe(pipes), 0);
    int wrong[] = {only_write, no_file, pipes[0], pipes[1]};
    for (size_t i = 0; i < 4; i++) {
        assert_int_equal(open_fds("x", &wrong[i], 1, NULL, &report), -INFER_E_MODEL_UNREADABLE);
        close(wrong[i]);
    }
    close(fd);
    close(readable);
}

static void refuses_what_is_not_a_file(void **state)
{
    (void)state;
    char dir[] = "/tmp/test_gguf.XXXXXX", fifo[64];
    assert_non_null(mkdtemp(dir));
    snprintf(fifo, sizeof fifo, "%s/fifo", dir);
    assert_int_equal(mkfifo(fifo, 0600), 0);
    split_refused(dir, INFER_E_MODEL_UNREADABLE, "is a directory");
    split_refused(fifo, INFER_E_MODEL_UNREADABLE, "is a pipe"); /* and does not wait for a writer */
    split_refused("/dev/zero", INFER_E_MODEL_UNREADABLE, "is a character device");
    split_refused("/nonexistent/model.gguf", INFER_E_MODEL_UNREADABLE, "No such file");
    split_refused("", INFER_E_MODEL_UNREADABLE, "cannot be opened");
    unlink(fifo);
    rmdir(dir);
}

static void refuses_foreign_files(void **state)
{
    (void)state;
    static const struct {
        const char *bytes;
        size_t n;
        const char *says;
    } files[] = {
        {"", 0, "is empty"},
        {"GG", 2, "only 2 bytes"},
        {"GGUG....", 8, "begins with the bytes 47 47 55 47"},
        {"version https://git-lfs.github.com/spec/v1\noid", 46, "git lfs pull"},
        {"tjgg\3\0\0\0", 8, "ggjt"},
        {"PK\x03\x04.......", 11, "zip archive"},
        {"\x80\x02\x8a\x0a", 4, "pickle"},
        {"\x10\0\0\0\0\0\0\0{\"a\":1}          ", 25, "safetensors"},
        {"<!DOCTYPE html>", 15, "HTML"},
        {"{\"error\":1}", 11, "JSON"},
        {"\x7f"
         "ELF\2\1\1",
         7, "a program"},
        {"GGUF\0\0\0\3\0\0\0\0\0\0\0\1", 16, "big-endian"},
        {"GGUF\1\0\0\0\0\0\0\0", 12, "version 1"},
        {"GGUF\4\0\0\0\0\0\0\0", 12, "version 4; versions 2 and 3"},
        {"GGUF\0\0\0\0\0\0\0\0", 12, "version 0"},
        {"GGUF\3\0\0\0\0\0\0\0", 12, "the file ends at byte 12"},
        {"GGUF", 4, "the file ends at byte 4"},
        {"GGUF\3\0\0\0\1\0\0\0\0\0\0\1\0\0\0\0\0\0\0\0", 24, "tensors; at most"},
        {"GGUF\3\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\1", 24, "keys; at most"},
    };
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
        bool version = strstr(files[i].says, "version") || strstr(files[i].says, "endian");
        refused_bytes(files[i].bytes, files[i].n,
                      version ? INFER_E_MODEL_UNSUPPORTED : INFER_E_MODEL_FORMAT, files[i].says);
    }
}

static void refuses_bad_keys(void **state)
{
    (void)state;
    const int format = INFER_E_MODEL_FORMAT;
    struct writer *w = writer_new();
    writer_set_u32(w, "twice", 1);
    bytes_u32(writer_key(w, "twice", GGUF_UINT32), 2);
    refused(w, format, "key 'twice' appears twice");

    w = writer_new();
    bytes_u32(writer_key(w, "odd", 13), 0);
    refused(w, format, "key 'odd' has the unknown value type 13");

    w = writer_new();
    bytes_put(writer_key(w, "odd", GGUF_BOOL), "\2", 1);
    refused(w, format, "key 'odd' holds a truth value");

    w = writer_new();
    writer_set_u32(w, "", 1);
    refused(w, format, "key name of 0 bytes");

    w = writer_new();
    writer_set_u32(w, "a.b", 1);
    w->keys[0].name[1] = '\0';
    refused(w, format, "zero byte");

    w = writer_new();
    struct writer_bytes *b = writer_key(w, "nest", GGUF_ARRAY);
    bytes_u32(b, GGUF_ARRAY);
    bytes_u64(b, 1);
    refused(w, INFER_E_MODEL_UNSUPPORTED, "key 'nest' is an array of arrays");

    static const uint64_t counts[] = {1u << 27, UINT64_MAX, UINT64_MAX / 4 + 1};
    for (int i = 0; i < 3; i++) {
        w = writer_new();
        b = writer_key(w, "long", GGUF_ARRAY);
        bytes_u32(b, GGUF_FLOAT64);
        bytes_u64(b, counts[i]);
        refused(w, format, "elements; at most");
    }
    w = writer_new();
    b = writer_key(w, "long", GGUF_ARRAY);
    bytes_u32(b, GGUF_FLOAT64);
    bytes_u64(b, 3);
    bytes_u64(b, 0);
    refused(w, format, "key 'long' needs 24 bytes at byte");

    w = writer_new();
    b = writer_key(w, "long", GGUF_ARRAY);
    bytes_u32(b, 77);
    bytes_u64(b, 0);
    refused(w, format, "unknown value type 77");

    w = writer_new();
    bytes_u64(writer_key(w, "text", GGUF_STRING), UINT64_MAX - 7);
    refused(w, format, "key 'text' needs 18446744073709551608 bytes");

    static const uint32_t alignments[] = {0, 3, 48, 1u << 31};
    for (int i = 0; i < 4; i++) {
        w = writer_new();
        writer_set_u32(w, "general.alignment", alignments[i]);
        refused(w, format, "not a power of two");
    }
    w = writer_new();
    writer_set_string(w, "general.alignment", "32");
    refused(w, format, "key 'general.alignment' is not an integer");
    w = writer_new();
    bytes_u32(writer_key(w, "split.count", GGUF_INT32), (uint32_t)-2);
    refused(w, format, "key 'split.count' is negative");
}

/* A hostile file can choose names that meet in one place of the hash table. */
static void refuses_names_made_to_collide(void **state)
{
    (void)state;
    /* Brute force: names whose hash has 12 low bits zero land in the first slots of the table. */
    struct writer_bytes b = {0};
    uint32_t n = 300, found = 0;
    bytes_put(&b, "GGUF\3\0\0\0\0\0\0\0\0\0\0\0", 16);
    bytes_u64(&b, n);
    for (uint32_t i = 0; found < n; i++) {
        char name[16];
        uint32_t h = 2166136261u;
        snprintf(name, sizeof name, "k%u", i);
        for (const char *c = name; *c; c++)
            h = (h ^ (uint8_t)*c) * 16777619u;
        h ^= h >> 15;
        if ((h & 1023) != 0) /* 300 keys: 1,024 slots */
            continue;
        bytes_string(&b, name);
        bytes_u32(&b, GGUF_UINT8);
        bytes_put(&b, "\1", 1);
        found++;
    }
    refused_bytes(b.data, b.n, INFER_E_MODEL_FORMAT, "collides");
    free(b.data);
}

static void refuses_bad_tensors(void **state)
{
    (void)state;
    const int format = INFER_E_MODEL_FORMAT, unsupported = INFER_E_MODEL_UNSUPPORTED;
    struct writer *w = writer_model("llama", INFER_TYPE_F32);
    writer_tensor(w, "output_norm.weight", INFER_TYPE_F32, 64, 0);
    refused(w, format, "tensor 'output_norm.weight' appears twice");

    w = writer_model("llama", INFER_TYPE_F32);
    writer_find(w, "output_norm.weight")->type = 99;
    refused(w, unsupported, "tensor 'output_norm.weight' has the type id 99");

    w = writer_model("llama", INFER_TYPE_F32);
    writer_find(w, "output_norm.weight")->type = 33;
    refused(w, unsupported, "Q4_0_8_8, which was removed");

    w = writer_new();
    writer_tensor(w, "short", INFER_TYPE_Q6_K, 128, 4)->offset = 0;
    refused(w, format, "tensor 'short' has rows of 128 values, not a multiple of Q6_K's 256");

    static const uint32_t dims[] = {0, 5, UINT32_MAX};
    for (int i = 0; i < 3; i++) {
        w = writer_new();
        struct writer_tensor *t = writer_tensor(w, "dims", INFER_TYPE_F32, 4, 0);
        t->n_dims = dims[i];
        t->offset = 0;
        refused(w, format, "dimensions; 1 to 4");
    }
    w = writer_new();
    writer_tensor(w, "none", INFER_TYPE_F32, 0, 0);
    refused(w, format, "tensor 'none' has a dimension of zero");

    w = writer_new();
    struct writer_tensor *t = writer_tensor(w, "huge", INFER_TYPE_F32, UINT64_C(1) << 33, 0);
    t->n_dims = 3;
    t->ne[1] = t->ne[2] = UINT64_C(1) << 33;
    t->offset = 0;
    refused(w, format, "tensor 'huge' has dimensions whose product is out of range");

    w = writer_new();
    writer_tensor(w, "wild", INFER_TYPE_F32, 4, 0)->offset = UINT64_MAX - 31;
    refused(w, format, "tensor 'wild' has 16 bytes at offset 18446744073709551584");

    w = writer_new();
    writer_tensor(w, "odd", INFER_TYPE_F32, 4, 0)->offset = 16;
    refused(w, format, "tensor 'odd' begins at offset 16, not a multiple of the alignment 32");

    w = writer_model("llama", INFER_TYPE_F32);
    writer_find(w, "blk.0.attn_q.weight")->offset = 64;
    refused(w, format, "begins within tensor 'token_embd.weight'");

    w = writer_new();
    writer_tensor(w, "0123456789012345678901234567890123456789012345678901234567890123",
                  INFER_TYPE_F32, 4, 0);
    refused(w, format, "tensor name of 64 bytes");
}

/* Every length short of the whole file is refused, in a sentence that says so. */
static void refuses_every_truncation(void **state)
{
    (void)state;
    struct writer *w = writer_model("llama", INFER_TYPE_Q8_0);
    size_t head = 0;
    struct writer_bytes b = writer_file(w, &head);
    for (size_t n = 0; n < b.n; n += n < head + 64 ? 1 : 251) {
        struct gguf *g = NULL;
        struct report report = {0};
        int r = writer_open_bytes(b.data, n, &g, &report);
        if (r != -INFER_E_MODEL_FORMAT)
            fail_msg("%zu of %zu bytes: %d %s", n, b.n, r, report.text);
        if (n >= 4 && strstr(report.text, "the file ends at byte") == NULL)
            fail_msg("%zu of %zu bytes: %s", n, b.n, report.text);
    }
    refused_bytes(b.data, b.n - 1, INFER_E_MODEL_FORMAT, "tensor 'blk.0.ffn_down.weight' has");
    free(b.data);
    writer_free(w);
}

/* A file may claim a terabyte and cost none: nothing is read or taken for it. */
static void refuses_a_head_without_end(void **state)
{
    (void)state;
    struct writer_bytes b = {0};
    char path[64];
    struct gguf *g = NULL;
    struct report report = {0};
    bytes_put(&b, "GGUF\3\0\0\0\0\0\0\0\0\0\0\0", 16);
    bytes_u64(&b, 1);
    bytes_string(&b, "text");
    bytes_u32(&b, GGUF_STRING);
    bytes_u64(&b, UINT64_C(1) << 39);
    int fd = memfd_create("test.gguf", MFD_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(pwrite(fd, b.data, b.n, 0), b.n);
    assert_int_equal(ftruncate(fd, INT64_C(1) << 40), 0);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    assert_int_equal(gguf_open(path, &g, &report), -INFER_E_MODEL_FORMAT);
    if (strstr(report.text, "key 'text' reaches beyond the first 256 MiB") == NULL)
        fail_msg("%s", report.text);
    close(fd);
    free(b.data);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_keys),
        cmocka_unit_test(reads_arrays),
        cmocka_unit_test(key_text_is_for_a_person),
        cmocka_unit_test(reads_tensors),
        cmocka_unit_test(knows_the_type_table),
        cmocka_unit_test(a_vocabulary_only_file_opens),
        cmocka_unit_test(a_large_vocabulary_opens_fast),
        cmocka_unit_test(reads_split_models),
        cmocka_unit_test(reads_descriptors),
        cmocka_unit_test(refuses_what_is_not_a_file),
        cmocka_unit_test(refuses_foreign_files),
        cmocka_unit_test(refuses_bad_keys),
        cmocka_unit_test(refuses_names_made_to_collide),
        cmocka_unit_test(refuses_bad_tensors),
        cmocka_unit_test(refuses_every_truncation),
        cmocka_unit_test(refuses_a_head_without_end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
