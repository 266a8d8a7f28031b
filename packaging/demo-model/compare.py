"""Compares greedy answers of torch, llama.cpp and fulmar on held-out cases.

`python compare.py build/model demo-f16.gguf target/release/fulmar` needs `llama-cpp-python` besides
requirements.txt. Torch computes in f32 on the folder's f16 weights, the other two run the GGUF file
made from it. An answer ends at its end token.
"""

import json
import subprocess
import sys
from pathlib import Path

import torch
from llama_cpp import Llama

import tokens as T
from evaluate import load
from generate import KINDS, case

ADD = 48


def until(ids: list[int], end: int) -> list[int]:
    """The ids before the end token."""
    return ids[: ids.index(end)] if end in ids else ids


@torch.no_grad()
def by_torch(model, ids: list[int], end: int) -> list[int]:
    """Greedy continuation, recomputed from the start at every step."""
    answer: list[int] = []
    for _ in range(ADD):
        hidden = model(torch.tensor([ids + answer]))
        answer.append(int(model.logits(hidden[:, -1]).argmax()))
        if answer[-1] == end:
            break
    return answer


def by_llama(llama: Llama, ids: list[int], end: int) -> list[int]:
    """The same through llama.cpp."""
    answer: list[int] = []
    for token in llama.generate(ids, temp=0.0, top_k=1, repeat_penalty=1.0, reset=True):
        answer.append(int(token))
        if token == end or len(answer) == ADD:
            break
    return answer


def by_fulmar(program: str, gguf: str, prompts: list[list[int]]) -> list[list[int]]:
    """The same through `fulmar debug greedy`."""
    lines = "".join(json.dumps({"ids": ids, "add": ADD}) + "\n" for ids in prompts)
    out = subprocess.run([program, "debug", "greedy", gguf], input=lines, capture_output=True, text=True, check=True)
    return [json.loads(line)["ids"] for line in out.stdout.splitlines()]


def main() -> None:
    """Runs cases of each kind (25, or the fourth argument) through all three; counts agreements."""
    folder, gguf, program = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    count = int(sys.argv[4]) if len(sys.argv) > 4 else 25
    torch.set_num_threads(1)
    model, tokenizer = load(folder, torch.float32)
    llama = Llama(gguf, n_ctx=1024, n_threads=1, n_threads_batch=1, verbose=False)
    end = tokenizer.token_to_id("<|end|>")
    cases = [case("held_out", 5_000 + i, kind) for kind in KINDS for i in range(count)]
    prompts = []
    for one in cases:
        ids, _ = T.encode_case(tokenizer, one["messages"][:-1])
        prompts.append([*ids, tokenizer.token_to_id("<|assistant|>")])
    fulmar = by_fulmar(program, gguf, prompts)
    same = {"torch = llama.cpp": 0, "torch = fulmar": 0, "llama.cpp = fulmar": 0, "torch is right": 0}
    for one, ids, third in zip(cases, prompts, fulmar, strict=True):
        first, second = (until(by(m, ids, end), end) for by, m in ((by_torch, model), (by_llama, llama)))
        third = until(third, end)
        same["torch = llama.cpp"] += first == second
        same["torch = fulmar"] += first == third
        same["llama.cpp = fulmar"] += second == third
        same["torch is right"] += tokenizer.decode(first) == one["messages"][-1]["content"]
        if not first == second == third:
            print(*(repr(tokenizer.decode(a)) for a in (first, second, third)), sep="\n  ")
    for what, count in same.items():
        print(f"{what}: {count} of {len(cases)}")


if __name__ == "__main__":
    main()
