/* matmul_avx512.c: the matrix products; see matmul.h. */
#include "cpu/simd_avx512.h"

#include "cpu/matmul.h"
