/* blocks.h: how each quantized tensor type lies in a file.
 *
 * A row of n values is n / BLOCK blocks without padding. All scales `d`, `m`, `dmin` are IEEE
 * half-precision numbers as their 16 bits, little-endian like everything else. quant.c holds the
 * meaning of every field; this file only the places, so that fast backends can share them. The
 * structs are packed: a block may start at any byte. */
#ifndef INFERD_KERNELS_REF_BLOCKS_H
#define INFERD_KERNELS_REF_BLOCKS_H

#include <stdint.h>

/* Values per block: of the simple types, and of the "super-blocks" with scales of their own. */
#define REF_QK   32
#define REF_QK_K 256

#define REF_PACKED __attribute__((packed))

/* ---- 32 values ------------------------------------------------------------------------------- */

struct ref_q4_0 {
    uint16_t d;
    uint8_t qs[16]; /* value i in the low nibble of byte i, value i + 16 in the high one */
} REF_PACKED;

struct ref_q4_1 {
    uint16_t d, m;
    uint8_t qs[16]; /* as q4_0 */
} REF_PACKED;

struct ref_q5_0 {
    uint16_t d;
    uint8_t qh[4];  /* bit i: the fifth bit of value i */
    uint8_t qs[16]; /* the low four bits, as q4_0 */
} REF_PACKED;

struct ref_q5_1 {
    uint16_t d, m;
    uint8_t qh[4];
    uint8_t qs[16];
} REF_PACKED;

struct ref_q8_0 {
    uint16_t d;
    int8_t qs[32];
} REF_PACKED;

struct ref_iq4_nl {
    uint16_t d;
    uint8_t qs[16]; /* as q4_0; the nibble is an index into ref_iq4_values */
} REF_PACKED;

struct ref_mxfp4 {
    uint8_t e;      /* E8M0 exponent of the block's scale */
    uint8_t qs[16]; /* as q4_0; the nibble is an index into ref_mxfp4_values */
} REF_PACKED;

/* ---- 256 values ------------------------------------------------------------------------------ */

struct ref_q2_k {
    uint8_t scales[16]; /* of 16 values each: scale in the low nibble, minimum in the high one */
    uint8_t qs[64];     /* two bits each */
    uint16_t d, dmin;
} REF_PACKED;

struct ref_q3_k {
    uint8_t hmask[32];  /* the third bit */
    uint8_t qs[64];     /* the low two bits */
    uint8_t scales[12]; /* 16 scales of six bits */
    uint16_t d;
} REF_PACKED;

struct ref_q4_k {
    uint16_t d, dmin;
    uint8_t scales[12]; /* 8 scales and 8 minima of six bits, of 32 values each */
    uint8_t qs[128];
} REF_PACKED;

struct ref_q5_k {
    uint16_t d, dmin;
    uint8_t scales[12]; /* as q4_k */
    uint8_t qh[32];     /* the fifth bit */
    uint8_t qs[128];    /* the low four bits, as q4_k */
} REF_PACKED;

struct ref_q6_k {
    uint8_t ql[128];   /* the low four bits */
    uint8_t qh[64];    /* the high two */
    int8_t scales[16]; /* of 16 values each */
    uint16_t d;
} REF_PACKED;

struct ref_iq4_xs {
    uint16_t d;
    uint16_t scales_h;   /* the high two bits of 8 scales */
    uint8_t scales_l[4]; /* the low four */
    uint8_t qs[128];     /* 8 groups, each as iq4_nl */
} REF_PACKED;

struct ref_iq3_s {
    uint16_t d;
    uint8_t qs[64];    /* the low eight bits of 64 indices into ref_iq3s_grid, four values each */
    uint8_t qh[8];     /* the ninth bit: bit k of byte g belongs to index 8 g + k */
    uint8_t signs[32]; /* bit i % 8 of byte i / 8: value i is negative */
    uint8_t scales[4]; /* of 32 values each, low nibble first */
} REF_PACKED;

struct ref_tq1_0 {
    uint8_t qs[48]; /* five ternary digits each */
    uint8_t qh[4];  /* four each */
    uint16_t d;
} REF_PACKED;

struct ref_tq2_0 {
    uint8_t qs[64]; /* two bits each */
    uint16_t d;
} REF_PACKED;

_Static_assert(sizeof(struct ref_q4_0) == 18, "q4_0");
_Static_assert(sizeof(struct ref_q4_1) == 20, "q4_1");
_Static_assert(sizeof(struct ref_q5_0) == 22, "q5_0");
_Static_assert(sizeof(struct ref_q5_1) == 24, "q5_1");
_Static_assert(sizeof(struct ref_q8_0) == 34, "q8_0");
_Static_assert(sizeof(struct ref_iq4_nl) == 18, "iq4_nl");
_Static_assert(sizeof(struct ref_mxfp4) == 17, "mxfp4");
_Static_assert(sizeof(struct ref_q2_k) == 84, "q2_k");
_Static_assert(sizeof(struct ref_q3_k) == 110, "q3_k");
_Static_assert(sizeof(struct ref_q4_k) == 144, "q4_k");
_Static_assert(sizeof(struct ref_q5_k) == 176, "q5_k");
_Static_assert(sizeof(struct ref_q6_k) == 210, "q6_k");
_Static_assert(sizeof(struct ref_iq4_xs) == 136, "iq4_xs");
_Static_assert(sizeof(struct ref_iq3_s) == 110, "iq3_s");
_Static_assert(sizeof(struct ref_tq1_0) == 54, "tq1_0");
_Static_assert(sizeof(struct ref_tq2_0) == 66, "tq2_0");

/* The codebooks, defined in quant_tables.c. */
extern const int8_t ref_iq4_values[16];   /* IQ4_NL, IQ4_XS */
extern const int8_t ref_mxfp4_values[16]; /* twice the E2M1 number; the scale is halved */
extern const uint32_t ref_iq3s_grid[512]; /* four unsigned bytes, lowest first */

#endif
