/* tokens.h: the text of single tokens, each asked for once. Used by tokenize and score. */
#ifndef INFERCTL_TOKENS_H
#define INFERCTL_TOKENS_H

#include "ctl.h"

struct tokens_pieces;

/* Room for n_tokens different ids. */
struct tokens_pieces *tokens_pieces_new(size_t n_tokens);
void tokens_pieces_free(struct tokens_pieces *pieces);

/* The text of a token, special ones included; lives as long as pieces. 0 or an exit status. */
int tokens_piece(struct ctl *ctl, struct tokens_pieces *pieces, int32_t id, const char **ret_text,
                 size_t *ret_n);

#endif
