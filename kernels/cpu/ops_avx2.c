/* ops_avx2.c: all but the matrix products; see ops.h and attend.h. */
#include "cpu/simd_avx2.h"

#include "cpu/ops.h"

#include "cpu/attend.h"
