#!/usr/bin/env python3
"""fulmar beside llama.cpp on the same files, alternately (A B A B), in one command:

    tests/performance/run.py                                   everything, about two hours
    tests/performance/run.py --cells prefill:q8_0,decode:q4_0  some cells
    tests/performance/run.py --cpu avx2                        both without AVX-512

Makes random-weight models with exactly the shapes of Qwen3-0.6B (or, by --shape, Llama-3.2-1B), quantises
them with llama.cpp's own quantiser, builds fulmar's `throughput` (release) and llama-cpp-python natively from its
source (into a virtual environment under target/), and runs both with the same threads and a 16-bit key-value
cache. llama.cpp runs twice per pair: as it is, and with its weights in memory on transparent huge pages; the
better of the two medians is compared. Prints medians, least and most, and the ratio; --out has every single value.

Cells: prefill (512 tokens), decode (128 tokens), decode16 (16 sequences at once), depth4096 (decoding behind
4096 tokens), memory (most resident bytes over a prompt of 512 and 128 tokens), cold (milliseconds from the
library's start to the first token, file in the page cache, second start), load (the same to the loaded model).
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
VERSION = "0.3.36"
AVX2 = "-DGGML_NATIVE=OFF -DGGML_AVX512=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON"
TYPES = ["q8_0", "q4_0", "q4_k_m", "q5_1", "q6_k", "tq2_0"]
# What is run, which value counts, and whether more is better.
CELLS = {
    "prefill": (dict(prompt=512, generate=0), "prompt_tokens_per_s", True),
    "decode": (dict(prompt=0, generate=128), "decode_tokens_per_s", True),
    "decode16": (dict(prompt=0, generate=32, sequences=16), "decode_tokens_per_s", True),
    "depth4096": (dict(prompt=0, generate=32, depth=4096), "decode_tokens_per_s", True),
    "memory": (dict(prompt=512, generate=128), "peak_bytes", False),
    "cold": (dict(prompt=1, generate=0), "first_token_ms", False),
    "load": (dict(prompt=1, generate=0), "load_ms", False),
}


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--cells", default=",".join(CELLS), help="CELL or CELL:TYPE, by commas; default: all")
    p.add_argument("--types", default=",".join(TYPES), help="types of the cells that name none")
    p.add_argument("--shape", default="qwen3-0.6b", choices=["qwen3-0.6b", "llama-3.2-1b"])
    p.add_argument("--pairs", type=int, default=5, help="runs of each program per cell")
    p.add_argument("--threads", type=int, default=min(4, len(os.sched_getaffinity(0))))
    p.add_argument("--cpu", default="best", choices=["best", "avx2"])
    p.add_argument("--huge-pages", default="both", choices=["both", "on", "off"], help="for llama.cpp")
    p.add_argument("--models", type=Path, default=ROOT / "target/performance", help="where models are kept")
    p.add_argument("--throughput", type=Path, help="fulmar's side, already built")
    p.add_argument("--llama-venv", type=Path, help="a virtual environment that has llama-cpp-python")
    p.add_argument("--peer-bench", type=Path, help="a llama-bench of another fork, compared in its best mode")
    p.add_argument("--out", type=Path, help="default: MODELS/results.json")
    options = p.parse_args()
    options.cells = [cell for part in options.cells.split(",") for cell in expand(p, part, options.types)]
    return options


def expand(parser, part, types):
    cell, _, ty = part.partition(":")
    if cell not in CELLS or ty not in ["", *TYPES]:
        parser.error(f"--cells {part}: expected one of {', '.join(CELLS)}, or with one of :{', :'.join(TYPES)}")
    return [(cell, ty)] if ty else [(cell, ty) for ty in types.split(",")]


def llama_python(options):
    """An interpreter with llama-cpp-python, built here if there is none."""
    venv = options.llama_venv or ROOT / "target" / f"llama-cpp-{options.cpu}"
    python = venv / "bin/python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    has = subprocess.run([str(python), "-c", "import llama_cpp, gguf, numpy"], capture_output=True).returncode == 0
    if not has:
        env = dict(os.environ)
        if options.cpu == "avx2":
            env["CMAKE_ARGS"] = AVX2
        print("building llama-cpp-python from its source: some minutes", file=sys.stderr)
        # pip's cache does not know what a wheel was built for.
        subprocess.run([str(python), "-m", "pip", "install", "-q", "--no-cache-dir", "--no-binary", "llama-cpp-python", "numpy", "gguf",
                        f"llama-cpp-python=={VERSION}"], check=True, env=env)
    return str(python)


def check_instructions(options, python):
    """Stops where llama.cpp was built for other instructions than the comparison says."""
    script = "import llama_cpp; print(llama_cpp.llama_print_system_info().decode())"
    info = subprocess.run([python, "-c", script], check=True, capture_output=True, text=True).stdout
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    expected = options.cpu == "best" and "avx512_vnni" in flags
    if ("AVX512 = 1" in info) != expected:
        sys.exit(f"llama.cpp in {Path(python).parents[1]}: found {info.strip()!r}, expected it {'with' if expected else 'without'} "
                 "AVX-512: remove the folder to have it built again")


def throughput(options):
    if not options.throughput:
        subprocess.run(["cargo", "build", "-q", "--release", "-p", "fulmar-inference", "--example", "throughput"],
                       check=True, cwd=ROOT)
    return str(options.throughput or ROOT / "target/release/examples/throughput")


def make_models(options, python):
    missing = sorted({ty for _, ty in options.cells if not model(options, ty).exists()})
    if missing:
        f16 = model(options, "f16")
        subprocess.run([python, str(HERE / "make_models.py"), str(options.models), options.shape], check=True)
        subprocess.run([python, str(HERE / "quantize.py"), str(f16), *missing], check=True)


def model(options, ty):
    return options.models / f"{options.shape}-{ty}.gguf"


def measure(command, settings, env):
    """The last value of each name that a program's JSON lines have."""
    words = [*command, *(f"{key}={value}" for key, value in settings.items())]
    done = subprocess.run(words, env=dict(os.environ, **env), capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"failed to run {' '.join(words)}: {done.stderr[-2000:]}")
    result = {}
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            result.update(json.loads(line))
    return result


def contestants(options, fulmar, python, ty):
    """Name, command and environment of each program on a file."""
    path = str(model(options, ty))
    llama = [python, str(HERE / "llama_bench.py"), path]
    cpu = {} if options.cpu == "best" else {"FULMAR_CPU": options.cpu}
    yield "fulmar", [fulmar, path, f"cache={options.models / 'regrouped'}"], cpu
    if options.huge_pages != "on":
        yield "llama.cpp", llama, {}
    if options.huge_pages != "off":
        # The system's own switch may be on "madvise": the C library asks for them then.
        yield "llama.cpp, huge pages", [*llama, "mmap=0"], {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


PEER_RUNS = {"prefill": ["-p", "512", "-n", "0"], "decode": ["-p", "0", "-n", "128"],
             "depth4096": ["-p", "0", "-n", "0", "-gp", "4096,32"]}


def peer(options, cell, ty):
    """Another fork's commands by its modes; none where it has no benchmark of the cell."""
    if not options.peer_bench or cell not in [*PEER_RUNS, "decode16"]:
        return {}
    help_text = subprocess.run([str(options.peer_bench), "--help"], capture_output=True, text=True).stdout
    modes = [[]] + [[flag] for flag in ("-rtr", "-thp") if flag + "," in help_text]
    modes += [["-rtr", "-thp"]] if len(modes) == 3 else []
    common = ["-m", str(model(options, ty)), "-t", str(options.threads)]
    commands = {}
    for mode in modes:
        if cell == "decode16":
            words = [str(options.peer_bench.with_name("llama-batched-bench")), *common, "-fa", "on", "-c", "4096",
                     "-b", "2048", "-npp", "1", "-ntg", "32", "-npl", "16", *mode]
        else:
            words = [str(options.peer_bench), *common, "-fa", "1", "-r", "1", "-o", "json",
                     *PEER_RUNS[cell], *(word for flag in mode for word in (flag, "1"))]
        commands["peer " + (" ".join(mode) or "plain")] = words
    return commands


def measure_peer(cell, words):
    """Tokens per second of one run; none where the fork cannot run the file."""
    with tempfile.TemporaryDirectory() as folder:  # it leaves a log where it runs
        done = subprocess.run(words, capture_output=True, text=True, cwd=folder)
    try:
        return samples(cell, done.stdout + done.stderr if cell == "decode16" else done.stdout)
    except (ValueError, LookupError):
        print(f"  {' '.join(words)}: no result: {done.stderr[-300:]}", file=sys.stderr)
        return []


def samples(cell, output):
    if cell != "decode16":
        return json.loads(output)[-1]["samples_ts"]
    rows = [line.strip("| ").split("|") for line in output.splitlines() if line.startswith("|")]
    speeds = [float(row[7]) for row in rows if row[0].strip().isdigit()]
    if not speeds:
        raise ValueError("no rows")
    return speeds


def spread(values, name):
    unit, digits = (1e6, 0) if name == "peak_bytes" else (1, 1)
    middle, least, most = (f"{v / unit:.{digits}f}" for v in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({least} to {most})"


def report(cell, ty, runs, others):
    """Prints a cell and gives what is kept of it."""
    _, key, more = CELLS[cell]
    values = {name: [run[key] for run in results] for name, results in runs.items()}
    values |= {mode: speeds for mode, speeds in others.items() if speeds}
    medians = {name: statistics.median(v) for name, v in values.items()}
    choose = max if more else min
    ours, ratios = medians.pop("fulmar"), {}
    for group in ("llama.cpp", "peer"):
        rivals = [v for name, v in medians.items() if name.startswith(group)]
        if rivals:
            ratios[group] = round(ours / choose(rivals), 3)
    for name, v in values.items():
        print(f"  {cell:10} {ty:7} {name:22} {spread(v, key)}")
    print(f"  {cell:10} {ty:7} {'ratio':22} " + ", ".join(f"{r:.2f} to {name}" for name, r in ratios.items()), flush=True)
    return dict(cell=cell, type=ty, value=key, ratios=ratios, values=values, runs=runs)


def main():
    options = arguments()
    options.models.mkdir(parents=True, exist_ok=True)
    python, fulmar = llama_python(options), throughput(options)
    check_instructions(options, python)
    make_models(options, python)
    results = []
    print(f"{options.shape}, {options.threads} threads, {options.pairs} runs each, medians (least to most); tokens/s, "
          "memory in MB, cold and load in ms")
    for cell, ty in options.cells:
        settings = dict(CELLS[cell][0], threads=options.threads)
        programs = list(contestants(options, fulmar, python, ty))
        for _, command, env in programs:  # fulmar's copy is made once, and the file is in the page cache
            measure(command, dict(prompt=1, generate=0, threads=options.threads), env)
        runs = {name: [] for name, _, _ in programs}
        peers = peer(options, cell, ty)
        others = {name: [] for name in peers}
        for _ in range(options.pairs):
            for name, command, env in programs:
                runs[name].append(measure(command, settings, env))
            for name, words in peers.items():
                others[name] += measure_peer(cell, words)
        results.append(report(cell, ty, runs, others))
        out = options.out or options.models / "results.json"
        out.write_text(json.dumps(dict(shape=options.shape, threads=options.threads, cpu=options.cpu, cells=results), indent=1))


if __name__ == "__main__":
    main()
