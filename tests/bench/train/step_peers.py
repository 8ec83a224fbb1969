#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""An optimizer step on states that are files, as others do it; beside `spillbench optimizer --only device`. No test: it
needs torch.

    step_peers.py [--parameters N] [--group N] [--folder FOLDER] [--steps N] [--only WORD]

    torch       torch.load of a group, torch's fused AdamW, torch.save: one after the other
    torch-sync  the same, and each file is on the disk and out of the page cache before the next group

States are fp32 master, m and v, gradients bf16, in groups of --group parameters. Prints seconds a step: the median, the
least and the largest, after one that does not count.
"""

import argparse
import os
import statistics
import tempfile
import time

import torch

NAMES = ("master", "exp_avg", "exp_avg_sq")


def adam(states, grad, step):
    """One fused AdamW step over a group."""
    torch._fused_adamw_([states["master"]], [grad.float()], [states["exp_avg"]], [states["exp_avg_sq"]], [],
                        [torch.tensor(float(step))], lr=1e-3, beta1=0.9, beta2=0.999, weight_decay=0.01, eps=1e-8,
                        amsgrad=False, maximize=False)  # fmt: skip


class Files:
    """torch.save and torch.load."""

    def __init__(self, arguments, grads, params, is_sync):
        self.grads, self.params, self.is_sync = grads, params, is_sync
        self.paths = [os.path.join(arguments.folder, f"group{i}.pt") for i in range(len(grads))]
        for path, grad in zip(self.paths, grads, strict=True):
            self.save(path, {name: torch.zeros(grad.numel()) for name in NAMES})

    def save(self, path, states):
        torch.save(states, path)
        if self.is_sync:
            with open(path, "rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def step(self, number):
        for path, grad, param in zip(self.paths, self.grads, self.params, strict=True):
            states = torch.load(path, weights_only=True)
            adam(states, grad, number)
            param.copy_(states["master"])
            self.save(path, states)


def measure(side, n_steps):
    samples = []
    for number in range(1, n_steps + 2):
        start = time.perf_counter()
        side.step(number)
        samples.append(time.perf_counter() - start)
    return samples[1:]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parameters", type=int, default=128 << 20)
    parser.add_argument("--group", type=int, default=8 << 20, help="parameters that are stepped at once")
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="on the disk to be measured")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--only", choices=("torch", "torch-sync"))
    arguments = parser.parse_args()
    n_groups = max(arguments.parameters // arguments.group, 2)
    grads = [torch.randn(arguments.group).to(torch.bfloat16) for _ in range(n_groups)]
    params = [torch.zeros(arguments.group, dtype=torch.bfloat16) for _ in range(n_groups)]
    sides = {
        "torch": lambda: Files(arguments, grads, params, False),
        "torch-sync": lambda: Files(arguments, grads, params, True),
    }
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {n_groups} groups of {arguments.group} parameters")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as arguments.folder:
        for name, make in sides.items():
            if arguments.only in (None, name):
                samples = measure(make(), arguments.steps)
                print(f"{name}: {statistics.median(samples):.2f} s a step [{min(samples):.2f}, {max(samples):.2f}]")


if __name__ == "__main__":
    main()
