/* test_siphash.c: the values of the paper's appendix and of its authors' table. */
#include "base/siphash.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

static void test_known_values(void **state)
{
    (void)state;
    uint8_t key[16], message[64];
    for (int i = 0; i < 16; i++)
        key[i] = (uint8_t)i;
    for (int i = 0; i < 64; i++)
        message[i] = (uint8_t)i;
    const uint64_t known[] = {
        UINT64_C(0x726fdb47dd0e0e31), UINT64_C(0x74f839c593dc67fd), UINT64_C(0x0d6c8009d9a94f5a),
        UINT64_C(0x85676696d7fb7e2d), UINT64_C(0xcf2794e0277187b7), UINT64_C(0x18765564cd99a68d),
        UINT64_C(0xcbc9466e58fee3ce), UINT64_C(0xab0200f58b01d137),
    };
    for (size_t n = 0; n < 8; n++)
        assert_int_equal(siphash(key, message, n), known[n]);
    assert_int_equal(siphash(key, message, 15), UINT64_C(0xa129ca6149be45e5));
}

static void test_every_byte_of_key_and_message_counts(void **state)
{
    (void)state;
    uint8_t key[16] = {0}, message[76] = {0};
    uint64_t plain = siphash(key, message, sizeof message);
    for (size_t i = 0; i < sizeof message; i++) {
        message[i] = 1;
        assert_int_not_equal(siphash(key, message, sizeof message), plain);
        message[i] = 0;
    }
    for (size_t i = 0; i < sizeof key; i++) {
        key[i] = 1;
        assert_int_not_equal(siphash(key, message, sizeof message), plain);
        key[i] = 0;
    }
    assert_int_not_equal(siphash(key, message, sizeof message - 1), plain);
    uint8_t odd[80] = {0}; /* where the message lies in memory does not matter */
    assert_int_equal(siphash(key, odd + 1, sizeof message), plain);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_known_values),
        cmocka_unit_test(test_every_byte_of_key_and_message_counts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
