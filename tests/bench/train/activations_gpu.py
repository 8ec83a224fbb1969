#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Steps of models on a GPU whose activations are kept, offloaded to a spillwayd of its own, or moved by torch.

    activations_gpu.py [--shapes gpt,mlp,wide,long] [--ways WAY,…] [--steps N] [--sweep] [--seconds N] [--output FILE]

Shapes, all in bf16: "gpt", GPT-2 774M (36 blocks, width 1280, 20 heads, --batch times 1024 random tokens); "mlp", 12 blocks
of 4096 × 16384; where the compute can hide more: "wide", 4 blocks of width 12288, and "long", 4 blocks of width 4096 with
--long tokens. A step is forward and backward; the gradients' memory is there before. Ways: "keep", nothing; "offload",
offload_activations as its defaults are; "wait", the same with on_full="wait", which moves all; "pinned", torch's
save_on_cpu. --sweep: with other arguments, too. Of each way: the median of synchronised seconds of a step, its ratio to
"keep", the GPU's of forward, the peak of memory that torch has allocated, that of a step above what is there between steps,
and statistics of the last step. "equal": the first step's gradients have the bits that "keep" has, of which only "mlp" is
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
import time

import torch
import torch.nn.functional as F

import spillway.torch as spw

MIB, GIB = 1 << 20, 1 << 30
BIN = pathlib.Path(os.environ.get("SPILLWAY_BIN", "."))
START = time.monotonic()


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


def step(model, x, context):
    """Its seconds, and those of forward. Leaves the gradients."""
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
    torch.cuda.synchronize()
    start = time.perf_counter()
    events[0].record()
    with context:
        loss = model(x)
    events[1].record()
    loss.backward()
    torch.cuda.synchronize()
    return time.perf_counter() - start, events[0].elapsed_time(events[1]) / 1e3


def fingerprint(model):
    """Of the gradients' bits."""
    return [int(p.grad.view(torch.int16).long().sum()) for p in model.parameters() if p.grad is not None]


def measure(model, x, new_context, steps):
    """The row of a way. A new context in each step, so that statistics are of one."""
    model.zero_grad(set_to_none=True)
    gc.collect()
    torch.cuda.empty_cache()
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    first, _ = step(model, x, new_context())
    bits = fingerprint(model)
    seconds, forward, peaks, reserved, idle, stats = [], [], [], 0, 0, None
    for turn in range(steps + 1):
        model.zero_grad(set_to_none=False)
        context = new_context()
        idle = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        taken = step(model, x, context)
        if turn > 0:
            seconds.append(taken[0])
            forward.append(taken[1])
            peaks.append(torch.cuda.max_memory_allocated())
            reserved = torch.cuda.max_memory_reserved()
        stats = getattr(context, "stats", None)
        del context
    model.zero_grad(set_to_none=True)
    return bits, {
        "step_ms": round(1e3 * statistics.median(seconds), 2),
        "step_min_ms": round(1e3 * min(seconds), 2),
        "step_max_ms": round(1e3 * max(seconds), 2),
        "forward_ms": round(1e3 * statistics.median(forward), 2),
        "first_step_ms": round(1e3 * first, 2),
        "peak_gib": round(max(peaks) / GIB, 3),
        "step_peak_gib": round((max(peaks) - idle) / GIB, 3),
        "reserved_gib": round(reserved / GIB, 3),
        "left_bytes": torch.cuda.memory_allocated() - idle,
        "stats": None if stats is None else stats._asdict(),
    }


def ways_of(arguments, pool):
    """By name: what makes a context, and for how many steps."""

    def offload(**options):
        return lambda: spw.offload_activations(pool, **options)

    ways = {
        "keep": (contextlib.nullcontext, arguments.steps),
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
    ways["pinned"] = (lambda: torch.autograd.graph.save_on_cpu(pin_memory=True), 2)
    if arguments.ways:
        ways = {name: ways[name] for name in arguments.ways.split(",")}
    return ways


def compare(name, arguments, pool):
    """Rows of a shape's ways."""
    model, x = shape_of(name, arguments)
    rows, expected = {}, None
    for way, (new_context, steps) in ways_of(arguments, pool).items():
        if time.monotonic() - START > arguments.seconds:
            say(f"{name}: {way} is left out: the time is over")
            continue
        try:
            bits, row = measure(model, x, new_context, steps)
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
        say(f"{name}: {way}: {json.dumps(row)}")
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
    parser.add_argument("--sweep", action="store_true", help="offload with other arguments, too")
    parser.add_argument("--seconds", type=float, default=130, help="no way begins after so many")
    parser.add_argument("--batch", type=int, default=8, help="of gpt")
    parser.add_argument("--mlp-tokens", type=int, default=16384)
    parser.add_argument("--long", type=int, default=65536, help="tokens of long")
    parser.add_argument("--dram", type=int, default=40, help="of the pool, in GiB")
    parser.add_argument("--output", type=pathlib.Path)
    arguments = parser.parse_args()
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
            report["shapes"][name] = compare(name, arguments, pool)
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
