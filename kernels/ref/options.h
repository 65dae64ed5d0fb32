/* options.h: reading a backend's "key=value,key=value". */
#ifndef INFERD_KERNELS_REF_OPTIONS_H
#define INFERD_KERNELS_REF_OPTIONS_H

#include <stdint.h>

struct ref_option {
    char key[32];
    uint64_t value; /* every option of these backends is a whole number */
};

/* Takes the next option from *cursor, which starts at the whole text, and moves it on. Returns 1,
 * 0 at the end, or -EINVAL when the text is not of this form. */
int ref_option_next(const char **cursor, struct ref_option *ret);

#endif
