# SPDX-License-Identifier: Apache-2.0
"""OffloadAdamW beside torch.optim.AdamW, and beside the same arithmetic on plain memory."""
import copy
import unittest
import unittest.mock
from concurrent.futures import ThreadPoolExecutor

import spillway
import support
from spillway import train

try:
    import torch

    import spillway.torch as spw
    from torch_rig import loss_of, model_of, run
except ImportError:
    torch = None

SECTIONS = "[tier.dram]\nsize = 64 MiB\n"


class InMemory:
    """The same arithmetic on torch's own memory."""

    def __init__(self, params, **numbers):
        self.params = list(params)
        self.numbers = numbers
        self.states = [[torch.zeros(p.numel()) for _ in range(2)] for p in self.params]
        self.masters = [p.detach().float().clone().view(-1) for p in self.params]
        self.n = 0

    def zero_grad(self):
        for p in self.params:
            p.grad = None

    def step(self):
        self.n += 1
        options = train.Adam(step=self.n, **self.numbers)
        for p, (m, v), master in zip(self.params, self.states, self.masters):
            name = str(p.dtype).split(".")[1]
            train.adam(options, [train.Slice(p.numel(), p.grad.contiguous().data_ptr(), master.data_ptr(), m.data_ptr(),
                                             v.data_ptr(), p.data_ptr(), name, name)])


@unittest.skipIf(torch is None, "torch is not installed")
class OffloadTest(unittest.TestCase):
    NUMBERS = {"lr": 3e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.05}

    def setUp(self):
        self.daemon = support.Daemon(SECTIONS, disk_mib=256)
        self.addCleanup(self.daemon.stop)
        self.pool = spw.connect("test", socket=self.daemon.socket, start=False)
        self.addCleanup(self.pool.session.close)

    def optimizer(self, model, **options):
        optimizer = spw.OffloadAdamW(model.parameters(), self.pool, **{**self.NUMBERS, **options})
        self.addCleanup(optimizer.close)
        return optimizer

    def test_as_in_memory_bit_for_bit(self):
        for dtype in (torch.float32, torch.bfloat16):
            mine, other = model_of(dtype), model_of(dtype)
            losses = run(mine, self.optimizer(mine, name=str(dtype), threads=2), 20)
            self.assertEqual(losses, run(other, InMemory(other.parameters(), **self.NUMBERS), 20))
            for a, b in zip(mine.parameters(), other.parameters()):
                self.assertTrue(torch.equal(a, b))

    def test_as_torchs(self):
        mine, other = model_of(torch.float32), model_of(torch.float32)
        losses = run(mine, self.optimizer(mine), 200)
        theirs = run(other, torch.optim.AdamW(other.parameters(), **self.NUMBERS), 200)
        self.assertLess(losses[-1], losses[0] / 2)
        for a, b in zip(losses, theirs):
            self.assertLess(abs(a - b), 1e-5 * b)

    def test_states_larger_than_the_pools_memory(self):
        model = torch.nn.ParameterList([torch.nn.Parameter(torch.randn(1 << 20)) for _ in range(14)])
        other = copy.deepcopy(model)
        mine, theirs = self.optimizer(model), torch.optim.AdamW(other.parameters(), **self.NUMBERS)
        self.assertGreater(mine.state_bytes, 64 * support.MIB)
        for step in range(5):
            for i, (a, b) in enumerate(zip(model, other)):
                torch.manual_seed(100 * step + i)
                a.grad = torch.randn(1 << 20)
                b.grad = a.grad.clone()
            mine.step()
            theirs.step()
        for a, b in zip(model, other):
            self.assertTrue(torch.allclose(a, b, rtol=1e-5, atol=1e-7))
        pool = self.pool.session.admin({"get": "pools"})["pools"][0]
        self.assertGreater(pool["loads"], 0)
        self.assertGreater(pool["plans"], 0)

    def loads_of_the_first_step(self, name, n):
        params = [torch.nn.Parameter(torch.zeros(1 << 18)) for _ in range(n)]
        optimizer = self.optimizer(torch.nn.ParameterList(params), name=name, group_bytes=4 * support.MIB)
        before = self.pool.session.admin({"get": "pools"})["pools"][0]
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step()
        after = self.pool.session.admin({"get": "pools"})["pools"][0]
        optimizer.close()
        return after["loads"] - before["loads"], after["deviations"] - before["deviations"]

    def test_the_order_is_declared(self):
        # states of 96 MiB in memory of 64 MiB, in pieces of one
        with unittest.mock.patch.object(spillway.Space, "plan", lambda space, keys: 0):
            learned, _ = self.loads_of_the_first_step("learned", 48)
        declared, deviations = self.loads_of_the_first_step("declared", 48)
        self.assertEqual(learned, 96)  # by age: what is evicted is always what is used next
        self.assertLessEqual(declared, 96 - 64 + 12)  # but for what is leased, or kept free
        self.assertEqual(deviations, 0)

    def numbers(self):
        return self.pool.session.admin({"get": "pools"})["pools"][0]

    def loads_of_two(self, steps, together=False, **options):
        """Two optimizers, 96 MiB of states, memory of 64 MiB: loads for a step of both; accesses, plans, deviations."""
        plans, optimizers = self.numbers()["plans"], []
        for i, name in enumerate(options.pop("names", ("one", "two"))):
            params = [torch.nn.Parameter(torch.zeros(1 << 18)) for _ in range(24 * options.get("world_size", 1))]
            for p in params:
                p.grad = torch.ones_like(p)
            rank = {"rank": i} if "world_size" in options else {}
            model = torch.nn.ParameterList(params)
            optimizers.append(self.optimizer(model, name=name, group_bytes=4 * support.MIB, **rank, **options))
        before = self.numbers()
        for _ in range(steps):
            if together:
                with ThreadPoolExecutor(2) as threads:
                    list(threads.map(lambda optimizer: optimizer.step(), optimizers))
            else:
                for optimizer in optimizers:
                    optimizer.step()
        after = self.numbers()
        for optimizer in optimizers:
            optimizer.close()
        deviations = after["deviations"] - before["deviations"]
        return (after["loads"] - before["loads"]) / steps, (after["plan_accesses"], after["plans"] - plans, deviations)

    def test_two_optimizers_have_a_plan_each(self):
        with unittest.mock.patch.object(spillway.Space, "plan", lambda space, keys: 0):
            by_age, _ = self.loads_of_two(2)
        self.assertGreaterEqual(by_age, 80)
        for name, options in (("turns", {}), ("together", {"together": True})):
            with self.subTest(name):
                loads, counts = self.loads_of_two(6, names=(f"{name} 1", f"{name} 2"), **options)
                self.assertEqual(counts, (96, 2, 0))
                self.assertLessEqual(loads, 96 - 64 + 20)  # but for what is leased, twice, or kept free
                self.assertEqual(self.numbers()["plan_accesses"], 0)  # they went with what was stepped

    def test_ranks_have_a_plan_each(self):
        loads, counts = self.loads_of_two(4, names=("ranks", "ranks"), world_size=2)
        self.assertEqual(counts, (96, 2, 0))
        self.assertLessEqual(loads, 96 - 64 + 20)

    def test_clipping_and_gradients_that_are_not_finite(self):
        mine, other = model_of(torch.float32), model_of(torch.float32)
        optimizer = self.optimizer(mine, max_grad_norm=0.1, skip_nonfinite=True)
        theirs = torch.optim.AdamW(other.parameters(), **self.NUMBERS)
        losses = run(mine, optimizer, 20)
        expected = run(other, theirs, 20, each=lambda step: torch.nn.utils.clip_grad_norm_(other.parameters(), 0.1))
        for a, b in zip(losses, expected):
            self.assertLess(abs(a - b), 1e-5 * b)
        before = [p.detach().clone() for p in mine.parameters()]
        next(mine.parameters()).grad[0, 0] = float("nan")
        optimizer.step()
        self.assertEqual(optimizer.skipped, 1)
        for a, b in zip(mine.parameters(), before):
            self.assertTrue(torch.equal(a, b))

    def test_a_norm_that_is_not_finite_is_not_clipped_to(self):
        model = model_of(torch.float32)
        optimizer = self.optimizer(model, max_grad_norm=0.1)
        run(model, optimizer, 1)
        before = optimizer.state_dict()
        next(model.parameters()).grad[0, 0] = float("inf")
        with self.assertRaisesRegex(ValueError, "skip_nonfinite"):
            optimizer.step()
        after = optimizer.state_dict()
        for i, state in before["state"].items():
            for name, values in state.items():
                self.assertTrue(torch.equal(values, after["state"][i][name]))
        run(model, optimizer, 1)  # nothing has been begun

    def test_states_are_saved_and_taken(self):
        for dtype in (torch.float32, torch.bfloat16):
            mine = model_of(dtype)
            optimizer = self.optimizer(mine, name=f"first {dtype}")
            run(mine, optimizer, 5)
            saved, other = optimizer.state_dict(), model_of(dtype, seed=2)
            other.load_state_dict(mine.state_dict())
            taken = self.optimizer(other, name=f"second {dtype}")
            taken.load_state_dict(saved)
            self.assertEqual(run(mine, optimizer, 5), run(other, taken, 5))

    def test_states_of_torchs_are_taken(self):
        mine, other = model_of(torch.float32), model_of(torch.float32)
        theirs = torch.optim.AdamW(other.parameters(), **self.NUMBERS)
        run(other, theirs, 5)
        mine.load_state_dict(other.state_dict())
        optimizer = self.optimizer(mine)
        optimizer.load_state_dict(theirs.state_dict())
        for a, b in zip(run(mine, optimizer, 5), run(other, theirs, 5)):
            self.assertLess(abs(a - b), 1e-5 * b)

    def test_parameters_without_gradients_stay(self):
        model = model_of(torch.float32)
        optimizer = self.optimizer(model)
        frozen = [p.detach().clone() for p in model[2].parameters()]
        loss_of(model, 0).backward()
        for p in model[2].parameters():
            p.grad = None
        optimizer.step()
        for a, b in zip(model[2].parameters(), frozen):
            self.assertTrue(torch.equal(a, b))
        self.assertNotIn(2, optimizer.state_dict()["state"])

    def test_a_step_that_fails_in_its_middle(self):
        model = model_of(torch.bfloat16)
        optimizer = self.optimizer(model)
        run(model, optimizer, 2)
        saved, before = optimizer.state_dict(), [p.detach().clone() for p in model.parameters()]
        loss_of(model, 3).backward()
        with unittest.mock.patch.object(train, "adam", side_effect=MemoryError):
            with self.assertRaises(MemoryError):
                optimizer.step()
        with self.assertRaises(RuntimeError):
            optimizer.step()
        with torch.no_grad():
            for p, old in zip(model.parameters(), before):
                p.copy_(old)
        optimizer.load_state_dict(saved)
        again = optimizer.state_dict()
        for i, state in saved["state"].items():
            for name, values in state.items():
                self.assertTrue(torch.equal(values, again["state"][i][name]))
        run(model, optimizer, 1)

    def test_a_pool_too_small_says_how_much_is_needed(self):
        model = torch.nn.ParameterList([torch.nn.Parameter(torch.randn(8 << 20))])
        with self.assertRaises(spillway.NoSpace) as caught:
            self.optimizer(model, group_bytes=40 * support.MIB)
        self.assertIn("2 groups of 40 MiB are leased at once, which takes 100 MiB", str(caught.exception))
        self.assertIn("it has 64 MiB: raise `dram` of [pool default]", str(caught.exception))
        self.assertEqual(caught.exception.limit.name, "POOL_LEASES")
        with self.daemon.connect() as other:  # and nothing has been allocated
            self.assertEqual(other.pool().space("other").stat().objects, 0)

    def test_wrong_parameters(self):
        with self.assertRaises(ValueError):
            self.optimizer(torch.nn.ParameterList([torch.nn.Parameter(torch.randn(8).double())]))
        model = model_of(torch.float32)
        optimizer = self.optimizer(model)
        with self.assertRaises(RuntimeError):
            optimizer.add_param_group({"params": [torch.nn.Parameter(torch.randn(8))]})

    def test_the_daemon_goes_away_in_mid_training(self):
        model = model_of(torch.float32)
        optimizer = self.optimizer(model)
        run(model, optimizer, 2)
        saved = optimizer.state_dict()
        self.daemon.kill()
        loss_of(model, 3).backward()
        with self.assertRaises(OSError):
            optimizer.step()
        self.daemon.start()
        with self.assertRaises((OSError, RuntimeError)):
            optimizer.step()
        again = spw.connect("again", socket=self.daemon.socket, start=False)
        self.addCleanup(again.session.close)
        other = spw.OffloadAdamW(model.parameters(), again, **self.NUMBERS)
        other.load_state_dict(saved)
        run(model, other, 2)
        other.close()


if __name__ == "__main__":
    support.main()
