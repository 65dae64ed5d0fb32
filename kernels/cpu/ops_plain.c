/* ops_plain.c: all but the matrix products; see ops.h and attend.h. */
#include "cpu/simd_plain.h"

#include "cpu/ops.h"

#include "cpu/attend.h"
