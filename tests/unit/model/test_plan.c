/* test_plan.c: from files to plans: shapes, operations, the rotary embedding's numbers, refusals.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "gguf_writer.h"
#include "model/inspect.h"
#include "model/plan.h"

#include <math.h>

/* Tests run in the repository's root, or INFERD_ROOT names it. */
static const char *data_path(const char *path, char text[512])
{
    const char *root = getenv("INFERD_ROOT");
    snprintf(text, 512, "%s/%s", root != NULL ? root : ".", path);
    return text;
}

static struct plan *plan_of_file(const char *path)
{
    char text[512];
    struct gguf *g = NULL;
    struct plan *p = NULL;
    struct report report = {0};
    if (gguf_open(data_path(path, text), &g, &report) < 0 || plan_new(g, &p, &report) < 0)
        fail_msg("%s", report.text);
    for (uint32_t i = 0; i < p->backend.n_tensors; i++)
        assert_string_equal(p->backend.tensors[i].name,
                            gguf_tensor(g, p->gguf_tensor[i])->tensor.name);
    gguf_free(g); /* the plan lives on */
    return p;
}

static struct plan *plan_of(struct writer *w)
{
    struct gguf *g = NULL;
    struct plan *p = NULL;
    struct report report = {0};
    if (writer_open(w, &g, &report) < 0 || plan_new(g, &p, &report) < 0)
        fail_msg("%s", report.text);
    gguf_free(g);
    return p;
}

/* Takes w. */
static void refused(struct writer *w, int code, const char *says)
{
    struct gguf *g = NULL;
    struct plan *p = (void *)1;
    struct report report = {0};
    if (writer_open(w, &g, &report) < 0)
        fail_msg("%s", report.text);
    assert_int_equal(plan_new(g, &p, &report), -code);
    assert_ptr_equal(p, (void *)1);
    assert_int_equal(report.code, code);
    if (strstr(report.text, says) == NULL)
        fail_msg("'%s' does not say '%s'", report.text, says);
    gguf_free(g);
    writer_free(w);
}

static const struct infer_tensor *tensor_at(const struct plan *p, uint32_t i)
{
    assert_true(i < p->backend.n_tensors);
    return &p->backend.tensors[i];
}

static void check_matrix(const struct plan *p, uint32_t i, uint64_t rows, uint64_t columns)
{
    assert_int_equal(tensor_at(p, i)->ne[0], columns);
    assert_int_equal(tensor_at(p, i)->n_rows, rows);
}

static void check_vector(const struct plan *p, uint32_t i, uint64_t n)
{
    check_matrix(p, i, 1, n);
    assert_int_equal(tensor_at(p, i)->type, INFER_TYPE_F32);
}

/* What a backend may assume of any plan, recomputed from backend.h's comments. */
static void check_plan(const struct plan *p)
{
    const struct infer_plan *b = &p->backend;
    const struct infer_shape *s = &b->shape;
    uint64_t q = (uint64_t)s->n_heads * s->head_dim, k = (uint64_t)s->n_kv_heads * s->head_dim;
    uint64_t v = (uint64_t)s->n_kv_heads * s->head_dim_v, o = (uint64_t)s->n_heads * s->head_dim_v;
    static const uint32_t kinds[] = {INFER_OP_QKV, INFER_OP_ATTEND, INFER_OP_PROJECT,
                                     INFER_OP_FFN_GATED, INFER_OP_PROJECT};
    assert_int_equal(b->n_ops, 2 + 5 * s->n_layers);
    assert_int_equal(b->ops[0].kind, INFER_OP_EMBED);
    check_matrix(p, b->ops[0].as.embed.table, s->n_vocab, s->n_embd);
    assert_true(b->ops[0].as.embed.scale == 1);
    for (uint32_t i = 0; i < 5 * s->n_layers; i++) {
        const struct infer_op *op = &b->ops[1 + i];
        assert_int_equal(op->kind, kinds[i % 5]);
        assert_int_equal(op->layer, i / 5);
        if (i % 5 == 0) {
            check_vector(p, op->norm, s->n_embd);
            check_matrix(p, op->as.qkv.wq, q, s->n_embd);
            check_matrix(p, op->as.qkv.wk, k, s->n_embd);
            check_matrix(p, op->as.qkv.wv, v, s->n_embd);
        } else if (i % 5 == 1) {
            assert_true(fabsf(op->as.attend.scale * sqrtf((float)s->head_dim) - 1) < 1e-6f);
        } else if (i % 5 == 2) {
            assert_int_equal(op->as.project.from, INFER_VALUE_O);
            check_matrix(p, op->as.project.w, s->n_embd, o);
        } else if (i % 5 == 3) {
            check_vector(p, op->norm, s->n_embd);
            check_matrix(p, op->as.ffn.gate, s->n_ffn, s->n_embd);
            check_matrix(p, op->as.ffn.up, s->n_ffn, s->n_embd);
            assert_int_equal(op->as.ffn.activation, INFER_ACT_SILU);
        } else {
            assert_int_equal(op->as.project.from, INFER_VALUE_T);
            check_matrix(p, op->as.project.w, s->n_embd, s->n_ffn);
        }
    }
    const struct infer_op *head = &b->ops[b->n_ops - 1];
    assert_int_equal(head->kind, INFER_OP_HEAD);
    check_vector(p, head->norm, s->n_embd);
    check_matrix(p, head->as.head.w, s->n_vocab, s->n_embd);
    uint64_t values = 0;
    for (uint32_t i = 0; i < b->n_tensors; i++)
        values += b->tensors[i].ne[0] * b->tensors[i].n_rows;
    assert_int_equal(values, p->n_parameters);
}

/* ---- the files of the repository ------------------------------------------------------------- */

static void plans_the_fixtures(void **state)
{
    (void)state;
    static const struct {
        const char *path, *architecture, *description;
        uint32_t n_tensors, head_dim, style;
        bool tied, biases, head_norms;
    } files[] = {
        {"llama", "llama", "1.0M BF16", 21, 64, INFER_ROPE_PAIRS, false, false, false},
        {"llama3", "llama", "919K BF16", 20, 64, INFER_ROPE_PAIRS, true, false, false},
        {"mistral", "llama", "1.0M BF16", 21, 64, INFER_ROPE_PAIRS, false, false, false},
        {"qwen2", "qwen2", "920K BF16", 26, 64, INFER_ROPE_HALVES, true, true, false},
        {"qwen3", "qwen3", "1.3M BF16", 24, 128, INFER_ROPE_HALVES, true, false, true},
    };
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
        char path[128];
        snprintf(path, sizeof path, "tests/data/arch/%s/model.gguf", files[i].path);
        struct plan *p = plan_of_file(path);
        const struct infer_shape *s = &p->backend.shape;
        const struct infer_op *qkv = &p->backend.ops[1];
        check_plan(p);
        assert_string_equal(p->architecture, files[i].architecture);
        assert_string_equal(p->description, files[i].description);
        assert_int_equal(p->backend.n_tensors, files[i].n_tensors);
        assert_int_equal(s->n_layers, 2);
        assert_int_equal(s->n_embd, 256);
        assert_int_equal(s->n_ffn, 256);
        assert_int_equal(s->n_vocab, 512);
        assert_int_equal(s->n_heads, 4);
        assert_int_equal(s->n_kv_heads, 2);
        assert_int_equal(s->head_dim, files[i].head_dim);
        assert_int_equal(s->head_dim_v, files[i].head_dim);
        assert_int_equal(s->n_context, 2048);
        assert_true(fabsf(s->norm_eps - 1e-5f) < 1e-9f);
        assert_int_equal(p->backend.rope.style, files[i].style);
        assert_int_equal(p->backend.rope.n_dims, files[i].head_dim);
        assert_true(p->backend.rope.magnitude == 1);
        assert_int_equal(qkv->as.qkv.bq != INFER_TENSOR_NONE, files[i].biases);
        assert_int_equal(qkv->as.qkv.bv != INFER_TENSOR_NONE, files[i].biases);
        assert_int_equal(qkv->as.qkv.q_norm != INFER_TENSOR_NONE, files[i].head_norms);
        assert_int_equal(p->backend.ops[11].as.head.w == p->backend.ops[0].as.embed.table,
                         files[i].tied);
        const struct infer_tensor *table = &p->backend.tensors[p->backend.ops[0].as.embed.table];
        assert_int_equal(p->file_bytes - p->step_bytes,
                         files[i].tied ? 0 : table->row_bytes * table->n_rows);
        if (files[i].head_norms)
            check_vector(p, qkv->as.qkv.k_norm, s->head_dim);
        plan_free(p);
    }
}

static void plans_the_embedded_model(void **state)
{
    (void)state;
    char text[512];
    if (access(data_path("models/unix-46m-Q6_K.gguf", text), R_OK) != 0) {
        print_message("models/unix-46m-Q6_K.gguf is not there\n");
        skip();
    }
    struct plan *p = plan_of_file("models/unix-46m-Q6_K.gguf");
    check_plan(p);
    assert_string_equal(p->name, "unix-46m");
    assert_string_equal(p->description, "46.2M Q6_K");
    assert_int_equal(p->backend.shape.n_layers, 12);
    assert_int_equal(p->backend.shape.n_vocab, 16384);
    assert_int_equal(p->backend.shape.n_ffn, 1536);
    assert_int_equal(p->n_parameters, 46150144);
    /* Q6_K holds 256 values in 210 bytes; 25 norms of 512 floats are the rest. */
    assert_int_equal(p->file_bytes, (46150144 - 25 * 512) / 256 * 210 + 25 * 512 * 4);
    /* Its head is the embedding table. */
    assert_int_equal(p->step_bytes, p->file_bytes);
    plan_free(p);
}

/* ---- the rotary embedding -------------------------------------------------------------------- */

static void check_rope(struct writer *w, const double *expected, float magnitude)
{
    struct plan *p = plan_of(w);
    assert_int_equal(p->backend.rope.n_dims, 16);
    for (int i = 0; i < 8; i++) {
        double got = (double)p->backend.rope.inv_freq[i];
        if (fabs(got / expected[i] - 1) > 2e-7) /* float32 rounding of both */
            fail_msg("inv_freq[%d] is %.9g, not %.9g", i, got, expected[i]);
    }
    assert_true(fabsf(p->backend.rope.magnitude - magnitude) < 1e-6f);
    plan_free(p);
    writer_free(w);
}

/* 10000^(-i/8) */
static const double plain[8] = {1,    0.316227766,   0.1,   0.0316227766,
                                0.01, 0.00316227766, 0.001, 0.000316227766};

static void rope_plain_and_linear(void **state)
{
    (void)state;
    double quarter[8];
    for (int i = 0; i < 8; i++)
        quarter[i] = plain[i] / 4;
    check_rope(writer_model("llama", INFER_TYPE_F32), plain, 1);

    struct writer *w = writer_model("llama", INFER_TYPE_F32);
    writer_set_f32(w, "llama.rope.scale_linear", 4);
    check_rope(w, quarter, 1);

    w = writer_model("qwen3", INFER_TYPE_F32);
    writer_tensor(w, "blk.0.attn_q_norm.weight", INFER_TYPE_F32, 16, 0);
    writer_tensor(w, "blk.0.attn_k_norm.weight", INFER_TYPE_F32, 16, 0);
    writer_set_string(w, "qwen3.rope.scaling.type", "linear");
    writer_set_f32(w, "qwen3.rope.scaling.factor", 4);
    check_rope(w, quarter, 1);

    w = writer_model("llama", INFER_TYPE_F32);
    writer_set_string(w, "llama.rope.scaling.type", "none");
    writer_set_f32(w, "llama.rope.scaling.factor", 4);
    check_rope(w, plain, 1);

    w = writer_model("llama", INFER_TYPE_F32);
    writer_set_f32(w, "llama.rope.scaling.factor", 0); /* how some files say that there is none */
    check_rope(w, plain, 1);
}

/* Numbers from the definition in the Python library the fixtures come from, in double precision:
 *   cd(t) = dim ln(orig / (2 pi t)) / (2 ln base), low = floor(cd(beta_fast)),
 *   high = ceil(cd(beta_slow)), e = 1 - clamp((i - low) / (high - low), 0, 1),
 *   inv_freq = e base^(-2i/dim) + (1 - e) base^(-2i/dim) / s, magnitude = 1 + 0.1 ln s. */
static void rope_yarn(void **state)
{
    (void)state;
    /* s = 4, orig = 2048, beta 32 and 1: low 2, high 6 */
    static const double a[8] = {1,       0.316227766,   0.1,     0.025693506,
                                0.00625, 0.00138349648, 0.00025, 7.90569415e-05};
    struct writer *w = writer_model("llama", INFER_TYPE_F32);
    writer_set_u32(w, "llama.context_length", 8192);
    writer_set_string(w, "llama.rope.scaling.type", "yarn");
    writer_set_f32(w, "llama.rope.scaling.factor", 4);
    writer_set_u32(w, "llama.rope.scaling.original_context_length", 2048);
    check_rope(w, a, 1.13862944f);

    /* s = 8, orig = 256, beta 16 and 2: low 0, high 3; attn_factor multiplies the magnitude */
    static const double b[8] = {1,       0.223994668,    0.0416666667, 0.00395284708,
                                0.00125, 0.000395284708, 0.000125,     3.95284708e-05};
    w = writer_model("llama", INFER_TYPE_F32);
    writer_set_u32(w, "llama.context_length", 256);
    writer_set_string(w, "llama.rope.scaling.type", "yarn");
    writer_set_f32(w, "llama.rope.scaling.factor", 8);
    writer_set_f32(w, "llama.rope.scaling.yarn_beta_fast", 16);
    writer_set_f32(w, "llama.rope.scaling.yarn_beta_slow", 2);
    writer_set_f32(w, "llama.rope.scaling.attn_factor", 0.5f);
    check_rope(w, b, 0.5f * 1.20794415f);
}

/* s = 8, low 1, high 4, orig = 64, base 500000, dim 16: wavelengths below 16 keep their frequency,
 * those above 64 get an eighth, and between them a mix by 64 / wavelength. */
static void rope_llama3(void **state)
{
    (void)state;
    static const double expected[8] = {1,
                                       0.0794030092,
                                       0.00470075387,
                                       0.000911583092,
                                       0.000176776695,
                                       3.4281022e-05,
                                       6.64786987e-06,
                                       1.28917317e-06};
    struct writer *w = writer_model("llama", INFER_TYPE_F32);
    writer_set_f32(w, "llama.rope.freq_base", 500000);
    writer_set_string(w, "llama.rope.scaling.type", "llama3");
    writer_set_f32(w, "llama.rope.scaling.factor", 8);
    writer_set_f32(w, "llama.rope.scaling.low_freq_factor", 1);
    writer_set_f32(w, "llama.rope.scaling.high_freq_factor", 4);
    writer_set_u32(w, "llama.rope.scaling.original_context_length", 64);
    check_rope(w, expected, 1);

    /* The same as factors in the file: base^(-i/8) / inv_freq. */
    float factors[8];
    for (int i = 0; i < 8; i++)
        factors[i] = (float)(pow(500000, -i / 8.0) / expected[i]);
    w = writer_model("llama", INFER_TYPE_F32);
    writer_set_f32(w, "llama.rope.freq_base", 500000);
    writer_tensor(w, "rope_freqs.weight", INFER_TYPE_F32, 8, 0)->values = factors;
    check_rope(w, expected, 1);

    factors[3] = NAN;
    w = writer_model("llama", INFER_TYPE_F32);
    writer_tensor(w, "rope_freqs.weight", INFER_TYPE_F32, 8, 0)->values = factors;
    refused(w, INFER_E_MODEL_FORMAT, "tensor 'rope_freqs.weight' holds");
    w = writer_model("llama", INFER_TYPE_F32);
    writer_tensor(w, "rope_freqs.weight", INFER_TYPE_F32, 9, 0);
    refused(w, INFER_E_MODEL_FORMAT, "tensor 'rope_freqs.weight' is F32 with 1 x 9 values");
}

/* The fixture's converter stored factors; here from the definition (dim 64, base 500000, s 8,
 * low 1, high 4, orig 64) in double precision. */
static void rope_llama3_fixture(void **state)
{
    (void)state;
    static const struct {
        int i;
        double value;
    } expected[] = {{0, 1},
                    {1, 0.663601238},
                    {2, 0.440366603},
                    {3, 0.205000948},
                    {4, 0.0794030092},
                    {5, 0.0277513879},
                    {6, 0.0106746375},
                    {7, 0.00708370268},
                    {8, 0.00470075387},
                    {16, 0.000176776695},
                    {31, 3.76732269e-07}};
    struct plan *p = plan_of_file("tests/data/arch/llama3/model.gguf");
    for (size_t k = 0; k < sizeof expected / sizeof expected[0]; k++) {
        double got = (double)p->backend.rope.inv_freq[expected[k].i];
        if (fabs(got / expected[k].value - 1) > 1e-6) /* the factors are float32 */
            fail_msg("inv_freq[%d] is %.9g, not %.9g", expected[k].i, got, expected[k].value);
    }
    plan_free(p);
}

static void rope_partial(void **state)
{
    (void)state;
    struct writer *w = writer_model("llama", INFER_TYPE_F32);
    writer_set_u32(w, "llama.rope.dimension_count", 8);
    struct plan *p = plan_of(w);
    assert_int_equal(p->backend.rope.n_dims, 8);
    for (int i = 0; i < 4; i++) /* 10000^(-i/4) = 10^-i */
        assert_true(fabs((double)p->backend.rope.inv_freq[i] * pow(10, i) - 1) < 2e-7);
    plan_free(p);
    writer_free(w);
}

/* ---- variants -------------------------------------------------------------------------------- */

static void takes_optional_parts(void **state)
{
    (void)state;
    struct writer *w = writer_model("llama", INFER_TYPE_Q8_0);
    writer_tensor(w, "output.weight", INFER_TYPE_Q4_0, 64, 40);
    writer_tensor(w, "blk.0.attn_q.bias", INFER_TYPE_F32, 64, 0);
    writer_tensor(w, "blk.0.attn_output.bias", INFER_TYPE_F32, 64, 0);
    writer_tensor(w, "blk.0.attn_rot_embd", INFER_TYPE_F32, 8, 0);
    writer_set_u32(w, "llama.attention.sliding_window", 128);
    writer_set_u32(w, "llama.expert_count", 0);
    struct plan *p = plan_of(w);
    check_plan(p);
    const struct infer_op *ops = p->backend.ops;
    assert_int_not_equal(ops[6].as.head.w, ops[0].as.embed.table);
    assert_string_equal(tensor_at(p, ops[6].as.head.w)->name, "output.weight");
    check_vector(p, ops[1].as.qkv.bq, 64);
    assert_int_equal(ops[1].as.qkv.bk, INFER_TENSOR_NONE);
    check_vector(p, ops[3].as.project.b, 64);
    assert_int_equal(ops[5].as.project.b, INFER_TENSOR_NONE);
    assert_int_equal(ops[2].as.attend.window, 128);
    assert_string_equal(p->name, "a test");
    assert_string_equal(p->description, "36.2K Q8_0");
    plan_free(p);
    writer_free(w);

    /* Keys and values of different sizes, and a head that is not n_embd / n_heads. */
    w = writer_model("llama", INFER_TYPE_F32);
    writer_set_u32(w, "llama.attention.key_length", 32);
    writer_set_u32(w, "llama.attention.value_length", 8);
    writer_find(w, "blk.0.attn_q.weight")->ne[1] = 4 * 32;
    writer_find(w, "blk.0.attn_k.weight")->ne[1] = 2 * 32;
    writer_find(w, "blk.0.attn_v.weight")->ne[1] = 2 * 8;
    writer_find(w, "blk.0.attn_output.weight")->ne[0] = 4 * 8;
    p = plan_of(w);
    check_plan(p);
    assert_int_equal(p->backend.shape.head_dim, 32);
    assert_int_equal(p->backend.shape.head_dim_v, 8);
    plan_free(p);
    writer_free(w);

    /* A window as long as the context is none. */
    w = writer_model("llama", INFER_TYPE_F32);
    writer_drop(w, "llama.attention.head_count_kv"); /* as many as heads */
    writer_find(w, "blk.0.attn_k.weight")->ne[1] = 64;
    writer_find(w, "blk.0.attn_v.weight")->ne[1] = 64;
    writer_set_u32(w, "llama.attention.sliding_window", 512);
    p = plan_of(w);
    check_plan(p);
    assert_int_equal(p->backend.shape.n_kv_heads, 4);
    assert_int_equal(p->backend.ops[2].as.attend.window, 0);
    plan_free(p);
    writer_free(w);
}

/* ---- refusals -------------------------------------------------------------------------------- */

static void refuses_bad_hyperparameters(void **state)
{
    (void)state;
    static const struct {
        const char *key;
        uint32_t value;
        int code;
        const char *says;
    } cases[] = {
        {"llama.block_count", 0, INFER_E_MODEL_FORMAT, "'llama.block_count' is 0; 1 to 1024"},
        {"llama.block_count", 1025, INFER_E_MODEL_FORMAT, "'llama.block_count' is 1025"},
        {"llama.block_count", 2, INFER_E_MODEL_FORMAT, "'blk.1.attn_norm.weight' is missing"},
        {"llama.context_length", 0, INFER_E_MODEL_FORMAT, "'llama.context_length' is 0"},
        {"llama.embedding_length", UINT32_MAX, INFER_E_MODEL_FORMAT, "'llama.embedding_length' is"},
        {"llama.embedding_length", 128, INFER_E_MODEL_FORMAT,
         "tensor 'token_embd.weight' has the shape 64 x 40; 128 x 40 is expected"},
        {"llama.feed_forward_length", 97, INFER_E_MODEL_FORMAT,
         "tensor 'blk.0.ffn_gate.weight' has the shape 64 x 96; 64 x 97 is expected"},
        {"llama.attention.head_count", 5, INFER_E_MODEL_FORMAT,
         "not a multiple of head_count_kv 2"},
        {"llama.attention.head_count", 0, INFER_E_MODEL_FORMAT, "head_count' is 0"},
        {"llama.attention.head_count_kv", 3, INFER_E_MODEL_FORMAT, "not a multiple"},
        {"llama.attention.head_count_kv", 1, INFER_E_MODEL_FORMAT,
         "tensor 'blk.0.attn_k.weight' has the shape 64 x 32; 64 x 16 is expected"},
        {"llama.attention.head_count", 6, INFER_E_MODEL_FORMAT, "6 heads do not divide"},
        {"llama.attention.key_length", 15, INFER_E_MODEL_UNSUPPORTED, "heads of 15 values"},
        {"llama.attention.key_length", 4096, INFER_E_MODEL_FORMAT, "key_length' is 4096"},
        {"llama.rope.dimension_count", 17, INFER_E_MODEL_FORMAT, "dimension_count' is 17; 2 to 16"},
        {"llama.rope.dimension_count", 7, INFER_E_MODEL_FORMAT, "which is odd"},
        {"llama.expert_count", 8, INFER_E_MODEL_UNSUPPORTED,
         "'llama.expert_count' is 8: mixtures of experts"},
        {"llama.rope.freq_base", 10000, INFER_E_MODEL_FORMAT, "freq_base' is not a float32"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct writer *w = writer_model("llama", INFER_TYPE_F32);
        writer_set_u32(w, cases[i].key, cases[i].value);
        refused(w, cases[i].code, cases[i].says);
    }
    static const struct {
        const char *key;
        float value;
        int code;
    } floats[] = {
        {"llama.attention.layer_norm_rms_epsilon", -1, INFER_E_MODEL_FORMAT},
        {"llama.attention.layer_norm_rms_epsilon", NAN, INFER_E_MODEL_FORMAT},
        {"llama.block_count", 1, INFER_E_MODEL_FORMAT},
        {"llama.rope.freq_base", 0, INFER_E_MODEL_FORMAT},
        {"llama.rope.freq_base", INFINITY, INFER_E_MODEL_FORMAT},
        {"llama.rope.scaling.factor", -2, INFER_E_MODEL_FORMAT},
        {"llama.logit_scale", 0.5f, INFER_E_MODEL_UNSUPPORTED},
        {"llama.attn_logit_softcapping", 50, INFER_E_MODEL_UNSUPPORTED},
    };
    for (size_t i = 0; i < sizeof floats / sizeof floats[0]; i++) {
        struct writer *w = writer_model("llama", INFER_TYPE_F32);
        writer_set_f32(w, floats[i].key, floats[i].value);
        refused(w, floats[i].code, floats[i].key);
    }
    static const char *const required[] = {
        "llama.block_count",          "llama.context_length",
        "llama.embedding_length",     "llama.feed_forward_length",
        "llama.attention.head_count", "llama.attention.layer_norm_rms_epsilon"};
    for (size_t i = 0; i < sizeof required / sizeof required[0]; i++) {
        char says[128];
        struct writer *w = writer_model("llama", INFER_TYPE_F32);
        writer_drop(w, required[i]);
        snprintf(says, sizeof says, "key '%s' is missing", required[i]);
        refused(w, INFER_E_MODEL_FORMAT, says);
    }
}

static void refuses_what_it_does_not_know(void **state)
{
    (void)state;
    const int unsupported = INFER_E_MODEL_UNSUPPORTED;
    struct writer *w = writer_model("mamba", INFER_TYPE_F32);
    refused(w, unsupported, "architecture 'mamba' is not supported; llama, qwen2 and qwen3 are");
    w = writer_model("llama", INFER_TYPE_F32);
    writer_set_string(w, "general.type", "adapter");
    refused(w, unsupported, "key 'general.type' is 'adapter'");
    w = writer_new();
    refused(w, INFER_E_MODEL_FORMAT, "'general.architecture' is missing");
    w = writer_new();
    writer_set_string(w, "general.architecture", "llama");
    refused(w, unsupported, "holds a vocabulary only");

    w = writer_model("llama", INFER_TYPE_F32);
    writer_set_string(w, "llama.rope.scaling.type", "longrope");
    refused(w, unsupported, "'llama.rope.scaling.type' is 'longrope'");
    w = writer_model("llama", INFER_TYPE_F32);
    writer_set_string(w, "llama.rope.scaling.type", "yarn");
    writer_set_f32(w, "llama.rope.scaling.yarn_log_multiplier", 0.1f);
    refused(w, unsupported, "yarn_log_multiplier");

    /* Layers that differ come as arrays. */
    w = writer_model("llama", INFER_TYPE_F32);
    writer_drop(w, "llama.attention.head_count_kv");
    struct writer_bytes *b = writer_key(w, "llama.attention.head_count_kv", GGUF_ARRAY);
    bytes_u32(b, GGUF_UINT32);
    bytes_u64(b, 1);
    bytes_u32(b, 2);
    refused(w, unsupported, "key 'llama.attention.head_count_kv' is an array");

    static const char *const extra[] = {"blk.0.ffn_down.bias", "blk.0.attn_q_norm.weight",
                                        "blk.0.ffn_gate_inp.weight", "blk.1.attn_norm.weight",
                                        "output.bias"};
    for (size_t i = 0; i < sizeof extra / sizeof extra[0]; i++) {
        char says[128];
        w = writer_model("llama", INFER_TYPE_F32);
        writer_tensor(w, extra[i], INFER_TYPE_F32, 64, 0);
        snprintf(says, sizeof says, "tensor '%s' has no use", extra[i]);
        refused(w, unsupported, says);
    }
    w = writer_model("qwen2", INFER_TYPE_F32);
    refused(w, INFER_E_MODEL_FORMAT, "tensor 'blk.0.attn_q.bias' is missing");
    w = writer_model("qwen3", INFER_TYPE_F32);
    refused(w, INFER_E_MODEL_FORMAT, "tensor 'blk.0.attn_q_norm.weight' is missing");
    w = writer_model("qwen2", INFER_TYPE_F32);
    writer_set_u32(w, "qwen2.attention.sliding_window", 128);
    refused(w, unsupported, "'qwen2.attention.sliding_window' is 128");
}

static void refuses_bad_tensors(void **state)
{
    (void)state;
    static const char *const required[] = {
        "token_embd.weight",        "output_norm.weight",    "blk.0.attn_norm.weight",
        "blk.0.attn_q.weight",      "blk.0.attn_k.weight",   "blk.0.attn_v.weight",
        "blk.0.attn_output.weight", "blk.0.ffn_norm.weight", "blk.0.ffn_gate.weight",
        "blk.0.ffn_up.weight",      "blk.0.ffn_down.weight"};
    for (size_t i = 0; i < sizeof required / sizeof required[0]; i++) {
        char says[128];
        struct writer *w = writer_model("llama", INFER_TYPE_F32);
        writer_drop(w, required[i]);
        snprintf(says, sizeof says, "tensor '%s' is missing", required[i]);
        refused(w, INFER_E_MODEL_FORMAT, says);

        w = writer_model("llama", INFER_TYPE_F32);
        writer_find(w, required[i])->ne[0] += 2;
        snprintf(says, sizeof says, "tensor '%s' has the shape", required[i]);
        refused(w, INFER_E_MODEL_FORMAT, says);
    }
    struct writer *w = writer_model("llama", INFER_TYPE_F32);
    writer_find(w, "blk.0.attn_norm.weight")->type = INFER_TYPE_F16;
    refused(w, INFER_E_MODEL_UNSUPPORTED,
            "'blk.0.attn_norm.weight' has the type F16; F32 is expected");
    w = writer_model("llama", INFER_TYPE_F32);
    writer_find(w, "blk.0.ffn_up.weight")->type = 24;
    refused(w, INFER_E_MODEL_UNSUPPORTED, "'blk.0.ffn_up.weight' has the type I8");
    w = writer_model("llama", INFER_TYPE_F32);
    struct writer_tensor *t = writer_find(w, "blk.0.ffn_up.weight");
    t->n_dims = 3; /* the right number of values in the wrong shape */
    t->ne[1] = 48;
    t->ne[2] = 2;
    refused(w, INFER_E_MODEL_FORMAT, "has the shape 64 x 48 x 2; 64 x 96 is expected");
    w = writer_model("llama", INFER_TYPE_F32);
    writer_set_strings(w, "tokenizer.ggml.tokens", 41, "t");
    refused(w, INFER_E_MODEL_FORMAT, "holds 41 tokens, but tensor 'token_embd.weight' has 40 rows");
}

/* ---- --inspect ------------------------------------------------------------------------------- */

static char *inspect_text(struct writer *w, bool memory)
{
    struct gguf *g = NULL;
    struct report report = {0};
    char *text = NULL;
    size_t size = 0;
    struct infer_estimate e = {.weights_bytes = 3 << 20, .page_bytes = 1024, .scratch_bytes = 512};
    struct infer_state_config state = {.page_tokens = 16, .n_pages = 1024};
    assert_int_equal(writer_open(w, &g, &report), 0);
    FILE *out = open_memstream(&text, &size);
    assert_int_equal(inspect_print(g, out, memory ? &e : NULL, memory ? &state : NULL), 0);
    fclose(out);
    gguf_free(g);
    return text;
}

static void has_line(const char *text, const char *line)
{
    if (strstr(text, line) == NULL)
        fail_msg("no '%s' in:\n%s", line, text);
}

static void inspects(void **state)
{
    (void)state;
    struct writer *w = writer_model("llama", INFER_TYPE_Q8_0);
    writer_set_string(w, "general.name", "evil \x1b]0;title\x07");
    char *text = inspect_text(w, true);
    has_line(text, "servable       yes, as llama, 33.5K Q8_0\n");
    has_line(text, "name           evil ?]0;title?\n");
    has_line(text, "context        512 tokens\n");
    has_line(text, "vocabulary     40 tokens\n");
    has_line(text, "chat template  none\n");
    has_line(text, "memory         4.0 MiB: weights 3.0 MiB, scratch 512 B, sequences 1.0 MiB "
                   "(1024 pages of 16 tokens, 1.0 KiB each)\n");
    has_line(text, "  llama.block_count                       uint32  1\n");
    has_line(text, "  blk.0.ffn_down.weight     Q8_0      96 x 64                    6.4 KiB  at ");
    assert_null(strchr(text, 0x1b));
    free(text);
    writer_set_u32(w, "llama.expert_count", 8);
    text = inspect_text(w, false);
    has_line(text, "servable       no: ");
    has_line(text, "mixtures of experts");
    assert_null(strstr(text, "memory "));
    free(text);
    writer_free(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plans_the_fixtures),
        cmocka_unit_test(plans_the_embedded_model),
        cmocka_unit_test(rope_plain_and_linear),
        cmocka_unit_test(rope_yarn),
        cmocka_unit_test(rope_llama3),
        cmocka_unit_test(rope_llama3_fixture),
        cmocka_unit_test(rope_partial),
        cmocka_unit_test(takes_optional_parts),
        cmocka_unit_test(refuses_bad_hyperparameters),
        cmocka_unit_test(refuses_what_it_does_not_know),
        cmocka_unit_test(refuses_bad_tensors),
        cmocka_unit_test(inspects),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
