#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""OffloadAdamW's step on parameters of a GPU, with its states in a spillwayd of its own, beside what the machine can do.

    gpu_torch.py [--parameters N] [--dtype float32|bfloat16] [--tensors N] [--group-mib N,N…] [--threads N,N…] [--steps N]
                 [--disk PATH --dram-percent N --disk-percent N] [--warm-memory GB] [--output FILE]

First the ceilings, in the same process: torch's copies of pinned memory each way alone and both at the same time; the
optimizer's arithmetic on plain memory, for each number of threads; and that arithmetic while the link moves as many bytes
as its gradients and parameters have, each way, until both have ended. The last is what a step can reach: copies and
arithmetic share the memory's bandwidth, so each of them alone promises too much. Then, for each size of groups and number
of threads, some steps on gradients that do not change: medians, bytes over the link, and how much of the largest bound the
step reaches (bounds_s: seconds of each ceiling, with the number of threads that is best at it; of_bound). The first tensor
is compared with the same arithmetic on plain memory, bit for bit. JSON to standard output, or FILE, which is written after
each row; progress to standard error.

With --disk the states are in memory only in part, and the rest in a file there. Its ceiling is as many bytes as a step cannot
have in memory, both ways at once, at the rate of two files beside it that are read and written so (O_DIRECT, 1 MiB, 16
threads). $SPILLWAY_BIN is the folder of spillwayd.
"""

import argparse
import concurrent.futures
import contextlib
import itertools
import json
import mmap
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from unittest import mock

import torch

import spillway.torch as spw
from spillway import train
from spillway.torch import adamw, device

MIB = 1 << 20
GB = 1e9
BIN = pathlib.Path(os.environ.get("SPILLWAY_BIN", "."))
LR = 1e-3
PLAIN_PARAMETERS = 256 << 20  # of the arithmetic on plain memory: 4 GiB
COPY_BYTES = 256 * MIB
WARM_BYTES = 1 << 30  # touched at a time
DISK_FILE_BYTES, DISK_SECONDS, DISK_THREADS = 4 << 30, 8, 16
PARAMETERS, PARAMETERS_DISK = 1_000_000_000, 300_000_000


def say(text):
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def timed(function, on):
    """Seconds, with all that was launched."""
    synchronize(on)
    start = time.perf_counter()
    function()
    synchronize(on)
    return time.perf_counter() - start


def synchronize(on):
    if on.type == "cuda":
        torch.cuda.synchronize(on)


# --- Ceilings -------------------------------------------------------------------------------------------------------


def link_rates(on):
    """GB/s of copies of pinned memory, and of memory that is not."""
    there = [torch.empty(COPY_BYTES, dtype=torch.uint8, device=on) for _ in range(2)]
    here = [torch.empty(COPY_BYTES, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
    pageable = torch.ones(COPY_BYTES, dtype=torch.uint8)
    streams = [torch.cuda.Stream(on) for _ in range(2)]

    def out(times=4):
        with torch.cuda.stream(streams[0]):
            for _ in range(times):
                here[0].copy_(there[0], non_blocking=True)

    def back(times=4):
        with torch.cuda.stream(streams[1]):
            for _ in range(times):
                there[1].copy_(here[1], non_blocking=True)

    def both():
        for _ in range(4):
            out(1)
            back(1)

    def rate(function, nbytes):
        timed(function, on)
        return round(nbytes / statistics.median(timed(function, on) for _ in range(7)) / GB, 2)

    return {
        "d2h": rate(out, 4 * COPY_BYTES),
        "h2d": rate(back, 4 * COPY_BYTES),
        "d2h_while_h2d": rate(both, 4 * COPY_BYTES),  # of each
        "d2h_pageable": rate(lambda: there[0].to("cpu"), COPY_BYTES),
        "h2d_pageable": rate(lambda: there[0].copy_(pageable), COPY_BYTES),
    }


def disk_rate(path):
    """GB/s of each way while as many bytes are read from a file as are written to another one: what a step can have."""

    def move(ways, first, until=None):
        """Each sixteenth MiB, by each way in turn: once, or again and again until then."""
        offsets = range(first * MIB, DISK_FILE_BYTES, DISK_THREADS * MIB)
        moved = 0
        with mmap.mmap(-1, MIB) as buffer:
            buffer.write(os.urandom(MIB))
            for offset in itertools.cycle(offsets) if until else offsets:
                if until and time.perf_counter() >= until:
                    break
                moved += sum(way(fd, [buffer], offset) for way, fd in ways)
        return moved

    with contextlib.ExitStack() as stack:
        threads = stack.enter_context(concurrent.futures.ThreadPoolExecutor(DISK_THREADS))
        files = []
        for name in ("read", "written"):
            file = path.with_name(f"{path.name}.{name}")
            files.append(os.open(file, os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o600))
            stack.callback(file.unlink)
            stack.callback(os.close, files[-1])
            list(threads.map(lambda first: move([(os.pwritev, files[-1])], first), range(DISK_THREADS)))
        both = list(zip((os.preadv, os.pwritev), files))
        start = time.perf_counter()
        moved = sum(threads.map(lambda first: move(both, first, start + DISK_SECONDS), range(DISK_THREADS)))
        return round(moved / 2 / (time.perf_counter() - start) / GB, 3)


def bytes_per_parameter(dtype):
    """Of memory, that the arithmetic reads and writes: m, v, master both ways, the gradient, a parameter in bf16."""
    return 28 if dtype == torch.float32 else 28 - 4 + 2 + 2


class PlainStep:
    """The step on plain memory, alone and while the link is used."""

    def __init__(self, n, dtype, on):
        self.n, self.on = min(n, PLAIN_PARAMETERS), on
        self.grad = torch.full((self.n,), 1e-3, dtype=dtype)
        self.states = [torch.zeros(self.n) for _ in range(3)]
        self.out = torch.zeros(self.n if dtype == torch.bfloat16 else 0, dtype=dtype)
        self.link_bytes = self.n * self.grad.element_size()

    def ceilings(self, threads):
        """G parameters/s with so many threads, and how many these are."""
        name = adamw._NAMES[self.grad.dtype]
        out = self.out.data_ptr() if self.out.numel() else 0
        work = [train.Slice(self.n, self.grad.data_ptr(), *(s.data_ptr() for s in self.states), out, name, name)]
        with train.Workers(threads) as workers:

            def step():
                train.adam(train.Adam(LR, (0.9, 0.999), 1e-8, 0.01, 1), work, workers)

            found = {"plain_gparams_s": self._rate(step)}
            found["plain_gb_s"] = round(found["plain_gparams_s"] * bytes_per_parameter(self.grad.dtype), 1)
            if self.on.type == "cuda":
                link = self._link()

                def together():
                    link()
                    step()

                found["together_gparams_s"] = self._rate(together)
            return workers.count, found

    def _rate(self, function):
        timed(function, self.on)
        return round(self.n / statistics.median(timed(function, self.on) for _ in range(7)) / GB, 3)

    def _link(self):
        """Begins to move link_bytes each way, in large copies."""
        there = [torch.empty(COPY_BYTES, dtype=torch.uint8, device=self.on) for _ in range(2)]
        here = [torch.zeros(COPY_BYTES, dtype=torch.uint8).pin_memory() for _ in range(2)]
        streams = [torch.cuda.Stream(self.on) for _ in range(2)]

        def begin():
            for first in range(0, self.link_bytes, COPY_BYTES):
                nbytes = min(COPY_BYTES, self.link_bytes - first)
                for stream, to, source in ((streams[0], here[0], there[0]), (streams[1], there[1], here[1])):
                    with torch.cuda.stream(stream):
                        to[:nbytes].copy_(source[:nbytes], non_blocking=True)

        return begin


def warm_memory(nbytes):
    """Touches so much memory with all threads, and frees it."""
    start = time.perf_counter()
    kept = [torch.empty(WARM_BYTES, dtype=torch.uint8).fill_(1) for _ in range(-(-nbytes // WARM_BYTES))]
    say(f"{len(kept)} GiB of memory touched in {time.perf_counter() - start:.1f} s")


# --- The daemon -----------------------------------------------------------------------------------------------------


class Daemon:
    """A spillwayd with a pool for these states."""

    def __init__(self, folder, dram_bytes, disk=None, disk_bytes=0):
        self.folder = pathlib.Path(folder)
        self.socket = self.folder / "socket"
        sections = f"[tier.dram]\nsize = {-(-dram_bytes // MIB)} MiB\n"
        if disk is not None:
            command = [BIN / "spillctl", "device", "format", disk, "--capacity", f"{-(-disk_bytes // MIB)} MiB"]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            sections += f"[device disk]\npath = {disk}\n"
        (self.folder / "conf").write_text(f"[daemon]\nsocket = {self.socket}\n{sections}", encoding="utf-8")
        self.log = open(self.folder / "log", "ab")
        command = [BIN / "spillwayd", "--user", "--config", self.folder / "conf"]
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)

    def ready(self):
        while b"ready:" not in (self.folder / "log").read_bytes():
            if self.process.poll() is not None:
                sys.exit("spillwayd: " + (self.folder / "log").read_text(encoding="utf-8", errors="replace"))
            time.sleep(0.05)

    def stop(self):
        self.process.terminate()
        self.process.wait()
        self.log.close()


# --- The step -------------------------------------------------------------------------------------------------------


def parameters(arguments, on):
    """Tensors with gradients."""
    each = arguments.parameters // arguments.tensors
    torch.manual_seed(1)
    params = []
    for _ in range(arguments.tensors):
        p = torch.nn.Parameter(torch.randn(each, device=on).to(arguments.dtype))
        p.grad = (0.01 * torch.randn(each, device=on)).to(arguments.dtype)
        params.append(p)
    return params


class Plain:
    """The first tensor's steps on plain memory."""

    def __init__(self, p, threads):
        self.master = p.detach().cpu().float().clone()
        self.grad = p.grad.cpu()
        self.out = p.detach().cpu().clone()
        self.states = [torch.zeros(p.numel()) for _ in range(2)]
        self.workers = train.Workers(threads)

    def step(self, n):
        name = adamw._NAMES[self.grad.dtype]
        pointers = [t.data_ptr() for t in (self.grad, self.master, *self.states, self.out)]
        work = [train.Slice(self.grad.numel(), *pointers, name, name)]
        train.adam(train.Adam(LR, (0.9, 0.999), 1e-8, 0.01, n), work, self.workers)

    def equals(self, p):
        return torch.equal(self.out, p.detach().cpu())


@contextlib.contextmanager
def profile(seconds):
    """Adds up who the step waits for, while it lasts."""

    def watched(name, function):
        def call(*args, **options):
            start = time.perf_counter()
            try:
                return function(*args, **options)
            finally:
                seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start

        return call

    def gradients(*args):
        staged, arrive = begin_gradients(*args)
        return staged, watched("gradients arrive", arrive)

    begin_gradients = watched("beside: gradients begin", device.Link.gradients)
    optimizer = adamw.OffloadAdamW
    with contextlib.ExitStack() as stack:
        for owner, name, what in (
            (train, "adam", "arithmetic"),
            (device.Link, "map", "beside: lease: map"),
            (device.Link, "reserve", "pin"),
            (optimizer, "_lease", "beside: lease"),
            (optimizer, "_take_step", "beside: all before"),
            (optimizer, "_copy_back", "beside: parameters go back"),
            (adamw.Views, "release", "beside: release"),
            (device.Space, "tensor", "create tensors"),
        ):
            stack.enter_context(mock.patch.object(owner, name, watched(what, getattr(owner, name))))
        stack.enter_context(mock.patch.object(device.Link, "gradients", gradients))
        yield


def measure(arguments, params, pool, group_mib, threads, on):
    """Steps with groups of that size, and so many threads."""
    plain = Plain(params[0], threads)
    start = time.perf_counter()
    creating = {}
    with profile(creating):
        optimizer = spw.OffloadAdamW(params, pool, lr=LR, name=f"groups of {group_mib}", group_bytes=group_mib * MIB,
                                     threads=threads)  # fmt: skip
    created = time.perf_counter() - start
    what = f"groups of {group_mib} MiB, {threads} threads"
    say(f"{what}: {optimizer.state_bytes / GB:.2f} GB of states made in {created:.1f} s")
    seconds, spent = [], {}
    for _ in range(arguments.steps + 2):
        seconds.append(timed(optimizer.step, on))
        say(f"{what}: step {len(seconds)} took {seconds[-1]:.4f} s")
    before = pool.session.admin({"get": "pools"})["pools"][0]["loads"]
    with profile(spent):
        profiled = timed(optimizer.step, on)
    loads = pool.session.admin({"get": "pools"})["pools"][0]["loads"] - before
    for n in range(1, arguments.steps + 4):
        plain.step(n)
    mapped = optimizer._link._gpu.mapped_bytes if optimizer._link._gpu else 0
    found = {
        "group_mib": group_mib,
        "threads": threads,
        "groups": len(optimizer._groups),
        "created_s": round(created, 3),
        "creating_s": {name: round(value, 4) for name, value in creating.items()},
        "first_step_s": round(seconds[0], 4),
        "step_s": round(statistics.median(seconds[2:]), 4),
        "step_min_s": round(min(seconds[2:]), 4),
        "step_max_s": round(max(seconds[2:]), 4),
        "equal": plain.equals(params[0]),
        "mapped_bytes": mapped,
        "pieces": sum(group.n for group in optimizer._groups),
        "profiled_step_loads": loads,
        "profiled_step_s": round(profiled, 4),
        "profile_s": {name: round(value, 4) for name, value in spent.items()},
    }
    optimizer.close()
    return found


def judge(found, arguments, report):
    """How much of the largest bound a step reaches."""
    ceilings = report["ceilings"]
    nbytes = arguments.parameters * (4 if arguments.dtype == torch.float32 else 2)
    step = found["step_s"]
    best = {
        name: max(of[name] for of in ceilings["threads"].values()) for name in next(iter(ceilings["threads"].values()))
    }
    bounds = {"arithmetic_s": arguments.parameters / (best["plain_gparams_s"] * GB)}
    if "link" in ceilings:
        bounds["together_s"] = arguments.parameters / (best["together_gparams_s"] * GB)
        bounds["d2h_s"] = nbytes / (ceilings["link"]["d2h"] * GB)
        bounds["h2d_s"] = nbytes / (ceilings["link"]["h2d"] * GB)
        found["link_bytes_each_way"] = nbytes
        found["link_gb_s_each_way"] = round(nbytes / step / GB, 2)
    if "disk" in ceilings:
        bounds["disk_s"] = report["on_disk_bytes"] / (ceilings["disk"] * GB)
    found["gparams_s"] = round(arguments.parameters / step / GB, 3)
    found["bounds_s"] = {name: round(value, 4) for name, value in bounds.items()}
    found["of_bound"] = round(max(bounds.values()) / step, 3)
    return found


def settings():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parameters", type=int, help=f"{PARAMETERS}; with --disk {PARAMETERS_DISK}")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--tensors", type=int, default=100)
    parser.add_argument("--group-mib", default="64,256,512")
    parser.add_argument("--threads", default="0", help="that compute, e.g. 14,16; 0: all CPUs")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--device", default="cuda", help="cpu: to see that the script works")
    parser.add_argument("--disk", type=pathlib.Path, help="a file for the states that are not in memory")
    parser.add_argument("--dram-percent", type=int, default=50, help="of the states, with --disk")
    parser.add_argument("--disk-percent", type=int, default=200, help="of the states: the disk's size")
    parser.add_argument(
        "--warm-memory",
        type=float,
        default=0,
        metavar="GB",
        help="touch so much memory, and free it, before spillwayd starts: some virtual machines have little memory until "
        "it is touched, and spillwayd goes by what there is",
    )
    parser.add_argument("--output", type=pathlib.Path)
    arguments = parser.parse_args()
    arguments.dtype = getattr(torch, arguments.dtype)
    if arguments.parameters is None:
        arguments.parameters = PARAMETERS if arguments.disk is None else PARAMETERS_DISK
    arguments.parameters -= arguments.parameters % arguments.tensors
    return arguments


def pool_bytes(arguments, groups):
    """Of memory and of the disk: the states, and what three groups of leases and rounding take."""
    states = arguments.parameters * 12 + arguments.tensors * 48 * 1024
    leases = max(groups) * MIB * 4
    if arguments.disk is None:
        return states + states // 50 + leases + 256 * MIB, 0
    dram = max(states * arguments.dram_percent // 100, leases + 64 * MIB)
    return dram, states * arguments.disk_percent // 100 + 256 * MIB


def machine_of(arguments, on):
    return {
        "what": "spillway.torch.OffloadAdamW",
        "parameters": arguments.parameters,
        "dtype": str(arguments.dtype).split(".")[1],
        "tensors": arguments.tensors,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpus": len(os.sched_getaffinity(0)),
        "gpu": torch.cuda.get_device_name(on) if on.type == "cuda" else None,
        "commit": os.environ.get("SPILLWAY_COMMIT"),
    }


def ceilings_of(arguments, on):
    plain = PlainStep(arguments.parameters, arguments.dtype, on)
    found = {"threads": dict(plain.ceilings(int(n)) for n in arguments.threads.split(","))}
    if on.type == "cuda":
        found["link"] = link_rates(on)
    if arguments.disk:
        found["disk"] = disk_rate(arguments.disk)
    say(f"ceilings: {found}")
    return found


def write(report, output):
    if output:
        output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def measure_rows(arguments, report, groups, daemon, on):
    """For all sizes of groups, and for each all numbers of threads."""
    pool = spw.connect("bench", socket=daemon.socket, start=False)
    params = parameters(arguments, on)
    for group_mib in groups:
        for threads in report["ceilings"]["threads"]:
            row = measure(arguments, params, pool, group_mib, threads, on)
            report["rows"].append(judge(row, arguments, report))
            say(json.dumps(row))
            write(report, arguments.output)
    pool.session.close()


def main():
    arguments = settings()
    on = torch.device(arguments.device)
    groups = [int(n) for n in arguments.group_mib.split(",")]
    report = {**machine_of(arguments, on), "ceilings": ceilings_of(arguments, on), "rows": []}
    report["dram_bytes"], report["disk_bytes"] = dram_bytes, disk_bytes = pool_bytes(arguments, groups)
    report["on_disk_bytes"] = max(0, arguments.parameters * 12 - dram_bytes)  # what a step cannot have in memory
    write(report, arguments.output)
    if arguments.warm_memory:
        warm_memory(int(arguments.warm_memory * GB))
    with tempfile.TemporaryDirectory(prefix="spillway-gpu-torch-", dir="/var/tmp") as folder:
        start = time.perf_counter()
        daemon = Daemon(folder, dram_bytes, arguments.disk, disk_bytes)
        try:
            daemon.ready()
            report["daemon_ready_s"] = round(time.perf_counter() - start, 2)
            say(f"spillwayd with {dram_bytes / GB:.1f} GB is ready after {report['daemon_ready_s']} s")
            measure_rows(arguments, report, groups, daemon, on)
        finally:
            daemon.stop()
    print(json.dumps(report, indent=1))
    return 0 if all(row["equal"] for row in report["rows"]) else 1


if __name__ == "__main__":
    sys.exit(main())
