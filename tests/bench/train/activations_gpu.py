#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Steps of models on a GPU whose activations are kept, offloaded to a spillwayd of its own, or moved by torch.

    activations_gpu.py [--shapes gpt,mlp,wide,long] [--ways WAY,…] [--steps N] [--sweep] [--profile] [--seconds N]
                       [--output FILE]

Shapes, all in bf16: "gpt", GPT-2 774M (36 blocks, width 1280, 20 heads, --batch times 1024 random tokens); "mlp", 12 blocks
of 4096 × 16384; where the compute can hide more: "wide", 4 blocks of width 12288, and "long", 4 blocks of width 4096 with
--long tokens. A step is forward and backward; the gradients' memory is there before. Ways: "keep", nothing; "hooks", what
offload_activations costs if it moves nothing (min_bytes); "offload", it as its defaults are; "wait", the same with
on_full="wait", which moves all; "synchronous", copies to pinned memory that is kept from step to step, each waited for;
"pinned", torch's save_on_cpu. --sweep: with other arguments, too. Of each way: synchronised
seconds of each step and their median, its ratio to "keep", the GPU's of forward and backward, the host's of forward, the peak
of memory that torch has allocated, that of a step above what is there between steps, and of each step what was moved: GB that
were copied by the copy engine to memory that stays mapped, offloaded otherwise, kept in memory because backward came first (forwarded), read back;
copies that had begun by then (overtaken); GB/s of the copy engine each way; how much of what the link could do in forward
was used (of_forward: what hides can be no more); and how long backward waited on the host. "equal": the first step's gradients have the bits that "keep" has, of which only "mlp" is
sure: attention's backward adds up in any order. No way begins after --seconds. JSON to standard output, or FILE; progress
to standard error.

$SPILLWAY_BIN is the folder of spillwayd.
"""

import argparse
import contextlib
import gc
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import typing
from unittest import mock

import torch
import torch.nn.functional as F

import gpu_torch
import spillway.torch as spw
from spillway.torch import activations, activations_gpu

MIB, GIB = 1 << 20, 1 << 30
BIN = pathlib.Path(os.environ.get("SPILLWAY_BIN", "."))
START = time.monotonic()
WARM_STEPS = 2  # after the first: memory is mapped as slots are needed
SHOWN = ("copied_gb", "otherwise_gb", "loaded_gb", "forwarded_gb", "overtaken", "put_gb_s", "get_gb_s", "of_forward", "waited_ms")


def say(text):
    print(f"{time.monotonic() - START:6.1f} {text}", file=sys.stderr, flush=True)


# --- Models ----------------------------------------------------------------------------------------------------------


class Block(torch.nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.qkv = torch.nn.LayerNorm(width), torch.nn.Linear(width, 3 * width)
        self.out, self.norm2 = torch.nn.Linear(width, width), torch.nn.LayerNorm(width)
        self.up, self.down = torch.nn.Linear(width, 4 * width), torch.nn.Linear(4 * width, width)

    def forward(self, x):
        n, tokens, width = x.shape
        parts = self.qkv(self.norm1(x)).chunk(3, -1)
        q, k, v = (part.view(n, tokens, self.heads, -1).transpose(1, 2) for part in parts)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(n, tokens, width))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class Gpt(torch.nn.Module):
    """Its loss."""

    def __init__(self, layers, width, heads, vocabulary, tokens):
        super().__init__()
        self.tokens, self.places = torch.nn.Embedding(vocabulary, width), torch.nn.Embedding(tokens, width)
        self.blocks = torch.nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm, self.head = torch.nn.LayerNorm(width), torch.nn.Linear(width, vocabulary, bias=False)

    def forward(self, x):
        hidden = self.tokens(x) + self.places(torch.arange(x.shape[1], device=x.device))
        logits = self.head(self.norm(self.blocks(hidden)))
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), x[:, 1:].flatten())


class Mlp(torch.nn.Module):
    """Its loss."""

    def __init__(self, layers, width, hidden):
        super().__init__()
        self.blocks = torch.nn.Sequential(
            *(torch.nn.Sequential(torch.nn.Linear(width, hidden), torch.nn.GELU(), torch.nn.Linear(hidden, width))
              for _ in range(layers))
        )  # fmt: skip

    def forward(self, x):
        return self.blocks(x).float().square().mean()


def shape_of(name, arguments):
    """A model and its input."""
    torch.manual_seed(1)
    with torch.device("cuda"):
        if name == "mlp":
            return Mlp(12, 4096, 16384).bfloat16(), torch.randn(arguments.mlp_tokens, 4096).bfloat16()
        if name == "gpt":
            model, vocabulary, shape = Gpt(36, 1280, 20, 50304, 1024), 50304, (arguments.batch, 1024)
        elif name == "wide":
            model, vocabulary, shape = Gpt(4, 12288, 96, 8192, 2048), 8192, (8, 2048)
        else:
            model, vocabulary, shape = Gpt(4, 4096, 32, 8192, arguments.long), 8192, (1, arguments.long)
        return model.bfloat16(), torch.randint(0, vocabulary, shape)


# --- Measuring -------------------------------------------------------------------------------------------------------


class Taken(typing.NamedTuple):
    """Seconds of a step; the GPU's of forward and backward; the host's of forward."""

    total: float
    forward: float
    backward: float
    host_forward: float


def step(model, x, context):
    """Its seconds. Leaves the gradients."""
    events = [torch.cuda.Event(enable_timing=True) for _ in range(3)]
    torch.cuda.synchronize()
    start = time.perf_counter()
    events[0].record()
    with context:
        loss = model(x)
    events[1].record()
    host = time.perf_counter() - start
    loss.backward()
    events[2].record()
    torch.cuda.synchronize()
    total = time.perf_counter() - start
    return Taken(total, events[0].elapsed_time(events[1]) / 1e3, events[1].elapsed_time(events[2]) / 1e3, host)


def fingerprint(model):
    """Of the gradients' bits."""
    return [int(p.grad.view(torch.int16).long().sum()) for p in model.parameters() if p.grad is not None]


def moved(stats, taken, link):
    """What a step's statistics say, in GB and GB/s."""
    return {
        "copied_gb": round(stats.copied / 1e9, 3),
        "otherwise_gb": round((stats.offloaded - stats.copied) / 1e9, 3),
        "forwarded_gb": round(stats.forwarded / 1e9, 3),
        "resident_gb": round(stats.resident / 1e9, 3),
        "loaded_gb": round(stats.loaded / 1e9, 3),
        "kept_gb": {why: round(nbytes / 1e9, 3) for why, nbytes in stats.kept.items()},
        "overtaken": stats.overtaken,
        "put_gb_s": round(stats.copied / stats.put_seconds / 1e9, 1) if stats.put_seconds else None,
        "get_gb_s": round(stats.loaded / stats.get_seconds / 1e9, 1) if stats.get_seconds else None,
        "of_forward": round(stats.copied / (link["d2h"] * 1e9 * taken.forward), 2),
        "waited_ms": round(1e3 * stats.waited_seconds, 1),
    }


def milliseconds(taken, what):
    return round(1e3 * statistics.median(getattr(each, what) for each in taken), 2)


def measure(model, x, new_context, steps, link, profiled):
    """The row of a way. A new context in each step, so that statistics are of one."""
    model.zero_grad(set_to_none=True)
    gc.collect()
    torch.cuda.empty_cache()
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    first = step(model, x, new_context())
    bits = fingerprint(model)
    taken, peaks, each, reserved, idle = [], [], [], 0, 0
    for turn in range(-WARM_STEPS, steps):
        model.zero_grad(set_to_none=False)
        context = new_context()
        idle = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        seconds = step(model, x, context)
        if turn >= 0:
            taken.append(seconds)
            peaks.append(torch.cuda.max_memory_allocated())
            reserved = torch.cuda.max_memory_reserved()
        if hasattr(context, "stats"):
            each.append({"step_ms": round(1e3 * seconds.total, 1), **moved(context.stats, seconds, link)})
        del context
    spent = profile(model, x, new_context) if profiled else {}
    model.zero_grad(set_to_none=True)
    return bits, {
        "step_ms": milliseconds(taken, "total"),
        "steps_ms": [round(1e3 * one.total, 1) for one in taken],
        "forward_ms": milliseconds(taken, "forward"),
        "backward_ms": milliseconds(taken, "backward"),
        "host_forward_ms": milliseconds(taken, "host_forward"),
        "first_step_ms": round(1e3 * first.total, 2),
        "peak_gib": round(max(peaks) / GIB, 3),
        "step_peak_gib": round((max(peaks) - idle) / GIB, 3),
        "reserved_gib": round(reserved / GIB, 3),
        "left_bytes": torch.cuda.memory_allocated() - idle,
        "moved": each,  # with the steps that are not counted
        "profile": spent,
    }


def profile(model, x, new_context):
    """A step more: where the host's time goes, with what it waits for the GIL. Milliseconds and calls, each with what is
    within it; the watching itself takes a microsecond a call."""
    spent = {}

    def watched(owner, name):
        function = getattr(owner, name)

        def call(*args, **options):
            start = time.perf_counter()
            try:
                return function(*args, **options)
            finally:
                of = spent.setdefault(f"{threading.current_thread().name.split('-')[0]}: {name}", [0.0, 0])
                of[0] += time.perf_counter() - start
                of[1] += 1

        return mock.patch.object(owner, name, call)

    with contextlib.ExitStack() as stack:
        for owner, names in (
            (activations._Offloader, ("pack", "_why_kept", "_save", "_hold_back", "unpack", "_take", "_put", "_prefetch")),
            (activations._Mover, ("host_has_time",)),
            (activations_gpu._DeviceMover, ("origin", "room")),
            (activations_gpu._SlotMover, ("put", "get", "use", "drop")),
        ):
            for name in names:
                stack.enter_context(watched(owner, name))
        seconds = step(model, x, new_context())
    return {
        "step_ms": round(1e3 * seconds.total, 1),
        **{name: {"ms": round(1e3 * of[0], 2), "calls": of[1]} for name, of in sorted(spent.items())},
    }


class Synchronous(torch.autograd.graph.saved_tensors_hooks):
    """Each saved tensor is copied to pinned memory at once, and back where it is needed: the least that can be done."""

    spare = {}  # pinned memory that has been used before, by its size

    def __init__(self):
        super().__init__(self.pack, self.unpack)

    def pack(self, tensor):
        if not tensor.is_cuda or tensor.untyped_storage().nbytes() < MIB or not tensor.is_contiguous():
            return tensor
        spare = self.spare.setdefault(tensor.nbytes, [])
        memory = spare.pop() if spare else torch.empty(tensor.nbytes, dtype=torch.uint8, pin_memory=True)
        memory.view(tensor.dtype).copy_(tensor.reshape(-1))  # blocks until it is there
        return memory, tensor.dtype, tensor.shape, tensor.device

    def unpack(self, packed):
        if isinstance(packed, torch.Tensor):
            return packed
        memory, dtype, shape, device = packed
        tensor = memory.view(dtype).to(device).view(shape)
        self.spare[memory.nbytes].append(memory)
        return tensor


def ways_of(arguments, pool):
    """By name: what makes a context, and for how many steps."""

    def offload(**options):
        return lambda: spw.offload_activations(pool, **options)

    ways = {
        "keep": (contextlib.nullcontext, arguments.steps),
        "hooks": (offload(min_bytes=1 << 60), arguments.steps),
        "offload": (offload(), arguments.steps),
        "wait": (offload(on_full="wait"), max(arguments.steps // 2, 2)),
    }
    if arguments.sweep:
        for mib in (64, 1024, 4096):
            ways[f"offload: {mib} MiB ahead"] = (offload(in_flight_bytes=mib * MIB), arguments.steps)
            ways[f"offload: {mib} MiB read ahead"] = (offload(prefetch_bytes=mib * MIB), arguments.steps)
        for mib in (8, 32):
            ways[f"offload: {mib} MiB or more"] = (offload(min_bytes=mib * MIB), arguments.steps)
    ways["keep again"] = ways["keep"]
    ways["synchronous"] = (Synchronous, 2)
    ways["pinned"] = (lambda: torch.autograd.graph.save_on_cpu(pin_memory=True), 2)
    if arguments.ways:
        ways = {name: ways[name] for name in arguments.ways.split(",")}
    return ways


def slots_of(pool):
    """Bytes of the pool's memory that are slots, and those of the windows that were registered for them."""
    ways = [way for key, way in pool.session._attachments.items() if key[0] == "activations" and way is not None]
    slots = [way.mapped.slots for way in ways if way.mapped is not None]
    return {"slots": sum(s.nbytes for s in slots), "mapped": sum(s._mapper.mapped_bytes for s in slots if s.usable)}


def summary(row):
    """A line of a row."""
    last = row["moved"][-1] if row["moved"] else {}
    text = f"{row['step_ms']} ms ({row['ratio']}x), peak {row['step_peak_gib']} GiB ({row['step_peak_change_percent']} %)"
    return text + "".join(f", {name} {last[name]}" for name in SHOWN if name in last)


def compare(name, arguments, pool, link):
    """Rows of a shape's ways."""
    model, x = shape_of(name, arguments)
    rows, expected = {}, None
    for way, (new_context, steps) in ways_of(arguments, pool).items():
        if time.monotonic() - START > arguments.seconds:
            say(f"{name}: {way} is left out: the time is over")
            continue
        try:
            bits, row = measure(model, x, new_context, steps, link, arguments.profile)
        except torch.cuda.OutOfMemoryError as error:
            rows[way] = {"error": str(error).splitlines()[0]}
            continue
        expected = expected or bits
        keep = rows.get("keep", row)
        row["equal"] = bits == expected
        row["ratio"] = round(row["step_ms"] / keep["step_ms"], 4)
        row["peak_change_percent"] = round(100 * (row["peak_gib"] / keep["peak_gib"] - 1), 1)
        row["step_peak_change_percent"] = round(100 * (row["step_peak_gib"] / keep["step_peak_gib"] - 1), 1)
        rows[way] = row
        row["memory"] = slots_of(pool)
        say(f"{name}: {way}: {summary(row)}")
        for what, found in row["profile"].items():
            say(f"    {what}: {found}")
    return rows


def link_rates():
    """GB/s of torch's copies of pinned memory."""
    there = torch.empty(256 * MIB, dtype=torch.uint8, device="cuda")
    here = torch.empty(256 * MIB, dtype=torch.uint8, pin_memory=True)

    def rate(to, source):
        to.copy_(source)
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(8):
            to.copy_(source, non_blocking=True)
        torch.cuda.synchronize()
        return round(8 * to.numel() / (time.perf_counter() - start) / 1e9, 2)

    return {"d2h": rate(here, there), "h2d": rate(there, here)}


# --- The daemon ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def daemon(gib):
    """The socket of a spillwayd with so much memory."""
    with tempfile.TemporaryDirectory(prefix="spillway-activations-", dir="/var/tmp") as name:
        folder = pathlib.Path(name)
        text = f"[daemon]\nsocket = {folder / 'socket'}\n[tier.dram]\nsize = {gib} GiB\n"
        (folder / "conf").write_text(text, encoding="utf-8")
        with open(folder / "log", "wb") as log:
            command = [BIN / "spillwayd", "--user", "--config", folder / "conf"]
            process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            while b"ready:" not in (folder / "log").read_bytes():
                if process.poll() is not None:
                    sys.exit("spillwayd: " + (folder / "log").read_text(encoding="utf-8", errors="replace"))
                time.sleep(0.05)
            yield folder / "socket"
        finally:
            process.terminate()
            process.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", default="gpt,mlp,wide")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--ways", help="all, if not given")
    parser.add_argument("--profile", action="store_true", help="where the host's time goes, of a step more of each way")
    parser.add_argument("--sweep", action="store_true", help="offload with other arguments, too")
    parser.add_argument("--seconds", type=float, default=130, help="no way begins after so many")
    parser.add_argument("--batch", type=int, default=8, help="of gpt")
    parser.add_argument("--mlp-tokens", type=int, default=16384)
    parser.add_argument("--long", type=int, default=65536, help="tokens of long")
    parser.add_argument("--dram", type=int, default=56, help="of the pool, in GiB: half of it can be mapped")
    parser.add_argument("--warm-memory", type=float, default=0, metavar="GB", help="as gpu_torch.py's")
    parser.add_argument("--output", type=pathlib.Path)
    arguments = parser.parse_args()
    if arguments.warm_memory:
        gpu_torch.warm_memory(int(arguments.warm_memory * 1e9))
    report = {
        "what": "spillway.torch.offload_activations on a GPU",
        "arguments": {**vars(arguments), "output": None},
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpus": len(os.sched_getaffinity(0)),
        "gpu": torch.cuda.get_device_name(),
        "commit": os.environ.get("SPILLWAY_COMMIT"),
        "link_gb_s": link_rates(),
        "shapes": {},
    }
    say(f"{report['gpu']}, link {report['link_gb_s']}")
    with daemon(arguments.dram) as socket:
        say(f"spillwayd with {arguments.dram} GiB is ready")
        pool = spw.connect("bench", socket=socket, start=False)
        for name in arguments.shapes.split(","):
            report["shapes"][name] = compare(name, arguments, pool, report["link_gb_s"])
            gc.collect()
            torch.cuda.empty_cache()
            getattr(torch._C, "_host_emptyCache", lambda: None)()
        pool.session.close()
    text = json.dumps(report, indent=1)
    if arguments.output:
        arguments.output.write_text(text + "\n", encoding="utf-8")
    print(text)
    return 0 if all(row.get("equal", True) for row in report["shapes"].get("mlp", {}).values()) else 1


if __name__ == "__main__":
    sys.exit(main())
