/* test_cuda_code.c: kernels/cuda/code.c: which code a device runs. Host code alone. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "cuda/cuda.h"

#include <stdlib.h>

static void test_newest_that_runs(void **state)
{
    static const struct {
        const char *codes;
        uint32_t capability, code;
    } cases[] = {
        {"sm_90a compute_75 compute_80 compute_90", 70, 0},
        {"sm_90a compute_75 compute_80 compute_90", 75, 75},
        {"sm_90a compute_75 compute_80 compute_90", 89, 80},
        {"sm_90a compute_75 compute_80 compute_90", 90, 90},
        {"compute_90 compute_80 compute_75 sm_90a", 120, 90},
        /* Machine code is its generation's, with an "a" one device's. */
        {"sm_90a", 80, 0},
        {"sm_90a", 100, 0},
        {"sm_80", 75, 0},
        {"sm_80", 86, 80},
        {"sm_80", 90, 0},
        {"sm_86", 80, 0},
        {"sm_100a compute_75", 103, 75},
        /* Older than the device. */
        {"compute_75", 90, 75},
        {" compute_80  sm_90a ", 120, 80},
        /* Not named: the emulation's. */
        {"", 75, 75},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const uint32_t code = cuda_code_for(cases[i].codes, cases[i].capability);
        if (code != cases[i].code)
            fail_msg("%s on %u: %u", cases[i].codes, cases[i].capability, code);
    }
}

/* What runs as code for 7.5 has what 7.5 has. */
static void test_limits(void **state)
{
    struct cuda_limits device;
#ifdef CUDA_EMULATED
    setenv("INFERD_CUDA_EMULATED", "capability=75,sms=7", 1);
#endif
    assert_int_equal(cuda_limits_of(&device), cudaSuccess);
    assert_int_equal(device.code, cuda_code_for(cuda_codes(), device.capability));
    assert_int_equal(device.code < 80, device.shared_bytes <= CUDA_SHARED_7_5);
    assert_true(device.shared_bytes > 48u << 10 && device.processors > 0);
#ifdef CUDA_EMULATED
    assert_int_equal(device.code, 75);
    assert_int_equal(device.processors, 7);
    unsetenv("INFERD_CUDA_EMULATED");
    assert_int_equal(cuda_limits_of(&device), cudaSuccess);
    assert_int_equal(device.code, 90);
    assert_int_equal(device.shared_bytes, CUDA_SHARED_9_0);
#endif
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_newest_that_runs),
                                       cmocka_unit_test(test_limits)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
