#!/usr/bin/env python3
"""peer_batch.py MODEL.gguf: llama.cpp's speed with many sequences in one batch, as JSON.

What llama.cpp's batched bench does, through its Python package: one prompt of --prompt-tokens
random tokens for each of --sequences sequences, in batches of 2048 tokens, then --tokens steps of
one token for each of them. Nothing is sampled, sent or read by a client, which favours this side.
One small round comes first and is not counted.

  pp     prompt tokens per second, all sequences together
  tg     answer tokens per second, all sequences together
  whole  prompt and answer tokens over the time of both
  answer answer tokens over the time of both

tests/bench/serve.sh calls it.
"""
import argparse
import json
import random
import time

import llama_cpp as binding

BATCH = 2048


def put(batch, token, position, sequence, wants_logits):
    at = batch.n_tokens
    batch.token[at] = token
    batch.pos[at] = position
    batch.n_seq_id[at] = 1
    batch.seq_id[at][0] = sequence
    batch.logits[at] = wants_logits
    batch.n_tokens = at + 1


def run(context, batch):
    code = binding.llama_decode(context, batch)
    if code != 0:
        raise SystemExit(f"llama_decode: {code}")
    batch.n_tokens = 0


def one_round(context, batch, n_vocab, n_sequences, n_prompt, n_tokens):
    prompts = [[random.randrange(n_vocab) for _ in range(n_prompt)] for _ in range(n_sequences)]
    answers = [[random.randrange(n_vocab) for _ in range(n_sequences)] for _ in range(n_tokens)]
    binding.llama_memory_clear(binding.llama_get_memory(context), True)
    batch.n_tokens = 0

    start = time.perf_counter()
    for sequence, prompt in enumerate(prompts):
        for position, token in enumerate(prompt):
            if batch.n_tokens == BATCH:
                run(context, batch)
            put(batch, token, position, sequence, position == n_prompt - 1)
    run(context, batch)
    binding.llama_synchronize(context)
    middle = time.perf_counter()
    for step, tokens in enumerate(answers):
        for sequence, token in enumerate(tokens):
            put(batch, token, n_prompt + step, sequence, True)
        run(context, batch)
        binding.llama_synchronize(context)
    return middle - start, time.perf_counter() - middle


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--unified", action="store_true", help="one cache for all sequences")
    options = parser.parse_args()

    binding.llama_log_set(QUIET, None)
    binding.llama_backend_init()
    model = binding.llama_model_load_from_file(
        options.model.encode(), binding.llama_model_default_params())
    if not model:
        raise SystemExit(f"{options.model}: cannot be loaded")
    params = binding.llama_context_default_params()
    params.n_seq_max = options.sequences
    params.n_ctx = options.sequences * (options.prompt_tokens + options.tokens)
    params.n_batch = BATCH
    params.n_ubatch = 512
    params.kv_unified = options.unified
    params.n_threads = params.n_threads_batch = options.threads
    context = binding.llama_init_from_model(model, params)
    if not context:
        raise SystemExit("no context for so many sequences")
    n_vocab = binding.llama_vocab_n_tokens(binding.llama_model_get_vocab(model))
    batch = binding.llama_batch_init(BATCH, 0, 1)

    one_round(context, batch, n_vocab, options.sequences, 16, 4)
    prompt_s, answer_s = one_round(context, batch, n_vocab, options.sequences,
                                   options.prompt_tokens, options.tokens)
    n_prompt = options.sequences * options.prompt_tokens
    n_answer = options.sequences * options.tokens
    print(json.dumps({"version": binding.__version__, "pp": [n_prompt / prompt_s],
                      "tg": [n_answer / answer_s],
                      "whole": [(n_prompt + n_answer) / (prompt_s + answer_s)],
                      "answer": [n_answer / (prompt_s + answer_s)]}))


@binding.llama_log_callback
def QUIET(level, text, data):
    pass


if __name__ == "__main__":
    main()
