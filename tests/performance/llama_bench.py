#!/usr/bin/env python3
"""llama_bench.py MODEL.gguf [key=value ...]: the same measurements as fulmar's `throughput` example, by llama.cpp
through llama-cpp-python's C interface. Keys: threads prompt generate sequences depth repeat flash(0|1) mmap(0|1)."""
import ctypes
import json
import resource
import sys
import time

BEGUN = time.perf_counter()
import llama_cpp as L  # noqa: E402

opts = dict(threads=4, prompt=512, generate=128, sequences=1, depth=0, repeat=1, flash=1, mmap=1)
for a in sys.argv[2:]:
    key, value = a.split("=", 1)
    if key in opts:
        opts[key] = int(value)
log = L.llama_log_callback(lambda level, text, data: None)
L.llama_log_set(log, ctypes.c_void_p(0))


def say(**values):
    print(json.dumps(values), flush=True)


def cpu():
    t = time.process_time_ns()
    return t * 1e-9


BEGUN = time.perf_counter()
L.llama_backend_init()
mp = L.llama_model_default_params()
mp.n_gpu_layers = 0
mp.use_mmap = bool(opts["mmap"])
model = L.llama_model_load_from_file(sys.argv[1].encode(), mp)
assert model, "load"
cp = L.llama_context_default_params()
each = max(opts["prompt"], max(opts["depth"], 1) + opts["generate"])
cp.n_ctx = ((each + 255) // 256 * 256) * opts["sequences"]
cp.n_seq_max = opts["sequences"]
cp.n_batch = cp.n_ubatch = 512
cp.n_threads = cp.n_threads_batch = opts["threads"]
cp.flash_attn_type = 1 if opts["flash"] else 0
ctx = L.llama_init_from_model(model, cp)
assert ctx, "context"
load_ms = (time.perf_counter() - BEGUN) * 1e3
memory = L.llama_get_memory(ctx)
vocab = L.llama_vocab_n_tokens(L.llama_model_get_vocab(model))
batch = L.llama_batch_init(max(512, opts["sequences"]), 0, 1)


def decode(entries):
    batch.n_tokens = len(entries)
    for i, (token, position, sequence, logits) in enumerate(entries):
        batch.token[i] = token
        batch.pos[i] = position
        batch.n_seq_id[i] = 1
        batch.seq_id[i][0] = sequence
        batch.logits[i] = logits
    assert L.llama_decode(ctx, batch) == 0
    L.llama_synchronize(ctx)


def prompt(length, sequences):
    L.llama_memory_clear(memory, False)
    for s in range(sequences):
        for start in range(0, length, 512):
            part = range(start, min(length, start + 512))
            decode([((p * 7919 + s * 31 + 1) % vocab, p, s, p == length - 1) for p in part])


def timed(f):
    wall, used = time.perf_counter(), cpu()
    f()
    return time.perf_counter() - wall, cpu() - used


prompt(1, 1)
say(load_ms=round(load_ms, 1), first_token_ms=round((time.perf_counter() - BEGUN) * 1e3, 1))
for _ in range(opts["repeat"]):
    if opts["prompt"]:
        wall, used = timed(lambda: prompt(opts["prompt"], 1))
        say(prompt_tokens_per_s=round(opts["prompt"] / wall, 2), cpu_s=round(used, 4), wall_s=round(wall, 4))
    if opts["generate"]:
        depth, sequences = max(opts["depth"], 1), opts["sequences"]
        prompt(depth, sequences)

        def generate():
            for step in range(opts["generate"]):
                decode([((step * 104729 + s * 31 + 5) % vocab, depth + step, s, 1) for s in range(sequences)])

        wall, used = timed(generate)
        rate = opts["generate"] * sequences / wall
        say(decode_tokens_per_s=round(rate, 2), cpu_s=round(used, 4), wall_s=round(wall, 4))
say(peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
