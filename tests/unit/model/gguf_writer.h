/* gguf_writer.h: GGUF files for tests, described item by item and written to memory.
 *
 * Nothing is checked here on purpose: the files that a reader must refuse come out of it, too. */
#ifndef TESTS_UNIT_MODEL_GGUF_WRITER_H
#define TESTS_UNIT_MODEL_GGUF_WRITER_H

#include "model/gguf.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define WRITER_ITEMS_MAX 128
#define WRITER_AUTO      UINT64_MAX /* offset: behind the tensor before, aligned */

struct writer_bytes {
    uint8_t *data;
    size_t n, capacity;
};

struct writer_key {
    char name[128];
    size_t name_bytes;
    uint32_t type;
    struct writer_bytes value;
};

struct writer_tensor {
    char name[80];
    uint32_t n_dims, type;
    uint64_t ne[4], offset;
    const void *values; /* NULL: zeros */
};

struct writer {
    uint32_t version, alignment;
    uint32_t n_keys, n_tensors;
    struct writer_key keys[WRITER_ITEMS_MAX];
    struct writer_tensor tensors[WRITER_ITEMS_MAX];
};

static inline void bytes_put(struct writer_bytes *b, const void *from, size_t n)
{
    if (b->n + n > b->capacity) {
        b->capacity = (b->n + n) * 2;
        b->data = realloc(b->data, b->capacity);
        if (b->data == NULL)
            abort();
    }
    if (from != NULL && n > 0)
        memcpy(b->data + b->n, from, n);
    else if (n > 0)
        memset(b->data + b->n, 0, n);
    b->n += n;
}

static inline void bytes_u32(struct writer_bytes *b, uint32_t v)
{
    bytes_put(b, &v, sizeof v);
}

static inline void bytes_u64(struct writer_bytes *b, uint64_t v)
{
    bytes_put(b, &v, sizeof v);
}

static inline void bytes_string(struct writer_bytes *b, const char *text)
{
    bytes_u64(b, strlen(text));
    bytes_put(b, text, strlen(text));
}

static inline struct writer *writer_new(void)
{
    struct writer *w = calloc(1, sizeof *w);
    if (w == NULL)
        abort();
    w->version = 3;
    w->alignment = 32;
    return w;
}

static inline void writer_free(struct writer *w)
{
    for (uint32_t i = 0; i < w->n_keys; i++)
        free(w->keys[i].value.data);
    free(w);
}

/* Removes the key or tensor of this name, if it is there. */
static inline void writer_drop(struct writer *w, const char *name)
{
    for (uint32_t i = 0; i < w->n_keys; i++)
        if (strcmp(w->keys[i].name, name) == 0) {
            free(w->keys[i].value.data);
            memmove(&w->keys[i], &w->keys[i + 1], (w->n_keys - i - 1) * sizeof w->keys[0]);
            w->n_keys--;
            return;
        }
    for (uint32_t i = 0; i < w->n_tensors; i++)
        if (strcmp(w->tensors[i].name, name) == 0) {
            memmove(&w->tensors[i], &w->tensors[i + 1],
                    (w->n_tensors - i - 1) * sizeof w->tensors[0]);
            w->n_tensors--;
            return;
        }
}

/* Adds a key, even one of a name that is there already. Its value is filled by the caller. */
static inline struct writer_bytes *writer_key(struct writer *w, const char *name, uint32_t type)
{
    struct writer_key *k = &w->keys[w->n_keys++];
    if (w->n_keys > WRITER_ITEMS_MAX)
        abort();
    memset(k, 0, sizeof *k);
    snprintf(k->name, sizeof k->name, "%s", name);
    k->name_bytes = strlen(k->name);
    k->type = type;
    return &k->value;
}

/* Sets a key, in the place of an older one. */
static inline void writer_set_u32(struct writer *w, const char *name, uint32_t v)
{
    writer_drop(w, name);
    bytes_u32(writer_key(w, name, GGUF_UINT32), v);
}

static inline void writer_set_f32(struct writer *w, const char *name, float v)
{
    writer_drop(w, name);
    bytes_put(writer_key(w, name, GGUF_FLOAT32), &v, sizeof v);
}

static inline void writer_set_string(struct writer *w, const char *name, const char *v)
{
    writer_drop(w, name);
    bytes_string(writer_key(w, name, GGUF_STRING), v);
}

static inline void writer_set_strings(struct writer *w, const char *name, uint64_t n,
                                      const char *prefix)
{
    writer_drop(w, name);
    struct writer_bytes *b = writer_key(w, name, GGUF_ARRAY);
    bytes_u32(b, GGUF_STRING);
    bytes_u64(b, n);
    for (uint64_t i = 0; i < n; i++) {
        char text[64];
        snprintf(text, sizeof text, "%s%llu", prefix, (unsigned long long)i);
        bytes_string(b, text);
    }
}

/* Adds a tensor with zeros; ne1 0: a vector. */
static inline struct writer_tensor *writer_tensor(struct writer *w, const char *name, uint32_t type,
                                                  uint64_t ne0, uint64_t ne1)
{
    struct writer_tensor *t = &w->tensors[w->n_tensors++];
    if (w->n_tensors > WRITER_ITEMS_MAX)
        abort();
    memset(t, 0, sizeof *t);
    snprintf(t->name, sizeof t->name, "%s", name);
    t->type = type;
    t->n_dims = ne1 == 0 ? 1 : 2;
    t->ne[0] = ne0;
    t->ne[1] = ne1;
    t->offset = WRITER_AUTO;
    return t;
}

static inline struct writer_tensor *writer_find(struct writer *w, const char *name)
{
    for (uint32_t i = 0; i < w->n_tensors; i++)
        if (strcmp(w->tensors[i].name, name) == 0)
            return &w->tensors[i];
    abort();
}

static inline uint64_t writer_tensor_bytes(const struct writer_tensor *t)
{
    const struct type_info *type = type_info(t->type);
    uint64_t n = 1;
    if (type == NULL || type->block == 0)
        return 0;
    for (uint32_t d = 0; d < t->n_dims && d < 4; d++)
        n *= t->ne[d];
    return n / type->block * type->block_bytes;
}

/* The whole file; *ret_head: how many bytes its head has. The caller frees data. */
static inline struct writer_bytes writer_file(const struct writer *w, size_t *ret_head)
{
    struct writer_bytes b = {0}, data = {0};
    bytes_put(&b, "GGUF", 4);
    bytes_u32(&b, w->version);
    bytes_u64(&b, w->n_tensors);
    bytes_u64(&b, w->n_keys);
    for (uint32_t i = 0; i < w->n_keys; i++) {
        const struct writer_key *k = &w->keys[i];
        bytes_u64(&b, k->name_bytes);
        bytes_put(&b, k->name, k->name_bytes);
        bytes_u32(&b, k->type);
        bytes_put(&b, k->value.data, k->value.n);
    }
    for (uint32_t i = 0; i < w->n_tensors; i++) {
        const struct writer_tensor *t = &w->tensors[i];
        while (data.n % w->alignment != 0)
            bytes_put(&data, "", 1);
        bytes_string(&b, t->name);
        bytes_u32(&b, t->n_dims);
        for (uint32_t d = 0; d < t->n_dims && d < 4; d++)
            bytes_u64(&b, t->ne[d]);
        bytes_u32(&b, t->type);
        bytes_u64(&b, t->offset == WRITER_AUTO ? data.n : t->offset);
        if (t->offset == WRITER_AUTO)
            bytes_put(&data, t->values, writer_tensor_bytes(t));
    }
    if (ret_head != NULL)
        *ret_head = b.n;
    while (data.n > 0 && b.n % w->alignment != 0)
        bytes_put(&b, "", 1);
    bytes_put(&b, data.data, data.n);
    free(data.data);
    return b;
}

/* Opens n bytes as a file: they live in memory, under a path of /proc. */
static inline int writer_open_bytes(const void *data, size_t n, struct gguf **ret,
                                    struct report *report)
{
    char path[64];
    int fd = memfd_create("test.gguf", MFD_CLOEXEC);
    if (fd < 0 || (n > 0 && pwrite(fd, data, n, 0) != (ssize_t)n))
        abort();
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int r = gguf_open(path, ret, report);
    close(fd);
    return r;
}

static inline int writer_open(const struct writer *w, struct gguf **ret, struct report *report)
{
    struct writer_bytes b = writer_file(w, NULL);
    int r = writer_open_bytes(b.data, b.n, ret, report);
    free(b.data);
    return r;
}

static inline void writer_save(const struct writer *w, const char *path)
{
    struct writer_bytes b = writer_file(w, NULL);
    FILE *f = fopen(path, "wb");
    if (f == NULL || fwrite(b.data, 1, b.n, f) != b.n || fclose(f) != 0)
        abort();
    free(b.data);
}

/* A whole small model of this architecture: one layer, width 64, feed-forward 96, 4 heads of 16
 * with 2 key-value heads, 40 tokens. `type` of the matrices must divide rows of 64 and 96. */
static inline struct writer *writer_model(const char *architecture, uint32_t type)
{
    static const struct {
        const char *key;
        uint32_t value;
    } numbers[] = {{"block_count", 1},          {"context_length", 512},
                   {"embedding_length", 64},    {"feed_forward_length", 96},
                   {"attention.head_count", 4}, {"attention.head_count_kv", 2}};
    struct writer *w = writer_new();
    char key[128];
    writer_set_string(w, "general.architecture", architecture);
    writer_set_string(w, "general.name", "a test");
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
        snprintf(key, sizeof key, "%s.%s", architecture, numbers[i].key);
        writer_set_u32(w, key, numbers[i].value);
    }
    snprintf(key, sizeof key, "%s.attention.layer_norm_rms_epsilon", architecture);
    writer_set_f32(w, key, 1e-5f);
    writer_set_strings(w, "tokenizer.ggml.tokens", 40, "t");
    writer_tensor(w, "token_embd.weight", type, 64, 40);
    writer_tensor(w, "output_norm.weight", INFER_TYPE_F32, 64, 0);
    writer_tensor(w, "blk.0.attn_norm.weight", INFER_TYPE_F32, 64, 0);
    writer_tensor(w, "blk.0.attn_q.weight", type, 64, 64);
    writer_tensor(w, "blk.0.attn_k.weight", type, 64, 32);
    writer_tensor(w, "blk.0.attn_v.weight", type, 64, 32);
    writer_tensor(w, "blk.0.attn_output.weight", type, 64, 64);
    writer_tensor(w, "blk.0.ffn_norm.weight", INFER_TYPE_F32, 64, 0);
    writer_tensor(w, "blk.0.ffn_gate.weight", type, 64, 96);
    writer_tensor(w, "blk.0.ffn_up.weight", type, 64, 96);
    writer_tensor(w, "blk.0.ffn_down.weight", type, 96, 64);
    return w;
}

#endif
