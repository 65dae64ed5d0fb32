/* options.c: reading a backend's "key=value,key=value". Pure; any thread. */
#include "ref/options.h"

#include <errno.h>
#include <string.h>

int ref_option_next(const char **cursor, struct ref_option *ret)
{
    struct ref_option option = {0};
    const char *at = *cursor;
    size_t key_length = strcspn(at, "=,");

    if (*at == '\0')
        return 0;
    if (key_length == 0 || key_length >= sizeof option.key || at[key_length] != '=')
        return -EINVAL;
    memcpy(option.key, at, key_length);
    at += key_length + 1;
    if (*at < '0' || *at > '9')
        return -EINVAL;
    for (; *at >= '0' && *at <= '9'; at++) {
        if (__builtin_mul_overflow(option.value, 10, &option.value) ||
            __builtin_add_overflow(option.value, (uint64_t)(*at - '0'), &option.value))
            return -EINVAL;
    }
    if (*at != '\0' && *at != ',')
        return -EINVAL;
    *cursor = *at == ',' ? at + 1 : at;
    *ret = option;
    return 1;
}
