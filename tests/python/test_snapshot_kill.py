# SPDX-License-Identifier: Apache-2.0
"""Whatever is killed when, a snapshot of OffloadAdamW is whole: the old one or the new one."""
import random
import threading
import time
import unittest
from concurrent.futures import ThreadPoolExecutor

import spillway
import support

try:
    import torch

    from spillway.torch.catalog import Catalog
    from torch_rig import STUCK, WIDE, Jobs, SnapshotCase, bits_of, model_of, run, saving_job, stuck_job
except ImportError:
    torch = None
    SnapshotCase = unittest.TestCase


@unittest.skipIf(torch is None, "torch is not installed")
class KillTest(SnapshotCase):
    ROUNDS = 3

    def reference(self, steps):
        """Bits after so many steps."""
        model = model_of()
        optimizer = self.optimizer(model, self.connect(), name="reference")
        run(model, optimizer, steps)
        bits = bits_of(optimizer, model)
        optimizer.close()
        return bits

    def check(self, at_least, name):
        """The snapshot is whole, and not older than what was acknowledged."""
        model, optimizer = self.fresh()
        try:
            optimizer.load("last", of=name)
        except spillway.NotFound:
            self.assertEqual(at_least, 0)
            return
        [steps] = set(optimizer._steps.values())
        self.assertGreaterEqual(steps, at_least)
        self.assertEqual(bits_of(optimizer, model), self.reference(steps))
        optimizer.close()

    def rounds(self, kill):
        jobs, chance = Jobs(), random.Random(1)
        for number in range(2 * self.ROUNDS):
            name, seen = f"job {number}", 0
            process, pipe = jobs.start(saving_job, self.daemon.socket, name, number % 2 == 1)
            self.assertTrue(pipe.poll(60))
            end = time.monotonic() + 0.3 * chance.random()
            while time.monotonic() < end:
                if pipe.poll(0.001):
                    seen = pipe.recv()
            kill(jobs, process)
            try:
                while pipe.poll():
                    seen = pipe.recv()
            except EOFError:
                pass
            yield seen, name

    def test_the_job_is_killed(self):
        for seen, name in self.rounds(lambda jobs, process: jobs.kill(process)):
            self.check(seen, name)
            self.delete_all()
            self.swept()

    def swept(self):
        """What the killed had not finished is deleted by who saves next: all that is left is one snapshot's."""
        catalog = Catalog(self.pool)
        model = model_of()
        optimizer = self.optimizer(model)
        optimizer.save("it")
        optimizer.close()
        self.assertEqual(catalog._entries(b"intent"), [])
        [entry] = catalog._entries(b"snapshot")
        self.assertEqual(entry.document["name"], "it")
        catalog.remove(entry)

    def test_the_daemon_is_killed(self):
        def kill(jobs, process):
            self.daemon.kill()
            process.join()
            self.daemon.start()

        for seen, name in self.rounds(kill):
            self.pool = self.connect()
            self.check(seen, name)
            self.delete_all()
            self.swept()

    def test_another_daemon_takes_over(self):
        """With its memory: training and snapshots go on."""
        model, saved, stop = model_of(), [], threading.Event()
        optimizer = self.optimizer(model)

        def train():
            while not stop.is_set():
                run(model, optimizer, 1)
                saving = optimizer.snapshot("lazy")
                run(model, optimizer, 1)
                saving.wait()
                optimizer.save("last")
                saved.append(bits_of(optimizer, model))

        with ThreadPoolExecutor(1) as executor:
            trained = executor.submit(train)
            for _ in range(3):
                time.sleep(0.2)
                self.daemon.upgrade()
            stop.set()
            trained.result()
        other, again = self.fresh()
        again.load("last", of=optimizer.name)
        self.assertEqual(bits_of(again, other), saved[-1])


@unittest.skipIf(torch is None, "torch is not installed")
class SameName(SnapshotCase):
    """A job that is killed in the middle of a step, and started again as it was."""

    sections = "[tier.dram]\nsize = 64 MiB\n[pool default]\nlinger = 2 s\n"
    STEPS = 3

    def test_it_goes_on_from_its_last_snapshot(self):
        self.addCleanup(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(1)  # as the job has it: the order of sums is the model's
        jobs = Jobs()
        expected_model = model_of(width=WIDE)
        expected = self.optimizer(expected_model, name="reference")
        run(expected_model, expected, self.STEPS)
        saved = bits_of(expected, expected_model)
        losses = run(expected_model, expected, 5, self.STEPS)
        for tier in ("auto", "nvme"):
            with self.subTest(tier):
                process, pipe = jobs.start(stuck_job, self.daemon.socket, "job", tier, self.STEPS)
                self.assertTrue(pipe.poll(60))
                pipe.recv()
                jobs.kill(process)
                model = model_of(seed=9, width=WIDE)
                optimizer = self.optimizer(model, self.connect(), name="job", tier=tier, **STUCK)
                optimizer.load("last")
                self.assertEqual(bits_of(optimizer, model), saved)
                self.assertEqual(run(model, optimizer, 4, self.STEPS), losses[:4])
                time.sleep(4)  # what was the killed job's goes meanwhile
                self.assertEqual(run(model, optimizer, 1, self.STEPS + 4), losses[4:])
                optimizer.save("last")
                self.assertEqual(bits_of(optimizer, model), bits_of(expected, expected_model))
                optimizer.close()


if __name__ == "__main__":
    support.main()
