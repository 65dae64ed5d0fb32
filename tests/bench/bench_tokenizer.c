/* bench_tokenizer.c: how fast the tokenizer loads, encodes and decodes.
 *
 *   bench_tokenizer FILE.gguf [TEXT]
 *
 * Each figure is the median of REPEATS runs in one thread. The made-up texts are 1 MiB each; TEXT
 * is a file of ordinary text, repeated up to 1 MiB. Build, after `make build/lib/model.a
 * build/lib/base.a`:
 *
 *   cc -O2 -D_GNU_SOURCE -Iinclude -Idaemon tests/bench/bench_tokenizer.c -o build/bench_tokenizer
 * \ -Wl,--start-group build/lib/model.a build/lib/base.a -Wl,--end-group -lpcre2-8 -lm */
#include "model/gguf.h"
#include "model/tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define REPEATS 5
#define BYTES   (1u << 20)

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values)
{
    qsort(values, REPEATS, sizeof *values, compare_doubles);
    return values[REPEATS / 2];
}

static void fill(char *text, const char *pattern, size_t n)
{
    for (size_t i = 0; i < BYTES; i++)
        text[i] = pattern[i % n];
}

static void fill_random(char *text, unsigned low, unsigned span)
{
    unsigned state = 12345;
    for (size_t i = 0; i < BYTES; i++) {
        state = state * 1664525u + 1013904223u;
        text[i] = (char)(low + (state >> 16) % span);
    }
}

static void fill_file(char *text, const char *path)
{
    FILE *f = fopen(path, "rb");
    size_t n = f != NULL ? fread(text, 1, BYTES, f) : 0;
    if (f != NULL)
        fclose(f);
    if (n == 0) {
        fprintf(stderr, "%s: cannot be read\n", path);
        exit(1);
    }
    for (size_t i = n; i < BYTES; i++)
        text[i] = text[i - n];
}

static double decode_rate(const struct tokenizer *t, const struct token_list *l)
{
    static char out[TOKENIZER_PUSH_ROOM];
    struct detokenizer d;
    size_t bytes = 0;
    double begin = seconds();
    detokenizer_init(&d, t, 0, true);
    for (size_t i = 0; i < l->n; i++)
        bytes += detokenizer_push(&d, l->ids[i], out, sizeof out);
    return (double)bytes / (seconds() - begin) / 1e6;
}

static void measure(const struct tokenizer *t, const char *name, const char *text)
{
    double times[REPEATS];
    struct token_list l = {0};
    for (int i = 0; i < REPEATS; i++) {
        l.n = 0;
        double begin = seconds();
        int r = tokenizer_encode(t, text, BYTES, 0, NULL, 0, &l);
        times[i] = seconds() - begin;
        if (r < 0) {
            printf("%-22s error %d\n", name, r);
            return;
        }
    }
    double m = median(times);
    printf("%-22s %8.1f ms %8.2f MB/s %9zu tokens; decoded at %7.1f MB/s\n", name, m * 1e3,
           BYTES / m / 1e6, l.n, decode_rate(t, &l));
    token_list_free(&l);
}

static struct tokenizer *load(const char *path)
{
    double opens[REPEATS], loads[REPEATS];
    struct tokenizer *t = NULL;
    for (int i = 0; i < REPEATS; i++) {
        struct gguf *g;
        struct report report;
        double begin = seconds();
        if (gguf_open(path, &g, &report) < 0) {
            fprintf(stderr, "%s: %s\n", path, report.text);
            exit(1);
        }
        opens[i] = seconds() - begin;
        tokenizer_free(t);
        begin = seconds();
        if (tokenizer_new(g, &t, &report) < 0) {
            fprintf(stderr, "%s: %s\n", path, report.text);
            exit(1);
        }
        loads[i] = seconds() - begin;
        gguf_free(g);
    }
    printf("%s: %s, %u tokens; head read in %.1f ms, tokenizer built in %.1f ms\n", path,
           tokenizer_model_name(t), tokenizer_n_tokens(t), median(opens) * 1e3,
           median(loads) * 1e3);
    return t;
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        fprintf(stderr, "usage: bench_tokenizer FILE.gguf [TEXT]\n");
        return 2;
    }
    struct tokenizer *t = load(argv[1]);
    char *text = malloc(BYTES);
    if (text == NULL)
        return 1;
    if (argc > 2) {
        fill_file(text, argv[2]);
        measure(t, "text", text);
    }
    static const struct {
        const char *name, *pattern;
    } cases[] = {
        {"one letter", "a"},
        {"spaces", " "},
        {"newlines", "\n"},
        {"spaces and a letter", "                                                          x"},
        {"newline, spaces", "\n                                                        "},
        {"emoji", "\xf0\x9f\x98\x80"},
        {"families", "\xf0\x9f\x91\xa9\xe2\x80\x8d\xf0\x9f\x91\xa9\xe2\x80\x8d\xf0\x9f\x91\xa7"},
        {"digits", "1234567890"},
        {"punctuation", "!?.,"},
        {"Han", "\xe4\xb8\xad\xe6\x96\x87"},
        {"capitals", "ABCDEFG"},
        {"apostrophes", "'"},
        {"invalid bytes", "\xff"},
        {"markup begun", "<|im_start<|start_header_id"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        fill(text, cases[i].pattern, strlen(cases[i].pattern));
        measure(t, cases[i].name, text);
    }
    memset(text, ' ', BYTES - 1);
    text[BYTES - 1] = 'x';
    measure(t, "spaces, last a letter", text);
    fill_random(text, 'a', 26);
    measure(t, "random letters", text);
    fill_random(text, 0, 256);
    measure(t, "random bytes", text);
    free(text);
    tokenizer_free(t);
    return 0;
}
