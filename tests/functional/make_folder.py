"""make_folder.py FOLDER [MARKS]: a Hugging Face folder with a small Qwen3 of random weights and the
default model's tokenizer; its chat template tells a family by these marks."""

import json
import pathlib
import shutil
import struct
import sys

import numpy as np

folder = pathlib.Path(sys.argv[1])
folder.mkdir(parents=True)
marks = "{# tools: " + sys.argv[2] + " #}" if len(sys.argv) > 2 else ""
source = pathlib.Path(__file__).parents[2] / "packaging" / "demo-model"
shutil.copy(source / "tokenizer.json", folder)
tokenizer = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
added = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
vocab = max([*tokenizer["model"]["vocab"].values(), *added.values()]) + 1
ends = [text for text in added if "end" in text]
width, inner, heads, kv, dims, layers = 64, 128, 4, 2, 16, 2
(folder / "config.json").write_text(json.dumps({
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "torch_dtype": "float32",
    "hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers,
    "num_attention_heads": heads, "num_key_value_heads": kv, "head_dim": dims,
    "vocab_size": vocab, "max_position_embeddings": 512, "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0, "tie_word_embeddings": False, "hidden_act": "silu",
    "eos_token_id": added[ends[-1]],
}))
(folder / "tokenizer_config.json").write_text(json.dumps({
    "eos_token": ends[-1],
    "chat_template": marks + (source / "chat_template.jinja").read_text(encoding="utf-8"),
}))

random = np.random.default_rng(3)
tensors = {"model.embed_tokens.weight": (vocab, width), "lm_head.weight": (vocab, width),
           "model.norm.weight": (width,)}
for layer in range(layers):
    at = f"model.layers.{layer}."
    tensors |= {
        at + "input_layernorm.weight": (width,), at + "post_attention_layernorm.weight": (width,),
        at + "self_attn.q_proj.weight": (heads * dims, width),
        at + "self_attn.k_proj.weight": (kv * dims, width),
        at + "self_attn.v_proj.weight": (kv * dims, width),
        at + "self_attn.o_proj.weight": (width, heads * dims),
        at + "self_attn.q_norm.weight": (dims,), at + "self_attn.k_norm.weight": (dims,),
        at + "mlp.gate_proj.weight": (inner, width), at + "mlp.up_proj.weight": (inner, width),
        at + "mlp.down_proj.weight": (width, inner),
    }
header, data, end = {}, b"", 0
for name, shape in tensors.items():
    values = random.normal(0, 0.3, shape) if len(shape) == 2 else np.ones(shape)
    part = values.astype("<f4").tobytes()
    header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + len(part)]}
    data, end = data + part, end + len(part)
head = json.dumps(header).encode()
head += b" " * (-len(head) % 8)
(folder / "model.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + data)
