#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""spw_adam beside torch.optim.AdamW on the CPU, on the same numbers, in one process: needs torch, so it is no test.

    adam_torch.py LIBRARY.so [--parameters N] [--tensors N] [--threads N] [--pairs N]

First 200 steps of a small problem: how far apart the parameters are at most. Then pairs of steps in fp32 beside
fused=True, one of each in alternating order: the medians, and the interval of the pairs' ratios, as spillbench has it. Both
read the same gradients.
"""

import argparse
import ctypes
import os
import pathlib
import sys
import time

import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "peers"))
import stats  # noqa: E402

F32 = 1


class Slice(ctypes.Structure):
    _fields_ = [("n", ctypes.c_size_t), ("grad", ctypes.c_void_p), ("master", ctypes.c_void_p), ("m", ctypes.c_void_p),
                ("v", ctypes.c_void_p), ("param", ctypes.c_void_p), ("grad_dtype", ctypes.c_uint32),
                ("param_dtype", ctypes.c_uint32)]  # fmt: skip


class Options(ctypes.Structure):
    _fields_ = [(name, ctypes.c_double) for name in ("lr", "beta1", "beta2", "eps", "weight_decay", "grad_scale")] + [
        ("step", ctypes.c_uint64), ("flags", ctypes.c_uint32), ("reserved", ctypes.c_uint32)]  # fmt: skip


class Stat(ctypes.Structure):
    _fields_ = [("sum_squares", ctypes.c_double), ("has_nonfinite", ctypes.c_uint32), ("reserved", ctypes.c_uint32)]


class Ours:
    """AdamW over fp32 tensors, with torch's defaults."""

    def __init__(self, library, params, workers):
        self.library, self.workers, self.params = library, workers, params
        self.states = [(torch.zeros_like(p), torch.zeros_like(p)) for p in params]
        self.options = Options(1e-3, 0.9, 0.999, 1e-8, 1e-2, 1, 0, 0, 0)
        self.stat = Stat()

    def set_grads(self, grads):
        self.grads = grads  # are looked at by step()
        self.slices = (Slice * len(grads))()
        for i, (param, (m, v), grad) in enumerate(zip(self.params, self.states, grads, strict=True)):
            pointers = [t.data_ptr() for t in (grad, param, m, v)]
            self.slices[i] = Slice(param.numel(), *pointers, None, F32, 0)

    def step(self):
        self.options.step += 1
        result = self.library.spw_adam(self.workers, ctypes.byref(self.options), self.slices, len(self.slices),
                                       ctypes.byref(self.stat))  # fmt: skip
        if result < 0:
            sys.exit(f"spw_adam: {self.library.spw_error_text().decode()}")


def open_library(path):
    library = ctypes.CDLL(path)
    library.spw_error_text.restype = ctypes.c_char_p
    library.spw_adam.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_size_t, ctypes.c_void_p]
    return library


def new_workers(library, n_threads):
    workers = ctypes.c_void_p()
    if library.spw_workers_new(n_threads, ctypes.byref(workers)) < 0:
        sys.exit(f"spw_workers_new: {library.spw_error_text().decode()}")
    return workers


def distance(ours, theirs):
    """Of all parameters, as one vector, relative to its length."""
    apart = sum(float((a.double() - b.detach().double()).square().sum()) for a, b in zip(ours, theirs, strict=True))
    length = sum(float(b.detach().double().square().sum()) for b in theirs)
    return (apart / length) ** 0.5


def follow(library, workers, n_steps=200):
    """The largest distance over the steps of two runs, each with its own parameters' gradients."""
    torch.manual_seed(1)
    theirs = [torch.nn.Parameter(torch.randn(n)) for n in (1, 77, 5000, 70000)]
    params = [p.detach().clone() for p in theirs]
    targets = [torch.randn_like(p) for p in params]
    optimizer = torch.optim.AdamW(theirs, fused=True)
    ours, worst = Ours(library, params, workers), 0.0
    for _ in range(n_steps):
        noise = [0.1 * torch.randn_like(p) for p in params]
        for param, target, some in zip(theirs, targets, noise, strict=True):
            param.grad = param.detach() - target + some
        ours.set_grads([p - target + some for p, target, some in zip(params, targets, noise, strict=True)])
        ours.step()
        optimizer.step()
        worst = max(worst, distance(params, theirs))
    return worst


def timed(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def contest(library, workers, arguments):
    n_each = arguments.parameters // arguments.tensors
    theirs = [torch.nn.Parameter(torch.randn(n_each)) for _ in range(arguments.tensors)]
    for param in theirs:
        param.grad = torch.randn_like(param)
    optimizer = torch.optim.AdamW(theirs, fused=True)
    ours = Ours(library, [p.detach().clone() for p in theirs], workers)
    ours.set_grads([p.grad for p in theirs])
    samples = {ours.step: [], optimizer.step: []}
    for pair in range(arguments.pairs + 1):
        for step in sorted(samples, key=lambda s: (s == ours.step) == (pair % 2 == 0)):
            samples[step].append(n_each * arguments.tensors / timed(step) / 1e9)
    return stats.estimate(samples[ours.step][1:]), stats.estimate(samples[optimizer.step][1:]), stats.paired(
        samples[ours.step][1:], samples[optimizer.step][1:])  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("library", help="libspillway.so")
    parser.add_argument("--parameters", type=int, default=64 << 20)
    parser.add_argument("--tensors", type=int, default=16)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of both")
    parser.add_argument("--pairs", type=int, default=15)
    arguments = parser.parse_args()
    library = open_library(arguments.library)
    workers = new_workers(library, arguments.threads)
    torch.set_num_threads(arguments.threads)
    print(f"torch {torch.__version__}, {arguments.threads} threads, {torch.backends.cpu.get_cpu_capability()}")
    print(f"200 steps: {follow(library, workers):.2e} from torch's at most")
    ours, theirs, ratio = contest(library, workers, arguments)
    print(f"{arguments.parameters} parameters in {arguments.tensors} tensors, fp32, G/s (28 bytes each):")
    print(f"  spw_adam {ours.median:.3f} ({28 * ours.median:.1f} GB/s), torch {theirs.median:.3f} "
          f"({28 * theirs.median:.1f} GB/s), {ratio.median:.2f}× [{ratio.low:.2f}, {ratio.high:.2f}]")  # fmt: skip


if __name__ == "__main__":
    main()
