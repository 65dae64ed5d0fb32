/* gguf_write.h: makes GGUF files for tests, right ones and wrong ones.
 *
 * Values go out as they are given: nothing is checked, so that a test can lie about a count, an
 * offset or a type. Data of tensors is a hole of the file (zeros) unless written afterwards. */
#ifndef INFERD_TESTS_GGUF_WRITE_H
#define INFERD_TESTS_GGUF_WRITE_H

#include <stddef.h>
#include <stdint.h>

struct gguf_bytes {
    uint8_t *data;
    size_t bytes, room;
};

struct gguf_write {
    uint32_t version; /* 3 */
    struct gguf_bytes keys, tensors;
    uint64_t n_keys, n_tensors;
    uint64_t data_bytes; /* where the next tensor begins, from the start of the data */
    uint32_t alignment;  /* 32 */
};

void gguf_write_init(struct gguf_write *w);
void gguf_write_done(struct gguf_write *w);

void gguf_write_u32(struct gguf_write *w, const char *key, uint32_t value);
void gguf_write_f32(struct gguf_write *w, const char *key, float value);
void gguf_write_string(struct gguf_write *w, const char *key, const char *value);
void gguf_write_strings(struct gguf_write *w, const char *key, const char *const *values, size_t n);
void gguf_write_i32s(struct gguf_write *w, const char *key, const int32_t *values, size_t n);
/* A key with any type number and any bytes as its value. */
void gguf_write_raw_key(struct gguf_write *w, const char *key, uint32_t type, const void *value,
                        size_t bytes);

/* A tensor of `bytes` bytes at the next free place. */
void gguf_write_tensor(struct gguf_write *w, const char *name, uint32_t type, uint32_t n_dims,
                       const uint64_t *ne, uint64_t bytes);
/* A tensor at any offset. */
void gguf_write_tensor_at(struct gguf_write *w, const char *name, uint32_t type, uint32_t n_dims,
                          const uint64_t *ne, uint64_t offset);

/* Keys and tensors of a small but whole llama model in float32 with a byte-level vocabulary. */
struct gguf_write_shape {
    uint32_t n_layers, n_embd, n_ffn, n_heads, n_kv_heads;
    const char *architecture; /* NULL: llama */
    const char *omit;         /* a tensor or key to leave out, or NULL */
};
void gguf_write_llama(struct gguf_write *w, const struct gguf_write_shape *shape);

/* Writes the file: head, then a hole for data_bytes. 0 or a negative errno (a file system may
 * refuse holes of that size). */
int gguf_write_file(const struct gguf_write *w, const char *path);

#endif
