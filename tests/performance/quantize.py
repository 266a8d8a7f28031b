#!/usr/bin/env python3
"""quantize.py IN-f16.gguf TYPE...: writes IN-TYPE.gguf beside it with llama.cpp's own quantiser (llama-cpp-python),
so that both programs read the same file. TYPE: q8_0 q4_0 q4_k_m q5_1 q6_k tq2_0."""
import ctypes
import sys
from pathlib import Path

import llama_cpp

FTYPES = {"q4_0": 2, "q8_0": 7, "q5_1": 9, "q4_k_m": 15, "q6_k": 18, "tq1_0": 36, "tq2_0": 37}


def quiet(level, text, data):
    if level >= 4:
        sys.stderr.write(text.decode(errors="replace"))


callback = llama_cpp.llama_log_callback(quiet)
llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
source = Path(sys.argv[1])
for name in sys.argv[2:]:
    target = source.with_name(source.name.replace("-f16.gguf", f"-{name}.gguf"))
    if target.exists():
        continue
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = FTYPES[name]
    params.nthread = 4
    part = target.with_suffix(".part")
    if llama_cpp.llama_model_quantize(str(source).encode(), str(part).encode(), ctypes.byref(params)) != 0:
        sys.exit(f"cannot quantise to {name}")
    part.rename(target)
    print(target)
