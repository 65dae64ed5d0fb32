#!/usr/bin/env python3
"""peer.py MODEL.gguf: llama.cpp's speed on a model, through its Python package, as JSON.

One repeat is a prefill of --prompt-tokens random tokens in one batch, and a decode of --tokens
tokens one at a time from an empty context; one of each comes first and is not counted. Nothing is
sampled, which favours this side a little.

tests/bench/run.sh calls it; it makes the environment that this runs in.
"""
import argparse
import json
import random
import time

import llama_cpp as binding


def decode(context, tokens):
    array = (binding.llama_token * len(tokens))(*tokens)
    code = binding.llama_decode(context, binding.llama_batch_get_one(array, len(tokens)))
    if code != 0:
        raise SystemExit(f"llama_decode: {code}")
    binding.llama_synchronize(context)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()

    binding.llama_log_set(QUIET, None)
    binding.llama_backend_init()
    model = binding.llama_model_load_from_file(
        options.model.encode(), binding.llama_model_default_params())
    if not model:
        raise SystemExit(f"{options.model}: cannot be loaded")
    params = binding.llama_context_default_params()
    params.n_ctx = 1024
    params.n_batch = params.n_ubatch = 512
    params.n_threads = params.n_threads_batch = options.threads
    context = binding.llama_init_from_model(model, params)
    n_vocab = binding.llama_vocab_n_tokens(binding.llama_model_get_vocab(model))
    memory = binding.llama_get_memory(context)

    prefill, generate = [], []
    for repeat in range(-1, options.repeats):
        tokens = [random.randrange(n_vocab) for _ in range(options.prompt_tokens)]
        binding.llama_memory_clear(memory, True)
        start = time.perf_counter()
        decode(context, tokens)
        took = time.perf_counter() - start
        if repeat >= 0:
            prefill.append(options.prompt_tokens / took)

        tokens = [random.randrange(n_vocab) for _ in range(options.tokens)]
        binding.llama_memory_clear(memory, True)
        decode(context, tokens[:1])
        start = time.perf_counter()
        for token in tokens[1:]:
            decode(context, [token])
        took = time.perf_counter() - start
        if repeat >= 0:
            generate.append((options.tokens - 1) / took)
    print(json.dumps({"version": binding.__version__, "pp": prefill, "tg": generate}))


@binding.llama_log_callback
def QUIET(level, text, data):
    pass


if __name__ == "__main__":
    main()
