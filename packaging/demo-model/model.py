"""Qwen3's decoder in plain torch, with Hugging Face's tensor names.

Only what training and evaluation need: no sampling tricks, no generation cache beyond a simple one.
The same weights are read by fulmar and by llama.cpp after conversion to GGUF.
"""

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class Shape:
    """The model's sizes, under the names of Hugging Face's config.json."""

    vocab_size: int = 4096
    hidden_size: int = 256
    intermediate_size: int = 512
    num_hidden_layers: int = 5
    num_attention_heads: int = 8
    num_key_value_heads: int = 2
    head_dim: int = 64
    max_position_embeddings: int = 1024
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6

    def config(self) -> dict:
        """The config.json of this shape, without token ids."""
        return {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "hidden_act": "silu",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "tie_word_embeddings": True,
            "use_sliding_window": False,
            "torch_dtype": "float16",
            **asdict(self),
        }


class RmsNorm(nn.Module):
    """Root mean square norm, computed in f32."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x):
        return F.rms_norm(x.float(), self.weight.shape, self.weight, self.eps).to(x.dtype)


def rotary(shape: Shape, length: int, device) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines `[length, head_dim]` of the split-half ("neox") rotary embedding."""
    half = torch.arange(0, shape.head_dim, 2, device=device, dtype=torch.float32)
    angle = torch.outer(
        torch.arange(length, device=device, dtype=torch.float32),
        shape.rope_theta ** (-half / shape.head_dim),
    )
    angle = torch.cat([angle, angle], dim=-1)
    return angle.cos(), angle.sin()


def rotate(x, cos, sin):
    """Applies the rotary embedding to `[batch, heads, length, head_dim]`."""
    left, right = x.chunk(2, dim=-1)
    return (x * cos + torch.cat([-right, left], dim=-1) * sin).to(x.dtype)


class Attention(nn.Module):
    """Grouped-query attention with a norm on queries and keys."""

    def __init__(self, s: Shape):
        super().__init__()
        self.s = s
        q, kv = s.num_attention_heads * s.head_dim, s.num_key_value_heads * s.head_dim
        self.q_proj = nn.Linear(s.hidden_size, q, bias=False)
        self.k_proj = nn.Linear(s.hidden_size, kv, bias=False)
        self.v_proj = nn.Linear(s.hidden_size, kv, bias=False)
        self.o_proj = nn.Linear(q, s.hidden_size, bias=False)
        self.q_norm = RmsNorm(s.head_dim, s.rms_norm_eps)
        self.k_norm = RmsNorm(s.head_dim, s.rms_norm_eps)

    def forward(self, x, cos, sin):
        b, t, _ = x.shape
        s = self.s
        q = self.q_norm(self.q_proj(x).view(b, t, s.num_attention_heads, s.head_dim))
        k = self.k_norm(self.k_proj(x).view(b, t, s.num_key_value_heads, s.head_dim))
        v = self.v_proj(x).view(b, t, s.num_key_value_heads, s.head_dim).transpose(1, 2)
        q = rotate(q.transpose(1, 2), cos, sin)
        k = rotate(k.transpose(1, 2), cos, sin)
        groups = s.num_attention_heads // s.num_key_value_heads
        k = k.repeat_interleave(groups, dim=1)
        v = v.repeat_interleave(groups, dim=1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(y.transpose(1, 2).reshape(b, t, -1))


class Mlp(nn.Module):
    """SwiGLU."""

    def __init__(self, s: Shape):
        super().__init__()
        self.gate_proj = nn.Linear(s.hidden_size, s.intermediate_size, bias=False)
        self.up_proj = nn.Linear(s.hidden_size, s.intermediate_size, bias=False)
        self.down_proj = nn.Linear(s.intermediate_size, s.hidden_size, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """One pre-norm decoder layer."""

    def __init__(self, s: Shape):
        super().__init__()
        self.input_layernorm = RmsNorm(s.hidden_size, s.rms_norm_eps)
        self.self_attn = Attention(s)
        self.post_attention_layernorm = RmsNorm(s.hidden_size, s.rms_norm_eps)
        self.mlp = Mlp(s)

    def forward(self, x, cos, sin):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Embedding, layers, final norm. The head is the embedding itself."""

    def __init__(self, s: Shape):
        super().__init__()
        self.embed_tokens = nn.Embedding(s.vocab_size, s.hidden_size)
        self.layers = nn.ModuleList([Layer(s) for _ in range(s.num_hidden_layers)])
        self.norm = RmsNorm(s.hidden_size, s.rms_norm_eps)


class Qwen3(nn.Module):
    """The whole model; `forward` gives final hidden states, `logits` the scores of some of them."""

    def __init__(self, s: Shape):
        super().__init__()
        self.shape = s
        self.model = Decoder(s)

    def forward(self, tokens):
        x = self.model.embed_tokens(tokens)
        cos, sin = rotary(self.shape, tokens.shape[1], tokens.device)
        cos, sin = cos.to(x.dtype), sin.to(x.dtype)
        for layer in self.model.layers:
            x = layer(x, cos, sin)
        return self.model.norm(x)

    def logits(self, hidden):
        return F.linear(hidden, self.model.embed_tokens.weight)
