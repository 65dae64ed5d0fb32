/* gguf_write.c: makes GGUF files for tests, right ones and wrong ones. */
#include "support/gguf_write.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { TYPE_U32 = 4, TYPE_I32 = 5, TYPE_F32 = 6, TYPE_STRING = 8, TYPE_ARRAY = 9 };

static void put(struct gguf_bytes *b, const void *data, size_t bytes)
{
    if (b->bytes + bytes > b->room) {
        b->room = (b->bytes + bytes) * 2;
        b->data = realloc(b->data, b->room);
        if (!b->data)
            abort();
    }
    if (bytes)
        memcpy(b->data + b->bytes, data, bytes);
    b->bytes += bytes;
}

static void put_u32(struct gguf_bytes *b, uint32_t v)
{
    put(b, &v, sizeof v);
}

static void put_u64(struct gguf_bytes *b, uint64_t v)
{
    put(b, &v, sizeof v);
}

static void put_string(struct gguf_bytes *b, const char *s)
{
    put_u64(b, strlen(s));
    put(b, s, strlen(s));
}

void gguf_write_init(struct gguf_write *w)
{
    memset(w, 0, sizeof *w);
    w->version = 3;
    w->alignment = 32;
}

void gguf_write_done(struct gguf_write *w)
{
    free(w->keys.data);
    free(w->tensors.data);
    memset(w, 0, sizeof *w);
}

void gguf_write_raw_key(struct gguf_write *w, const char *key, uint32_t type, const void *value,
                        size_t bytes)
{
    put_string(&w->keys, key);
    put_u32(&w->keys, type);
    put(&w->keys, value, bytes);
    w->n_keys++;
}

void gguf_write_u32(struct gguf_write *w, const char *key, uint32_t value)
{
    gguf_write_raw_key(w, key, TYPE_U32, &value, sizeof value);
}

void gguf_write_f32(struct gguf_write *w, const char *key, float value)
{
    gguf_write_raw_key(w, key, TYPE_F32, &value, sizeof value);
}

void gguf_write_string(struct gguf_write *w, const char *key, const char *value)
{
    gguf_write_raw_key(w, key, TYPE_STRING, NULL, 0);
    put_string(&w->keys, value);
}

void gguf_write_strings(struct gguf_write *w, const char *key, const char *const *values, size_t n)
{
    gguf_write_raw_key(w, key, TYPE_ARRAY, NULL, 0);
    put_u32(&w->keys, TYPE_STRING);
    put_u64(&w->keys, n);
    for (size_t i = 0; i < n; i++)
        put_string(&w->keys, values[i]);
}

void gguf_write_i32s(struct gguf_write *w, const char *key, const int32_t *values, size_t n)
{
    gguf_write_raw_key(w, key, TYPE_ARRAY, NULL, 0);
    put_u32(&w->keys, TYPE_I32);
    put_u64(&w->keys, n);
    put(&w->keys, values, n * sizeof *values);
}

void gguf_write_tensor_at(struct gguf_write *w, const char *name, uint32_t type, uint32_t n_dims,
                          const uint64_t *ne, uint64_t offset)
{
    put_string(&w->tensors, name);
    put_u32(&w->tensors, n_dims);
    put(&w->tensors, ne, n_dims * sizeof *ne);
    put_u32(&w->tensors, type);
    put_u64(&w->tensors, offset);
    w->n_tensors++;
}

void gguf_write_tensor(struct gguf_write *w, const char *name, uint32_t type, uint32_t n_dims,
                       const uint64_t *ne, uint64_t bytes)
{
    uint64_t a = w->alignment;
    gguf_write_tensor_at(w, name, type, n_dims, ne, w->data_bytes);
    w->data_bytes = (w->data_bytes + bytes + a - 1) / a * a;
}

/* ---- a whole model --------------------------------------------------------------------------- */

/* The 256 byte tokens of a byte-level vocabulary: printable bytes stand for themselves, the others
 * for the code points from 256 on. */
static void byte_token(unsigned byte, unsigned *next, char *ret)
{
    int printable =
        (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || (byte >= 174 && byte <= 255);
    unsigned point = printable ? byte : 256 + (*next)++;
    if (point < 0x80) {
        ret[0] = (char)point;
        ret[1] = '\0';
    } else {
        ret[0] = (char)(0xc0 | (point >> 6));
        ret[1] = (char)(0x80 | (point & 0x3f));
        ret[2] = '\0';
    }
}

enum { VOCAB = 260 };

static void write_vocabulary(struct gguf_write *w)
{
    static char text[VOCAB][16];
    const char *tokens[VOCAB];
    int32_t types[VOCAB];
    const char *merges[] = {"a b"};
    unsigned next = 0;
    for (unsigned i = 0; i < VOCAB; i++) {
        tokens[i] = text[i];
        types[i] = i < 3 ? 3 : 1; /* control, normal */
        if (i >= 3 && i < 259)
            byte_token(i - 3, &next, text[i]);
    }
    strcpy(text[0], "<|end|>");
    strcpy(text[1], "<|start|>");
    strcpy(text[2], "<|pad|>");
    strcpy(text[259], "ab");
    gguf_write_string(w, "tokenizer.ggml.model", "gpt2");
    gguf_write_string(w, "tokenizer.ggml.pre", "gpt-2");
    gguf_write_strings(w, "tokenizer.ggml.tokens", tokens, VOCAB);
    gguf_write_i32s(w, "tokenizer.ggml.token_type", types, VOCAB);
    gguf_write_strings(w, "tokenizer.ggml.merges", merges, 1);
    gguf_write_u32(w, "tokenizer.ggml.eos_token_id", 0);
    gguf_write_u32(w, "tokenizer.ggml.bos_token_id", 1);
}

static void matrix(struct gguf_write *w, const struct gguf_write_shape *s, const char *name,
                   uint64_t columns, uint64_t rows)
{
    const uint64_t ne[2] = {columns, rows};
    if (s->omit && strcmp(s->omit, name) == 0)
        return;
    gguf_write_tensor(w, name, 0, rows ? 2 : 1, ne, columns * (rows ? rows : 1) * 4);
}

static void number(struct gguf_write *w, const struct gguf_write_shape *s, const char *key,
                   uint32_t value)
{
    char name[96];
    snprintf(name, sizeof name, "%s.%s", s->architecture ? s->architecture : "llama", key);
    if (!s->omit || strcmp(s->omit, key) != 0)
        gguf_write_u32(w, name, value);
}

void gguf_write_llama(struct gguf_write *w, const struct gguf_write_shape *s)
{
    uint64_t d = s->n_embd, head = d / s->n_heads, kv = head * s->n_kv_heads;
    char name[64];
    gguf_write_string(w, "general.architecture", s->architecture ? s->architecture : "llama");
    number(w, s, "block_count", s->n_layers);
    number(w, s, "context_length", 512);
    number(w, s, "embedding_length", s->n_embd);
    number(w, s, "feed_forward_length", s->n_ffn);
    number(w, s, "attention.head_count", s->n_heads);
    number(w, s, "attention.head_count_kv", s->n_kv_heads);
    number(w, s, "rope.dimension_count", (uint32_t)head);
    snprintf(name, sizeof name, "%s.attention.layer_norm_rms_epsilon",
             s->architecture ? s->architecture : "llama");
    gguf_write_f32(w, name, 1e-5f);
    write_vocabulary(w);

    matrix(w, s, "token_embd.weight", d, VOCAB);
    matrix(w, s, "output_norm.weight", d, 0);
    for (uint32_t i = 0; i < s->n_layers; i++) {
        const struct {
            const char *name;
            uint64_t columns, rows;
        } all[] = {
            {"attn_norm", d, 0},       {"attn_q", d, d},        {"attn_k", d, kv},
            {"attn_v", d, kv},         {"attn_output", d, d},   {"ffn_norm", d, 0},
            {"ffn_gate", d, s->n_ffn}, {"ffn_up", d, s->n_ffn}, {"ffn_down", s->n_ffn, d},
        };
        for (size_t t = 0; t < sizeof all / sizeof *all; t++) {
            snprintf(name, sizeof name, "blk.%u.%s.weight", i, all[t].name);
            matrix(w, s, name, all[t].columns, all[t].rows);
        }
    }
}

int gguf_write_file(const struct gguf_write *w, const char *path)
{
    struct gguf_bytes b = {0};
    static const uint8_t zeros[4096];
    put_u32(&b, 0x46554747);
    put_u32(&b, w->version);
    put_u64(&b, w->n_tensors);
    put_u64(&b, w->n_keys);
    put(&b, w->keys.data, w->keys.bytes);
    put(&b, w->tensors.data, w->tensors.bytes);
    if (w->alignment && b.bytes % w->alignment)
        put(&b, zeros, w->alignment - b.bytes % w->alignment);

    int error = 0, fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0 || write(fd, b.data, b.bytes) != (ssize_t)b.bytes ||
        ftruncate(fd, (off_t)(b.bytes + w->data_bytes)) < 0)
        error = -errno;
    if (fd >= 0)
        close(fd);
    free(b.data);
    return error;
}
