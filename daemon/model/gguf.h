/* gguf.h: a GGUF file (v2, v3; one part or several), read once, checked, then only asked.
 *
 * Reading is done in two passes over the file's head: the first measures with checked arithmetic
 * and refuses, the second builds into one block of exactly that size, and refuses what takes two
 * items to see (duplicates, overlaps). After gguf_open() succeeded
 * every key, string, array and tensor extent lies within its file, no two tensors of a part
 * overlap, every tensor's type is known by name, and nothing here can fail any more but a typed
 * access to a key that is absent or of another type.
 *
 * Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (facts only).
 * Ownership: all pointers handed out live as long as the struct gguf. Threads: immutable after
 * open, so any. Limits: gguf.c. */
#ifndef INFERD_MODEL_GGUF_H
#define INFERD_MODEL_GGUF_H

#include "base/report.h"
#include "inferd/backend.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct gguf;

/* Bytes of a file, not NUL-terminated. */
struct gguf_string {
    const char *data;
    size_t bytes;
};

enum gguf_value_type {
    GGUF_UINT8,
    GGUF_INT8,
    GGUF_UINT16,
    GGUF_INT16,
    GGUF_UINT32,
    GGUF_INT32,
    GGUF_FLOAT32,
    GGUF_BOOL,
    GGUF_STRING,
    GGUF_ARRAY,
    GGUF_UINT64,
    GGUF_INT64,
    GGUF_FLOAT64,
};

/* Opens path; when it is part 1 of a split model (split.count > 1), its other parts too, by the
 * name rule NAME-00001-of-0000N.gguf. Not a regular file, unreadable, damaged, overlapping,
 * foreign: a code and a sentence that names the key or tensor. */
int gguf_open(const char *path, struct gguf **ret, struct report *report);
/* How the head of a file is read where a plain pread() might wait for ever: bytes, 0 at the end, or
 * a negative errno. */
struct gguf_reader {
    ssize_t (*read)(void *ctx, int fd, void *to, size_t bytes, uint64_t offset);
    void *ctx;
};

/* The same from descriptors, part 1 first, which stay the caller's: regular files that are open for
 * reading (fds of anything else are refused). name is what messages call the file; it is not
 * opened. reader may be NULL. */
int gguf_open_files(const char *name, const int *fds, uint32_t n, const struct gguf_reader *reader,
                    struct gguf **ret, struct report *report);
void gguf_free(struct gguf *g);

/* Keys. Absent or of another type: false, *ret untouched. Unsigned access takes any integer type
 * whose value is in range. */
bool gguf_get_u32(const struct gguf *g, const char *key, uint32_t *ret);
bool gguf_get_u64(const struct gguf *g, const char *key, uint64_t *ret);
bool gguf_get_f32(const struct gguf *g, const char *key, float *ret);
bool gguf_get_bool(const struct gguf *g, const char *key, bool *ret);
bool gguf_get_string(const struct gguf *g, const char *key, struct gguf_string *ret);
/* Is the key there at all, and of what type? */
bool gguf_has(const struct gguf *g, const char *key, enum gguf_value_type *ret_type);

/* Arrays. element: the exact element type. */
bool gguf_get_array(const struct gguf *g, const char *key, enum gguf_value_type element,
                    uint64_t *ret_n);
/* Element i of an array of strings; empty where there is none. Costs a hash lookup of the key. */
struct gguf_string gguf_array_string(const struct gguf *g, const char *key, uint64_t i);
/* The raw little-endian elements, possibly unaligned; NULL for arrays of strings (and for what is
 * not an array; arrays of arrays are refused on opening). */
const void *gguf_array_data(const struct gguf *g, const char *key);

/* Walking all keys, for --inspect. */
uint64_t gguf_n_keys(const struct gguf *g);
struct gguf_string gguf_key(const struct gguf *g, uint64_t i, enum gguf_value_type *ret_type);
/* The value in short, for a person ("32", "\"llama\"", "[16384 strings]"). */
void gguf_key_text(const struct gguf *g, uint64_t i, char *text, size_t size);

/* Tensors, in file order over all parts. */
struct gguf_tensor {
    struct infer_tensor tensor; /* name, type, dimensions, row_bytes */
    uint32_t part;              /* which file */
    uint64_t offset;            /* from the start of that file */
    uint64_t bytes;
};

uint32_t gguf_n_tensors(const struct gguf *g);
/* NULL when i is not below gguf_n_tensors(). */
const struct gguf_tensor *gguf_tensor(const struct gguf *g, uint32_t i);
/* NULL when absent. */
const struct gguf_tensor *gguf_find_tensor(const struct gguf *g, const char *name);

uint32_t gguf_n_parts(const struct gguf *g);
/* The open descriptor (read-only) and path of a part. */
int gguf_part_fd(const struct gguf *g, uint32_t part);
const char *gguf_part_path(const struct gguf *g, uint32_t part);
uint64_t gguf_part_bytes(const struct gguf *g, uint32_t part);
uint32_t gguf_version(const struct gguf *g);

/* ---- the ggml type table (types.c) ----------------------------------------------------------- */

struct type_info {
    const char *name;     /* "Q6_K"; every id of ggml's table has one, removed ones too */
    uint32_t block;       /* values per block */
    uint32_t block_bytes; /* bytes per block */
    bool readable;        /* one of enum infer_type: our backends decode it */
};

/* NULL for an id outside of the table. */
const struct type_info *type_info(uint32_t type);

#endif
