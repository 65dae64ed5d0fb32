/* ops_avx512.c: all but the matrix products; see ops.h and attend.h. */
#include "cpu/simd_avx512.h"

#include "cpu/ops.h"

#include "cpu/attend.h"
