#!/usr/bin/env python3
"""run.py: fulmar beside llama.cpp on the same files, alternately (A B A B).

    python3 -m venv venv && venv/bin/pip install numpy gguf llama-cpp-python
    cargo build --release -p fulmar-inference --example throughput
    venv/bin/python tests/performance/run.py --folder /tmp/fulmar-bench [--pairs 5] [--types q8_0,q4_0] [--cpu avx2]

llama-cpp-python is built natively from its source by pip; for `--cpu avx2` build it with
CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_AVX512=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON".
Prints one table per model and writes FOLDER/results.json.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
CASES = {
    "prefill 512": dict(prompt=512, generate=0),
    "decode 128": dict(prompt=0, generate=128),
    "decode 128 x 16": dict(prompt=0, generate=32, sequences=16),
    "decode at 4096": dict(prompt=0, generate=32, depth=4096),
    "prefill 512 + decode 128": dict(prompt=512, generate=128),
}


def measure(command, settings, env):
    arguments = [f"{k}={v}" for k, v in settings.items()]
    out = subprocess.run([*command, *arguments], env=env, check=True, capture_output=True, text=True).stdout
    result = {}
    for line in out.splitlines():
        if line.startswith("{"):
            result.update(json.loads(line))
    return result


def spread(values):
    return f"{statistics.median(values):9.1f} ({min(values):.1f} .. {max(values):.1f})"


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--folder", type=Path, required=True)
    p.add_argument("--shape", default="qwen3-0.6b")
    p.add_argument("--types", default="q8_0,q4_0,q4_k_m,q5_1,q6_k,tq2_0")
    p.add_argument("--cases", default=",".join(CASES))
    p.add_argument("--pairs", type=int, default=5)
    p.add_argument("--threads", type=int, default=min(4, os.cpu_count() or 1))
    p.add_argument("--cpu", default="")
    p.add_argument("--throughput", default=str(HERE.parents[1] / "target/release/examples/throughput"))
    args = p.parse_args()
    f16 = args.folder / f"{args.shape}-f16.gguf"
    types = args.types.split(",")
    if not all((args.folder / f"{args.shape}-{t}.gguf").exists() for t in types):
        subprocess.run([sys.executable, HERE / "make_models.py", args.folder, args.shape], check=True)
        subprocess.run([sys.executable, HERE / "quantize.py", f16, *types], check=True)
    env = dict(os.environ, FULMAR_CPU=args.cpu)
    cache = args.folder / "cache"
    cache.mkdir(exist_ok=True)
    everything = {}
    for ty in types:
        model = str(args.folder / f"{args.shape}-{ty}.gguf")
        for name in args.cases.split(","):
            settings = dict(CASES[name], threads=args.threads)
            ours, theirs = [], []
            fulmar = [args.throughput, model, f"cache={cache}"]
            measure(fulmar, dict(settings, prompt=1, generate=0, depth=0), env)  # the regrouped copy is made once
            for _ in range(args.pairs):
                ours.append(measure(fulmar, settings, env))
                theirs.append(measure([sys.executable, HERE / "llama_bench.py", model], settings, env))
            everything[f"{ty}/{name}"] = dict(fulmar=ours, llama_cpp=theirs)
            for key in ours[0]:
                if key not in theirs[0] or key in ("cpu_s", "wall_s", "load_ms"):
                    continue
                a, b = [r[key] for r in ours], [r[key] for r in theirs]
                ratio = statistics.median(a) / statistics.median(b)
                best = (max(a) / max(b)) if key.endswith("per_s") else (min(a) / min(b))
                print(f"{ty:7} {name:25} {key:24} fulmar {spread(a)}  llama.cpp {spread(b)}  ratio {ratio:.2f}, of the best {best:.2f}", flush=True)
    (args.folder / "results.json").write_text(json.dumps(everything, indent=1))


if __name__ == "__main__":
    main()
