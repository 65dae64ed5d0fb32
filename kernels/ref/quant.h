/* quant.h: every tensor type, to and from float32, one row at a time.
 *
 * Decoding is exact: each value is computed by the format's own formula in float32, in a fixed
 * order of operations, so that the bits agree with every faithful decoder. Pure functions. */
#ifndef INFERD_KERNELS_REF_QUANT_H
#define INFERD_KERNELS_REF_QUANT_H

#include <stdbool.h>
#include <stdint.h>

/* Whether `type` is one of enum infer_type. The other functions take only such. */
bool ref_type_known(uint32_t type);
const char *ref_type_name(uint32_t type); /* "Q4_K"; "?" when unknown */

/* Values per block; a row's length is a multiple of it. 1 for the float types. 0: unknown. */
uint32_t ref_block(uint32_t type);
uint32_t ref_block_bytes(uint32_t type);

/* Bytes of n values; 0 when the type is unknown, n is no multiple of the block, or it overflows. */
uint64_t ref_row_bytes(uint32_t type, uint64_t n);

/* n values, a multiple of the block, from `row` (at any alignment) into ret[n]. */
void ref_decode_row(uint32_t type, const void *row, float *ret, uint64_t n);

/* The other way, for F32, F16, BF16 (nearest even), Q8_0 and Q4_0 (nearest, scale from the value
 * of largest magnitude). false for any other type: nothing was written. */
bool ref_encode_row(uint32_t type, const float *values, void *ret, uint64_t n);

/* Single numbers. Conversions from float32 round to nearest, ties to even; NaN stays NaN. */
float ref_f16_to_f32(uint16_t bits);
uint16_t ref_f32_to_f16(float value);
float ref_bf16_to_f32(uint16_t bits);
uint16_t ref_f32_to_bf16(float value);

/* The scale of an MXFP4 block, halved because ref_mxfp4_values are doubled: 2^(e - 128). */
float ref_mxfp4_scale(uint8_t e);

/* Scale and minimum j (0..7) of a Q4_K or Q5_K block, six bits each. */
void ref_k4_scale_min(const uint8_t scales[12], int j, uint8_t *ret_scale, uint8_t *ret_min);

/* The 16 signed scales of a Q3_K block, -32 .. 31. */
void ref_q3_k_scales(const uint8_t scales[12], int8_t ret[16]);

#endif
