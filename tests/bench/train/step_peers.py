#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""An optimizer step on states that are files, as others do it; beside `spillbench optimizer --only device`. No test: it
needs torch, and DeepSpeed for its rows (its operators are built the first time: a compiler, ninja, libaio-dev).

    step_peers.py [--parameters N] [--group N] [--folder FOLDER] [--steps N] [--only ROW,...]
                  [--aio BLOCK_KIB,DEPTH,THREADS]
                  [--spillbench PROGRAM [--pairs N] [--seconds S] [--json FILE]]

    torch                torch.load of a group, torch's fused AdamW, torch.save: one after the other
    torch-sync           the same, and each file is on the disk and out of the page cache before the next group
    deepspeed            ZeRO-Infinity's swapper with DeepSpeedCPUAdam, by its defaults: read, step, write
    deepspeed-pipelined  its pipelined swapper: read i + 1 │ step i │ write i − 1; libaio by its defaults
    deepspeed-tuned      the same with --aio

States are fp32 master, m and v, gradients bf16, in groups of --group parameters. Prints seconds a step: the median, the
least and the largest, after two that do not count, and what the process's memory had grown by at most since before it
had states; in the end the parameters are compared with torch's. Each row is a process. One that cannot be run is said
to be skipped, and counted.

--spillbench: each row in pairs with it, one of either in alternating order, --steps steps and --seconds seconds long:
medians of both, the median of their ratios and its 95 % interval (from 6 pairs on, else all that was seen), and both
beside all states through a raw file on the same disk, in and out, which spillbench measures in the same seconds.
Ours has next to none of the states in memory (one 16th), others have none.
"""

import argparse
import json
import multiprocessing
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import torch

HERE = pathlib.Path(__file__).resolve()
sys.path.insert(0, str(HERE.parents[1] / "peers"))

import report  # noqa: E402
import stats  # noqa: E402
import step_deepspeed  # noqa: E402

NAMES = ("master", "exp_avg", "exp_avg_sq")
ADAM = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}
CHECKED = 1 << 20  # parameters
GOAL = 1 / 2  # of DeepSpeed's time
BF16_ERROR = 2**-7
POLL_SECONDS = 0.1
WARM_STEPS = 2  # in the first DeepSpeed makes the moments, which stay in memory until the second
SKIPPED = 77  # a process's status


def adam(states, grad, step):
    """One fused AdamW step over a group."""
    torch._fused_adamw_([states["master"]], [grad.float()], [states["exp_avg"]], [states["exp_avg_sq"]], [],
                        [torch.tensor(float(step))], lr=ADAM["lr"], beta1=ADAM["betas"][0], beta2=ADAM["betas"][1],
                        weight_decay=ADAM["weight_decay"], eps=ADAM["eps"], amsgrad=False, maximize=False)  # fmt: skip


def zeros(n):
    return {name: torch.zeros(n) for name in NAMES}


class Files:
    """torch.save and torch.load."""

    def __init__(self, folder, grads, params, is_sync):
        self.grads, self.params, self.is_sync = grads, params, is_sync
        self.paths = [os.path.join(folder, f"group{i}.pt") for i in range(len(grads))]
        for path, grad in zip(self.paths, grads, strict=True):
            self.save(path, zeros(grad.numel()))

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


# ── memory ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def memory_mib(pid, *lines):
    """The sum of some lines of /proc/PID/status."""
    text = pathlib.Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return sum(int(kib) for name, kib in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE) if name in lines) / 1024


def forget_peak():
    pathlib.Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def daemon_mib(pid):
    """All memory at most of the daemon that is spillbench's child, which shares it with its clients; 0 without one."""
    try:
        for child in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split():
            if pathlib.Path(f"/proc/{child}/comm").read_text(encoding="utf-8").strip() == "spillwayd":
                return memory_mib(child, "VmHWM", "HugetlbPages")
    except OSError:
        pass  # one has ended
    return 0


def daemon_watch(pid, found):
    while pathlib.Path(f"/proc/{pid}").exists():
        found.append(daemon_mib(pid))
        time.sleep(POLL_SECONDS)


# ── rows ────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Row:
    """Others' side."""

    def __init__(self, name, arguments, folder):
        self.arguments = arguments
        package = step_deepspeed.load(folder, ADAM) if name.startswith("deepspeed") else None
        torch.manual_seed(1)
        self.grads = torch.randn(arguments.parameters).to(torch.bfloat16).split(arguments.group)
        self.params = torch.full((arguments.parameters,), 0.0, dtype=torch.bfloat16).split(arguments.group)
        self.before_mib = memory_mib("self", "VmRSS")
        self.side = self.make(name, folder, package)
        self.number = 0
        for _ in range(WARM_STEPS):
            self.step()
        forget_peak()

    def grown_mib(self):
        return memory_mib("self", "VmHWM") - self.before_mib

    def make(self, name, folder, package):
        if package is None:
            return Files(folder, self.grads, self.params, name == "torch-sync")
        block_kib, depth, threads = self.arguments.aio
        tuned = {"block_size": block_kib << 10, "queue_depth": depth, "intra_op_parallelism": threads}
        return step_deepspeed.Swapper(package, folder, self.grads, self.params, name != "deepspeed",
                                      tuned if name == "deepspeed-tuned" else {})  # fmt: skip

    def step(self):
        self.number += 1
        start = time.perf_counter()
        self.side.step(self.number)
        return time.perf_counter() - start

    def steps(self):
        return [self.step() for _ in range(self.arguments.steps)]

    def check(self):
        """That those were steps."""
        for grad, param in ((self.grads[0], self.params[0]), (self.grads[-1], self.params[-1])):
            states = zeros(min(grad.numel(), CHECKED))
            for number in range(1, self.number + 1):
                adam(states, grad[:CHECKED], number)
            torch.testing.assert_close(param[:CHECKED].float(), states["master"], rtol=BF16_ERROR, atol=0)


def bench(arguments):
    """Ours: seconds of a step, of all states through a raw file both ways, of the step in memory; MiB of the daemon."""
    command = [arguments.spillbench, "optimizer", "--only", "device", "--parameters", str(arguments.parameters),
               "--seconds", str(arguments.seconds), "--quiet", "-o", "json"]  # fmt: skip
    environment = {**os.environ, "TMPDIR": arguments.folder}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
        mib = []
        watch = threading.Thread(target=daemon_watch, args=(process.pid, mib))
        watch.start()
        said = process.stdout.read()
        status = process.wait()
        watch.join()
    if status != 0:
        sys.exit(f"spillbench: {status}")
    figures = {figure["name"]: figure for figure in json.loads(said)}
    step = "step, on the device"
    all_of_it = figures["their states"]["value"] / figures[f"{step}, read"]["beside_value"]
    raw = figures[f"{step}, what does not fit through a raw file"]["value"] * all_of_it
    memory = figures[f"{step}, in this process's memory"]["value"]
    return {"step": figures[step]["value"] / 1e3, "raw": raw / 1e3, "memory": memory / 1e3, "mib": max(mib)}


def measure_pairs(row, arguments):
    ours, theirs = [], []
    for i in range(arguments.pairs):
        for side in ("ours", "theirs") if i % 2 == 0 else ("theirs", "ours"):
            if side == "ours":
                ours.append(bench(arguments))
            else:
                theirs.append(statistics.median(row.steps()))
        print(f"  {theirs[-1]:.2f} s, ours {ours[-1]['step']:.2f}, raw {ours[-1]['raw']:.2f}, in memory "
              f"{ours[-1]['memory']:.2f}, load {os.getloadavg()[0]:.1f}", flush=True)  # fmt: skip
    return theirs, ours


def pairs_figures(name, theirs, mib, ours):
    """Of a row and its groups, in spillbench's form."""
    steps, raws, mibs = ([of[what] for of in ours] for what in ("step", "raw", "mib"))
    goal = GOAL if name.startswith("deepspeed") else None

    def figure(what, a, beside, b, goal=None):
        of = stats.paired(a, b)
        return report.figure(what, "s", statistics.median(a), beside, statistics.median(b), of, goal, "at most")

    memory = report.figure(f"memory, beside {name}", "MiB", max(mibs), "theirs", mib, stats.paired([max(mibs)], [mib]))
    return [
        figure(f"step, beside {name}", steps, "theirs", theirs, goal),
        figure(f"step, in the minutes of {name}", steps, "a raw file", raws),
        figure(f"theirs, {name}", theirs, "a raw file", raws),
        {**memory, "interval": None, "samples": 0},
    ]


def measure(name, arguments):
    """Prints the row; returns its figures where it was measured in pairs."""
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        row = Row(name, arguments, folder)
        samples, ours = measure_pairs(row, arguments) if arguments.spillbench else (row.steps(), [])
        mib = row.grown_mib()
        row.check()
    print(f"{name}: {statistics.median(samples):.2f} s a step [{min(samples):.2f}, {max(samples):.2f}], {mib:.0f} MiB")
    title = f"{name}, groups of {arguments.group / 2**20:g} Mi"
    figures = pairs_figures(title, samples, mib, ours) if ours else []
    for figure in figures:
        interval = " [{:.2f}, {:.2f}]".format(*figure["interval"]) if figure["interval"] else ""
        print(f"  {figure['name']}: {figure['value']:.3g} {figure['unit']}, {figure['beside']} "
              f"{figure['beside_value']:.3g}, {figure['ratio']:.2f}×{interval}")  # fmt: skip
    return figures


def process(name, arguments):
    try:
        figures = measure(name, arguments)
        if arguments.json:
            pathlib.Path(arguments.json.format(name)).write_text(json.dumps(figures, indent=1), encoding="utf-8")
    except ImportError as error:
        print(f"{name}: skipped: {error}", flush=True)
        sys.exit(SKIPPED)


def statuses(arguments):
    for name in arguments.only:
        row = multiprocessing.get_context("fork").Process(target=process, args=(name, arguments))
        row.start()
        row.join()
        yield row.exitcode


def numbers(text):
    found = [int(word) for word in text.split(",")]
    if len(found) != 3:
        raise argparse.ArgumentTypeError("three numbers are wanted")
    return found


def main():
    rows = ("torch", "torch-sync", "deepspeed", "deepspeed-pipelined", "deepspeed-tuned")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parameters", type=int, default=128 << 20)
    parser.add_argument("--group", type=int, default=8 << 20, help="parameters that are stepped at once")
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="on the disk to be measured")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--only", type=lambda text: text.split(","), default=rows, help="rows")
    parser.add_argument("--aio", type=numbers, default=[1024, 32, 1], help="KiB of a request, requests, threads")
    parser.add_argument("--spillbench", help="the program, beside which spillwayd is")
    parser.add_argument("--json", help="a file for a row's figures; {} is its name")
    parser.add_argument("--pairs", type=int, default=stats.SAMPLES_MIN)
    parser.add_argument("--seconds", type=float, default=8, help="of spillbench in a pair")
    arguments = parser.parse_args()
    if unknown := set(arguments.only) - set(rows):
        parser.error(f"no such row: {', '.join(unknown)}")
    arguments.only = [name for name in rows if name in arguments.only]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {arguments.parameters} parameters in groups "
          f"of {arguments.group}, load {os.getloadavg()[0]:.1f}", flush=True)  # fmt: skip
    found = list(statuses(arguments))
    if skipped := found.count(SKIPPED):
        print(f"{skipped} of {len(found)} rows skipped")
    sys.exit(any(status not in (0, SKIPPED) for status in found))


if __name__ == "__main__":
    main()
