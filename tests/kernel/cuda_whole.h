/* cuda_whole.h: the CUDA backend as a whole beside the reference, through the backend's own
 * interface: what test_cuda.c, test_pages.c and test_ahead.c share. Header only.
 *
 * By default inferd-backend-cuda-emulated.so, whose kernels run on the processor
 * (tests/support/cuda), thread by thread and hence slowly: fewer rows and models.
 * INFERD_TEST_CUDA=1 takes inferd-backend-cuda.so and the GPU of this machine. */
#ifndef TESTS_KERNEL_CUDA_WHOLE_H
#define TESTS_KERNEL_CUDA_WHOLE_H

#include "kernel/cpu_rig.h"

/* Emulated kernels take ten times as long under sanitizers. */
#ifdef __SANITIZE_ADDRESS__
#define SANITIZED true
#else
#define SANITIZED false
#endif

static bool real; /* a GPU */

static inline int open_cuda(struct loaded *l, const char *options)
{
    return open_backend(l, real ? "cuda" : "cuda-emulated", options);
}

/* How many rows of the rig's sequence a test runs. */
static uint32_t length = LENGTH;

static inline void must_open(struct loaded *l, const char *options)
{
    int r = open_cuda(l, options);
    if (r < 0)
        fail_msg("open \"%s\": %d", options, r);
}

/* Relative error of the logits. Each value that enters a product is a half-precision number, off by
 * at most 2^-11 and by 2^-11 / sqrt(12) = 1.4e-4 on average (it is uniform between two of them;
 * they lie 2^-11 .. 2^-10 of it apart), and so is each weight of a type whose values halves do not
 * hold (F32, and scales of K-blocks, which are products of two numbers). A sum of independent
 * products is off by as much as each of them. From the embedding to the logits, x passes q, k, v,
 * scores, sums of values, o, gate and up, and down in each of two layers, and the head: 15 products
 * with two roundings each, so sqrt(30) * 2e-4 = 1.1e-3 if each mattered in full. But scores are
 * exponentiated: their errors count as often as they are large, and random weights make some of ten
 * and more, the larger ones the longer a sequence is: most recipes stay under 2.5e-3, 150 rows of
 * Q3_K come to 4.8e-3. Six times that. */
#define TOLERANCE 6.6e-3

struct sample_run {
    struct model m;
    uint32_t pages[PAGES_MAX];
    int32_t tokens[LENGTH];
    size_t n, bytes; /* logits of all rows */
    float *want, *got, *other;
};

static inline void begin_run(struct sample_run *s, const struct recipe *recipe)
{
    make_model(&s->m, recipe);
    s->n = (size_t)length * s->m.shape.n_vocab;
    s->bytes = s->n * sizeof(float);
    s->want = malloc(s->bytes);
    s->got = malloc(s->bytes);
    s->other = malloc(s->bytes);
    assert_true(s->want && s->got && s->other);
    draw_tokens(s->tokens, LENGTH, s->m.shape.n_vocab);
    shuffled_pages(s->pages);
}

static inline void end_run(struct sample_run *s)
{
    free_model(&s->m);
    free(s->want);
    free(s->got);
    free(s->other);
}

static inline void run_ref(struct sample_run *s, float *ret)
{
    struct loaded ref;
    assert_int_equal(open_backend(&ref, "ref", ""), 0);
    load(&ref, &s->m);
    run_batch(&ref, &(struct part){0, length, s->tokens, s->pages, ret}, 1);
    unload(&ref);
}

/* The sequence in pieces of the given sizes, the last repeated. */
static inline void in_pieces(struct loaded *l, struct sample_run *s, const uint32_t *pieces,
                             float *ret)
{
    const uint32_t n_vocab = s->m.shape.n_vocab;
    for (uint32_t at = 0, i = 0; at < length; i += pieces[i + 1] != 0) {
        uint32_t n = length - at < pieces[i] ? length - at : pieces[i];
        run_batch(l, &(struct part){at, n, s->tokens + at, s->pages, ret + (size_t)at * n_vocab},
                  1);
        at += n;
    }
}

/* At the beginning of main(). */
static inline void find_device(void)
{
    const char *text = getenv("INFERD_TEST_CUDA");
    real = text && strcmp(text, "1") == 0;
    if (!real)
        length = 70; /* more than a chunk of the attention */
}

#endif
