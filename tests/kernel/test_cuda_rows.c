/* test_cuda_rows.c: kernels/cuda/rows.cu beside plain loops: norms, activations, the orders of
 * fragments, padding, and that a row does not know of others. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "cuda/cuda.h"
#include "kernel/cuda_memory.h"
#include "kernel/cuda_packed.h"
#include "ref/quant.h"

#define EPS 1e-5f

struct packed {
    struct cuda_packed device;
    uint16_t *values; /* on the host */
    size_t bytes;
    uint32_t rows;
};

static struct packed packed_new(uint32_t rows, uint32_t cols)
{
    struct packed p = {.rows = rows, .bytes = cuda_packed_bytes(rows, cols)};
    p.device.values = to_device(NULL, p.bytes);
    p.device.tiles = cuda_packed_tiles(rows, CUDA_SHARED_9_0);
    p.device.cols = cols;
    p.device.blocks = (cols + 63) / 64 * 2;
    return p;
}

static void packed_fetch(struct packed *p)
{
    p->values = from_device(p->device.values, p->bytes);
}

static void packed_free(struct packed *p)
{
    must(cudaFree(p->device.values));
    free(p->values);
}

static uint16_t half_at(const struct packed *p, uint32_t row, uint32_t c)
{
    return p->values[packed_at(&p->device, row, c)];
}

/* Half-precision's own rounding, 2^-11 of the value or 2^-25 where it is tiny, and what float32
 * does before: the scale is off by the rounding of a sum of squares, the product by two more, and
 * the activation's functions by a few; 2^-20 is beyond all of these. e^z is off by the rounding of
 * z too, which is at most four times 2^-24 of it. */
static void check_value(double want, double z, uint16_t half, const char *what, uint32_t row,
                        uint32_t c)
{
    double cut = fmax(fmin(want, 65504.0), -65504.0), got = ref_f16_to_f32(half);
    double allowed = fabs(cut) * (0x1p-11 + 0x1p-20 + 0x1p-22 * fabs(z)) + 0x1p-25;
    if (!(fabs(got - cut) <= allowed))
        fail_msg("%s: row %u, column %u: %.9g, not %.9g", what, row, c, got, cut);
}

static void check_padding(const struct packed *p)
{
    for (uint32_t row = 0; row < p->rows; row++) {
        for (uint32_t c = p->device.cols; c < p->device.blocks * 32; c++)
            assert_int_equal(half_at(p, row, c), 0);
    }
}

/* ---- cuda_pack ------------------------------------------------------------------------------- */

struct pack_case {
    uint32_t n, cols, stride,
        shift; /* shift: x begins so many numbers after a multiple of 16 bytes */
    bool norm, indexed;
    float scale;
};

static void check_pack(const struct pack_case *k)
{
    uint32_t rows_of_x = k->n + 3;
    size_t numbers = (size_t)rows_of_x * k->stride + k->shift;
    float *x = rig_normals(numbers, k->scale), *weight = rig_normals(k->cols, 1.0f);
    int32_t *index = malloc(k->n * sizeof *index);
    assert_non_null(index);
    for (uint32_t i = 0; i < k->n; i++)
        index[i] = (int32_t)(rig_draw() % rows_of_x);
    float *x_there = to_device(x, numbers * 4), *weight_there = to_device(weight, k->cols * 4);
    int32_t *index_there = to_device(index, k->n * 4);
    struct packed p = packed_new(k->n, k->cols);
    must(cuda_pack(x_there + k->shift, k->stride, k->indexed ? index_there : NULL, k->n,
                   k->norm ? weight_there : NULL, EPS, &p.device, NULL));
    packed_fetch(&p);
    for (uint32_t row = 0; row < k->n; row++) {
        const float *from =
            x + k->shift + (size_t)(k->indexed ? (uint32_t)index[row] : row) * k->stride;
        double squares = 0;
        for (uint32_t c = 0; c < k->cols; c++)
            squares += (double)from[c] * from[c];
        double scale = k->norm ? 1.0 / sqrt(squares / k->cols + EPS) : 1.0;
        for (uint32_t c = 0; c < k->cols; c++)
            check_value(from[c] * scale * (k->norm ? weight[c] : 1.0f), 0, half_at(&p, row, c),
                        "pack", row, c);
    }
    check_padding(&p);
    packed_free(&p);
    must(cudaFree(x_there));
    must(cudaFree(weight_there));
    must(cudaFree(index_there));
    free(x);
    free(weight);
    free(index);
}

static void test_pack(void **state)
{
    static const struct pack_case cases[] = {
        {1, 64, 64, 0, true, false, 1.0f},        {1, 4096, 4096, 0, true, false, 1.0f},
        {8, 4096, 4096, 0, true, false, 0.01f},   {3, 2048, 2048, 0, true, true, 20.0f},
        {17, 96, 128, 0, true, true, 1.0f},       {49, 80, 80, 0, true, false, 1.0f},
        {70, 130, 131, 0, true, false, 1.0f},     {5, 5120, 5120, 0, true, false, 1.0f},
        {2, 8192, 8192, 0, true, false, 1.0f},    {2, 12288, 12288, 0, true, false, 1.0f},
        {2, 16384, 16384, 0, true, true, 1.0f},   {1, 16448, 16448, 0, true, false, 1.0f},
        {1, 20002, 20002, 0, true, false, 1.0f},  {9, 100, 100, 0, true, false, 1.0f},
        {4, 77, 80, 0, true, false, 1.0f},        {4, 130, 131, 0, true, true, 1.0f},
        {3, 256, 256, 1, true, false, 1.0f},      {1, 1, 4, 0, true, false, 1.0f},
        {1, 64, 64, 0, false, false, 1.0f},       {11, 4096, 4096, 0, false, true, 1.0f},
        {3, 2080, 2081, 3, false, false, 1.0f},   {2, 12345, 12345, 0, false, false, 1.0f},
        {4, 128, 128, 0, false, false, 40000.0f},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        check_pack(&cases[i]);
}

static void test_pack_many_rows(void **state)
{
    check_pack(&(struct pack_case){512, 192, 192, 0, true, false, 1.0f});
    check_pack(&(struct pack_case){512, 64, 64, 0, false, true, 1.0f});
}

/* A row of zeros, rows that are tiny, rows whose squares are large but whose norm is not. */
static void test_pack_extremes(void **state)
{
    static const float scales[] = {0.0f, 1e-18f, 1e-4f, 1e15f};
    for (size_t i = 0; i < sizeof scales / sizeof *scales; i++)
        check_pack(&(struct pack_case){2, 1024, 1024, 0, true, false, scales[i]});
}

/* The same bits, alone, as another row of a batch, and by way of an index. */
static void test_pack_alone_or_not(void **state)
{
    enum { COLS = 2816, ROWS = 24 };
    static const int32_t pick[1] = {13};
    float *x = rig_normals((size_t)ROWS * COLS, 1.0f), *weight = rig_normals(COLS, 1.0f);
    float *x_there = to_device(x, (size_t)ROWS * COLS * 4);
    float *weight_there = to_device(weight, COLS * 4);
    int32_t *pick_there = to_device(pick, sizeof pick);
    struct packed all = packed_new(ROWS, COLS), one = packed_new(1, COLS);
    must(cuda_pack(x_there, COLS, NULL, ROWS, weight_there, EPS, &all.device, NULL));
    must(cuda_pack(x_there, COLS, pick_there, 1, weight_there, EPS, &one.device, NULL));
    packed_fetch(&all);
    packed_fetch(&one);
    for (uint32_t c = 0; c < COLS; c++)
        assert_int_equal(half_at(&all, 13, c), half_at(&one, 0, c));
    packed_free(&all);
    packed_free(&one);
    must(cudaFree(x_there));
    must(cudaFree(weight_there));
    must(cudaFree(pick_there));
    free(x);
    free(weight);
}

/* ---- cuda_pack_gated ------------------------------------------------------------------------- */

/* As ref/ops.c has them: x / (1 + e^-z), and x (1 + tanh(z / 2)) / 2. */
static double exponent(uint32_t activation, double x)
{
    return activation == INFER_ACT_SILU ? x
                                        : 2 * 0.79788456080286535588 * (x + 0.044715 * x * x * x);
}
static double activate(uint32_t activation, double x)
{
    double z = exponent(activation, x);
    return activation == INFER_ACT_SILU ? x / (1 + exp(-z)) : 0.5 * x * (1 + tanh(0.5 * z));
}

static void check_gated(uint32_t n, uint32_t cols, uint32_t stride, uint32_t activation,
                        float scale)
{
    float *gate = rig_normals((size_t)n * stride, scale);
    float *up = rig_normals((size_t)n * stride, 1.0f);
    float *gate_there = to_device(gate, (size_t)n * stride * 4);
    float *up_there = to_device(up, (size_t)n * stride * 4);
    struct packed p = packed_new(n, cols);
    must(cuda_pack_gated(gate_there, up_there, stride, n, activation, &p.device, NULL));
    packed_fetch(&p);
    for (uint32_t row = 0; row < n; row++) {
        for (uint32_t c = 0; c < cols; c++) {
            size_t at = (size_t)row * stride + c;
            check_value(activate(activation, gate[at]) * up[at], exponent(activation, gate[at]),
                        half_at(&p, row, c), "gated", row, c);
        }
    }
    check_padding(&p);
    packed_free(&p);
    must(cudaFree(gate_there));
    must(cudaFree(up_there));
    free(gate);
    free(up);
}

static void test_pack_gated(void **state)
{
    static const uint32_t both[] = {INFER_ACT_SILU, INFER_ACT_GELU_TANH};
    for (size_t i = 0; i < 2; i++) {
        check_gated(1, 64, 64, both[i], 1.0f);
        check_gated(8, 14336, 14336, both[i], 2.0f);
        check_gated(3, 1000, 1001, both[i], 1.0f);
        check_gated(5, 333, 336, both[i], 4.0f);
        check_gated(2, 2048, 2048, both[i], 100.0f); /* far out on both sides */
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pack),          cmocka_unit_test(test_pack_many_rows),
        cmocka_unit_test(test_pack_extremes), cmocka_unit_test(test_pack_alone_or_not),
        cmocka_unit_test(test_pack_gated),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
