/* sequence.h: what engine.c tells a sequence after a step. Internal to engine/. */
#ifndef INFERD_ENGINE_SEQUENCE_H
#define INFERD_ENGINE_SEQUENCE_H

#include "engine/engine.h"

/* A GENERATE sequence's token was drawn: append it, make its text, decide whether it ends. */
void sequence_drew(struct engine_sequence *s, const struct infer_batch_output *drawn);

/* A SCORE sequence's next token was scored; top has s->n_top entries. */
void sequence_scored(struct engine_sequence *s, float logprob, const struct infer_logprob *top);

#endif
