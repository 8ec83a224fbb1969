# SPDX-License-Identifier: Apache-2.0
"""Snapshots of OffloadAdamW: the same bits when they are loaded, whatever went on, and errors that say what to do."""
import errno
import threading
import time
import unittest
import unittest.mock

import spillway
import support
from support import MIB

try:
    import torch

    import spillway.torch as spw
    from spillway.torch.saving import Saving
    from torch_rig import NUMBERS, SnapshotCase, bits_of, model_of, run
except ImportError:
    torch = None
    SnapshotCase = unittest.TestCase

@unittest.skipIf(torch is None, "torch is not installed")
class SaveTest(SnapshotCase):
    def test_goes_on_with_the_same_bits(self):
        for dtype in (torch.float32, torch.bfloat16):
            model = model_of(dtype)
            optimizer = self.optimizer(model, name=f"first {dtype}")
            run(model, optimizer, 5)
            optimizer.save("five")
            saved = bits_of(optimizer, model)
            losses = run(model, optimizer, 5)
            optimizer.load("five")
            self.assertEqual(bits_of(optimizer, model), saved)
            self.assertEqual(run(model, optimizer, 5), losses)

    def test_a_job_goes_on_from_the_store_alone(self):
        model = model_of()
        optimizer = self.optimizer(model)
        run(model, optimizer, 5)
        optimizer.param_groups[0].update(lr=0.5, betas=(0.8, 0.9))
        optimizer.save("five")
        saved = bits_of(optimizer, model)
        optimizer.close()
        other, again = self.fresh()
        again.load("five", of=optimizer.name)
        self.assertEqual(bits_of(again, other), saved)
        self.assertEqual(again.param_groups[0]["betas"], (0.8, 0.9))

    def test_parameters_in_another_order_and_without_names(self):
        model = model_of()
        optimizer = self.optimizer(model)
        run(model, optimizer, 3)
        optimizer.save("named")
        other = model_of(seed=9)
        named = list(other.named_parameters())[::-1]
        again = spw.OffloadAdamW(named, self.connect(), **NUMBERS)
        self.addCleanup(again.close)
        again.load("named", of=optimizer.name)
        self.assertEqual(run(other, again, 3), run(model, optimizer, 3))
        plain = spw.OffloadAdamW([{"params": other.parameters(), "lr": 0.1}], self.pool, name="plain")
        self.addCleanup(plain.close)
        plain.save("numbers")
        with self.assertRaisesRegex(ValueError, "has no '0', '1', '2' and 3 more and has '0.weight'"):
            plain.load("named", of=optimizer.name)

    def test_parameters_are_left_alone_if_asked(self):
        model = model_of()
        optimizer = self.optimizer(model)
        run(model, optimizer, 2)
        optimizer.save("states", parameters=False)
        states = bits_of(optimizer, model)[0]
        other, again = self.fresh()
        before = bits_of(again, other)[1]
        again.load("states", of=self.id())
        self.assertEqual(bits_of(again, other)[:2], (states, before))

    def test_what_is_not_a_number_is_saved_as_it_is(self):
        model = model_of()
        optimizer = self.optimizer(model)
        run(model, optimizer, 1)
        for i, p in enumerate(model.parameters()):
            p.grad.fill_((float("nan"), float("inf"), -float("inf"))[i % 3])
        optimizer.step()
        optimizer.save("nan")
        saved = bits_of(optimizer, model)
        other, again = self.fresh()
        again.load("nan", of=self.id())
        self.assertEqual(bits_of(again, other), saved)

    def test_lists_replaces_and_deletes(self):
        model = model_of()
        optimizer = self.optimizer(model)
        optimizer.save("one")
        empty = self.objects(optimizer)
        for _ in range(3):
            run(model, optimizer, 1)
            optimizer.save("two")
        [one, two] = spw.snapshots(self.pool)
        self.assertEqual((one.name, two.name, two.optimizer), ("one", "two", self.id()))
        self.assertEqual(one.nbytes, two.nbytes)
        with_two = self.objects(optimizer)
        optimizer.save("two")
        self.assertEqual(self.objects(optimizer), with_two)
        for snapshot in spw.snapshots(self.pool)[1:]:
            snapshot.delete()
            snapshot.delete()  # is no error
        self.assertEqual(self.objects(optimizer), empty)
        with self.assertRaisesRegex(spillway.NotFound, "no snapshot 'two' .* there is 'one'"):
            optimizer.load("two")
        optimizer.load("one")

    def test_two_optimizers_have_names_of_their_own(self):
        first, second = model_of(seed=1), model_of(seed=2)
        one, two = self.optimizer(first, name="one"), self.optimizer(second, name="two")
        one.save("same")
        saved = bits_of(one, first)
        run(second, two, 1)
        two.save("same")
        run(first, one, 1)
        one.load("same")
        self.assertEqual(bits_of(one, first), saved)
        with self.assertRaisesRegex(spillway.NotFound, "there is none .and snapshots of optimizers named 'one', 'two'"):
            self.fresh()[1].load("same")

    def test_of_another_shape_or_type(self):
        model = model_of()
        optimizer = self.optimizer(model)
        run(model, optimizer, 1)
        optimizer.save("it")
        for other, words in (
            (model_of(width=255), "'0.weight' has shape .255, 64., in the snapshot .257, 64."),
            (model_of(torch.bfloat16), "'0.weight' has dtype bfloat16, in the snapshot float32"),
            (model_of()[:3], "of other parameters: it has '4.weight', '4.bias', too"),
        ):
            again = self.optimizer(other, self.connect(), name="other")
            before = bits_of(again, other)
            with self.assertRaisesRegex(ValueError, words):
                again.load("it", of=self.id())
            self.assertEqual(bits_of(again, other), before)
            again.close()
        two = [{"params": list(model.named_parameters())[:2]}, {"params": list(model.named_parameters())[2:]}]
        again = spw.OffloadAdamW(two, self.connect())
        self.addCleanup(again.close)
        with self.assertRaisesRegex(ValueError, "has group 1, in the snapshot 0"):
            again.load("it", of=self.id())

    def test_after_a_step_that_failed(self):
        model = model_of()
        optimizer = self.optimizer(model)
        run(model, optimizer, 2)
        optimizer.save("two")
        losses = run(model, optimizer, 2)
        with unittest.mock.patch.object(spw.adamw.train, "adam", side_effect=MemoryError):
            with self.assertRaises(MemoryError):
                run(model, optimizer, 1)
        with self.assertRaises(RuntimeError):
            optimizer.save("broken")
        optimizer.load("two")
        self.assertEqual(run(model, optimizer, 2), losses)


    def test_two_jobs_of_one_name(self):
        optimizer = self.optimizer(model_of(), name="one")
        with self.assertRaisesRegex(spillway.Busy, "has an optimizer named 'one' in use"):
            self.optimizer(model_of(), self.connect(), name="one")
        optimizer.save("it")
        other = self.connect()
        spw.OffloadAdamW(model_of(width=255).parameters(), other, name="two")
        other.session.close()  # as the end of its job: what it had stays for a while
        model = model_of()
        again = self.optimizer(model, name="two")
        again.load("it", of="one")
        run(model, again, 1)

    def test_a_commit_that_fails(self):
        model = model_of()
        optimizer = self.optimizer(model)
        run(model, optimizer, 1)
        optimizer.save("it")
        saved = bits_of(optimizer, model)
        run(model, optimizer, 1, 1)
        sync = spillway.Space.sync

        def fails(space, names, **options):
            sync(space, names, **options)
            if names[0][0] == b"snapshot":
                raise spillway.Timeout(errno.ETIMEDOUT, "nobody knows whether it was done")

        with unittest.mock.patch.object(spillway.Space, "sync", fails):
            with self.assertRaisesRegex(spillway.Timeout, "nobody knows"):
                optimizer.save("it")
        other, again = self.fresh()
        again.load("it", of=self.id())
        self.assertEqual(bits_of(again, other), saved)
        optimizer.save("it")

    def test_states_and_snapshots_at_different_engines(self):
        """Then the daemon has no way from the ones to the others, and the client has."""
        daemon = support.Daemon("[tier.dram]\nsize = 128 MiB\n", disk_mib=128, engines=2)
        self.addCleanup(daemon.stop)
        put, ways = spillway.Space.put_from_views, []

        def noted(*arguments, **options):
            try:
                ways.append("client")
                statuses = put(*arguments, **options)
                ways[-1] = "daemon" if statuses[0] == 0 else "client"
                return statuses
            except spillway.SpillwayError:
                raise AssertionError("a list is served") from None

        with daemon.connect() as session, unittest.mock.patch.object(spillway.Space, "put_from_views", noted):
            for name in ("one", "two"):
                model = model_of()
                optimizer = self.optimizer(model, session.pool(), name=name)
                run(model, optimizer, 2)
                optimizer.save("it")
                saved = bits_of(optimizer, model)
                run(model, optimizer, 1, 2)
                optimizer.load("it")
                self.assertEqual(bits_of(optimizer, model), saved)
                optimizer.close()
        self.assertEqual(set(ways), {"client", "daemon"})


@unittest.skipIf(torch is None, "torch is not installed")
class LazyTest(SnapshotCase):
    disk_mib = 384

    def lazily(self, model, optimizer):
        """A snapshot under which training goes on is what it was when it was begun."""
        run(model, optimizer, 3)
        saved = bits_of(optimizer, model)
        saving = optimizer.snapshot("three")
        run(model, optimizer, 3, 3)
        saving.wait()
        self.assertTrue(saving.done())
        other, again = self.fresh()
        again.load("three", of=optimizer.name)
        self.assertEqual(bits_of(again, other), saved)
        again.close()
        return saving

    def test_is_what_it_was_when_it_was_begun(self):
        for n in range(5):
            model = model_of(seed=n)
            self.lazily(model, self.optimizer(model, name=f"{self.id()} {n}"))

    def test_a_step_copies_what_was_not_yet(self):
        model = model_of()
        optimizer = self.optimizer(model)
        optimizer._saver.copies_ahead = False
        saving = self.lazily(model, optimizer)
        self.assertGreater(saving.blocked, 0)

    def test_a_step_does_not_change_what_is_being_copied(self):
        put = Saving._put

        def slowly(*arguments):
            time.sleep(0.2)
            put(*arguments)

        model = model_of()
        optimizer = self.optimizer(model)
        with unittest.mock.patch.object(Saving, "_put", slowly):
            saving = self.lazily(model, optimizer)
        self.assertGreater(saving.blocked, 0.1)

    def test_a_step_copies_a_group_at_once(self):
        put, lists = spillway.Space.put_from_views, []

        def noted(space, keys, views, **options):
            lists.append(len(views))
            return put(space, keys, views, **options)

        model = torch.nn.ParameterList([torch.nn.Parameter(torch.randn(1 << 19)) for _ in range(5)])
        optimizer = self.optimizer(model, group_bytes=8 * MIB)
        self.assertGreater(optimizer._saver.copies_at_once, 1)
        for p in model:
            p.grad = torch.ones_like(p)
        optimizer.step()
        saved = bits_of(optimizer, model)
        patched = unittest.mock.patch.object(spillway.Space, "put_from_views", noted)
        with patched, unittest.mock.patch.object(Saving, "_copy_rest"):
            saving = optimizer.snapshot("together")
            optimizer.step()
        saving.wait()
        self.assertEqual(lists, [group.n for group in optimizer._groups])
        self.assertGreater(max(lists), 1)
        optimizer.load("together")
        self.assertEqual(bits_of(optimizer, model), saved)

    def test_who_waits_beside_steps(self):
        """The copier needs leases of what a step has leased, and the step copies of that: neither waits for ever."""
        put = Saving._put

        def slowly(*arguments):
            time.sleep(0.02)
            put(*arguments)

        model = torch.nn.ParameterList([torch.nn.Parameter(torch.randn(1 << 19)) for _ in range(5)])
        optimizer = self.optimizer(model, group_bytes=16 * MIB)
        optimizer._saver.copies_ahead = False
        for p in model:
            p.grad = torch.ones_like(p)
        optimizer.step()
        saved = bits_of(optimizer, model)
        with unittest.mock.patch.object(Saving, "_put", slowly):
            saving = optimizer.snapshot("beside")
            waiting = threading.Thread(target=saving.wait)
            step = threading.Thread(target=optimizer.step)
            step.start()
            time.sleep(0.03)
            waiting.start()
            step.join(20)
            self.assertFalse(step.is_alive(), "the step does not end")
            waiting.join(20)
        saving.wait(0)
        optimizer.load("beside")
        self.assertEqual(bits_of(optimizer, model), saved)

    def test_waits_for_no_step(self):
        model = model_of()
        optimizer = self.optimizer(model)
        optimizer._saver.copies_ahead = False
        saving = optimizer.snapshot("it")
        with self.assertRaises(TimeoutError):
            with unittest.mock.patch.object(Saving, "_copy_rest"):
                saving.wait(0.05)
        self.assertFalse(saving.done())
        saving.wait()
        self.assertEqual([s.name for s in spw.snapshots(self.pool)], ["it"])

    def test_one_after_each_step(self):
        model = model_of()
        optimizer = self.optimizer(model)
        savings = []
        for step in range(6):
            run(model, optimizer, 1, step)
            savings.append((optimizer.snapshot(f"step-{step}"), bits_of(optimizer, model)))
        optimizer.close()  # waits for all
        other, again = self.fresh()
        for step, (saving, bits) in enumerate(savings):
            self.assertTrue(saving.done())
            again.load(f"step-{step}", of=self.id())
            self.assertEqual(bits_of(again, other), bits)

    def test_states_larger_than_the_pools_memory(self):
        model = torch.nn.ParameterList([torch.nn.Parameter(torch.randn(1 << 20)) for _ in range(10)])
        optimizer = self.optimizer(model)
        self.assertGreater(optimizer.state_bytes, 64 * MIB)

        def step(seed):
            for i, p in enumerate(model):
                p.grad = torch.full((1 << 20,), float(seed + i))
            optimizer.step()

        step(1)
        saved = bits_of(optimizer, model)
        saving = optimizer.snapshot("large")
        step(2)
        saving.wait()
        step(3)
        optimizer.load("large")
        self.assertEqual(bits_of(optimizer, model), saved)


@unittest.skipIf(torch is None, "torch is not installed")
class RoomTest(SnapshotCase):
    disk_mib = 256

    def test_without_a_device(self):
        daemon = support.Daemon()
        self.addCleanup(daemon.stop)
        with daemon.connect() as session:
            optimizer = self.optimizer(model_of(), session.pool())
            with self.assertRaisesRegex(OSError, "has nothing on one: add a .device.") as caught:
                optimizer.save("it")
            self.assertEqual(caught.exception.errno, errno.ENODEV)
            optimizer.close()

    def test_a_pool_too_small_says_how_much_is_needed(self):
        pool = "[pool default]\ndram = 64 MiB\nnvme = 16 MiB\n"
        daemon = support.Daemon("[tier.dram]\nsize = 64 MiB\n" + pool, disk_mib=256)
        self.addCleanup(daemon.stop)
        with daemon.connect() as session:
            model = torch.nn.Sequential(torch.nn.Linear(1024, 1024), torch.nn.Linear(1024, 1024))
            optimizer = self.optimizer(model, session.pool())
            words = "takes 25 MiB .* has 16 MiB there: raise `nvme` of .pool default"
            with self.assertRaisesRegex(spillway.NoSpace, words):
                optimizer.save("it")
            optimizer.close()

    def test_a_device_that_is_full(self):
        model = model_of(width=1500)
        optimizer = self.optimizer(model)
        run(model, optimizer, 1)
        optimizer.save("it")
        saved = bits_of(optimizer, model)
        run(model, optimizer, 1, 1)
        full = self.pool.space("full", "generic", "durable")
        n = 0
        with self.assertRaises(spillway.SpillwayError):
            while True:
                full.put([f"{n}"], [bytes(MIB)], timeout=1).check()
                full.sync([f"{n}"], timeout=5)
                n += 1
        with self.assertRaisesRegex(spillway.NoSpace, "'it' takes .* MiB .*: raise `nvme` of it, or delete snapshots"):
            optimizer.save("it")
        losses = run(model, optimizer, 1, 2)
        full.delete([f"{i}" for i in range(n + 1)])
        optimizer.load("it")
        self.assertEqual(bits_of(optimizer, model), saved)
        self.assertEqual(run(model, optimizer, 2, 1)[1:], losses)
        optimizer.save("it")


if __name__ == "__main__":
    support.main()
