#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Trains a small GPT, character by character, with the states of its optimizer in a pool of spillwayd's.

    train_gpt.py                                         on the CPU, on a text that every Debian machine has
    train_gpt.py --save; train_gpt.py --resume 200       goes on where it was, bit for bit
    train_gpt.py --in-memory                             the same numbers without spillwayd
    train_gpt.py --device cuda --parameters 1e9 --text random --dtype bfloat16

docs/training.md tells more.
"""
import argparse
import contextlib
import pathlib
import time

import torch
from torch import nn

import spillway.torch as spw
from spillway import train

TEXT = "/usr/share/common-licenses/GPL-3"
NUMBERS = {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
MIB = 1 << 20


class GPT(nn.Module):
    def __init__(self, vocabulary, context, width, layers, **where):
        super().__init__()
        self.token = nn.Embedding(vocabulary, width, **where)
        self.place = nn.Embedding(context, width, **where)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, max(width // 64, 1), 4 * width, dropout=0.0, activation="gelu", batch_first=True,
                norm_first=True, **where,
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width, **where)
        self.head = nn.Linear(width, vocabulary, bias=False, **where)
        self.register_buffer("mask", torch.full((context, context), float("-inf"), **where).triu(1))

    def forward(self, tokens, targets):
        x = self.token(tokens) + self.place.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x, self.mask)
        return nn.functional.cross_entropy(self.head(self.norm(x)).flatten(0, 1).float(), targets.flatten())


class InMemory:
    """The same arithmetic with states in this process: what the losses are compared with."""

    def __init__(self, params):
        self.params = list(params)
        self.states = [(torch.zeros(p.numel()), torch.zeros(p.numel())) for p in self.params]
        self.steps = 0

    def step(self):
        self.steps += 1
        for p, (m, v) in zip(self.params, self.states):
            pointers = [t.data_ptr() for t in (p.grad, p, m, v)]
            train.adam(train.Adam(step=self.steps, **NUMBERS), [train.Slice(p.numel(), *pointers)])

    def zero_grad(self):
        for p in self.params:
            p.grad = None


def shape(parameters):
    """Width and layers of a GPT of about so many parameters: a layer for each 64 of the width, and 12 width² in each."""
    width = max(round((parameters * 64 / 12) ** (1 / 3) / 128), 1) * 128
    return width, max(round(parameters / (12 * width**2)), 1)


def batch_of(tokens, step, arguments):
    """The batch of a step, whatever came before it: inputs, and what comes next at each place."""
    random = torch.Generator().manual_seed(step)
    length = arguments.context + 1
    if tokens is None:
        rows = torch.randint(arguments.vocabulary, (arguments.batch, length), generator=random)
    else:
        firsts = torch.randint(len(tokens) - length, (arguments.batch,), generator=random).tolist()
        rows = torch.stack([tokens[first : first + length] for first in firsts]).long()
    rows = rows.to(arguments.device)
    return rows[:, :-1], rows[:, 1:]


def settings(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", default=TEXT, help="a file, or `random`: tokens without a meaning")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--context", type=int, default=64)
    parser.add_argument("--parameters", type=float, default=8e5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--pool", default="default")
    parser.add_argument("--group-mib", type=int, help="how much is leased at once, twice")
    parser.add_argument("--offload-activations", action="store_true")
    parser.add_argument("--overlap-backward", action="store_true", help="steps groups during the backward pass")
    parser.add_argument("--save", action="store_true", help="after the last step")
    parser.add_argument("--resume", type=int, default=0, metavar="STEP", help="go on after this step, which was saved")
    parser.add_argument("--in-memory", action="store_true", help="without spillwayd; fp32 on the CPU")
    parser.add_argument("--timeline", metavar="NAME", help="write NAME.json and NAME.png of the last step")
    arguments = parser.parse_args(arguments)
    arguments.vocabulary = 32000 if arguments.text == "random" else 256
    if arguments.in_memory and (arguments.device != "cpu" or arguments.dtype != "float32" or arguments.overlap_backward):
        parser.error("--in-memory is for fp32 on the CPU, and has nothing to overlap")
    return arguments


def main(arguments):
    """Trains; returns the losses."""
    torch.manual_seed(1)
    width, layers = shape(arguments.parameters)
    where = {"device": arguments.device, "dtype": getattr(torch, arguments.dtype)}
    model = GPT(arguments.vocabulary, arguments.context, width, layers, **where)
    size = sum(p.numel() for p in model.parameters())
    print(f"{size / 1e6:.1f} million parameters: {layers} layers of width {width}", flush=True)
    tokens = None
    if arguments.text != "random":
        tokens = torch.frombuffer(bytearray(pathlib.Path(arguments.text).read_bytes()), dtype=torch.uint8)

    if arguments.in_memory:
        return run(model, InMemory(model.parameters()), contextlib.nullcontext(), tokens, arguments)
    pool = spw.connect("train", pool=arguments.pool)
    group_bytes = arguments.group_mib and arguments.group_mib * MIB
    opt = spw.OffloadAdamW(model.named_parameters(), pool, name="gpt", group_bytes=group_bytes, **NUMBERS)
    offload = contextlib.nullcontext()
    if arguments.offload_activations:
        offload = spw.offload_activations(pool, min_bytes=64 << 10)
    if arguments.resume:
        opt.load(f"step-{arguments.resume}")
    before = stat_of(pool)
    losses = run(model, opt, offload, tokens, arguments)
    report(opt, before, stat_of(pool), arguments)
    if arguments.save:
        opt.save(f"step-{arguments.resume + arguments.steps}")
    opt.close()
    pool.session.close()
    return losses


def run(model, opt, offload, tokens, arguments):
    losses, seconds, stepped = [], [], []
    last = arguments.resume + arguments.steps
    for step in range(arguments.resume, last):
        began = time.perf_counter()
        with offload:
            loss = model(*batch_of(tokens, step, arguments))
        with opt.overlap_backward() if arguments.overlap_backward else contextlib.nullcontext():
            loss.backward()
        losses.append(loss.item())
        step_began = time.perf_counter()
        if arguments.timeline and step + 1 == last:
            with spw.Timeline(opt) as timeline:
                opt.step()
        else:
            opt.step()
        opt.zero_grad()
        if arguments.device != "cpu":
            torch.cuda.synchronize()
        stepped.append(time.perf_counter() - step_began)
        seconds.append(time.perf_counter() - began)
        if step % 10 == 0 or step + 1 == last or seconds[-1] > 2:
            print(f"step {step:5}: loss {losses[-1]:.4f}, {seconds[-1]:.3f} s, of them optimizer {stepped[-1]:.3f} s",
                  flush=True)  # fmt: skip
    middle, of_optimizer = sorted(seconds)[len(seconds) // 2], sorted(stepped)[len(stepped) // 2]
    print(f"median: {middle:.4f} s a step, of them optimizer {of_optimizer:.4f} s; "
          f"{arguments.batch * arguments.context / middle:.0f} tokens/s")  # fmt: skip
    if arguments.timeline:
        write(timeline, arguments.timeline)
    return losses


def write(timeline, name):
    """What the optimizer did in the last step: for a browser, and as a picture."""
    timeline.save(f"{name}.json")
    try:
        timeline.picture(f"{name}.png")
    except ImportError as error:
        print(error)


def stat_of(pool):
    return pool.space({"what": "train_gpt.py's look at the pool"}).stat()


def report(opt, before, after, arguments):
    """Where the states are, and what moved in a step."""
    print(f"optimizer states: {opt.state_bytes / MIB:.0f} MiB")
    for tier in ("dram", "cxl", "nvme"):
        used, budget = getattr(after, f"{tier}_used"), getattr(after, f"{tier}_budget")
        hits = getattr(after, f"hits_{tier}") - getattr(before, f"hits_{tier}")
        if budget:
            print(f"  {tier}: {used / MIB:.0f} of {budget / MIB:.0f} MiB used, {hits / arguments.steps:.1f} hits a step")
    read, written = after.bytes_read - before.bytes_read, after.bytes_written - before.bytes_written
    print(f"devices, a step: {read / arguments.steps / 1e9:.3f} GB read, {written / arguments.steps / 1e9:.3f} GB written")
    if arguments.device != "cpu":
        link = sum(p.numel() * p.element_size() for settings in opt.param_groups for p in settings["params"])
        print(f"link, a step: {link / 1e9:.3f} GB of gradients over, as much of parameters back")
        print(f"GPU memory at most: {torch.cuda.max_memory_allocated() / 1e9:.2f} GB")


if __name__ == "__main__":
    main(settings())
