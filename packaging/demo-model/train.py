"""Trains the demo model and writes it as a Hugging Face folder.

Seeds are fixed; cases are generated as they are needed and never repeat. Matrices are trained with
Muon (momentum, orthogonalised), everything else with AdamW; the learning rate falls linearly over the
last part of the run. Runs on the CPU; uses CUDA where there is one.

`python train.py --out build/model` makes the committed model's folder; `--steps 20` is a smoke test.
"""

import argparse
import json
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

import generate
import tokens as T
from evaluate import exact_match, pack
from generate import case
from model import Qwen3, Shape

POOL = 512
# Training's first part, in pools of so many cases: names from lists and syllables only.
FIRST_PART = 88
CONTEXT = 1024


def batches(tokenizer, first_pool: int, batch_tokens: int):
    """Endless padded batches `(tokens, targets)`; targets are -100 where no answer is asked for.

    Cases of like length go together, so little is padding.
    """
    fragments = sorted(w for w in tokenizer.get_vocab() if w.isascii() and w.isalpha())
    spaced = sorted(w[1:] for w in tokenizer.get_vocab() if w[0] == T.SPACE and w[1:].isalpha())
    pool = first_pool
    while True:
        generate.FRAGMENTS, generate.SPACED = (fragments, spaced) if pool >= FIRST_PART else ([], [])
        cases = [T.encode_case(tokenizer, case("train", pool * POOL + i)["messages"]) for i in range(POOL)]
        cases.sort(key=lambda c: len(c[0]))
        groups, group = [], []
        for one in cases:
            if group and (len(group) + 1) * len(one[0]) > batch_tokens:
                groups.append(group)
                group = []
            group.append(one)
        random.Random(pool).shuffle(groups)
        yield from ((pool, *pack(g)) for g in groups)
        pool += 1


@torch.no_grad()
def orthogonalise(g: torch.Tensor) -> torch.Tensor:
    """The nearest orthogonal matrices of a stack, by five Newton-Schulz steps (Jordan's coefficients)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = g.shape[-2] > g.shape[-1]
    x = g.transpose(-1, -2) if tall else g
    x = x.bfloat16()
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        s = x @ x.transpose(-1, -2)
        x = a * x + (b * s + c * s @ s) @ x
    return (x.transpose(-1, -2) if tall else x).float()


class Muon:
    """Momentum, orthogonalised, for all weight matrices of the layers; same shapes in one stack."""

    def __init__(self, params, momentum: float = 0.95):
        self.groups: dict = {}
        for p in params:
            self.groups.setdefault(tuple(p.shape), []).append(p)
        self.state = {k: torch.zeros(len(v), *k, device=v[0].device) for k, v in self.groups.items()}
        self.momentum = momentum

    @torch.no_grad()
    def step(self, lr: float, decay: float = 0.01) -> None:
        """One update with learning rate `lr`."""
        for shape, params in self.groups.items():
            g = torch.stack([p.grad.float() for p in params])
            m = self.state[shape].lerp_(g, 1 - self.momentum)
            update = orthogonalise(g.lerp(m, self.momentum)) * max(1.0, shape[0] / shape[1]) ** 0.5
            for p, u in zip(params, update):
                p.mul_(1 - lr * decay).add_(u, alpha=-lr)


def initialise(model: Qwen3) -> None:
    """Small normal weights; what writes to the residual stream starts at zero."""
    for name, p in model.named_parameters():
        if p.ndim == 2:
            torch.nn.init.normal_(p, std=0.02 if "embed" in name else p.shape[1] ** -0.5)
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            torch.nn.init.zeros_(p)


def save(folder: Path, model: Qwen3, weights: dict, tokenizer, dtype=torch.float16) -> None:
    """Writes config.json, model.safetensors, tokenizer.json, tokenizer_config.json, chat_template.jinja."""
    folder.mkdir(parents=True, exist_ok=True)
    end, pad = tokenizer.token_to_id("<|end|>"), tokenizer.token_to_id("<|pad|>")
    config = model.shape.config() | {"eos_token_id": end, "pad_token_id": pad}
    template = (Path(__file__).parent / "chat_template.jinja").read_text().strip()
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": end, "do_sample": False}) + "\n")
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "Qwen2Tokenizer", "add_bos_token": False, "bos_token": None, "eos_token": "<|end|>",
        "pad_token": "<|pad|>", "model_max_length": CONTEXT, "chat_template": template,
    }, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(template)
    save_file({k: v.detach().to(dtype).contiguous().cpu() for k, v in weights.items()},
              str(folder / "model.safetensors"), metadata={"format": "pt"})


def rate(step: int, steps: int) -> float:
    """Share of the peak learning rate: a short rise, a plateau, a linear fall over the last 40%."""
    return min(1.0, (step + 1) / 60, max(0.0, (steps - step) / (0.4 * steps)))


def main() -> None:
    """Parses arguments and trains."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("build/model"))
    parser.add_argument("--steps", type=int, default=3640)
    parser.add_argument("--batch-tokens", type=int, default=3072)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--resume", type=Path, help="a checkpoint of an earlier run")
    parser.add_argument("--report-every", type=int, default=100)
    args = parser.parse_args()
    torch.manual_seed(20261123)
    torch.set_num_threads(args.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shape = Shape(max_position_embeddings=CONTEXT)
    tokenizer = T.load()
    model = Qwen3(shape)
    initialise(model)
    model.to(device)
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    rest = [p for p in model.parameters() if all(p is not m for m in matrices)]
    muon = Muon(matrices)
    adam = torch.optim.AdamW(rest, lr=0.0, betas=(0.9, 0.98), weight_decay=0.0)
    mean = {k: v.detach().clone() for k, v in model.state_dict().items()}
    first, pool = 0, 0
    if args.resume:
        old = torch.load(args.resume, weights_only=True)
        model.load_state_dict(old["model"])
        muon.state = {k: v.to(device) for k, v in old["muon"].items()}
        adam.load_state_dict(old["adam"])
        mean, first, pool = old["mean"], old["step"], old["pool"] + 1
    print(f"{sum(p.numel() for p in model.parameters())} parameters on {device}", flush=True)
    began, seen = time.time(), 0
    stream = batches(tokenizer, pool, args.batch_tokens)
    for step in range(first, args.steps):
        pool, ids, targets = next(stream)
        ids, targets = ids.to(device), targets.to(device)
        share = rate(step, args.steps)
        with torch.autocast(device, dtype=torch.bfloat16):
            wanted = targets != -100
            logits = model.logits(model(ids)[wanted])
        loss = F.cross_entropy(logits.float(), targets[wanted])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(rest, 1.0)
        muon.step(0.02 * share)
        for group in adam.param_groups:
            group["lr"] = 0.004 * share
        adam.step()
        model.zero_grad(set_to_none=True)
        torch._foreach_lerp_(list(mean.values()), list(model.state_dict().values()), 0.01)
        seen += ids.numel()
        if (step + 1) % 20 == 0:
            print(f"step {step + 1} loss {loss.item():.4f} tokens/s {seen / (time.time() - began):.0f}", flush=True)
        if (step + 1) % args.report_every == 0 or step + 1 == args.steps:
            report(args, model, mean, tokenizer, step + 1)
            torch.save({"model": model.state_dict(), "mean": mean, "muon": muon.state, "adam": adam.state_dict(),
                        "step": step + 1, "pool": pool}, args.out.with_suffix(".pt"))
    save(args.out, model, mean, tokenizer)


def report(args, model, mean, tokenizer, step: int) -> None:
    """Prints held-out exact match of the averaged weights and writes them to the output folder."""
    twin = Qwen3(model.shape).to(next(model.parameters()).device)
    twin.load_state_dict(mean)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for split in ("train", "held_out"):
        # Training cases of a seed range that training never reaches.
        start = 10**9 if split == "train" else 0
        found = {k: exact_match(twin, tokenizer, split, k, 150, start)[0] for k in ("command", "triage", "table", "chat")}
        print(f"  {step} {split}", {k: round(v, 3) for k, v in found.items()}, flush=True)
    save(args.out, model, mean, tokenizer)


if __name__ == "__main__":
    main()
