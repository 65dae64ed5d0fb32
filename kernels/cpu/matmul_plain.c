/* matmul_plain.c: the matrix products; see matmul.h. */
#include "cpu/simd_plain.h"

#include "cpu/matmul.h"
