#!/usr/bin/env python3
"""Makes golden.bin: blocks of every tensor type, and the values that others read from them.

    python3 -m venv venv && venv/bin/pip install gguf==0.19.0 && venv/bin/python golden.py

The values are those of the PyPI package `gguf` (llama.cpp's own Python code), of NumPy for F16,
and, for Microsoft's I2_S, the levels that were packed as bitnet.cpp's `quantize_i2_s` packs them.
The file is a row of records: type's name (8 bytes, padded with zeros), whether the bytes were read
(0) or written (1), lengths of bytes and values as three little-endian u32, the bytes, the f32 values.
"""

import pathlib
import struct

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

dice = np.random.default_rng(20)
# Where a type's blocks have their f16 scales and minimums.
HALVES = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82],
          "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "IQ4_NL": [0], "IQ4_XS": [0],
          "TQ1_0": [52], "TQ2_0": [64]}
WRITTEN = ["BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0", "MXFP4"]


def record(name, written, data, values):
    data, values = bytes(data), np.asarray(values, dtype="<f4").reshape(-1)
    assert np.isfinite(values).all(), name
    head = name.encode().ljust(8, b"\0") + struct.pack("<3I", written, len(data), len(values))
    return head + data + values.tobytes()


def half():
    """Of either sign, from subnormal numbers to large ones."""
    return np.float16(dice.choice([-1, 1]) * 2.0 ** dice.uniform(-18, 4)).tobytes()


def random_blocks(name):
    length, size = GGML_QUANT_SIZES[GGMLQuantizationType[name]]
    blocks = dice.integers(0, 256, (max(2, 64 // length), size), dtype=np.uint8)
    for block in blocks:
        for at in HALVES.get(name, []):
            block[at:at + 2] = np.frombuffer(half(), dtype=np.uint8)
        if name == "MXFP4":
            block[0] = dice.integers(0, 240)
    return blocks


def read():
    values = np.array([half() for _ in range(64)]).view(np.float16)
    yield record("F16", 0, values.tobytes(), values.astype(np.float32))
    floats = (dice.standard_normal(64) * 10.0 ** dice.uniform(-30, 30, 64)).astype(np.float32)
    upper = (floats.view(np.uint32) >> 16).astype(np.uint16)
    yield record("BF16", 0, upper.tobytes(),
                 quants.dequantize(upper.view(np.uint8), GGMLQuantizationType.BF16))
    for name in [*HALVES, "MXFP4"]:
        blocks = random_blocks(name)
        yield record(name, 0, blocks.tobytes(),
                     quants.dequantize(blocks.reshape(1, -1), GGMLQuantizationType[name]))
    yield microsofts_ternary()


def microsofts_ternary():
    scale = np.float32(0.37)
    levels = dice.integers(0, 3, 256).astype(np.uint8)
    data = bytearray(256 // 4 + 32)
    for i, level in enumerate(levels):
        group, place = i % 128 // 32, i % 32
        data[i // 128 * 32 + place] |= int(level) << (6 - 2 * group)
    data[64:68] = scale.tobytes()
    return record("I2_S", 0, data, (levels.astype(np.float32) - 1) * scale)


def written():
    values = (dice.standard_normal(256) * 0.05).astype(np.float32)
    for name in WRITTEN:
        yield record(name, 1, quants.quantize(values.reshape(1, -1), GGMLQuantizationType[name]).tobytes(),
                     values)


if __name__ == "__main__":
    path = pathlib.Path(__file__).with_name("golden.bin")
    path.write_bytes(b"".join([*read(), *written()]))
    print(f"{path}: {path.stat().st_size} bytes")
