/* quant_tables.c: the codebooks of the types whose values do not lie on a line. Constant data. */
#include "ref/blocks.h"

const int8_t ref_iq4_values[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                   1,    13,   25,  38,  53,  69,  89,  113};

/* E2M1: 0 0.5 1 1.5 2 3 4 6 and their negatives, doubled to be whole. */
const int8_t ref_mxfp4_values[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

const uint32_t ref_iq3s_grid[512] = {
#include "ref/iq3s_grid.h"
};
