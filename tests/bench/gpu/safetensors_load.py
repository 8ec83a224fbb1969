#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What weights take without us: files of safetensors into a GPU with torch, page cache warm and cold.

    safetensors_load.py [--quick]       prints figures, as `spillbench` does

Status: 0; 77: torch, safetensors or a GPU is missing.
"""
import json
import os
import statistics
import sys
import tempfile
import time

SAMPLES = 6  # of which the least and the largest enclose the median in 97 of 100 cases
GIB = 1 << 30
FILES = 4
TENSOR_BYTES = 128 << 20


def skip(why):
    print(f"SKIP: {why}")
    sys.exit(77)


def make_files(folder, file_bytes, torch, save_file):
    paths = []
    for i in range(FILES):
        tensors = {
            f"weight.{i}.{j}": torch.randint(0, 255, (TENSOR_BYTES,), dtype=torch.uint8)
            for j in range(file_bytes // TENSOR_BYTES)
        }
        paths.append(os.path.join(folder, f"{i}.safetensors"))
        save_file(tensors, paths[-1])
        with open(paths[-1], "rb+") as file:
            os.fsync(file.fileno())
    return paths


def forget(paths):
    for path in paths:
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def sample(paths, torch, load_file):
    start = time.monotonic()
    loaded = [load_file(path, device="cuda") for path in paths]
    torch.cuda.synchronize()
    took = time.monotonic() - start
    bytes_all = sum(tensor.numel() for tensors in loaded for tensor in tensors.values())
    return bytes_all / took / 1e9


def figure(name, samples):
    return {
        "name": name, "value": statistics.median(samples), "unit": "GB/s", "beside": None, "beside_value": None,
        "ratio": None, "goal": None, "holds": None, "goal_of": None, "interval": [min(samples), max(samples)],
        "samples": len(samples),
    }  # fmt: skip


def main(argv):
    try:
        import torch
        from safetensors.torch import load_file, save_file
    except ImportError as error:
        skip(error)
    if not torch.cuda.is_available():
        skip("torch finds no GPU")
    folder = os.environ.get("TMPDIR") or "/var/tmp"
    room = os.statvfs(folder)
    file_bytes = 256 << 20 if "--quick" in argv else 4 * GIB
    while file_bytes > TENSOR_BYTES and file_bytes * FILES > room.f_bavail * room.f_frsize * 7 // 8:
        file_bytes //= 2
    with tempfile.TemporaryDirectory(dir=folder) as work:
        paths = make_files(work, file_bytes, torch, save_file)
        warm, cold = [], []
        sample(paths, torch, load_file)
        for _ in range(SAMPLES):
            warm.append(sample(paths, torch, load_file))
        for _ in range(SAMPLES):
            forget(paths)
            cold.append(sample(paths, torch, load_file))
    what = f"safetensors and torch, {file_bytes * FILES >> 20} MiB"
    print(json.dumps([figure(f"{what}, page cache warm", warm), figure(f"{what}, page cache cold", cold)], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
