"""Measures exact match on held-out cases, in the precision asked for.

Greedy decoding gives exactly the wanted answer if and only if, with the wanted answer's tokens as
context, every next token's best guess is the wanted one, the end included. So one forward pass per
case decides.

`python evaluate.py build/model --cases 1000` prints one line per kind and the mean of all four.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

import tokens as T
from generate import KINDS, case
from model import Qwen3, Shape


def pack(cases: list) -> tuple[torch.Tensor, torch.Tensor]:
    """Pads encoded cases to `(tokens, targets)`; a target is -100 where no answer is asked for."""
    width = max(len(ids) for ids, _ in cases) - 1
    tokens = torch.zeros(len(cases), width, dtype=torch.long)
    targets = torch.full((len(cases), width), -100)
    for row, (ids, answer) in enumerate(cases):
        n = len(ids) - 1
        tokens[row, :n] = torch.tensor(ids[:-1])
        targets[row, :n] = torch.where(torch.tensor(answer[1:]), torch.tensor(ids[1:]), -100)
    return tokens, targets


@torch.no_grad()
def exact_match(model: Qwen3, tokenizer, split: str, kind: str, count: int, start: int = 0) -> tuple[float, list]:
    """Share of cases `start..start+count` answered exactly, and the messages of those that are not."""
    device = next(model.parameters()).device
    cases = [case(split, start + i, kind, go_on=False) for i in range(count)]
    encoded = [T.encode_case(tokenizer, c["messages"]) for c in cases]
    order = sorted(range(count), key=lambda i: len(encoded[i][0]))
    wrong = []
    for at in range(0, count, 32):
        rows = order[at : at + 32]
        tokens, targets = pack([encoded[i] for i in rows])
        tokens, targets = tokens.to(device), targets.to(device)
        best = model.logits(model(tokens)).argmax(-1)
        right = ((best == targets) | (targets == -100)).all(-1).tolist()
        for i, ok, ids, aim in zip(rows, right, best.tolist(), targets.tolist()):
            if not ok:
                guess = tokenizer.decode([g for g, a in zip(ids, aim) if a != -100])
                wrong.append({"messages": cases[i]["messages"], "guess": guess})
    return 1 - len(wrong) / count, wrong


def load(folder: Path, dtype: torch.dtype) -> tuple[Qwen3, Tokenizer]:
    """Reads a folder that `train.py` wrote."""
    config = json.loads((folder / "config.json").read_text())
    model = Qwen3(Shape(**{k: config[k] for k in Shape.__dataclass_fields__}))
    model.load_state_dict(load_file(str(folder / "model.safetensors")))
    return model.to(dtype).eval(), Tokenizer.from_file(str(folder / "tokenizer.json"))


def main() -> None:
    """Parses arguments and prints the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cases", type=int, default=1000, help="per kind")
    parser.add_argument("--start", type=int, default=0, help="number of the first case")
    parser.add_argument("--dtype", default="float16", choices=["float16", "float32", "bfloat16"])
    parser.add_argument("--split", default="held_out", choices=["held_out", "train"])
    parser.add_argument("--wrong", type=int, default=0, help="print so many wrong answers per kind")
    args = parser.parse_args()
    model, tokenizer = load(args.folder, getattr(torch, args.dtype))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)
    # Training counts its own cases from 0 as well and never gets this far.
    start = args.start + (10**9 if args.split == "train" else 0)
    shares = []
    for kind in KINDS:
        share, wrong = exact_match(model, tokenizer, args.split, kind, args.cases, start)
        shares.append(share)
        print(f"{kind:8} {100 * share:6.2f}%  of {args.cases}")
        for one in wrong[: args.wrong]:
            print("   ", json.dumps(one, ensure_ascii=False))
    print(f"{'mean':8} {100 * sum(shares) / len(shares):6.2f}%")


if __name__ == "__main__":
    main()
