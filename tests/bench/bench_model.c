/* bench_model.c: a model file of a known shape with normally distributed weights, for measurements
 * where no real model of that size is at hand.
 *
 *   bench_model SHAPE TYPE FILE      for example: bench_model 8b q4_0 /tmp/8b.gguf
 *
 * Shapes, types and weights are bench_cuda's (synthetic.h), so that the daemon with this file and
 * the backend alone do the same work; the head is Q6_K unless TYPE is f16. The vocabulary has the
 * shape's number of tokens: bytes, then words of two to four letters with the merges that make
 * them. What such a model says means nothing. */
#include "bench/synthetic.h"
#include "support/gguf_write.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#define WORD_BYTES 8u

static struct synthetic random_numbers;

static void fail(const char *what)
{
    fprintf(stderr, "bench_model: %s: %s\n", what, strerror(errno));
    exit(1);
}

/* ---- the vocabulary -------------------------------------------------------------------------- */

/* In the alphabet that byte-level vocabularies are written in: printable bytes are themselves, the
 * others the code points from 256 on. */
static void byte_token(unsigned byte, unsigned *next, char *ret)
{
    bool printable =
        (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || (byte >= 174 && byte <= 255);
    unsigned point = printable ? byte : 256 + (*next)++;
    ret[0] = (char)(point < 0x80 ? point : 0xc0 | point >> 6);
    ret[1] = (char)(point < 0x80 ? 0 : 0x80 | (point & 0x3f));
    ret[2] = '\0';
}

/* The i-th word of two letters, and then of three and four; and how it is made of a shorter one. */
static void word(uint32_t i, char *token, char *merge)
{
    uint32_t n = 2, count = 26 * 26;
    for (; i >= count; count *= 26)
        i -= count, n++;
    for (uint32_t k = n; k-- > 0; i /= 26)
        token[k] = (char)('a' + i % 26);
    token[n] = '\0';
    memcpy(merge, token, n - 1);
    merge[n - 1] = ' ';
    merge[n] = token[n - 1];
    merge[n + 1] = '\0';
}

static void write_vocabulary(struct gguf_write *w, uint32_t n)
{
    const uint32_t first_word = 3 + 256;
    char(*text)[WORD_BYTES] = calloc(2 * (size_t)n, sizeof *text);
    const char **list = calloc(2 * (size_t)n, sizeof *list);
    int32_t *types = calloc(n, sizeof *types);
    unsigned next = 0;
    if (!text || !list || !types || n <= first_word)
        fail("the vocabulary");
    for (uint32_t i = 0; i < n; i++) {
        types[i] = i < 3 ? 3 : 1; /* control, normal */
        list[i] = text[i];
        list[n + i] = text[n + i];
        if (i < 3)
            snprintf(text[i], WORD_BYTES, "<|%u|>", i);
        else if (i < first_word)
            byte_token(i - 3, &next, text[i]);
        else
            word(i - first_word, text[i], text[n + i]);
    }
    gguf_write_string(w, "tokenizer.ggml.model", "gpt2");
    gguf_write_string(w, "tokenizer.ggml.pre", "gpt-2");
    gguf_write_strings(w, "tokenizer.ggml.tokens", list, n);
    gguf_write_i32s(w, "tokenizer.ggml.token_type", types, n);
    gguf_write_strings(w, "tokenizer.ggml.merges", list + n + first_word, n - first_word);
    gguf_write_u32(w, "tokenizer.ggml.eos_token_id", 0);
    gguf_write_u32(w, "tokenizer.ggml.bos_token_id", 1);
    free(text);
    free(list);
    free(types);
}

/* ---- tensors, in the order of the file ------------------------------------------------------- */

struct piece {
    char name[64];
    uint32_t type;
    uint64_t cols, rows;
};

static struct piece *pieces;
static uint32_t n_pieces;

static void add(struct gguf_write *w, const char *name, uint32_t type, uint64_t cols, uint64_t rows)
{
    struct piece *p = &pieces[n_pieces++];
    const uint64_t ne[2] = {cols, rows};
    *p = (struct piece){.type = type, .cols = cols, .rows = rows};
    snprintf(p->name, sizeof p->name, "%s", name);
    gguf_write_tensor(w, name, type, rows > 1 ? 2 : 1, ne, ref_row_bytes(type, cols) * rows);
}

static void add_layer(struct gguf_write *w, const struct infer_shape *s, uint32_t type, uint32_t l)
{
    const uint64_t d = s->n_embd, q = (uint64_t)s->n_heads * s->head_dim,
                   kv = (uint64_t)s->n_kv_heads * s->head_dim;
    const struct piece all[] = {
        {"attn_norm", INFER_TYPE_F32, d, 1},
        {"attn_q", type, d, q},
        {"attn_k", type, d, kv},
        {"attn_v", type, d, kv},
        {"attn_output", type, q, d},
        {"ffn_norm", INFER_TYPE_F32, d, 1},
        {"ffn_gate", type, d, s->n_ffn},
        {"ffn_up", type, d, s->n_ffn},
        {"ffn_down", type, s->n_ffn, d},
    };
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        char name[96];
        snprintf(name, sizeof name, "blk.%u.%.40s.weight", l, all[i].name);
        add(w, name, all[i].type, all[i].cols, all[i].rows);
    }
}

static void describe(struct gguf_write *w, const struct infer_shape *s, uint32_t type,
                     uint32_t head_type)
{
    pieces = calloc(3 + 9 * (size_t)s->n_layers, sizeof *pieces);
    if (!pieces)
        fail("the tensors");
    gguf_write_string(w, "general.architecture", "llama");
    gguf_write_u32(w, "llama.block_count", s->n_layers);
    gguf_write_u32(w, "llama.context_length", s->n_context);
    gguf_write_u32(w, "llama.embedding_length", s->n_embd);
    gguf_write_u32(w, "llama.feed_forward_length", s->n_ffn);
    gguf_write_u32(w, "llama.attention.head_count", s->n_heads);
    gguf_write_u32(w, "llama.attention.head_count_kv", s->n_kv_heads);
    gguf_write_u32(w, "llama.attention.key_length", s->head_dim);
    gguf_write_u32(w, "llama.attention.value_length", s->head_dim_v);
    gguf_write_u32(w, "llama.rope.dimension_count", s->head_dim);
    gguf_write_f32(w, "llama.rope.freq_base", 500000);
    gguf_write_f32(w, "llama.attention.layer_norm_rms_epsilon", s->norm_eps);
    write_vocabulary(w, s->n_vocab);
    add(w, "token_embd.weight", type, s->n_embd, s->n_vocab);
    for (uint32_t l = 0; l < s->n_layers; l++)
        add_layer(w, s, type, l);
    add(w, "output_norm.weight", INFER_TYPE_F32, s->n_embd, 1);
    add(w, "output.weight", head_type, s->n_embd, s->n_vocab);
}

/* ---- their data ------------------------------------------------------------------------------ */

static void put(int fd, const void *data, size_t bytes, uint64_t at)
{
    for (size_t done = 0; done < bytes;) {
        ssize_t n = pwrite(fd, (const uint8_t *)data + done, bytes - done, (off_t)(at + done));
        if (n <= 0)
            fail("writing");
        done += (size_t)n;
    }
}

/* Bytes of the tensor, from `at` on. */
static uint64_t put_tensor(int fd, const struct piece *p, uint64_t at)
{
    static uint8_t *pools[64];
    const uint64_t row_bytes = ref_row_bytes(p->type, p->cols);
    if (p->type == INFER_TYPE_F32) { /* a norm: ones */
        for (uint64_t i = 0; i < p->cols; i++)
            put(fd, &(const float){1}, sizeof(float), at + i * sizeof(float));
        return row_bytes;
    }
    if (!pools[p->type])
        pools[p->type] = synthetic_pool(&random_numbers, p->type);
    const uint64_t most = SYNTHETIC_POOL_BYTES / 2 / row_bytes;
    for (uint64_t row = 0, n; row < p->rows; row += n) {
        n = p->rows - row < most ? p->rows - row : most;
        put(fd, synthetic_rows(&random_numbers, pools[p->type], p->type, n, row_bytes),
            n * row_bytes, at + row * row_bytes);
    }
    return p->rows * row_bytes;
}

int main(int argc, char **argv)
{
    struct infer_shape shape;
    struct gguf_write w;
    uint32_t type = argc == 4 ? synthetic_type(argv[2]) : UINT32_MAX;
    if (type == UINT32_MAX || !synthetic_can(type) || !synthetic_shape(argv[1], &shape)) {
        fprintf(stderr, "usage: bench_model 8b|1b|tiny f16|q8_0|q4_0|q4_k|q6_k FILE\n");
        return 2;
    }
    synthetic_init(&random_numbers);
    gguf_write_init(&w);
    describe(&w, &shape, type, type == INFER_TYPE_F16 ? type : INFER_TYPE_Q6_K);
    int r = gguf_write_file(&w, argv[3]), fd = open(argv[3], O_WRONLY | O_CLOEXEC);
    errno = r < 0 ? -r : errno;
    off_t end = r < 0 || fd < 0 ? -1 : lseek(fd, 0, SEEK_END);
    if (end < 0)
        fail(argv[3]);
    uint64_t at = (uint64_t)end - w.data_bytes;
    for (uint32_t i = 0; i < n_pieces; i++)
        at = (at + put_tensor(fd, &pieces[i], at) + w.alignment - 1) / w.alignment * w.alignment;
    if (fsync(fd) < 0 || close(fd) < 0)
        fail(argv[3]);
    gguf_write_done(&w);
    free(pieces);
    return 0;
}
