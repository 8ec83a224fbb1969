#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""docs/train_gpt.py on a GPU, with random weights and tokens, and a spillwayd of its own for the states.

    gpt.py [--states dram|mix|nvme] [--parameters N] [--disk PATH] [ARGUMENT OF train_gpt.py…]

dram: the pool has memory for all states. mix: for a part of them (--dram-percent). nvme: for the groups that a step leases.
The rest is in the file that --disk names, which is made, and removed. $SPILLWAY_BIN is the folder of spillwayd.
"""

import argparse
import os
import pathlib
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE / "../../../docs")]  # in the pack both are here

import gpu_torch  # noqa: E402
import train_gpt  # noqa: E402

GROUP_MIB = 256
LEASED_MIB = 3 * GROUP_MIB * 2  # so that three groups are less than 80 % of it, and the next one's read finds room
STATE_BYTES = 12  # of a parameter: its master and two moments
USUAL = ["--device", "cuda", "--dtype", "bfloat16", "--text", "random", "--batch", "8", "--context", "1024"]


def settings():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--states", choices=("dram", "mix", "nvme"), default="dram")
    parser.add_argument("--parameters", type=float, default=1e9)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--dram-percent", type=int, default=50, help="of the states, for `mix`")
    parser.add_argument("--disk", type=pathlib.Path, default="/var/tmp/spillway-gpt.spill")
    parser.add_argument("--disk-percent", type=int, default=130, help="of the states: the disk's size")
    parser.add_argument("--warm-memory", type=float, default=0, metavar="GB", help="as gpu_torch.py's")
    ours, theirs = parser.parse_known_args()
    usual = [*USUAL, "--group-mib", str(GROUP_MIB), "--parameters", str(ours.parameters), "--steps", str(ours.steps)]
    return ours, train_gpt.settings([*usual, *theirs])


def state_bytes(arguments):
    """Of the model, which is made without memory."""
    width, layers = train_gpt.shape(arguments.parameters)
    model = train_gpt.GPT(arguments.vocabulary, arguments.context, width, layers, device="meta")
    return sum(STATE_BYTES * p.numel() + 48 * 1024 for p in model.parameters())


def pool_bytes(ours, states):
    """Of memory, and of the disk."""
    leased = LEASED_MIB * gpu_torch.MIB
    if ours.states == "dram":
        return states + states // 50 + leased, 0
    part = states * ours.dram_percent // 100 if ours.states == "mix" else 0
    return max(part, leased), states * ours.disk_percent // 100 + 256 * gpu_torch.MIB


def main():
    ours, arguments = settings()
    states = state_bytes(arguments)
    dram, disk = pool_bytes(ours, states)
    gpu_torch.say(f"states of {states / 1e9:.2f} GB; memory for {dram / 1e9:.2f} GB, disk {disk / 1e9:.2f} GB")
    if ours.warm_memory:
        gpu_torch.warm_memory(int(ours.warm_memory * 1e9))
    with tempfile.TemporaryDirectory(prefix="spillway-gpt-", dir="/var/tmp") as folder:
        start = time.perf_counter()
        daemon = gpu_torch.Daemon(folder, dram, ours.disk if disk else None, disk)
        try:
            daemon.ready()
            gpu_torch.say(f"spillwayd is ready after {time.perf_counter() - start:.1f} s")
            os.environ["SPILLWAY_SOCKET"] = str(daemon.socket)
            train_gpt.main(arguments)
            gpu_torch.say(f"done after {time.perf_counter() - start:.1f} s")
        finally:
            daemon.stop()
            if disk:
                ours.disk.unlink()


if __name__ == "__main__":
    main()
