/* test_cuda_product.c: kernels/cuda/format.cu, product.cu and product_many.cu beside the decoders
 * of kernels/ref and sums in double precision: every type, finish, way and many counts of rows; and
 * that a row's result has the same bits whatever the way and the rows beside it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "cuda/cuda.h"
#include "kernel/cuda_memory.h"
#include "kernel/cuda_packed.h"
#include "ref/blocks.h"
#include "ref/quant.h"

#include <math.h>

/* How a type's blocks are drawn: where its half-precision scale and minimum are (NONE: nowhere),
 * the largest multiple of that which can be a minimum, and whether the device keeps all values
 * exactly. */
#define NONE 0xffff
static const struct kind {
    uint32_t type;
    uint16_t scale_at, minimum_at;
    float minima; /* times the minimum, or the scale where there is none */
    bool exact;
} kinds[] = {
    {INFER_TYPE_F32, NONE, NONE, 0, false},
    {INFER_TYPE_F16, NONE, NONE, 0, true},
    {INFER_TYPE_BF16, NONE, NONE, 0, false},
    {INFER_TYPE_Q4_0, 0, NONE, 0, true},
    {INFER_TYPE_Q4_1, 0, 2, 1, true},
    {INFER_TYPE_Q5_0, 0, NONE, 16, true},
    {INFER_TYPE_Q5_1, 0, 2, 1, true},
    {INFER_TYPE_Q8_0, 0, NONE, 0, true},
    {INFER_TYPE_Q2_K, offsetof(struct ref_q2_k, d), offsetof(struct ref_q2_k, dmin), 15, false},
    {INFER_TYPE_Q3_K, offsetof(struct ref_q3_k, d), NONE, 0, false},
    {INFER_TYPE_Q4_K, 0, 2, 63, false},
    {INFER_TYPE_Q5_K, 0, 2, 63, false},
    {INFER_TYPE_Q6_K, offsetof(struct ref_q6_k, d), NONE, 0, false},
    {INFER_TYPE_IQ4_NL, 0, NONE, 0, true},
    {INFER_TYPE_IQ3_S, 0, NONE, 0, false},
    {INFER_TYPE_IQ4_XS, 0, NONE, 0, false},
    {INFER_TYPE_TQ1_0, offsetof(struct ref_tq1_0, d), NONE, 0, true},
    {INFER_TYPE_TQ2_0, offsetof(struct ref_tq2_0, d), NONE, 0, true},
    {INFER_TYPE_MXFP4, NONE, NONE, 0, true},
};
#define N_KINDS (sizeof kinds / sizeof kinds[0])

static const struct kind *kind_of(uint32_t type)
{
    for (size_t i = 0; i < N_KINDS; i++) {
        if (kinds[i].type == type)
            return &kinds[i];
    }
    fail_msg("no kind for type %u", type);
    return NULL;
}

/* ---- matrices -------------------------------------------------------------------------------- */

/* A random matrix: the file's rows, what they mean, what the device keeps, and how large a minimum
 * in it can be. */
struct weights {
    struct cuda_matrix device;
    void *memory;
    uint32_t type, rows, cols;
    uint64_t row_bytes;
    uint8_t *file;
    float *decoded; /* by kernels/ref, [rows][cols] */
    float *kept;    /* by cuda_matrix_read() */
    float minimum;
};

/* A half of about 1/64, either sign: with it no scale of any type is subnormal. */
static void put_half(uint8_t *at)
{
    float v = (1.0f + (float)(rig_draw() % 1024) * 0x1p-10f) * 0x1p-7f;
    uint16_t bits = ref_f32_to_f16(rig_draw() % 4 ? v : -v);
    memcpy(at, &bits, sizeof bits);
}

static void draw_row(const struct kind *kind, uint8_t *row, uint32_t cols)
{
    uint32_t block = ref_block(kind->type), bytes = ref_block_bytes(kind->type);
    if (block == 1) {
        for (uint32_t c = 0; c < cols; c++) {
            float v = rig_normal() * (c % 7 ? 0.05f : 1e-5f);
            ref_encode_row(kind->type, &v, row + (size_t)c * bytes, 1);
        }
        return;
    }
    for (uint32_t b = 0; b < cols / block; b++, row += bytes) {
        for (uint32_t i = 0; i < bytes; i++)
            row[i] = (uint8_t)rig_draw();
        if (kind->scale_at != NONE)
            put_half(row + kind->scale_at);
        if (kind->minimum_at != NONE)
            put_half(row + kind->minimum_at);
        if (kind->type == INFER_TYPE_MXFP4)
            row[0] = (uint8_t)(116 + rig_draw() % 10);
    }
}

/* Written in two pieces that meet inside a tile, from an address that is a multiple of nothing. */
static void write_rows(struct weights *w)
{
    uint32_t half = w->rows / 2 + 1 < w->rows ? w->rows / 2 + 1 : w->rows;
    uint8_t *staged = to_device(NULL, w->row_bytes * w->rows + 1);
    must(cudaMemcpy(staged + 1, w->file, w->row_bytes * w->rows, cudaMemcpyHostToDevice));
    must(cuda_matrix_write(&w->device, 0, half, staged + 1, w->row_bytes, 0));
    must(cuda_matrix_write(&w->device, half, w->rows - half, staged + 1 + half * w->row_bytes,
                           w->row_bytes, 0));
    must(cudaDeviceSynchronize());
    must(cudaFree(staged));
}

/* All rows, last to first, times 1. */
static void read_rows(struct weights *w)
{
    int32_t *ids = malloc(w->rows * sizeof *ids);
    assert_non_null(ids);
    for (uint32_t r = 0; r < w->rows; r++)
        ids[r] = (int32_t)(w->rows - 1 - r);
    int32_t *device_ids = to_device(ids, w->rows * sizeof *ids);
    size_t stride = w->cols + 3;
    float *to = to_device(NULL, w->rows * stride * sizeof *to);
    must(cuda_matrix_read(&w->device, device_ids, w->rows, 1.0f, NULL, to, stride, 0));
    float *read = from_device(to, w->rows * stride * sizeof *to);
    for (uint32_t r = 0; r < w->rows; r++)
        memcpy(w->kept + (size_t)r * w->cols, read + (w->rows - 1 - r) * stride,
               w->cols * sizeof *read);
    must(cudaFree(device_ids));
    must(cudaFree(to));
    free(ids);
    free(read);
}

static struct weights weights_new(uint32_t type, uint32_t rows, uint32_t cols)
{
    struct weights w = {.type = type, .rows = rows, .cols = cols};
    const struct kind *kind = kind_of(type);
    w.row_bytes = ref_row_bytes(type, cols);
    w.file = malloc(w.row_bytes * rows);
    w.decoded = malloc((size_t)rows * cols * sizeof *w.decoded);
    w.kept = malloc((size_t)rows * cols * sizeof *w.kept);
    assert_true(w.file && w.decoded && w.kept);
    for (uint32_t r = 0; r < rows; r++) {
        draw_row(kind, w.file + r * w.row_bytes, cols);
        ref_decode_row(type, w.file + r * w.row_bytes, w.decoded + (size_t)r * cols, cols);
    }
    w.minimum = kind->minima * 0x1p-6f;

    size_t bytes = cuda_matrix_bytes(type, rows, cols);
    assert_true(bytes > 0 && bytes % 256 == 0);
    must(cudaMalloc(&w.memory, bytes));
    must(cudaMemset(w.memory, 0, bytes));
    cuda_matrix_init(&w.device, type, rows, cols, w.memory);
    write_rows(&w);
    read_rows(&w);
    return w;
}

static void weights_free(struct weights *w)
{
    must(cudaFree(w->memory));
    free(w->file);
    free(w->decoded);
    free(w->kept);
}

/* How far a kept value may be from the file's: scale and minimum are each off by 2^-11 of
 * themselves, and scale times code is at most |value| + minimum. F32 and BF16 become halves,
 * subnormal ones on a grid of 2^-24. Beyond that, float32 rounds product and sum. */
static double kept_error(const struct weights *w, double value)
{
    if (kind_of(w->type)->exact)
        return 0;
    return (fabs(value) + 2 * (double)w->minimum) * (0x1p-11 + 0x1p-22) + 0x1p-25;
}

static void test_formats(void **state)
{
    for (size_t i = 0; i < N_KINDS; i++) {
        uint32_t block = ref_block(kinds[i].type);
        struct weights w = weights_new(kinds[i].type, 37, block == 1 ? 101 : 3 * block);
        for (size_t at = 0; at < (size_t)w.rows * w.cols; at++) {
            double error = fabs((double)w.kept[at] - (double)w.decoded[at]);
            if (!(error <= kept_error(&w, w.decoded[at])))
                fail_msg("%s: value %zu is %a, not %a", ref_type_name(w.type), at,
                         (double)w.kept[at], (double)w.decoded[at]);
        }
        weights_free(&w);
    }
}

static void test_sizes(void **state)
{
    assert_int_equal(cuda_format_of(9), CUDA_FORMATS);
    assert_int_equal(cuda_matrix_bytes(9, 16, 64), 0);
    /* 2 bands of 2 units, each 4 tiles of 512 bytes of codes and 64 of scales. */
    assert_int_equal(cuda_matrix_bytes(INFER_TYPE_Q4_0, 65, 96), 2 * 2 * 4 * (512 + 64));
    assert_int_equal(cuda_matrix_bytes(INFER_TYPE_F16, 16, 64), 4 * 2048);
    /* The largest numbers of 32 bits do not overflow 64, and are not cut to fewer. */
    assert_true(cuda_matrix_bytes(INFER_TYPE_F16, UINT32_MAX, UINT32_MAX) > (size_t)1 << 63 ||
                cuda_matrix_bytes(INFER_TYPE_F16, UINT32_MAX, UINT32_MAX) == 0);
}

/* MXFP4's powers of two that half-precision lacks: zero below, the largest half above. */
static void test_mxfp4_range(void **state)
{
    static const struct {
        uint8_t e;
        double scale;
    } cases[] = {{0, 0},        {1, 0},       {102, 0},    {104, 0x1p-24},
                 {143, 0x1p15}, {144, 65504}, {255, 65504}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct weights w = {.type = INFER_TYPE_MXFP4, .rows = 1, .cols = 32, .row_bytes = 17};
        uint8_t file[17] = {cases[i].e, 0x02}; /* twice the number 1, so the halved scale */
        float kept[32];
        must(cudaMalloc(&w.memory, cuda_matrix_bytes(w.type, 1, 32)));
        must(cudaMemset(w.memory, 0, cuda_matrix_bytes(w.type, 1, 32)));
        cuda_matrix_init(&w.device, w.type, 1, 32, w.memory);
        w.file = file;
        w.kept = kept;
        write_rows(&w);
        read_rows(&w);
        assert_true((double)kept[0] == 2 * cases[i].scale);
        assert_true(kept[1] == 0);
        must(cudaFree(w.memory));
    }
}

/* ---- x --------------------------------------------------------------------------------------- */

/* Enough in any order. */
static size_t packed_bytes(uint32_t rows, uint32_t cols)
{
    return cuda_packed_bytes(rows > 128 ? rows : 128, cols);
}

/* Random halves of about `scale`, [rows][cols] as float. */
static float *halves_new(uint32_t rows, uint32_t cols, float scale)
{
    float *x = rig_normals((size_t)rows * cols, scale);
    for (size_t i = 0; i < (size_t)rows * cols; i++)
        x[i] = ref_f16_to_f32(ref_f32_to_f16(x[i]));
    return x;
}

/* On the device, packed: rows that pad are NaN, columns that pad are zero. */
static struct cuda_packed pack(const float *x, uint32_t rows, uint32_t cols, uint32_t tiles)
{
    struct cuda_packed p = {.tiles = tiles, .cols = cols, .blocks = (cols + 63) / 64 * 2};
    size_t bytes = packed_bytes(rows, cols);
    uint16_t *values = malloc(bytes);
    assert_non_null(values);
    memset(values, 0xff, bytes);
    for (uint32_t n = 0; n < rows; n++) {
        for (uint32_t c = 0; c < 32 * p.blocks; c++)
            values[packed_at(&p, n, c)] = ref_f32_to_f16(c < cols ? x[(size_t)n * cols + c] : 0);
    }
    p.values = to_device(values, bytes);
    free(values);
    return p;
}

/* ---- products -------------------------------------------------------------------------------- */

#define ROWS_MAX 130

/* W x in double precision, and how far the device may be from it: that float32 rounds (or the
 * tensor cores cut, 2^-23) once per value of a step of 16 and once per segment, of sums that are at
 * most those of magnitudes. The device's own weights, rounded to half-precision, are the true ones;
 * where they have a minimum cuda_matrix_read() has rounded them once before, to float32, which may
 * make another half of them. */
struct dot {
    double value, error;
};

/* Whether a number is within a few units of float32 of the middle between two halves. */
static bool near_a_middle(float v)
{
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    return (bits + 4) % 0x2000 - 0x1000 < 8 || fabsf(v) < 0x1p-14f;
}

static struct dot dot(const struct weights *w, uint32_t r, const float *x)
{
    struct dot d = {0, 0};
    for (uint32_t c = 0; c < w->cols; c++) {
        double kept = ref_f16_to_f32(ref_f32_to_f16(w->kept[(size_t)r * w->cols + c]));
        double size = fabs(kept * (double)x[c]);
        d.value += kept * (double)x[c];
        d.error += size * 0x1p-23 * (40 + w->cols / 16.0);
        if (w->minimum > 0 && near_a_middle(w->kept[(size_t)r * w->cols + c]))
            d.error += size * 0x1p-10;
    }
    return d;
}

/* The same of the file's own weights. */
static struct dot dot_of_file(const struct weights *w, uint32_t r, const float *x)
{
    struct dot d = dot(w, r, x);
    d.value = 0;
    for (uint32_t c = 0; c < w->cols; c++) {
        double decoded = w->decoded[(size_t)r * w->cols + c];
        d.value += decoded * (double)x[c];
        d.error +=
            (kept_error(w, decoded) + fabs(decoded) * 0x1p-11 + 0x1p-25) * fabs((double)x[c]);
    }
    return d;
}

struct product {
    const struct weights *w, *v;
    const float *x; /* [ROWS_MAX][cols] */
    uint32_t finish, activation;
    float scale;
    const float *bias, *to; /* host */
};

/* What a run leaves: float32 [n][rows], or packed values. */
struct result {
    float *to;
    uint16_t *values;
    struct cuda_packed packed; /* how they lie */
};

/* How x is packed and meets W. */
struct way {
    uint32_t tiles;
    enum cuda_way way;
};

/* What blocks give each other of tiles that they share, for all products: all ones at first and
 * after each of them. */
static struct sums {
    void *memory;
    size_t bytes;
} sums;

static void *sums_of(uint32_t n)
{
    int processors = 0;
    if (n <= CUDA_FEW_ROWS)
        return NULL;
    if (!sums.memory) {
        must(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, 0));
        sums.bytes = cuda_sums_bytes(ROWS_MAX, (uint32_t)processors);
        sums.memory = to_device(NULL, sums.bytes);
        must(cudaMemset(sums.memory, 0xff, sums.bytes));
    }
    return sums.memory;
}

static int sums_end(void **state)
{
    if (!sums.memory)
        return 0;
    uint64_t *left = from_device(sums.memory, sums.bytes), n = 0;
    for (size_t i = 0; i < sums.bytes / sizeof *left; i++)
        n += left[i] != UINT64_MAX;
    if (n > 0)
        fail_msg("%zu sums of other blocks were left behind", (size_t)n);
    free(left);
    must(cudaFree(sums.memory));
    sums.memory = NULL;
    return 0;
}

static struct result run(const struct product *p, struct way way, uint32_t n)
{
    uint32_t rows = p->w->rows, cols = p->w->cols;
    struct result ret = {
        .packed = {.tiles = way.tiles, .cols = rows, .blocks = (rows + 63) / 64 * 2}};
    size_t bytes = packed_bytes(n, rows);
    struct cuda_product product = {
        .w = p->w->device,
        .v = p->v ? p->v->device : (struct cuda_matrix){0},
        .x = pack(p->x, n, cols, way.tiles),
        .n_rows = n,
        .finish = p->finish,
        .activation = p->activation,
        .scale = p->scale,
        .stride = rows,
        .gated = ret.packed,
    };
    float *bias = p->bias ? to_device(p->bias, rows * sizeof *bias) : NULL;
    product.bias = bias;
    product.to = to_device(p->finish == CUDA_ADD ? p->to : NULL, (size_t)n * rows * sizeof(float));
    product.gated.values = to_device(NULL, bytes);
    product.sums = sums_of(n);
    must(cuda_multiply_by(way.way, &product, 1, 0));
    ret.to = from_device(product.to, (size_t)n * rows * sizeof(float));
    ret.values = from_device(product.gated.values, bytes);
    must(cudaFree(product.to));
    must(cudaFree(product.x.values));
    must(cudaFree(product.gated.values));
    must(cudaFree(bias));
    return ret;
}

static void result_free(struct result *r)
{
    free(r->to);
    free(r->values);
}

static double activate(uint32_t activation, double g)
{
    if (activation == INFER_ACT_SILU)
        return g / (1 + exp(-g));
    return 0.5 * g * (1 + tanh(0.79788456080286536 * (g + 0.044715 * g * g * g)));
}

static void near(const struct product *p, uint32_t n, uint32_t r, double value, double expected,
                 double error)
{
    if (!(fabs(value - expected) <= error))
        fail_msg("%s, finish %u, row %u of x, %u of W: %.9g, not %.9g +- %.3g",
                 ref_type_name(p->w->type), p->finish, n, r, value, expected, error);
}

static void check_one(const struct product *p, const struct result *result, uint32_t n, uint32_t r,
                      struct dot d)
{
    float got = result->to[(size_t)n * p->w->rows + r];
    double bias = p->bias ? (double)p->bias[r] : 0, base = 0, scale = 1;
    if (p->finish == CUDA_STORE)
        scale = (double)p->scale;
    else
        base = (double)p->to[(size_t)n * p->w->rows + r];
    double expected = base + scale * d.value + bias;
    near(p, n, r, (double)got, expected,
         fabs(scale) * d.error + 0x1p-23 * (fabs(base) + fabs(scale * d.value) + fabs(bias)));
}

/* act's slope is at most 1.13; the device's own exponential and division are within 2^-19. */
static void check_gated(const struct product *p, const struct result *result, uint32_t n,
                        uint32_t r)
{
    const float *x = p->x + (size_t)n * p->w->cols;
    struct dot gate = dot(p->w, r, x), up = dot(p->v, r, x);
    double y = activate(p->activation, gate.value);
    double error = 1.13 * gate.error * (fabs(up.value) + up.error) + fabs(y) * up.error +
                   fabs(y * up.value) * (0x1p-11 + 0x1p-19) + 0x1p-24;
    uint16_t bits = result->values[packed_at(&result->packed, n, r)];
    double expected = fmin(fmax(y * up.value, -65504), 65504); /* what half-precision has */
    near(p, n, r, (double)ref_f16_to_f32(bits), expected, error);
}

static void check_padding(const struct product *p, const struct result *result, uint32_t n)
{
    for (uint32_t c = p->w->rows; c < 32 * result->packed.blocks; c++)
        assert_int_equal(result->values[packed_at(&result->packed, n, c)] & 0x7fff, 0);
}

static void check(const struct product *p, const struct result *result, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        const float *x = p->x + (size_t)i * p->w->cols;
        for (uint32_t r = 0; r < p->w->rows; r++) {
            if (p->finish == CUDA_GATED) {
                check_gated(p, result, i, r);
                continue;
            }
            check_one(p, result, i, r, dot(p->w, r, x));
            check_one(p, result, i, r, dot_of_file(p->w, r, x));
        }
        if (p->finish == CUDA_GATED)
            check_padding(p, result, i);
    }
}

/* Rows 0 .. n - 1 of both have the same bits. */
static void same(const struct product *p, const struct result *a, const struct result *b,
                 uint32_t n, struct way way)
{
    bool equal = true;
    if (p->finish != CUDA_GATED) {
        equal = memcmp(a->to, b->to, (size_t)n * p->w->rows * sizeof *a->to) == 0;
    } else {
        for (uint32_t i = 0; i < n; i++) {
            for (uint32_t c = 0; c < p->w->rows; c++)
                equal &= a->values[packed_at(&a->packed, i, c)] ==
                         b->values[packed_at(&b->packed, i, c)];
        }
    }
    if (!equal)
        fail_msg("%s, finish %u: %u rows, sets of %u tiles, way %d: other bits than among %u rows",
                 ref_type_name(p->w->type), p->finish, n, way.tiles, (int)way.way, ROWS_MAX);
}

static uint32_t shared_bytes(void)
{
    struct cuda_limits device;
    must(cuda_limits_of(&device));
    return device.shared_bytes;
}

/* Whether the device has the shared memory for it. */
static bool is_taken(struct way way)
{
    return way.tiles <= 4 || shared_bytes() >= (way.tiles == 8 ? CUDA_SHARED_9_0 : CUDA_SHARED_8_0);
}

/* All rows at once are right, and any number of them by any way is the same. */
static void sweep(const struct product *p)
{
    static const struct {
        struct way way;
        uint32_t n;
    } runs[] = {
        {{0, CUDA_FASTEST}, 1},   {{0, CUDA_FASTEST}, 3},  {{0, CUDA_FASTEST}, 8},
        {{0, CUDA_FASTEST}, 9},   {{0, CUDA_FASTEST}, 16}, {{4, CUDA_DEEP}, 1},
        {{4, CUDA_WIDE}, 17},     {{4, CUDA_DEEP}, 32},    {{8, CUDA_DEEP}, 33},
        {{8, CUDA_WIDE}, 64},     {{16, CUDA_WIDE}, 5},    {{16, CUDA_DEEP}, ROWS_MAX},
        {{16, CUDA_FASTEST}, 65}, {{4, CUDA_WIDE}, 70},    {{4, CUDA_LEAN}, 40},
    };
    const struct way best = {cuda_packed_tiles(ROWS_MAX, shared_bytes()), CUDA_WIDE};
    struct result all = run(p, best, ROWS_MAX);
    check(p, &all, ROWS_MAX);
    for (size_t i = 0; i < sizeof runs / sizeof runs[0]; i++) {
        if (!is_taken(runs[i].way))
            continue;
        struct result some = run(p, runs[i].way, runs[i].n);
        same(p, &all, &some, runs[i].n, runs[i].way);
        result_free(&some);
    }
    result_free(&all);
}

#define STORE (1u << CUDA_STORE)
#define ADD   (1u << CUDA_ADD)
#define GATED (1u << CUDA_GATED)

static void sweep_shape(uint32_t type, uint32_t rows, uint32_t cols, uint32_t finishes)
{
    struct weights w = weights_new(type, rows, cols), v = weights_new(type, rows, cols);
    float *x = halves_new(ROWS_MAX, cols, 1.0f), *small = halves_new(ROWS_MAX, cols, 0x1p-7f);
    float *bias = rig_normals(rows, 1.0f), *to = rig_normals((size_t)ROWS_MAX * rows, 1.0f);
    struct product p = {.w = &w, .x = x, .finish = CUDA_STORE, .scale = 0.7f, .bias = bias};
    if (finishes & STORE)
        sweep(&p);
    p = (struct product){.w = &w, .x = x, .finish = CUDA_ADD, .to = to};
    if (finishes & ADD)
        sweep(&p);
    p = (struct product){.w = &w, .v = &v, .x = small, .finish = CUDA_GATED};
    p.activation = rows % 2 ? INFER_ACT_SILU : INFER_ACT_GELU_TANH;
    if (finishes & GATED)
        sweep(&p);
    weights_free(&w);
    weights_free(&v);
    free(x);
    free(small);
    free(bias);
    free(to);
}

/* Fewer units of columns than segments, with columns that end inside a unit; 3 tiles, of which the
 * third is half empty. */
static void test_products(void **state)
{
    for (size_t i = 0; i < N_KINDS; i++) {
        uint32_t block = ref_block(kinds[i].type);
        sweep_shape(kinds[i].type, 40,
                    block == 1    ? 101
                    : block == 32 ? 96
                                  : 256,
                    STORE | ADD | GATED);
    }
}

static const uint32_t one_of_each_format[] = {INFER_TYPE_F16,  INFER_TYPE_Q4_0, INFER_TYPE_Q4_K,
                                              INFER_TYPE_Q5_K, INFER_TYPE_Q6_K, INFER_TYPE_Q8_0,
                                              INFER_TYPE_Q2_K};
#define N_FORMATS (sizeof one_of_each_format / sizeof one_of_each_format[0])
_Static_assert(N_FORMATS == CUDA_FORMATS, "one of each");

/* 116 units: not a multiple of 16 or 4, and up to 8 in a segment, so that every ring goes round. */
static void test_long_products(void **state)
{
    for (size_t i = 0; i < N_FORMATS; i++)
        sweep_shape(one_of_each_format[i], 17, 7424, STORE);
}

/* 3 bands, the last with 7 rows: more than a block of any kernel has. */
static void test_tall_products(void **state)
{
    for (size_t i = 0; i < N_FORMATS; i++)
        sweep_shape(one_of_each_format[i], 135, 256, ADD | GATED);
}

/* Three products of one x, two of them in one format: each as if it were alone. */
static void test_together(void **state)
{
    static const uint32_t types[] = {INFER_TYPE_Q4_0, INFER_TYPE_Q8_0, INFER_TYPE_Q4_0};
    static const uint32_t rows[] = {150, 24, 17}, counts[] = {1, 40, ROWS_MAX};
    const uint32_t cols = 160;
    struct weights w[3];
    float *x = halves_new(ROWS_MAX, cols, 1.0f), *bias = rig_normals(24, 1.0f);
    for (int i = 0; i < 3; i++)
        w[i] = weights_new(types[i], rows[i], cols);

    for (size_t k = 0; k < sizeof counts / sizeof counts[0]; k++) {
        uint32_t n = counts[k];
        struct cuda_product products[3];
        struct way way = {cuda_packed_tiles(n, shared_bytes()), CUDA_FASTEST};
        struct cuda_packed packed = pack(x, n, cols, way.tiles);
        float *device_bias = to_device(bias, 24 * sizeof *bias);
        for (int i = 0; i < 3; i++) {
            products[i] = (struct cuda_product){.w = w[i].device, .x = packed, .n_rows = n};
            products[i].finish = CUDA_STORE;
            products[i].scale = 1.0f;
            products[i].bias = i == 1 ? device_bias : NULL;
            products[i].stride = rows[i];
            products[i].to = to_device(NULL, (size_t)n * rows[i] * sizeof(float));
            products[i].sums = sums_of(n);
        }
        must(cuda_multiply(products, 3, 0));
        for (int i = 0; i < 3; i++) {
            struct product p = {.w = &w[i], .x = x, .finish = CUDA_STORE, .scale = 1.0f};
            p.bias = i == 1 ? bias : NULL;
            struct result alone = run(&p, way, n);
            struct result together = {
                .to = from_device(products[i].to, (size_t)n * rows[i] * sizeof(float))};
            check(&p, &together, n);
            same(&p, &alone, &together, n, way);
            must(cudaFree(products[i].to));
            result_free(&alone);
            result_free(&together);
        }
        must(cudaFree(packed.values));
        must(cudaFree(device_bias));
    }
    for (int i = 0; i < 3; i++)
        weights_free(&w[i]);
    free(x);
    free(bias);
}

/* Where a block has 64 KiB of shared memory; one processor, whose block takes all pairs. */
static void test_little_memory(void **state)
{
#ifndef CUDA_EMULATED
    skip(); /* what the GPU has is what all tests have */
#endif
    setenv("INFERD_CUDA_EMULATED", "sms=1,capability=75", 1);
    assert_int_equal(shared_bytes(), CUDA_SHARED_7_5);
    for (size_t i = 0; i < N_FORMATS; i++)
        sweep_shape(one_of_each_format[i], 72, 768, i % 3 ? STORE : GATED);
    setenv("INFERD_CUDA_EMULATED", "sms=3", 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_formats),
        cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_mxfp4_range),
        cmocka_unit_test_teardown(test_products, sums_end),
        cmocka_unit_test_teardown(test_long_products, sums_end),
        cmocka_unit_test_teardown(test_tall_products, sums_end),
        cmocka_unit_test_teardown(test_together, sums_end),
        cmocka_unit_test_teardown(test_little_memory, sums_end),
    };
    /* Emulated: so few processors that blocks take one pair of tiles after another. */
    setenv("INFERD_CUDA_EMULATED", "sms=3", 0);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
