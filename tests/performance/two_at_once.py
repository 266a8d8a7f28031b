#!/usr/bin/env python3
"""two_at_once.py MODEL.gguf [THROUGHPUT]: whether two processes on the same cores collapse.

Runs fulmar's `throughput` alone and twice at once, alternately, each with a thread for every core, and prints how
many tokens per second the two decode together, over what one decodes alone. 1.0 is perfect sharing; below 0.8 the
threads of one wait on the other's time slices. On a machine at rest.
"""
import os
import statistics
import subprocess
import sys
from pathlib import Path

from run import measure

ROUNDS = 3


def main():
    model = sys.argv[1]
    default = Path(__file__).resolve().parents[2] / "target/release/examples/throughput"
    program = sys.argv[2] if len(sys.argv) > 2 else str(default)
    threads = len(os.sched_getaffinity(0))
    settings = dict(prompt=0, generate=192, threads=threads)
    command = [program, model, *(f"{k}={v}" for k, v in settings.items())]
    alone, together = [], []
    for _ in range(ROUNDS):
        alone.append(measure([program, model], settings, {})["decode_tokens_per_s"])
        both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        said = [child.communicate()[0] for child in both]
        together.append(sum(rate(text) for text in said))
    ratio = statistics.median(together) / statistics.median(alone)
    print(f"{threads} threads: one {alone} tokens/s, two together {together}: {ratio:.2f}")
    sys.exit(ratio < 0.8)


def rate(text):
    words = [line.split('"decode_tokens_per_s":')[1] for line in text.splitlines() if "decode_tokens" in line]
    return float(words[-1].split(",")[0])


if __name__ == "__main__":
    main()
