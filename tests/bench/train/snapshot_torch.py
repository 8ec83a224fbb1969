#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""For how long a snapshot blocks training, beside what torch has, at equal durability: needs torch, so it is no test.

    SPILLWAY_BIN=build/release PYTHONPATH=build/release/python snapshot_torch.py [--parameters N] [--tensors N] [--json FILE]

A round is: begin a snapshot, compute for --think seconds (a forward and a backward pass), step, wait until it is durable.
Blocked is what the call took, and what the step took longer than one without a snapshot (the median of those). All save the
same: fp32 parameters and two moments of them, in files of one folder.

    spillway save        OffloadAdamW.save()
    spillway snapshot    OffloadAdamW.snapshot(); its own measure of the fence of the step is told beside it
    torch.save           torch.save(), fsync() of the file and the folder
    torch async_save     torch.distributed.checkpoint.async_save() (of torch 2.3 and later), which does fsync() itself
"""

import argparse
import json
import os
import pathlib
import shutil
import statistics
import sys
import tempfile
import time

import torch

HERE = pathlib.Path(__file__).resolve()
sys.path.insert(0, str(HERE.parents[1] / "peers"))
sys.path.insert(0, str(HERE.parents[2] / "python"))
os.environ.setdefault("SPILLWAY_SOURCE", str(HERE.parents[3]))

import spillway.torch as spw  # noqa: E402
import stats  # noqa: E402
import support  # noqa: E402


def timed(function, *arguments):
    start = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - start, result


def parameters_of(arguments):
    torch.manual_seed(1)
    each = arguments.parameters // arguments.tensors
    params = [torch.nn.Parameter(torch.randn(each)) for _ in range(arguments.tensors)]
    for p in params:
        p.grad = torch.randn_like(p)
    return params


class Ours:
    """States in a pool that has memory for them, and for one snapshot."""

    def __init__(self, arguments, folder):
        mib = arguments.parameters * 12 >> 20
        sections = f"[tier.dram]\nsize = {3 * mib + 256} MiB\n"
        self.daemon = support.Daemon(sections, disk_mib=3 * mib + 512, socket=folder / "socket")
        self.pool = spw.connect("bench", socket=self.daemon.socket, start=False)
        self.optimizer = spw.OffloadAdamW(parameters_of(arguments), self.pool, threads=arguments.threads)
        self.step = self.optimizer.step

    def save(self):
        self.optimizer.save("bench")

    def begin(self):
        return self.optimizer.snapshot("bench")

    @staticmethod
    def wait(saving):
        saving.wait()
        return saving.blocked

    def close(self):
        self.optimizer.close()
        self.pool.session.close()
        self.daemon.stop()


class Theirs:
    """States in torch's own memory."""

    def __init__(self, arguments, folder):
        self.params = parameters_of(arguments)
        self.folder = folder
        self.optimizer = torch.optim.AdamW(self.params, fused=True) if FUSED else torch.optim.AdamW(self.params)
        self.step = self.optimizer.step

    def state(self):
        return {"parameters": dict(enumerate(self.params)), "optimizer": self.optimizer.state_dict()}

    def save(self):
        path = self.folder / "saved"
        with open(f"{path}.new", "wb") as file:
            torch.save(self.state(), file)
            file.flush()
            os.fsync(file.fileno())
        os.rename(f"{path}.new", path)
        descriptor = os.open(self.folder, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)

    def begin(self):
        flat = {f"parameter.{i}": p.detach() for i, p in enumerate(self.params)}
        for i, p in enumerate(self.params):
            for name in ("exp_avg", "exp_avg_sq"):
                flat[f"{name}.{i}"] = self.optimizer.state[p][name]
        shutil.rmtree(self.folder / "checkpoint", ignore_errors=True)
        writer = checkpoint.FileSystemWriter(self.folder / "checkpoint", sync_files=True)
        return checkpoint.async_save(flat, storage_writer=writer)

    @staticmethod
    def wait(future):
        future.result()
        return 0.0

    def close(self):
        pass


FUSED = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 4)
try:
    import torch.distributed.checkpoint as checkpoint

    HAS_ASYNC = hasattr(checkpoint, "async_save")
except ImportError:
    HAS_ASYNC = False


def rounds(side, arguments, think):
    """Of a snapshot under which training goes on: seconds of the call, the step, the fence, and until it is durable."""
    found = []
    for _ in range(arguments.rounds + 1):
        began = time.perf_counter()
        call, handle = timed(side.begin)
        time.sleep(think)
        step, _ = timed(side.step)
        fence = side.wait(handle)
        found.append({"call": call, "step": step, "fence": fence, "durable": time.perf_counter() - began})
    return {name: [round_[name] for round_ in found[1:]] for name in found[0]}


def row(name, blocked, durable, nbytes, fence=None):
    at = stats.estimate(blocked)
    line = {"name": name, "blocked_ms": 1e3 * at.median, "low_ms": 1e3 * at.low, "high_ms": 1e3 * at.high,
            "durable_ms": 1e3 * statistics.median(durable), "n": at.n,
            "durable_gb_s": nbytes / statistics.median(durable) / 1e9}  # fmt: skip
    if fence is not None:
        line["fence_ms"] = 1e3 * statistics.median(fence)
    return line


def measure(name, side, arguments):
    nbytes = 12 * arguments.parameters
    side.step()
    plain = statistics.median(timed(side.step)[0] for _ in range(arguments.rounds))
    saves = [timed(side.save)[0] for _ in range(arguments.rounds + 1)][1:]
    yield {**row(f"{name} save", saves, saves, nbytes), "step_ms": 1e3 * plain}
    if name == "torch" and not HAS_ASYNC:
        return
    for think in arguments.think:
        r = rounds(side, arguments, think)
        blocked = [call + max(step - plain, 0) for call, step in zip(r["call"], r["step"], strict=True)]
        what = f"{name} {'snapshot' if name == 'spillway' else 'async_save'}, {think} s"
        yield {**row(what, blocked, r["durable"], nbytes, r["fence"]), "call_ms": 1e3 * statistics.median(r["call"]),
               "step_ms": 1e3 * statistics.median(r["step"])}  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parameters", type=int, default=8 << 20)
    parser.add_argument("--tensors", type=int, default=16)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of both")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--think", type=float, nargs="*", default=[0.0, 0.5], help="seconds between snapshot and step")
    parser.add_argument("--folder", default="/var/tmp", help="of all files")
    parser.add_argument("--json", help="a file for the rows")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    tempfile.tempdir = arguments.folder
    folder = pathlib.Path(tempfile.mkdtemp(prefix="spillway-snapshot-"))
    rows = []
    if HAS_ASYNC:
        torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=0, world_size=1)
    print(f"torch {torch.__version__}, {arguments.parameters} parameters, {12 * arguments.parameters >> 20} MiB, medians:")
    try:
        for name, side in (("spillway", Ours), ("torch", Theirs)):
            there = side(arguments, folder)
            for line in measure(name, there, arguments):
                rows.append(line)
                print(f"  {line['name']:26} blocked {line['blocked_ms']:8.1f} ms [{line['low_ms']:.1f}, {line['high_ms']:.1f}], "
                      f"durable after {line['durable_ms']:8.1f} ms ({line['durable_gb_s']:.2f} GB/s), "
                      f"step {line['step_ms']:.1f}, call {line.get('call_ms', 0):.1f}, fence {line.get('fence_ms', 0):.1f}",
                      flush=True)  # fmt: skip
            there.close()
    finally:
        shutil.rmtree(folder)
    if arguments.json:
        pathlib.Path(arguments.json).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
