/* tokenizer_private.h: the tokenizer's own struct, for tokenizer.c and detokenizer.c alone. */
#ifndef INFERD_MODEL_TOKENIZER_PRIVATE_H
#define INFERD_MODEL_TOKENIZER_PRIVATE_H

#include "model/bpe.h"
#include "model/pretokenizer.h"
#include "model/specials.h"
#include "model/spm.h"
#include "model/tokenizer.h"
#include "model/vocab.h"

enum tokenizer_kind { TOKENIZER_BPE, TOKENIZER_SPM };

struct tokenizer {
    enum tokenizer_kind kind;
    struct vocab vocab;
    struct specials specials;
    struct pretokenizer *pretokenizer; /* BPE */
    struct bpe bpe;                    /* BPE */
    struct spm spm;                    /* SPM */
    uint32_t bos, eos;                 /* VOCAB_NONE: none */
    bool add_bos;
    bool add_space_prefix; /* SPM */
    bool swallow_space;    /* special tokens take the white space behind them (Phi-3) */
    struct token_list ends;
    char name[80];
};

#endif
