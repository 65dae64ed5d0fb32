#!/usr/bin/env python3
"""peer_load.py MODEL.gguf: loads a model with llama.cpp's defaults (mmap) and decodes one token.

tests/bench/load.sh measures it from outside, from exec to exit: the interpreter's own start, which
--nothing prints alone, is subtracted there.
"""
import argparse
import os

import llama_cpp as binding


@binding.llama_log_callback
def QUIET(level, text, data):
    pass


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--nothing", action="store_true", help="only import the package")
    options = parser.parse_args()
    if options.nothing:
        os._exit(0)
    binding.llama_log_set(QUIET, None)
    binding.llama_backend_init()
    model = binding.llama_model_load_from_file(
        options.model.encode(), binding.llama_model_default_params())
    if not model:
        raise SystemExit(f"{options.model}: cannot be loaded")
    params = binding.llama_context_default_params()
    params.n_ctx = 1024
    params.n_threads = params.n_threads_batch = options.threads
    context = binding.llama_init_from_model(model, params)
    tokens = (binding.llama_token * 1)(5)
    if binding.llama_decode(context, binding.llama_batch_get_one(tokens, 1)) != 0:
        raise SystemExit("llama_decode failed")
    binding.llama_synchronize(context)
    binding.llama_get_logits_ith(context, -1)
    os._exit(0)


if __name__ == "__main__":
    main()
