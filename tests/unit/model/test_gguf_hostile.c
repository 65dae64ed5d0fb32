/* test_gguf_hostile.c: damaged heads by the thousand. A mutated file is either refused with a code
 * and a sentence, or opens with every promise of gguf.h and plan.h kept; under the sanitizers no
 * byte outside of it is touched. The sequence is fixed; INFERD_TEST_SEED chooses another. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "gguf_writer.h"
#include "model/inspect.h"
#include "model/plan.h"

#include <dirent.h>
#include <math.h>

#define ROUNDS 3000

struct fixture {
    struct writer_bytes file;
    size_t head;
    uint64_t random;
    FILE *null;
    unsigned opened, planned, refused;
    unsigned n_descriptors; /* open before the test */
};

static unsigned count_descriptors(void)
{
    unsigned n = 0;
    DIR *dir = opendir("/proc/self/fd");
    assert_non_null(dir);
    while (readdir(dir) != NULL)
        n++;
    closedir(dir);
    return n;
}

static uint64_t random_next(struct fixture *f)
{
    f->random ^= f->random << 13;
    f->random ^= f->random >> 7;
    f->random ^= f->random << 17;
    return f->random;
}

static volatile uint8_t sink;

/* Reads every byte, so that a sanitizer sees one out of bounds. */
static void touch(const void *data, size_t n)
{
    const uint8_t *b = data;
    uint8_t x = 0;
    for (size_t i = 0; i < n; i++)
        x ^= b[i];
    sink = x;
}

static void check_keys(const struct gguf *g)
{
    static const size_t bytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    for (uint64_t i = 0; i < gguf_n_keys(g); i++) {
        enum gguf_value_type type;
        struct gguf_string name = gguf_key(g, i, &type), s;
        char text[40], key[256];
        uint64_t n = 0;
        touch(name.data, name.bytes);
        gguf_key_text(g, i, text, sizeof text);
        assert_true(type <= GGUF_FLOAT64 && strlen(text) > 0);
        if (name.bytes >= sizeof key)
            continue;
        memcpy(key, name.data, name.bytes);
        key[name.bytes] = '\0';
        enum gguf_value_type again;
        assert_true(gguf_has(g, key, &again) && again == type);
        if (gguf_get_string(g, key, &s))
            touch(s.data, s.bytes);
        if (gguf_get_array(g, key, GGUF_STRING, &n))
            for (uint64_t k = 0; k < n; k++) {
                s = gguf_array_string(g, key, k);
                touch(s.data, s.bytes);
            }
        for (enum gguf_value_type e = GGUF_UINT8; e <= GGUF_FLOAT64; e++)
            if (e != GGUF_STRING && gguf_get_array(g, key, e, &n))
                touch(gguf_array_data(g, key), n * bytes[e]);
    }
}

static void check_tensors(const struct gguf *g)
{
    uint32_t n = gguf_n_tensors(g);
    for (uint32_t i = 0; i < n; i++) {
        const struct gguf_tensor *t = gguf_tensor(g, i);
        const struct type_info *type = type_info(t->tensor.type);
        assert_ptr_equal(gguf_find_tensor(g, t->tensor.name), t);
        assert_true(t->part < gguf_n_parts(g));
        assert_non_null(type);
        assert_true(type->block > 0 && t->tensor.ne[0] % type->block == 0);
        assert_int_equal(t->tensor.row_bytes, t->tensor.ne[0] / type->block * type->block_bytes);
        assert_int_equal(t->bytes, t->tensor.row_bytes * t->tensor.n_rows);
        assert_true(t->bytes > 0 && t->bytes <= gguf_part_bytes(g, t->part));
        assert_true(t->offset <= gguf_part_bytes(g, t->part) - t->bytes);
        for (uint32_t k = 0; k < i; k++) {
            const struct gguf_tensor *o = gguf_tensor(g, k);
            assert_true(t->offset + t->bytes <= o->offset || o->offset + o->bytes <= t->offset);
        }
    }
}

static void check_plan(const struct plan *p)
{
    const struct infer_plan *b = &p->backend;
    assert_true(b->shape.n_heads > 0 && b->shape.n_kv_heads > 0);
    assert_int_equal(b->shape.n_heads % b->shape.n_kv_heads, 0);
    assert_true(b->rope.n_dims > 0 && b->rope.n_dims % 2 == 0 &&
                b->rope.n_dims <= b->shape.head_dim);
    for (uint32_t i = 0; i < b->rope.n_dims / 2; i++)
        assert_true(isfinite(b->rope.inv_freq[i]));
    assert_true(isfinite(b->rope.magnitude) && b->rope.magnitude > 0);
    assert_true(b->shape.norm_eps >= 0 && b->shape.norm_eps <= 1);
    for (uint32_t i = 0; i < b->n_tensors; i++)
        assert_true(type_info(b->tensors[i].type)->readable);
    for (uint32_t i = 0; i < b->n_ops; i++) {
        const struct infer_op *op = &b->ops[i];
        assert_true(op->norm == INFER_TENSOR_NONE || op->norm < b->n_tensors);
        if (op->kind == INFER_OP_QKV)
            assert_true(op->as.qkv.wq < b->n_tensors && op->as.qkv.wk < b->n_tensors &&
                        op->as.qkv.wv < b->n_tensors);
        if (op->kind == INFER_OP_FFN_GATED)
            assert_true(op->as.ffn.gate < b->n_tensors && op->as.ffn.up < b->n_tensors);
        if (op->kind == INFER_OP_PROJECT)
            assert_true(op->as.project.w < b->n_tensors);
    }
}

static void check_refusal(int r, const struct report *report)
{
    assert_int_equal(r, -report->code);
    assert_true(report->code == INFER_E_MODEL_FORMAT || report->code == INFER_E_MODEL_UNSUPPORTED ||
                report->code == INFER_E_MODEL_PARTS);
    assert_true(strlen(report->text) > 10);
    for (const char *c = report->text; *c; c++)
        assert_true((unsigned char)*c >= 0x20 && *c != 0x7f);
}

static void try_bytes(struct fixture *f, const uint8_t *data, size_t n)
{
    struct gguf *g = NULL;
    struct plan *p = NULL;
    struct report report = {0};
    int r = writer_open_bytes(data, n, &g, &report);
    if (r < 0) {
        assert_null(g);
        check_refusal(r, &report);
        f->refused++;
        return;
    }
    f->opened++;
    check_keys(g);
    check_tensors(g);
    r = plan_new(g, &p, &report);
    if (r < 0) {
        assert_null(p);
        check_refusal(r, &report);
    } else {
        check_plan(p);
        f->planned++;
    }
    assert_int_equal(inspect_print(g, f->null, NULL, NULL), 0);
    plan_free(p);
    gguf_free(g);
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    struct writer *w = writer_model("llama", INFER_TYPE_Q8_0);
    const char *seed = getenv("INFERD_TEST_SEED");
    if (f == NULL)
        return -1;
    f->random = seed != NULL ? strtoull(seed, NULL, 0) | 1 : 0x9e3779b97f4a7c15u;
    struct writer_bytes *b = writer_key(w, "tokenizer.ggml.scores", GGUF_ARRAY);
    bytes_u32(b, GGUF_FLOAT32);
    bytes_u64(b, 40);
    bytes_put(b, NULL, 160);
    bytes_put(writer_key(w, "tokenizer.ggml.add_bos_token", GGUF_BOOL), "\1", 1);
    writer_set_u32(w, "general.alignment", 32);
    writer_set_string(w, "llama.rope.scaling.type", "yarn");
    writer_set_f32(w, "llama.rope.scaling.factor", 4);
    f->file = writer_file(w, &f->head);
    f->null = fopen("/dev/null", "w");
    writer_free(w);
    f->n_descriptors = count_descriptors();
    *state = f;
    return f->null == NULL ? -1 : 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(count_descriptors(), f->n_descriptors); /* none was left open */
    print_message("%u opened (%u of them servable), %u refused\n", f->opened, f->planned,
                  f->refused);
    fclose(f->null);
    free(f->file.data);
    free(f);
    return 0;
}

static void start(struct fixture *f)
{
    f->opened = f->planned = f->refused = 0;
    try_bytes(f, f->file.data, f->file.n);
    assert_int_equal(f->planned, 1); /* the file itself is sound */
}

/* Every byte of the head changed once, in one bit or as a whole. */
static void survives_single_bytes(void **state)
{
    struct fixture *f = *state;
    start(f);
    for (size_t i = 0; i < f->head; i++) {
        uint8_t old = f->file.data[i];
        uint64_t x = random_next(f);
        uint8_t bit = (uint8_t)(1u << (x & 7));
        f->file.data[i] = x & 256 ? old ^ bit : x & 512 ? 0xff : (uint8_t)(x >> 32);
        try_bytes(f, f->file.data, f->file.n);
        f->file.data[i] = old;
    }
    assert_true(f->refused > f->head / 10 && f->opened > f->head / 10);
}

/* Eight bytes that look like what readers get wrong: near powers of two, negative, random. */
static void survives_eight_bytes(void **state)
{
    struct fixture *f = *state;
    start(f);
    for (int round = 0; round < ROUNDS; round++) {
        uint64_t x = random_next(f), kind = random_next(f), value = x;
        size_t at = (size_t)(random_next(f) % (f->head - 8));
        uint8_t old[8];
        if (kind % 4 == 0)
            value = (UINT64_C(1) << (x % 64)) - (x >> 63);
        else if (kind % 4 == 1)
            value = UINT64_MAX - x % 64;
        else if (kind % 4 == 2)
            value = x % 64;
        memcpy(old, f->file.data + at, 8);
        memcpy(f->file.data + at, &value, 8);
        try_bytes(f, f->file.data, f->file.n);
        memcpy(f->file.data + at, old, 8);
    }
    assert_true(f->refused > ROUNDS / 10);
}

/* A part of the head moved, doubled or cut out, then perhaps the file's end cut off. */
static void survives_moved_parts(void **state)
{
    struct fixture *f = *state;
    uint8_t *copy = malloc(f->file.n);
    assert_non_null(copy);
    start(f);
    for (int round = 0; round < ROUNDS; round++) {
        size_t n = (size_t)(random_next(f) % 200) + 1, bytes = f->file.n;
        size_t from = (size_t)(random_next(f) % (f->head - n));
        size_t to = (size_t)(random_next(f) % (f->head - n));
        memcpy(copy, f->file.data, bytes);
        if (round % 2 == 0) {
            memmove(copy + to, f->file.data + from, n);
        } else {
            memmove(copy + from, copy + from + n, bytes - from - n);
            bytes -= n;
        }
        if (round % 3 == 0)
            bytes = (size_t)(random_next(f) % bytes);
        try_bytes(f, copy, bytes);
    }
    assert_true(f->refused > ROUNDS / 2);
    free(copy);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(survives_single_bytes, setup, teardown),
        cmocka_unit_test_setup_teardown(survives_eight_bytes, setup, teardown),
        cmocka_unit_test_setup_teardown(survives_moved_parts, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
