#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A step of GPT-like blocks on the CPU with its activations kept, offloaded, or offloaded without overlap: needs torch.

    activations_torch.py SOCKET [--layers N] [--width N] [--tokens N] [--batch N] [--rounds N] [--json FILE]

SOCKET is a daemon's, whose pool has room for all activations. In a round each way makes one step, in another order each
time. Of each: the medians of a step's seconds, and of its CPU time, with their ratios to keeping all; and the largest
number of bytes of saved tensors that were in memory when one was saved or used, parameters not counted. "synchronous" is
the same code, but the forward pass waits for each copy, and nothing is read ahead. Gradients are compared bit for bit.
"""

import argparse
import contextlib
import json
import pathlib
import sys
import time

import torch
from torch.multiprocessing.reductions import StorageWeakRef

import spillway.torch as spw
from spillway.torch import activations

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "peers"))
import stats  # noqa: E402


class Block(torch.nn.Module):
    def __init__(self, width, head=64):
        super().__init__()
        self.heads = max(width // head, 1)
        self.norm, self.qkv = torch.nn.LayerNorm(width), torch.nn.Linear(width, 3 * width)
        self.out = torch.nn.Linear(width, width)
        self.mlp = torch.nn.Sequential(torch.nn.LayerNorm(width), torch.nn.Linear(width, 4 * width), torch.nn.GELU(),
                                       torch.nn.Linear(4 * width, width))  # fmt: skip

    def forward(self, x):
        n, tokens, width = x.shape
        q, k, v = (part.view(n, tokens, self.heads, -1).transpose(1, 2) for part in self.qkv(self.norm(x)).chunk(3, -1))
        weights = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(n, tokens, width))
        return x + self.mlp(x)


class Memory:
    """The storages of saved tensors, and how many bytes of them were in memory at most."""

    def __init__(self, parameters):
        self._parameters = {activations._storage(p)._cdata for p in parameters}
        self._seen, self.offloader, self.peak = {}, None, 0

    def note(self, tensor):
        storage = activations._storage(tensor)
        if storage._cdata not in self._parameters:
            self._seen[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self._seen = {at: seen for at, seen in self._seen.items() if not seen[0].expired()}
        held = self._held()
        self.peak = max(self.peak, sum(n for at, (_, n) in self._seen.items() if at not in held) + sum(held.values()))
        return tensor

    def _held(self):
        """Storages that are queued, or were read ahead."""
        if self.offloader is None:
            return {}
        found = [reference() for _, reference in list(self.offloader._order)]
        held = [a.storage for a in found if a is not None]
        return {storage._cdata: storage.nbytes() for storage in held if storage is not None}


def hooks(way, pool, memory, options):
    """A context in which a forward pass saves."""
    if way == "keep":
        return torch.autograd.graph.saved_tensors_hooks(lambda t: memory.note(t).detach(), memory.note)
    context = spw.offload_activations(pool, **options)
    offloader = memory.offloader = context._offloader

    def pack(tensor):
        saved = offloader.pack(memory.note(tensor))
        if way == "synchronous":
            with offloader._changed:
                offloader._changed.wait_for(lambda: offloader._in_flight == 0)
        return saved

    if way == "synchronous":
        offloader._prefetch_before = lambda number: None
    context.pack_hook, context.unpack_hook = pack, lambda saved: memory.note(offloader.unpack(saved))
    return context


def step(model, x, context):
    """Its seconds, those of CPU time (all threads of this process), and the gradients."""
    start, cpu_start = time.perf_counter(), time.process_time()
    with context:
        loss = model(x).square().mean()
    loss.backward()
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    gradients = [p.grad for p in model.parameters()]
    model.zero_grad(set_to_none=True)
    return seconds, cpu_seconds, gradients


def measure(arguments, pool):
    """Of each way: samples, bytes, statistics of the last step."""
    torch.manual_seed(1)
    model = torch.nn.Sequential(*(Block(arguments.width) for _ in range(arguments.layers)))
    x = torch.randn(arguments.batch, arguments.tokens, arguments.width)
    ways = ["keep", "offload", "synchronous"]
    found = {way: {"seconds": [], "cpu_seconds": [], "peak_bytes": 0} for way in ways}
    options = {"in_flight_bytes": arguments.in_flight << 20, "prefetch_bytes": arguments.prefetch << 20}
    expected = step(model, x, contextlib.nullcontext())[-1]  # and warm
    for turn in range(arguments.rounds + 1):
        for way in ways[turn % 3 :] + ways[: turn % 3]:
            memory = Memory(model.parameters())
            context = hooks(way, pool, memory, options)
            seconds, cpu_seconds, gradients = step(model, x, context)
            if not all(torch.equal(a, b) for a, b in zip(gradients, expected, strict=True)):
                sys.exit(f"{way}: the gradients differ")
            if turn > 0:
                found[way]["seconds"].append(seconds)
                found[way]["cpu_seconds"].append(cpu_seconds)
                found[way]["peak_bytes"] = max(found[way]["peak_bytes"], memory.peak)
                if way != "keep":
                    found[way]["stats"] = context.stats._asdict()
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("socket", help="of spillwayd")
    for name, default in (("layers", 6), ("width", 512), ("tokens", 512), ("batch", 4), ("rounds", 9)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--in-flight", type=int, default=256, help="in_flight_bytes, in MiB")
    parser.add_argument("--prefetch", type=int, default=256, help="prefetch_bytes, in MiB")
    parser.add_argument("--json", type=pathlib.Path, help="a file for all samples")
    arguments = parser.parse_args()
    pool = spw.connect("activations_torch", socket=arguments.socket, start=False)
    found = measure(arguments, pool)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {vars(arguments)}")
    for way, of in found.items():
        seconds, cpu_seconds = stats.estimate(of["seconds"]), stats.estimate(of["cpu_seconds"])
        ratio, cpu_ratio = (stats.paired(of[key], found["keep"][key]) for key in ("seconds", "cpu_seconds"))
        share = of["peak_bytes"] / found["keep"]["peak_bytes"] - 1
        print(f"  {way:12} {1e3 * seconds.median:7.0f} ms, {ratio.median:.3f}× [{ratio.low:.3f}, {ratio.high:.3f}]; "
              f"CPU time {1e3 * cpu_seconds.median:7.0f} ms, {cpu_ratio.median:.3f}× "
              f"[{cpu_ratio.low:.3f}, {cpu_ratio.high:.3f}]; "
              f"peak {of['peak_bytes'] / 2**20:5.0f} MiB, {100 * share:+.0f} %")  # fmt: skip
        print("".join(f"    {name} {value}" for name, value in of.get("stats", {}).items()))
    if arguments.json:
        arguments.json.write_text(json.dumps({"arguments": {**vars(arguments), "json": None}, "ways": found}, indent=1))
    pool.session.close()


if __name__ == "__main__":
    main()
