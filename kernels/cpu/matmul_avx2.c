/* matmul_avx2.c: the matrix products; see matmul.h. */
#include "cpu/simd_avx2.h"

#include "cpu/matmul.h"
