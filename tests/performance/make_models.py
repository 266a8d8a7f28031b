#!/usr/bin/env python3
"""make_models.py FOLDER: random-weight GGUF files with exactly the shapes of Qwen3-0.6B and Llama-3.2-1B.

Writes SHAPE-f16.gguf for each shape. Weights are normal with a small deviation, so that activations stay
finite; the vocabulary is synthetic (two-character tokens, no merges that matter): only speed is measured.
Needs numpy and gguf (PyPI).
"""
import sys
from pathlib import Path

import gguf
import numpy as np

SHAPES = {
    "qwen3-0.6b": dict(arch="qwen3", layers=28, hidden=1024, ffn=3072, heads=16, kv_heads=8, dims=128,
                       vocab=151936, rope=1e6, pre="qwen2", head_norms=True),
    "llama-3.2-1b": dict(arch="llama", layers=16, hidden=2048, ffn=8192, heads=32, kv_heads=8, dims=64,
                         vocab=128256, rope=5e5, pre="llama-bpe", head_norms=False),
}


def bytes_to_unicode():
    """GPT-2's printable stand-ins for all bytes."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    chars = {b: chr(b) for b in visible}
    for n, b in enumerate(b for b in range(256) if b not in chars):
        chars[b] = chr(256 + n)
    return [chars[b] for b in range(256)]


def vocabulary(size):
    single = bytes_to_unicode()
    tokens = list(single)
    merges = []
    for a in single:
        for b in single:
            if len(tokens) < size - 2:
                tokens.append(a + b)
                merges.append(f"{a} {b}")
    n = 0
    while len(tokens) < size - 2:
        tokens.append(f"<unused{n}>")
        n += 1
    return tokens + ["<end>", "<start>"], merges


def write(path, s):
    rng = np.random.default_rng(1)
    w = gguf.GGUFWriter(str(path), s["arch"])
    w.add_context_length(40960)
    w.add_embedding_length(s["hidden"])
    w.add_block_count(s["layers"])
    w.add_feed_forward_length(s["ffn"])
    w.add_head_count(s["heads"])
    w.add_head_count_kv(s["kv_heads"])
    w.add_key_length(s["dims"])
    w.add_value_length(s["dims"])
    w.add_rope_dimension_count(s["dims"])
    w.add_rope_freq_base(s["rope"])
    w.add_layer_norm_rms_eps(1e-6)
    w.add_vocab_size(s["vocab"])
    tokens, merges = vocabulary(s["vocab"])
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre(s["pre"])
    w.add_token_list(tokens)
    w.add_token_types([1] * (s["vocab"] - 2) + [3, 3])
    w.add_token_merges(merges)
    w.add_eos_token_id(s["vocab"] - 2)
    w.add_bos_token_id(s["vocab"] - 1)

    def matrix(name, rows, columns):
        values = np.empty((rows, columns), np.float16)
        for start in range(0, rows, 8192):
            part = values[start:start + 8192]
            part[:] = rng.standard_normal(part.shape, np.float32) * np.float32(0.02)
        w.add_tensor(name, values)

    def norm(name, length):
        w.add_tensor(name, np.ones(length, np.float32))

    h, q, kv = s["hidden"], s["heads"] * s["dims"], s["kv_heads"] * s["dims"]
    matrix("token_embd.weight", s["vocab"], h)
    norm("output_norm.weight", h)
    for i in range(s["layers"]):
        b = f"blk.{i}."
        norm(b + "attn_norm.weight", h)
        norm(b + "ffn_norm.weight", h)
        matrix(b + "attn_q.weight", q, h)
        matrix(b + "attn_k.weight", kv, h)
        matrix(b + "attn_v.weight", kv, h)
        matrix(b + "attn_output.weight", h, q)
        matrix(b + "ffn_gate.weight", s["ffn"], h)
        matrix(b + "ffn_up.weight", s["ffn"], h)
        matrix(b + "ffn_down.weight", h, s["ffn"])
        if s["head_norms"]:
            norm(b + "attn_q_norm.weight", s["dims"])
            norm(b + "attn_k_norm.weight", s["dims"])
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, shape in SHAPES.items():
        if len(sys.argv) > 2 and name not in sys.argv[2:]:
            continue
        path = folder / f"{name}-f16.gguf"
        if not path.exists():
            write(path.with_suffix(".part"), shape)
            path.with_suffix(".part").rename(path)
        print(path)
