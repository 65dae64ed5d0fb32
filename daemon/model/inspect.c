/* inspect.c: prints what a model file holds. See inspect.h.
 *
 * Owns nothing. Everything printed comes from the checked struct gguf; names and texts of the file
 * go through a filter, so that a hostile file cannot write escape sequences to a terminal.
 * Threads: any. Limits: one line per key and per tensor, values cut at VALUE_MAX bytes. */
#include "model/inspect.h"

#include "model/gguf_head.h"
#include "model/plan.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#define VALUE_MAX 80

/* Bytes of the file, control characters as '?'. Returns how many columns were written. */
static int print_text(FILE *out, const char *text, size_t bytes, size_t max)
{
    size_t n = bytes < max ? bytes : max;
    int columns = 0;
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)text[i];
        fputc(c < 0x20 || c == 0x7f ? '?' : c, out);
        columns += (c & 0xc0) != 0x80;
    }
    if (bytes > max) {
        fputs("...", out);
        columns += 3;
    }
    return columns;
}

/* "37.9 MiB" */
static const char *bytes_text(uint64_t bytes, char text[32])
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    double v = (double)bytes;
    size_t unit = 0;
    while (v >= 1023.95 && unit < 4) {
        v /= 1024;
        unit++;
    }
    snprintf(text, 32, unit == 0 ? "%.0f %s" : "%.1f %s", v, units[unit]);
    return text;
}

static void print_label(FILE *out, const char *label)
{
    fprintf(out, "%-15s", label);
}

static void print_file(const struct gguf *g, FILE *out)
{
    char text[32];
    uint64_t bytes = 0;
    uint32_t parts = gguf_n_parts(g);
    const char *name = gguf_file_name(gguf_part_path(g, 0));
    for (uint32_t i = 0; i < parts; i++)
        bytes += gguf_part_bytes(g, i);
    print_label(out, "file");
    print_text(out, name, strlen(name), 200);
    fprintf(out, ", GGUF version %" PRIu32 ", %s", gguf_version(g), bytes_text(bytes, text));
    if (parts > 1)
        fprintf(out, " in %" PRIu32 " parts", parts);
    fputc('\n', out);
}

static void print_string_key(const struct gguf *g, FILE *out, const char *label, const char *key)
{
    struct gguf_string s;
    if (!gguf_get_string(g, key, &s))
        return;
    print_label(out, label);
    print_text(out, s.data, s.bytes, VALUE_MAX);
    fputc('\n', out);
}

/* Bytes of the tensors by type, largest first. */
static void print_types(const struct gguf *g, FILE *out)
{
    uint64_t bytes[64] = {0}, total = 0, values = 0;
    char text[32];
    for (uint32_t i = 0; i < gguf_n_tensors(g); i++) {
        const struct gguf_tensor *t = gguf_tensor(g, i);
        if (t->tensor.type < 64)
            bytes[t->tensor.type] += t->bytes;
        total += t->bytes;
        values += t->tensor.n_rows * t->tensor.ne[0];
    }
    if (total == 0)
        return;
    print_label(out, "weights");
    fprintf(out, "%" PRIu64 " values in %" PRIu32 " tensors, %s, %.2f bits per value\n", values,
            gguf_n_tensors(g), bytes_text(total, text), 8 * (double)total / (double)values);
    print_label(out, "types");
    for (const char *comma = "";; comma = ", ") {
        uint32_t best = 0;
        for (uint32_t type = 1; type < 64; type++)
            if (bytes[type] > bytes[best])
                best = type;
        if (bytes[best] == 0)
            break;
        fprintf(out, "%s%s %s (%.1f%%)", comma, type_info(best)->name,
                bytes_text(bytes[best], text), 100 * (double)bytes[best] / (double)total);
        bytes[best] = 0;
    }
    fputc('\n', out);
}

static void print_vocabulary(const struct gguf *g, FILE *out)
{
    struct gguf_string s;
    uint64_t n = 0;
    print_label(out, "vocabulary");
    if (gguf_get_array(g, "tokenizer.ggml.tokens", GGUF_STRING, &n))
        fprintf(out, "%" PRIu64 " tokens", n);
    else
        fprintf(out, "none");
    if (gguf_get_string(g, "tokenizer.ggml.model", &s)) {
        fputs(", tokenizer ", out);
        print_text(out, s.data, s.bytes, VALUE_MAX);
    }
    if (gguf_get_string(g, "tokenizer.ggml.pre", &s)) {
        fputs(", pre-tokenizer ", out);
        print_text(out, s.data, s.bytes, VALUE_MAX);
    }
    fputc('\n', out);
    print_label(out, "chat template");
    if (gguf_get_string(g, "tokenizer.chat_template", &s))
        fprintf(out, "yes, %zu bytes\n", s.bytes);
    else
        fprintf(out, "none\n");
}

static void print_plan(const struct gguf *g, FILE *out)
{
    struct plan *p = NULL;
    struct report report = {0};
    if (plan_new(g, &p, &report) < 0) {
        print_label(out, "servable");
        fprintf(out, "no: %s\n", report.text);
        return;
    }
    const struct infer_shape *s = &p->backend.shape;
    const struct infer_rope *rope = &p->backend.rope;
    print_label(out, "servable");
    fprintf(out, "yes, as %s, %s\n", p->architecture, p->description);
    print_label(out, "shape");
    fprintf(out,
            "%" PRIu32 " layers, width %" PRIu32 ", feed-forward %" PRIu32 ", %" PRIu32
            " heads of %" PRIu32 ", %" PRIu32 " key-value heads\n",
            s->n_layers, s->n_embd, s->n_ffn, s->n_heads, s->head_dim, s->n_kv_heads);
    print_label(out, "context");
    fprintf(out, "%" PRIu32 " tokens\n", s->n_context);
    print_label(out, "rotary");
    fprintf(out, "%" PRIu32 " values of a head in %s, wavelengths %.3g to %.3g tokens",
            rope->n_dims, rope->style == INFER_ROPE_PAIRS ? "pairs" : "halves",
            6.283185 / (double)rope->inv_freq[0],
            6.283185 / (double)rope->inv_freq[rope->n_dims / 2 - 1]);
    if (rope->magnitude != 1)
        fprintf(out, ", magnitude %.4f", (double)rope->magnitude);
    fputc('\n', out);
    plan_free(p);
}

static void print_memory(FILE *out, const struct infer_estimate *e,
                         const struct infer_state_config *state)
{
    char a[32], b[32];
    uint64_t pages = 0, total = 0;
    if (e == NULL || state == NULL)
        return;
    print_label(out, "memory");
    if (__builtin_mul_overflow(e->page_bytes, (uint64_t)state->n_pages, &pages) ||
        __builtin_add_overflow(pages, e->weights_bytes, &total) ||
        __builtin_add_overflow(total, e->scratch_bytes, &total)) {
        fprintf(out, "more than 16 EiB\n");
        return;
    }
    fprintf(out, "%s: weights %s", bytes_text(total, a), bytes_text(e->weights_bytes, b));
    fprintf(out, ", scratch %s", bytes_text(e->scratch_bytes, a));
    fprintf(out, ", sequences %s (%" PRIu32 " pages of %" PRIu32 " tokens, %s each)\n",
            bytes_text(pages, a), state->n_pages, state->page_tokens, bytes_text(e->page_bytes, b));
}

static void print_keys(const struct gguf *g, FILE *out)
{
    static const char *const types[] = {"uint8",  "int8",  "uint16", "int16", "uint32",
                                        "int32",  "float", "bool",   "text",  "array",
                                        "uint64", "int64", "double"};
    int width = 0;
    for (uint64_t i = 0; i < gguf_n_keys(g); i++) {
        struct gguf_string key = gguf_key(g, i, NULL);
        if (key.bytes < 64 && (int)key.bytes > width)
            width = (int)key.bytes;
    }
    fprintf(out, "\n%" PRIu64 " keys\n", gguf_n_keys(g));
    for (uint64_t i = 0; i < gguf_n_keys(g); i++) {
        enum gguf_value_type type;
        struct gguf_string key = gguf_key(g, i, &type);
        char value[VALUE_MAX];
        gguf_key_text(g, i, value, sizeof value);
        fputs("  ", out);
        int columns = print_text(out, key.data, key.bytes, 100);
        fprintf(out, "%*s  %-6s  %s\n", columns < width ? width - columns : 0, "", types[type],
                value);
    }
}

static void print_tensors(const struct gguf *g, FILE *out)
{
    int width = 0;
    uint32_t n = gguf_n_tensors(g), parts = gguf_n_parts(g);
    for (uint32_t i = 0; i < n; i++) {
        int bytes = (int)strlen(gguf_tensor(g, i)->tensor.name);
        if (bytes > width)
            width = bytes;
    }
    fprintf(out, "\n%" PRIu32 " tensors\n", n);
    for (uint32_t i = 0; i < n; i++) {
        const struct gguf_tensor *t = gguf_tensor(g, i);
        char shape[96], size[32];
        size_t at = 0;
        for (uint32_t d = 0; d < t->tensor.n_dims; d++)
            at += (size_t)snprintf(shape + at, sizeof shape - at, "%s%" PRIu64, d ? " x " : "",
                                   t->tensor.ne[d]);
        fputs("  ", out);
        int columns = print_text(out, t->tensor.name, strlen(t->tensor.name), 64);
        fprintf(out, "%*s  %-8s  %-20s  %12s  at %" PRIu64, columns < width ? width - columns : 0,
                "", type_info(t->tensor.type)->name, shape, bytes_text(t->bytes, size), t->offset);
        if (parts > 1)
            fprintf(out, " of part %" PRIu32, t->part + 1);
        fputc('\n', out);
    }
}

int inspect_print(const struct gguf *g, FILE *out, const struct infer_estimate *estimate,
                  const struct infer_state_config *state)
{
    print_file(g, out);
    print_string_key(g, out, "name", "general.name");
    print_string_key(g, out, "architecture", "general.architecture");
    print_string_key(g, out, "licence", "general.license");
    print_types(g, out);
    print_vocabulary(g, out);
    print_plan(g, out);
    print_memory(out, estimate, state);
    print_keys(g, out);
    print_tensors(g, out);
    fflush(out);
    return ferror(out) ? -EIO : 0;
}
