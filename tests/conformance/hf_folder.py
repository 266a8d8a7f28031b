"""Turns an f32 model file back into the Hugging Face folder it came from.

The inverse of a conversion, written apart from the one under test: names, Llama's row order and
Gemma's norms are undone here. The tokenizer is only as good as the logits need.
"""

import json
import pathlib
import struct

import numpy as np

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY, F32 = 8, 9, 0
OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
INNER = {
    "attn_norm": "input_layernorm", "attn_output": "self_attn.o_proj",
    "attn_qkv": "self_attn.qkv_proj", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm", "attn_sub_norm": "self_attn.attn_sub_norm",
    "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj", "ffn_sub_norm": "mlp.ffn_sub_norm",
}
INNER_OF = {
    "phi3": {"ffn_up": "mlp.gate_up_proj"},
    "gemma3": {"post_attention_norm": "post_attention_layernorm",
               "ffn_norm": "pre_feedforward_layernorm",
               "post_ffw_norm": "post_feedforward_layernorm"},
}
PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
           r"|\s*[\r\n]+|\s+(?!\S)|\s+")


class Reader:
    """Reads a GGUF file whose tensors are all f32."""

    def __init__(self, path):
        self.data = path.read_bytes()
        self.at = 4
        self.number("I")
        tensors, values = self.number("Q"), self.number("Q")
        self.values = {}
        for _ in range(values):
            key = self.text()
            self.values[key] = self.value(self.number("I"))
        infos = [self.info() for _ in range(tensors)]
        base = -(-self.at // 32) * 32
        self.tensors = {name: self.tensor(base + offset, shape) for name, shape, offset in infos}

    def number(self, code):
        value = struct.unpack_from("<" + code, self.data, self.at)[0]
        self.at += struct.calcsize("<" + code)
        return value

    def text(self):
        length = self.number("Q")
        self.at += length
        return self.data[self.at - length : self.at].decode()

    def value(self, kind):
        if kind == STRING:
            return self.text()
        if kind == ARRAY:
            inner, length = self.number("I"), self.number("Q")
            return [self.value(inner) for _ in range(length)]
        return self.number(SCALARS[kind])

    def info(self):
        name = self.text()
        shape = [self.number("Q") for _ in range(self.number("I"))]
        if self.number("I") != F32:
            raise ValueError(f"{name} is not f32")
        return name, shape[::-1], self.number("Q")

    def tensor(self, at, shape):
        return np.frombuffer(self.data, np.float32, int(np.prod(shape)), at).reshape(shape)


def write(model, config, folder):
    """Writes `folder` from the file `model` and the configuration that belongs to it."""
    folder = pathlib.Path(folder)
    reader = Reader(model)
    family = reader.values["general.architecture"]
    tensors = {}
    for name, values in reader.tensors.items():
        # Rotary factors are in the configuration.
        if not name.startswith("rope_"):
            outer, values = named(name, values, family, config)
            tensors[outer] = np.ascontiguousarray(values)
    (folder / "model.safetensors").write_bytes(safetensors(tensors))
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer(reader.values)), encoding="utf-8")


def named(name, values, family, config):
    parts = name.removesuffix(".weight").split(".")
    if family == "gemma3" and parts[-1].endswith("_norm"):
        values = values - 1
    if family == "llama" and parts[-1] in ("attn_q", "attn_k"):
        heads = config["num_attention_heads" if parts[-1] == "attn_q" else "num_key_value_heads"]
        pairs = values.reshape(heads, values.shape[0] // heads // 2, 2, values.shape[1])
        values = pairs.swapaxes(1, 2).reshape(values.shape)
    if parts[0] != "blk":
        return OUTER[parts[0]] + ".weight", values
    inner = (INNER | INNER_OF.get(family, {}))[parts[2]]
    return f"model.layers.{parts[1]}.{inner}.weight", values


def safetensors(tensors):
    header, end = {}, 0
    for name, values in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(values.shape),
                        "data_offsets": [end, end + values.nbytes]}
        end += values.nbytes
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    data = b"".join(values.astype("<f4").tobytes() for values in tensors.values())
    return struct.pack("<Q", len(head)) + head + data


def tokenizer(values):
    kinds = values["tokenizer.ggml.token_type"]
    tokens = list(zip(values["tokenizer.ggml.tokens"], kinds))
    return {
        "added_tokens": [{"id": i, "content": text, "special": True}
                         for i, (text, kind) in enumerate(tokens) if kind == 3],
        "model": {"type": "BPE", "merges": values.get("tokenizer.ggml.merges", []),
                  "vocab": {text: i for i, (text, kind) in enumerate(tokens) if kind != 3}},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated"},
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}]},
    }
