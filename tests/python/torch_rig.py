# SPDX-License-Identifier: Apache-2.0
"""For tests of spillway.torch: a small model and its training, all bits of its optimizer, a daemon, and jobs."""
import hashlib
import multiprocessing
import os
import signal
import time
import unittest

import spillway
import spillway.torch as spw
import support
import torch
from spillway import train

STUCK = {"group_bytes": 8 * support.MIB}
WIDE = 1500  # of a model that has several such groups
NUMBERS = {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}


def model_of(dtype=torch.float32, seed=1, width=257):
    torch.manual_seed(seed)
    layers = [torch.nn.Linear(64, width), torch.nn.Linear(width, width), torch.nn.Linear(width, 8)]
    return torch.nn.Sequential(layers[0], torch.nn.Tanh(), layers[1], torch.nn.Tanh(), layers[2]).to(dtype)


def loss_of(model, step):
    random = torch.Generator().manual_seed(step)
    x = torch.randn(32, 64, generator=random)
    dtype = next(model.parameters()).dtype
    return ((model(x.to(dtype)).float() - x[:, :8].sin()) ** 2).mean()


def run(model, optimizer, steps, first=0, each=lambda step: None):
    """So many steps, of which `first` have been made before: their losses. each: is called before the optimizer."""
    losses = []
    for step in range(first, first + steps):
        optimizer.zero_grad()
        loss = loss_of(model, step)
        loss.backward()
        each(step)
        optimizer.step()
        losses.append(loss.item())
    return losses


def _digest(values):
    return hashlib.sha256(values.detach().reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()


def bits_of(optimizer, model):
    """Of all states, parameters, and numbers: two that are equal go on alike."""
    saved = optimizer.state_dict()
    states = [
        (i, name, _digest(values) if values.dim() else values.item())
        for i, state in sorted(saved["state"].items()) for name, values in sorted(state.items())
    ]
    numbers = [{k: g[k] for k in ("lr", "betas", "eps", "weight_decay")} for g in saved["param_groups"]]
    return states, [_digest(p) for p in model.parameters()], numbers


class SnapshotCase(unittest.TestCase):
    """Has a daemon with a device for all of its tests, and a pool for each; and no snapshots when it begins."""

    sections = "[tier.dram]\nsize = 64 MiB\n"
    disk_mib = 128

    @classmethod
    def setUpClass(cls):
        cls.daemon = support.Daemon(cls.sections, disk_mib=cls.disk_mib)
        cls.addClassCleanup(cls.daemon.stop)

    def setUp(self):
        self.addCleanup(self.delete_all)
        self.pool = self.connect()

    def connect(self):
        pool = spw.connect("test", socket=self.daemon.socket, start=False)
        self.addCleanup(pool.session.close)
        return pool

    def delete_all(self):
        with self.daemon.connect() as session:
            if session.pool().info.nvme_bytes:
                for snapshot in spw.snapshots(session.pool()):
                    snapshot.delete()

    def optimizer(self, model, pool=None, **options):
        options = {**NUMBERS, "name": self.id(), "threads": 1, **options}
        optimizer = spw.OffloadAdamW(model.named_parameters(), pool or self.pool, **options)
        self.addCleanup(optimizer.close)
        return optimizer

    def fresh(self, **options):
        """A job that knows nothing but the pool."""
        model = model_of(seed=9)
        return model, self.optimizer(model, self.connect(), name=f"fresh {self.id()}", **options)

    def objects(self, optimizer):
        """How many the pool has, when what was replaced is deleted."""
        optimizer._saver.committer.submit(time.sleep, 0).result()
        optimizer._saver.copier.submit(time.sleep, 0).result()
        return self.pool.space("count").stat().objects


class Jobs:
    """Processes that run a function of a test's. They come of a process that has imported torch, and has no threads."""

    def __init__(self):
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["torch_rig"])

    def start(self, function, *arguments):
        """function(pipe, *arguments) in a process: the process, and the pipe's other end."""
        here, there = self.context.Pipe()
        process = self.context.Process(target=_run, args=(function, there, *arguments), daemon=True)
        process.start()
        there.close()
        return process, here

    @staticmethod
    def kill(process):
        """As a crash does."""
        os.kill(process.pid, signal.SIGKILL)
        process.join()


def _run(function, pipe, *arguments):
    torch.set_num_threads(1)
    function(pipe, *arguments)


def saving_job(pipe, socket, name, lazy):
    """Trains and saves until it is killed; tells of each step, and of each that was saved."""
    pool = spw.connect("job", socket=socket, start=False)
    model = model_of()
    optimizer = spw.OffloadAdamW(model.named_parameters(), pool, name=name, threads=1, **NUMBERS)
    saving = None
    try:
        for step in range(10000):
            run(model, optimizer, 1, step)
            if not lazy:
                optimizer.save("last")
                pipe.send(step + 1)
            elif saving is None or saving[1].done():
                if saving is not None:
                    saving[1].wait()
                    pipe.send(saving[0])
                saving = step + 1, optimizer.snapshot("last")
    except spillway.Disconnected:
        os._exit(0)  # the daemon was killed


def stuck_job(pipe, socket, name, tier, steps):
    """Makes so many steps, saves, makes one more, and is then in the middle of the next one until it is killed."""
    pool = spw.connect("job", socket=socket, start=False)
    model = model_of(width=WIDE)
    optimizer = spw.OffloadAdamW(model.named_parameters(), pool, name=name, threads=1, tier=tier, **STUCK, **NUMBERS)
    run(model, optimizer, steps)
    optimizer.save("last")
    run(model, optimizer, 1, steps)
    step, groups = train.adam, []

    def adam(*arguments):
        step(*arguments)
        groups.append(None)
        if len(groups) == 2:
            pipe.send("in the middle")
            time.sleep(600)

    train.adam = adam
    run(model, optimizer, 1, steps + 1)
