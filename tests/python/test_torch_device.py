# SPDX-License-Identifier: Apache-2.0
"""Gradients and parameters between a GPU and the optimizer, without a GPU: copies are late, or early, as may be."""
import contextlib
import errno
import threading
import time
import unittest
import unittest.mock
import warnings

import spillway
import support
from test_torch import InMemory

try:
    import torch

    import spillway.torch as spw
    from spillway import train
    from spillway.torch import adamw, device
    from torch_rig import model_of, run
except ImportError:
    torch = None


class Copies:
    """A stream that copies nothing before somebody waits for it, or all at once: both are allowed."""

    made = []
    late = True

    def __init__(self, of):
        self.device = of
        self.left = []
        self.began = self.ended = self.copied = 0
        self.made.append(self)

    def begin(self):
        self.began += 1

    def copy(self, pairs):
        mine = list(pairs)
        self.left.append(mine)
        if not self.late:
            self.run(mine)
        return lambda: self.run(mine)

    def run(self, upto):
        """What was begun until then."""
        while any(each is upto for each in self.left):
            for to, source in self.left.pop(0):
                to.copy_(source)
            self.copied += 1

    def end(self):
        self.ended += 1


class Mapper:
    """What maps views."""

    def __init__(self):
        self.views = []

    def map(self, view):
        self.views.append(view)
        return view.address

    def close(self):
        self.views.clear()


@unittest.skipIf(torch is None, "torch is not installed")
class DeviceTest(unittest.TestCase):
    NUMBERS = {"lr": 3e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.05}

    def setUp(self):
        self.daemon = support.Daemon("[tier.dram]\nsize = 64 MiB\n", disk_mib=256)
        self.addCleanup(self.daemon.stop)
        self.pool = spw.connect("test", socket=self.daemon.socket, start=False)
        self.addCleanup(self.pool.session.close)
        self.mapper = Mapper()
        Copies.made, Copies.late = [], True

    @contextlib.contextmanager
    def pretended(self, is_remote, attach=None):
        """What is_remote() says is on a GPU."""
        with contextlib.ExitStack() as stack:
            for owner, name, value in (
                (adamw, "is_remote", is_remote),
                (adamw, "_has_master", lambda p: is_remote(p) or p.dtype != torch.float32),
                (device, "is_remote", is_remote),
                (device, "Copies", Copies),
                (device, "attach", attach or (lambda *_, **__: self.mapper)),
            ):
                stack.enter_context(unittest.mock.patch.object(owner, name, value))
            yield

    def train(self, dtype, is_remote, steps=20, **options):
        """Both ways; the parameters are the same in the end."""
        mine, other = model_of(dtype), model_of(dtype)
        with self.pretended(is_remote):
            optimizer = spw.OffloadAdamW(mine.parameters(), self.pool, threads=2, **self.NUMBERS, **options)
            self.addCleanup(optimizer.close)
            losses = run(mine, optimizer, steps)
        self.assertEqual(losses, run(other, InMemory(other.parameters(), **self.NUMBERS), steps))
        for a, b in zip(mine.parameters(), other.parameters()):
            self.assertTrue(torch.equal(a, b))
        return optimizer

    def test_all_on_a_gpu(self):
        for dtype in (torch.float32, torch.bfloat16):
            Copies.made = []
            optimizer = self.train(dtype, lambda t: True, name=str(dtype), group_bytes=64 << 10)
            self.assertEqual(len(Copies.made), 2)
            for copies in Copies.made:
                self.assertEqual((copies.began, copies.left), (20, []))
            self.assertEqual(sorted(copies.ended for copies in Copies.made), [0, 20])
            self.assertGreaterEqual(len(self.mapper.views), 21 * len(optimizer._groups))

    def test_some_on_a_gpu(self):
        for dtype in (torch.float32, torch.bfloat16):
            self.train(dtype, lambda t: t.numel() > 10000, name=str(dtype))

    def test_a_group_comes_while_another_goes(self):
        for dtype in (torch.float32, torch.bfloat16):
            for Copies.late in (False, True):
                Copies.made = []
                self.many_groups(dtype)

    @contextlib.contextmanager
    def in_order(self, optimizer):
        """A step of all groups. A lease ends when its parameters were copied, and before the next but one is stepped.
        While a group is stepped, all has been done that may be done for the next one."""
        adam, release, back = train.adam, adamw.Views.release, Copies.made[1]
        stepped, ended, wrong = [], [], []
        back.copied = 0

        def late_adam(*args):
            optimizer._reader.submit(lambda: None).result()
            if len(ended) < len(stepped) - 1:
                wrong.append(f"{len(stepped)} were stepped, and {len(ended)} leases ended")
            stepped.append(args)
            return adam(*args)

        def late_release(views):
            if threading.current_thread().name.startswith("spillway-copier"):
                return release(views)
            time.sleep(0.01)
            ended.append(views)
            if back.copied < len(ended):
                wrong.append(f"{len(ended)} leases ended, and {back.copied} groups were copied")
            return release(views)

        with unittest.mock.patch.object(train, "adam", late_adam):
            with unittest.mock.patch.object(adamw.Views, "release", late_release):
                yield
        n = len(optimizer._groups)
        self.assertEqual((len(stepped), len(ended), back.copied, wrong), (n, n, n, []))

    def large(self, dtype, n=1 << 20):
        """Parameters of many groups, and their copies."""
        model = [torch.nn.Parameter(torch.randn(n).to(dtype)) for _ in range(3)]
        return model, [torch.nn.Parameter(p.detach().clone()) for p in model]

    def set_gradients(self, step, *models):
        for i, params in enumerate(zip(*models)):
            torch.manual_seed(100 * step + i)
            grad = torch.randn(params[0].numel()).to(params[0].dtype)
            for p in params:
                p.grad = grad.clone()

    def many_groups(self, dtype):
        model, other = self.large(dtype, 3 << 20)
        with self.pretended(lambda t: True):
            optimizer = spw.OffloadAdamW(model, self.pool, group_bytes=8 << 20, **self.NUMBERS)
            self.assertGreater(len(optimizer._groups), 10)
            plain = InMemory(other, **self.NUMBERS)
            for step in range(3):
                self.set_gradients(step, model, other)
                with self.in_order(optimizer):
                    optimizer.step()
                plain.step()
            optimizer.close()
        for a, b in zip(model, other):
            self.assertTrue(torch.equal(a, b))

    def test_a_timeline_has_what_crosses_the_link(self):
        Copies.late = False
        model, _ = self.large(torch.bfloat16, 3 << 20)
        self.set_gradients(0, model)
        with self.pretended(lambda t: True):
            optimizer = spw.OffloadAdamW(model, self.pool, group_bytes=8 << 20, **self.NUMBERS)
            self.addCleanup(optimizer.close)
            with spw.Timeline(optimizer) as found:
                optimizer.step()
        for name, thread in (("gradients", "spillway-link"), ("parameters", "spillway-writer_0")):
            events = [event for event in found.events if event.name == name]
            self.assertEqual([event.group for event in events], [group.number for group in optimizer._groups])
            self.assertEqual({event.thread for event in events}, {thread})
            self.assertEqual(sum(event.nbytes for event in events), 2 * 3 * (3 << 20))
        self.assertEqual({event.thread for event in found.events if event.name == "release"}, {"spillway-writer_0"})
        self.assertEqual(sum(event.name == "wait for gradients" for event in found.events), len(optimizer._groups))

    def test_a_step_finds_what_the_last_one_made(self):
        """Unless something lies elsewhere, or parameters' numbers are not the same ones any more."""
        model, other = self.large(torch.float32)
        made = []
        new_plan = adamw.OffloadAdamW._new_plan

        def counted(*args):
            made.append(1)
            return new_plan(*args)

        with self.pretended(lambda t: True), unittest.mock.patch.object(adamw.OffloadAdamW, "_new_plan", counted):
            optimizer = spw.OffloadAdamW(model, self.pool, group_bytes=8 << 20, **self.NUMBERS)
            self.addCleanup(optimizer.close)
            plain, n = [InMemory([p], **self.NUMBERS) for p in other], len(optimizer._groups)
            self.assertGreater(n, 2)

            def step(number):
                made.clear()
                optimizer.step()
                for p, each in zip(other, plain):
                    if p.grad is not None:
                        each.step()
                self.assertTrue(all(torch.equal(a, b) for a, b in zip(model, other)))
                self.assertEqual(len(made), number)

            self.set_gradients(0, model, other)
            step(n)
            step(0)
            groups_of = [sum(any(run.param is p for run in group.runs) for group in optimizer._groups) for p in model]
            model[1].data = model[1].detach().clone()
            step(groups_of[1])
            step(0)
            model[2].grad = other[2].grad = None
            step(groups_of[2])
            self.set_gradients(1, model, other)  # elsewhere, but not where they come over to
            step(groups_of[2])  # it has made one step less
            self.assertEqual(len(set(optimizer._steps.values())), 2)

    def test_ranks(self):
        for dtype in (torch.float32, torch.bfloat16):
            first, second = self.large(dtype)
            plain = [torch.nn.Parameter(p.detach().clone()) for p in first]
            in_memory = InMemory(plain, **self.NUMBERS)
            with self.pretended(lambda t: True), contextlib.ExitStack() as stack:
                ranks = [
                    spw.OffloadAdamW(
                        model, self.pool, name=str(dtype), group_bytes=4 << 20, rank=rank, world_size=2, **self.NUMBERS
                    )
                    for rank, model in enumerate((first, second))
                ]
                for optimizer in ranks:
                    stack.callback(optimizer.close)
                self.assertGreater(max(first for lane in ranks[1]._lanes for first in lane.starts), 0)
                for step in range(3):
                    self.set_gradients(step, first, second, plain)
                    for optimizer in ranks:
                        optimizer.step()
                    in_memory.step()
                    self.exchange(first, ranks[1], second)
                    self.exchange(second, ranks[0], first)
                    for a, b, c in zip(first, second, plain):
                        self.assertTrue(torch.equal(a, c) and torch.equal(b, c))

    @staticmethod
    def exchange(params, optimizer, others):
        """What a rank's optimizer has stepped of the others comes to these."""
        for s in optimizer.ranks.segments(others):
            part = slice(s.first, s.first + s.n)
            params[s.parameter].detach()[part] = others[s.parameter].detach()[part]

    def test_a_snapshot_while_steps_go_on(self):
        for dtype in (torch.float32, torch.bfloat16):
            for ahead in (False, True):
                with self.subTest(dtype=dtype, ahead=ahead), self.pretended(lambda t: True):
                    Copies.made = []
                    model, _ = self.large(dtype)
                    optimizer = spw.OffloadAdamW(model, self.pool, group_bytes=4 << 20, **self.NUMBERS)
                    with contextlib.closing(optimizer):
                        optimizer._saver.copies_ahead = ahead
                        self.snapshot(model, optimizer)

    def snapshot(self, model, optimizer):
        """It is what it was when it was begun."""
        self.set_gradients(0, model)
        optimizer.step()
        saved, before = optimizer.state_dict()["state"], [p.detach().clone() for p in model]
        saving = optimizer.snapshot("one")
        for step in (1, 2):
            self.set_gradients(step, model)
            with self.in_order(optimizer):
                optimizer.step()
        saving.wait()
        self.assertFalse(any(torch.equal(p, b) for p, b in zip(model, before)))
        optimizer.load("one")
        for i, state in optimizer.state_dict()["state"].items():
            for name, values in state.items():
                self.assertTrue(torch.equal(values, saved[i][name]), (i, name))
        for p, b in zip(model, before):
            self.assertTrue(torch.equal(p, b))

    def test_clipping(self):
        mine, other = model_of(torch.float32), model_of(torch.float32)
        with self.pretended(lambda t: t.numel() > 10000):
            optimizer = spw.OffloadAdamW(
                mine.parameters(), self.pool, max_grad_norm=0.1, skip_nonfinite=True, **self.NUMBERS
            )
            self.addCleanup(optimizer.close)
            losses = run(mine, optimizer, 20)
            next(p for p in mine.parameters() if p.numel() > 10000).grad.view(-1)[7] = float("inf")
            before = [p.detach().clone() for p in mine.parameters()]
            optimizer.step()
            self.assertEqual(optimizer.skipped, 1)
            for a, b in zip(mine.parameters(), before):
                self.assertTrue(torch.equal(a, b))
        theirs = torch.optim.AdamW(other.parameters(), **self.NUMBERS)
        expected = run(other, theirs, 20, each=lambda step: torch.nn.utils.clip_grad_norm_(other.parameters(), 0.1))
        for a, b in zip(losses, expected):
            self.assertLess(abs(a - b), 1e-5 * b)

    def leases(self):
        sessions = self.pool.session.admin({"get": "sessions"})["sessions"]
        return sum(session["leases"] for session in sessions)

    def test_a_step_that_fails_leaves_no_lease(self):
        model = model_of(torch.float32)
        with self.pretended(lambda t: True):
            optimizer = spw.OffloadAdamW(model.parameters(), self.pool, **self.NUMBERS)
            self.addCleanup(optimizer.close)
            run(model, optimizer, 1)
            before = self.leases()
            with unittest.mock.patch.object(Copies, "copy", side_effect=MemoryError):
                with self.assertRaises(MemoryError):
                    optimizer.step()
            with self.assertRaises(RuntimeError):
                optimizer.step()
        self.assertEqual(self.leases(), before)

    def test_without_a_driver_it_says_that_copies_are_slow(self):
        def attach(*_, **__):
            raise spillway.NoGpu(errno.ENOSYS, "no libcuda.so.1 here")

        model = model_of(torch.float32)
        with self.pretended(lambda t: True, attach), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            optimizer = spw.OffloadAdamW(model.parameters(), self.pool, **self.NUMBERS)
            self.addCleanup(optimizer.close)
            run(model, optimizer, 1)
        self.assertEqual(len([w for w in caught if "not pinned" in str(w.message)]), 1)


if __name__ == "__main__":
    support.main()
