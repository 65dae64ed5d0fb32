/* Decoding of every tensor type against the bytes and float32 values in tests/data/quant, and the
 * conversions and encoders by themselves. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "inferd/backend.h"
#include "ref/blocks.h"
#include "ref/quant.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ROWS 64
#define COLS 256

static const struct {
    const char *name;
    uint32_t type;
    uint32_t row_bytes;
} fixtures[] = {
    {"F16", INFER_TYPE_F16, 512},       {"BF16", INFER_TYPE_BF16, 512},
    {"Q8_0", INFER_TYPE_Q8_0, 272},     {"Q4_0", INFER_TYPE_Q4_0, 144},
    {"Q4_1", INFER_TYPE_Q4_1, 160},     {"Q5_0", INFER_TYPE_Q5_0, 176},
    {"Q5_1", INFER_TYPE_Q5_1, 192},     {"Q2_K", INFER_TYPE_Q2_K, 84},
    {"Q3_K", INFER_TYPE_Q3_K, 110},     {"Q4_K", INFER_TYPE_Q4_K, 144},
    {"Q5_K", INFER_TYPE_Q5_K, 176},     {"Q6_K", INFER_TYPE_Q6_K, 210},
    {"IQ4_NL", INFER_TYPE_IQ4_NL, 144}, {"IQ4_XS", INFER_TYPE_IQ4_XS, 136},
    {"IQ3_S", INFER_TYPE_IQ3_S, 110},   {"TQ1_0", INFER_TYPE_TQ1_0, 54},
    {"TQ2_0", INFER_TYPE_TQ2_0, 66},    {"MXFP4", INFER_TYPE_MXFP4, 136},
};
#define N_FIXTURES (sizeof fixtures / sizeof fixtures[0])

/* A whole file of tests/data/quant, which must have `bytes` bytes. */
static void *load(const char *name, const char *suffix, size_t bytes)
{
    char path[128];
    snprintf(path, sizeof path, "tests/data/quant/%s.%s", name, suffix);
    FILE *file = fopen(path, "rb");
    if (file == NULL)
        fail_msg("%s cannot be opened", path);
    void *memory = malloc(bytes + 1);
    assert_non_null(memory);
    assert_int_equal(fread(memory, 1, bytes + 1, file), bytes);
    fclose(file);
    return memory;
}

/* How many of n floats differ in their bits. */
static uint32_t differences(const float *a, const float *b, uint32_t n)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < n; i++)
        count += memcmp(a + i, b + i, sizeof *a) != 0;
    return count;
}

static void every_type_is_bit_exact(void **state)
{
    (void)state;
    for (size_t f = 0; f < N_FIXTURES; f++) {
        uint32_t row_bytes = fixtures[f].row_bytes;
        uint8_t *rows = load(fixtures[f].name, "bin", (size_t)ROWS * row_bytes);
        float *wanted = load(fixtures[f].name, "f32", ROWS * COLS * sizeof(float));
        float got[COLS];
        assert_string_equal(ref_type_name(fixtures[f].type), fixtures[f].name);
        assert_int_equal(ref_row_bytes(fixtures[f].type, COLS), row_bytes);
        for (uint32_t r = 0; r < ROWS; r++) {
            ref_decode_row(fixtures[f].type, rows + (size_t)r * row_bytes, got, COLS);
            if (differences(got, wanted + r * COLS, COLS) != 0)
                fail_msg("%s: row %u differs", fixtures[f].name, r);
        }
        free(rows);
        free(wanted);
    }
}

/* The comparison above notices a change of any single byte of a row. */
static void every_byte_counts(void **state)
{
    (void)state;
    for (size_t f = 0; f < N_FIXTURES; f++) {
        uint32_t row_bytes = fixtures[f].row_bytes;
        uint8_t *rows = load(fixtures[f].name, "bin", (size_t)ROWS * row_bytes);
        float *wanted = load(fixtures[f].name, "f32", ROWS * COLS * sizeof(float));
        float got[COLS];
        for (uint32_t i = 0; i < row_bytes; i++) {
            rows[i] ^= 0xff;
            ref_decode_row(fixtures[f].type, rows, got, COLS);
            if (differences(got, wanted, COLS) == 0)
                fail_msg("%s: byte %u has no effect", fixtures[f].name, i);
            rows[i] ^= 0xff;
        }
        free(rows);
        free(wanted);
    }
}

/* Rows start at any byte of a file's mapping, and a row of many blocks is its blocks. */
static void rows_may_lie_anywhere(void **state)
{
    (void)state;
    for (size_t f = 0; f < N_FIXTURES; f++) {
        size_t bytes = (size_t)ROWS * fixtures[f].row_bytes;
        uint8_t *rows = load(fixtures[f].name, "bin", bytes);
        float *wanted = load(fixtures[f].name, "f32", ROWS * COLS * sizeof(float));
        uint8_t *moved = malloc(bytes + 1);
        float *got = malloc(ROWS * COLS * sizeof *got);
        memcpy(moved + 1, rows, bytes);
        ref_decode_row(fixtures[f].type, moved + 1, got, ROWS * COLS);
        assert_int_equal(differences(got, wanted, ROWS * COLS), 0);
        free(rows);
        free(wanted);
        free(moved);
        free(got);
    }
}

static void f32_is_copied(void **state)
{
    (void)state;
    float values[5] = {0.0f, -0.0f, 1.5f, INFINITY, -1e-40f}, got[5];
    assert_int_equal(ref_row_bytes(INFER_TYPE_F32, 5), 20);
    ref_decode_row(INFER_TYPE_F32, values, got, 5);
    assert_int_equal(differences(values, got, 5), 0);
}

static void sizes_are_checked(void **state)
{
    (void)state;
    assert_false(ref_type_known(4)); /* a retired id */
    assert_false(ref_type_known(1000000));
    assert_int_equal(ref_block(4), 0);
    assert_int_equal(ref_row_bytes(4, 256), 0);
    assert_int_equal(ref_block(INFER_TYPE_Q4_0), 32);
    assert_int_equal(ref_block(INFER_TYPE_Q6_K), 256);
    assert_int_equal(ref_row_bytes(INFER_TYPE_Q4_0, 48), 0);
    assert_int_equal(ref_row_bytes(INFER_TYPE_Q6_K, 128), 0);
    assert_int_equal(ref_row_bytes(INFER_TYPE_F32, UINT64_C(1) << 62), 0);
    assert_int_equal(ref_row_bytes(INFER_TYPE_F16, UINT64_C(1) << 62), UINT64_C(1) << 63);
    assert_int_equal(ref_block_bytes(INFER_TYPE_Q6_K), sizeof(struct ref_q6_k));
}

/* Each half survives the way to float32 and back; between two neighbours the nearer one is taken,
 * and exactly in the middle the one with an even last bit. Past the largest lies infinity. */
static void f16_rounds_to_nearest_even(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 0x10000; h++) {
        float value = ref_f16_to_f32((uint16_t)h);
        uint32_t exponent = h >> 10 & 31;
        float ideal = exponent == 31  ? ((h & 0x3ff) ? NAN : INFINITY)
                      : exponent == 0 ? ldexpf((float)(h & 0x3ff), -24)
                                      : ldexpf((float)(h & 0x3ff) + 1024.0f, (int)exponent - 25);
        if (isnan(ideal)) {
            assert_true(isnan(value));
            assert_int_equal(ref_f32_to_f16(value) & 0x7c00, 0x7c00);
            assert_int_not_equal(ref_f32_to_f16(value) & 0x3ff, 0);
            continue;
        }
        assert_true(value == (h & 0x8000 ? -ideal : ideal));
        assert_int_equal(ref_f32_to_f16(value), h);
    }
    for (uint32_t h = 0; h < 0x7c00; h++) {
        float low = ref_f16_to_f32((uint16_t)h);
        float high = h == 0x7bff ? 65536.0f : ref_f16_to_f32((uint16_t)(h + 1));
        float middle = low + (high - low) / 2;
        uint16_t even = (uint16_t)(h & 1 ? h + 1 : h);
        assert_int_equal(ref_f32_to_f16(middle), even);
        assert_int_equal(ref_f32_to_f16(nextafterf(middle, 0)), h);
        assert_int_equal(ref_f32_to_f16(nextafterf(middle, INFINITY)), h + 1);
        assert_int_equal(ref_f32_to_f16(-middle), even | 0x8000);
    }
    assert_int_equal(ref_f32_to_f16(1e30f), 0x7c00);
    assert_int_equal(ref_f32_to_f16(-INFINITY), 0xfc00);
    assert_int_equal(ref_f32_to_f16(1e-30f), 0);
}

static void bf16_rounds_to_nearest_even(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 0x7f80; h++) {
        float low = ref_bf16_to_f32((uint16_t)h);
        assert_int_equal(ref_f32_to_bf16(low), h);
        assert_int_equal(ref_f32_to_bf16(-low), h | 0x8000);
        uint32_t bits = h << 16 | 0x8000;
        float middle;
        memcpy(&middle, &bits, sizeof middle);
        assert_int_equal(ref_f32_to_bf16(middle), h & 1 ? h + 1 : h);
        assert_int_equal(ref_f32_to_bf16(nextafterf(middle, 0)), h);
        assert_int_equal(ref_f32_to_bf16(nextafterf(middle, INFINITY)), h + 1);
    }
    assert_int_equal(ref_f32_to_bf16(INFINITY), 0x7f80);
    assert_true(isnan(ref_bf16_to_f32(ref_f32_to_bf16(NAN))));
}

/* Deterministic values in [-1, 1). */
static void fill_random(float *values, uint32_t n, uint32_t seed)
{
    for (uint32_t i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        values[i] = (float)(int32_t)seed / 2147483648.0f;
    }
}

/* Rounding to one of the type's steps errs by half a step, which is d; the rounding of d itself to
 * half precision shifts a value of q steps by q * d * 2^-11. In Q4_0 the end opposite to the
 * extreme value is one step short, so it errs by a whole one. */
static void encoding_errs_by_half_a_step(void **state)
{
    (void)state;
    float values[COLS], got[COLS];
    uint8_t row[COLS * 4];
    fill_random(values, COLS, 7);

    assert_true(ref_encode_row(INFER_TYPE_Q8_0, values, row, COLS));
    ref_decode_row(INFER_TYPE_Q8_0, row, got, COLS);
    for (uint32_t i = 0; i < COLS; i++) {
        float d = ref_f16_to_f32(((struct ref_q8_0 *)row)[i / 32].d);
        assert_true(fabsf(got[i] - values[i]) <= d * (0.5f + 127.0f / 2048 + 1e-4f));
    }
    assert_true(ref_encode_row(INFER_TYPE_Q4_0, values, row, COLS));
    ref_decode_row(INFER_TYPE_Q4_0, row, got, COLS);
    for (uint32_t i = 0; i < COLS; i++) {
        float d = ref_f16_to_f32(((struct ref_q4_0 *)row)[i / 32].d);
        float bound = values[i] * d > 0 && got[i] == 7 * d ? 1.0f : 0.5f;
        assert_true(fabsf(got[i] - values[i]) <= fabsf(d) * (bound + 8.0f / 2048 + 1e-4f));
    }
    assert_true(ref_encode_row(INFER_TYPE_F16, values, row, COLS));
    ref_decode_row(INFER_TYPE_F16, row, got, COLS);
    for (uint32_t i = 0; i < COLS; i++)
        assert_true(fabsf(got[i] - values[i]) <= 0x1p-12f);
    assert_true(ref_encode_row(INFER_TYPE_BF16, values, row, COLS));
    ref_decode_row(INFER_TYPE_BF16, row, got, COLS);
    for (uint32_t i = 0; i < COLS; i++)
        assert_true(fabsf(got[i] - values[i]) <= 0x1p-9f);
    assert_true(ref_encode_row(INFER_TYPE_F32, values, row, COLS));
    assert_memory_equal(row, values, sizeof values);
    assert_false(ref_encode_row(INFER_TYPE_Q6_K, values, row, COLS));
}

static void encoding_keeps_what_fits(void **state)
{
    (void)state;
    float values[32], got[32];
    struct ref_q8_0 q8;
    struct ref_q4_0 q4;

    for (int i = 0; i < 32; i++)
        values[i] = (float)(i * 8 - 127) * 0.25f; /* whole steps of a power of two */
    ref_encode_row(INFER_TYPE_Q8_0, values, &q8, 32);
    ref_decode_row(INFER_TYPE_Q8_0, &q8, got, 32);
    assert_int_equal(differences(values, got, 32), 0);

    for (int i = 0; i < 32; i++)
        values[i] = (float)(i % 16 - 8) * 0.5f;
    ref_encode_row(INFER_TYPE_Q4_0, values, &q4, 32);
    ref_decode_row(INFER_TYPE_Q4_0, &q4, got, 32);
    for (int i = 0; i < 32; i++)
        assert_true(values[i] == got[i]);

    memset(values, 0, sizeof values);
    ref_encode_row(INFER_TYPE_Q8_0, values, &q8, 32);
    ref_decode_row(INFER_TYPE_Q8_0, &q8, got, 32);
    for (int i = 0; i < 32; i++)
        assert_true(got[i] == 0);
    ref_encode_row(INFER_TYPE_Q4_0, values, &q4, 32);
    ref_decode_row(INFER_TYPE_Q4_0, &q4, got, 32);
    for (int i = 0; i < 32; i++)
        assert_true(got[i] == 0);
}

/* Nothing that a broken model computes may do harm here: also NaN and infinity are encoded. */
static void encoding_survives_anything(void **state)
{
    (void)state;
    float values[32] = {NAN, INFINITY, -INFINITY, 3.0e38f, 1e-42f}, got[32];
    struct ref_q8_0 q8;
    struct ref_q4_0 q4;
    for (int round = 0; round < 5; round++) {
        ref_encode_row(INFER_TYPE_Q8_0, values, &q8, 32);
        ref_decode_row(INFER_TYPE_Q8_0, &q8, got, 32);
        ref_encode_row(INFER_TYPE_Q4_0, values, &q4, 32);
        ref_decode_row(INFER_TYPE_Q4_0, &q4, got, 32);
        values[round] = 0;
    }
    assert_true(got[31] == 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_type_is_bit_exact),
        cmocka_unit_test(every_byte_counts),
        cmocka_unit_test(rows_may_lie_anywhere),
        cmocka_unit_test(f32_is_copied),
        cmocka_unit_test(sizes_are_checked),
        cmocka_unit_test(f16_rounds_to_nearest_even),
        cmocka_unit_test(bf16_rounds_to_nearest_even),
        cmocka_unit_test(encoding_errs_by_half_a_step),
        cmocka_unit_test(encoding_keeps_what_fits),
        cmocka_unit_test(encoding_survives_anything),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
