# SPDX-License-Identifier: Apache-2.0
"""Ranks that share OffloadAdamW's states: the numbers of one process, and snapshots that any number of them loads."""
import os
import signal
import tempfile
import unittest
import unittest.mock

import support

try:
    import torch
    import torch.distributed as dist

    import spillway.torch as spw
    from spillway.errors import NoSpace, SpillwayError
    from spillway.torch import ranks
    from spillway.torch.saving import Saving
    from spillway.train import BLOCK
    from torch_rig import NUMBERS, Jobs, bits_of, model_of, run
except ImportError:
    torch = None

STEPS = 6


def ranked(pipe, socket, file, rank, size, work):
    """A rank: sends what work() returns, or the error."""
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=size)
    pool = spw.connect(f"rank {rank}", socket=socket, start=False)
    model = model_of(seed=1 if work is not loads else 9)
    group = dist.group.WORLD
    optimizer = spw.OffloadAdamW(
        model.named_parameters(), pool, name="ranks", threads=1, process_group=group, **NUMBERS
    )
    try:
        pipe.send(work(model, optimizer))
    except SpillwayError as error:
        pipe.send(error.strerror)
    dist.barrier()  # nobody goes while others still ask it
    optimizer.close()
    pool.session.close()


def trains(model, optimizer):
    return run(model, optimizer, STEPS)


def trains_in_ddp(model, optimizer):
    return run(torch.nn.parallel.DistributedDataParallel(model), optimizer, STEPS)


def saves(model, optimizer):
    run(model, optimizer, STEPS)
    optimizer.save("six")
    return run(model, optimizer, STEPS, STEPS)


def saves_lazily(model, optimizer):
    run(model, optimizer, STEPS)
    saving = optimizer.snapshot("six")
    losses = run(model, optimizer, STEPS, STEPS)
    saving.wait()
    return losses


def loads(model, optimizer):
    optimizer.load("six", of="ranks")
    optimizer.save("again")
    return run(model, optimizer, STEPS, STEPS)


def dies(model, optimizer):
    """Rank 1 is killed when all its data are there but the last."""
    run(model, optimizer, STEPS)
    optimizer.save("six")
    run(model, optimizer, 1, STEPS)
    if optimizer.ranks.rank == 1:
        Saving._commit = lambda saving: os.kill(os.getpid(), signal.SIGKILL)
    try:
        optimizer.save("six")
    except SpillwayError as error:
        return error.strerror
    finally:
        dist.barrier = lambda: None
    return "it was saved"


def has_no_room(model, optimizer):
    """Rank 1 has no room, once."""
    said = []
    for full in (False, True, False):
        run(model, optimizer, STEPS)
        put = unittest.mock.patch.object(Saving, "_put", side_effect=NoSpace(28, "nothing left"))
        try:
            if full and optimizer.ranks.rank == 1:
                with put:
                    optimizer.save("six")
            else:
                optimizer.save("six")
            said.append("saved")
        except SpillwayError as error:
            said.append(error.strerror)
    return said


@unittest.skipIf(torch is None, "torch is not installed")
class SegmentsTest(unittest.TestCase):
    def test_are_a_partition_at_multiples_of_blocks(self):
        sizes = [1, 5 * BLOCK, 3, BLOCK, 7 * BLOCK + 1, 0, 2]
        for world_size in (1, 2, 3, 5, 40):
            found = [s for rank in range(world_size) for s in ranks.segments(sizes, rank, world_size)]
            at = [0] * len(sizes)
            for s in found:
                self.assertEqual((s.first, s.first % BLOCK), (at[s.parameter], 0))
                at[s.parameter] += s.n
            self.assertEqual(at, sizes)
            per_rank = [sum(s.n for s in ranks.segments(sizes, rank, world_size)) for rank in range(world_size)]
            self.assertLessEqual(max(per_rank), 17 * BLOCK // world_size + BLOCK)

    def test_wrong_ranks(self):
        for rank, world_size in ((2, 2), (-1, 1), (1, None)):
            with self.assertRaises(ValueError):
                ranks.Ranks(rank, world_size, None)


@unittest.skipIf(torch is None, "torch is not installed")
class RanksTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.daemon = support.Daemon("[tier.dram]\nsize = 64 MiB\n", disk_mib=128)
        cls.addClassCleanup(cls.daemon.stop)
        cls.jobs = Jobs()

    def setUp(self):
        self.pool = spw.connect("test", socket=self.daemon.socket, start=False)
        self.addCleanup(self.pool.session.close)
        self.addCleanup(self.delete_all)

    def delete_all(self):
        for snapshot in spw.snapshots(self.pool):
            snapshot.delete()

    def ranks(self, size, work):
        """What each rank sends."""
        with tempfile.TemporaryDirectory() as folder:
            file = os.path.join(folder, "meet")
            started = [
                self.jobs.start(ranked, self.daemon.socket, file, rank, size, work) for rank in range(size)
            ]
            said = []
            for process, pipe in started:
                try:
                    said.append(pipe.recv() if pipe.poll(100) else "nothing")
                except EOFError:
                    said.append("died")
            for process, _ in started:
                process.join(20)
        return said

    def optimizer(self, model):
        optimizer = spw.OffloadAdamW(model.named_parameters(), self.pool, name="one", threads=1, **NUMBERS)
        self.addCleanup(optimizer.close)
        return optimizer

    def alone(self, steps):
        """One process: losses, and all bits."""
        model = model_of()
        optimizer = self.optimizer(model)
        losses = run(model, optimizer, steps)
        bits = bits_of(optimizer, model)
        optimizer.close()
        return losses, bits

    def loaded(self, name):
        """What one process loads."""
        model = model_of(seed=9)
        optimizer = self.optimizer(model)
        optimizer.load(name, of="ranks")
        bits = bits_of(optimizer, model)
        optimizer.close()
        return bits

    def test_losses_are_those_of_one_process(self):
        alone, _ = self.alone(STEPS)
        self.assertEqual(self.ranks(2, trains_in_ddp), [alone] * 2)
        self.assertEqual(self.ranks(3, trains), [alone] * 3)

    def test_saved_by_two_and_loaded_by_one_and_three(self):
        losses, _ = self.alone(2 * STEPS)
        _, bits = self.alone(STEPS)
        for work in (saves, saves_lazily):
            self.assertEqual(self.ranks(2, work), [losses[STEPS:]] * 2)
            self.assertEqual(self.loaded("six"), bits)
            self.assertEqual(self.ranks(3, loads), [losses[STEPS:]] * 3)
            self.assertEqual(self.loaded("again"), bits)
            self.assertEqual([s.world_size for s in spw.snapshots(self.pool)], [2, 3])
            self.delete_all()

    def test_a_rank_dies(self):
        _, bits = self.alone(STEPS)
        said = self.ranks(2, dies)
        self.assertEqual(said[1], "died")
        self.assertIn("rank 1 ended before its part of the snapshot was durable", said[0])
        self.assertEqual(self.loaded("six"), bits)

    def test_a_rank_has_no_room(self):
        said = self.ranks(3, has_no_room)
        for one in said:
            self.assertEqual((one[0], one[2]), ("saved", "saved"))
        self.assertIn("another rank could not save: rank 1: [Errno 28] nothing left", said[0][1])
        self.assertEqual("nothing left", said[1][1])
        self.assertIn("another rank could not save", said[2][1])
        self.assertEqual([s.name for s in spw.snapshots(self.pool)], ["six"])

    def test_without_a_group(self):
        model = model_of()
        optimizer = spw.OffloadAdamW(model.parameters(), self.pool, name="half", rank=1, world_size=2)
        self.addCleanup(optimizer.close)
        with self.assertRaisesRegex(ValueError, "process group"):
            optimizer.save("half")
        with self.assertRaises(RuntimeError):
            optimizer.state_dict()


if __name__ == "__main__":
    support.main()
