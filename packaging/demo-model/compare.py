"""Compares greedy answers of llama.cpp, fulmar and, where it is asked for, torch on held-out cases.

`python compare.py fulmar-demo.gguf target/release/fulmar` needs `llama-cpp-python` alone; with
`--folder build/model` torch computes too, in f32 on that folder's f16 weights, for the f16 file made
from it. Prompts are tokenized by llama.cpp. An answer ends at its end token.
"""

import argparse
import json
import subprocess
from pathlib import Path

from llama_cpp import Llama

from generate import KINDS, case

ADD = 48


def until(ids: list[int], end: int) -> list[int]:
    """The ids before the end token."""
    return ids[: ids.index(end)] if end in ids else ids


def by_torch(folder: Path, prompts: list[list[int]], end: int) -> list[list[int]]:
    """Greedy continuations, recomputed from the start at every step."""
    import torch

    from evaluate import load

    torch.set_num_threads(1)
    model, _ = load(folder, torch.float32)
    answers = []
    with torch.no_grad():
        for ids in prompts:
            answer: list[int] = []
            while len(answer) < ADD and end not in answer:
                hidden = model(torch.tensor([ids + answer]))
                answer.append(int(model.logits(hidden[:, -1]).argmax()))
            answers.append(until(answer, end))
    return answers


def by_llama(llama: Llama, prompts: list[list[int]], end: int) -> list[list[int]]:
    """The same through llama.cpp."""
    answers = []
    for ids in prompts:
        answer: list[int] = []
        for token in llama.generate(ids, temp=0.0, top_k=1, repeat_penalty=1.0, reset=True):
            answer.append(int(token))
            if token == end or len(answer) == ADD:
                break
        answers.append(until(answer, end))
    return answers


def by_fulmar(program: str, gguf: str, prompts: list[list[int]], end: int) -> list[list[int]]:
    """The same through `fulmar debug greedy`."""
    lines = "".join(json.dumps({"ids": ids, "add": ADD}) + "\n" for ids in prompts)
    out = subprocess.run([program, "debug", "greedy", gguf], input=lines, capture_output=True, text=True, check=True)
    return [until(json.loads(line)["ids"], end) for line in out.stdout.splitlines()]


def main() -> None:
    """Runs cases of each kind through all of them; counts agreements."""
    parser = argparse.ArgumentParser()
    parser.add_argument("gguf")
    parser.add_argument("program", help="fulmar")
    parser.add_argument("--cases", type=int, default=25, help="per kind")
    parser.add_argument("--start", type=int, default=1_000_000, help="number of the first case")
    parser.add_argument("--folder", type=Path, help="the Hugging Face folder that the file was made of")
    args = parser.parse_args()
    llama = Llama(args.gguf, n_ctx=1024, n_threads=1, n_threads_batch=1, verbose=False)
    end = llama.token_eos()
    cases = [case("held_out", args.start + i, kind) for kind in KINDS for i in range(args.cases)]
    prompts = []
    for one in cases:
        said = [f"<|{message['role']}|>{message['content'].strip()}<|end|>" for message in one["messages"][:-1]]
        text = "".join([*said, "<|assistant|>"])
        prompts.append(llama.tokenize(text.encode(), add_bos=False, special=True))
    answers = {
        "llama.cpp": by_llama(llama, prompts, end),
        "fulmar": by_fulmar(args.program, args.gguf, prompts, end),
    }
    if args.folder:
        answers["torch"] = by_torch(args.folder, prompts, end)
    text = {who: [llama.detokenize(ids).decode() for ids in given] for who, given in answers.items()}
    for said in zip(*text.values(), strict=True):
        if len(set(said)) > 1:
            print(*(f"{who}: {what!r}" for who, what in zip(text, said, strict=True)), sep="\n  ")
    for who, given in answers.items():
        if who != "llama.cpp":
            same = sum(a == b for a, b in zip(given, answers["llama.cpp"], strict=True))
            print(f"{who} = llama.cpp: {same} of {len(cases)}")
    for who, said in text.items():
        right = sum(a == one["messages"][-1]["content"] for a, one in zip(said, cases, strict=True))
        print(f"{who} is right: {right} of {len(cases)}")


if __name__ == "__main__":
    main()
