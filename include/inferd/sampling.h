/* sampling.h: the parameters of one answer, from the client's call to the backend's batch.
 *
 * One struct travels unchanged from libinferclient through the request ring and the scheduler to
 * the code that picks the token, so that there is one place to read what a parameter means. The
 * order in which they act is fixed and the one llama.cpp's users know:
 *
 *   logit bias, penalties, top-k, typical, top-p, min-p, temperature, draw.
 *
 * Layout is part of the protocol and of fixed size, because other structs have it in their middle:
 * a new field takes reserved words, and zero there means what it meant before. */
#ifndef INFERD_SAMPLING_H
#define INFERD_SAMPLING_H

#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

struct infer_sampling {
    uint32_t bytes;      /* sizeof(struct infer_sampling) */
    uint32_t max_tokens; /* stop after so many tokens; 0: to the end of the context */
    uint64_t seed;       /* same seed, model and backend: same tokens; 0: the daemon draws one */
    float temperature;   /* 0: greedy (all below but bias and penalties are ignored); 0..100 */
    uint32_t top_k;      /* keep the k most likely; 0: all of them */
    float top_p;         /* keep the smallest set with this probability; (0, 1], 1: off */
    float min_p;     /* keep tokens at least min_p times as likely as the best; [0, 1], 0: off */
    float typical_p; /* locally typical sampling, arXiv:2202.00666; (0, 1], 1: off */
    float
        repetition_penalty;  /* divide positive, multiply negative logits of seen tokens; (0, 10] */
    float frequency_penalty; /* subtract this times the count of the token; [-10, 10] */
    float presence_penalty;  /* subtract this if the token was seen; [-10, 10] */
    uint32_t
        penalty_window;  /* how many last tokens count as seen, prompt included; 0: penalties off */
    uint32_t logprobs;   /* log-probabilities of the N best per token; 0: none; INFER_TOP_MAX */
    uint32_t ignore_eos; /* 1: go on after an end token (it is never drawn then) */
    uint32_t reserved[17]; /* zero */
};

/* The defaults of every client, chosen to be llama.cpp's so that answers can be compared. */
static inline void infer_sampling_default(struct infer_sampling *s)
{
    memset(s, 0, sizeof *s);
    s->bytes = (uint32_t)sizeof *s;
    s->max_tokens = 512;
    s->temperature = 0.8f;
    s->top_k = 40;
    s->top_p = 0.95f;
    s->min_p = 0.05f;
    s->typical_p = 1.0f;
    s->repetition_penalty = 1.0f;
    s->penalty_window = 64;
}

/* The seed of answer i of a request that has several: what a request of its own would say to get
 * the same tokens. Answer 0 has the request's own; the others the finalizer of splitmix64 over seed
 * + i * 0x9e3779b97f4a7c15, where 0 (which would mean "draw one") becomes 1. All modulo 2^64. */
static inline uint64_t infer_answer_seed_of(uint64_t seed, uint32_t answer)
{
    if (answer == 0)
        return seed;
    uint64_t x = seed + answer * UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    x ^= x >> 31;
    return x != 0 ? x : 1;
}

/* Why an answer ended. */
enum infer_finish {
    INFER_FINISH_NONE = 0,
    INFER_FINISH_STOP = 1,   /* an end-of-generation token */
    INFER_FINISH_STRING = 2, /* a stop string */
    INFER_FINISH_LENGTH = 3, /* max_tokens, or the context is full */
    INFER_FINISH_CANCEL = 4,
    INFER_FINISH_ERROR = 5,
};

/* Whose turn it is first; a user's policy may clamp it. */
enum infer_priority {
    INFER_PRIORITY_NORMAL = 0,
    INFER_PRIORITY_INTERACTIVE = 1, /* somebody is looking at the answer */
    INFER_PRIORITY_BATCH = 2,       /* nobody waits for it */
};

/* One entry of the logit bias list: added to the logit before anything else; -INFINITY bans. */
struct infer_logit_bias {
    int32_t token;
    float bias;
};

/* A token and its natural log-probability under the model's raw distribution (before bias,
 * penalties and temperature). */
struct infer_logprob {
    int32_t token;
    float logprob;
};

#ifdef __cplusplus
}
#endif

#endif
