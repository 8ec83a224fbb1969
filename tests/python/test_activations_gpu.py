# SPDX-License-Identifier: Apache-2.0
"""offload_activations on a GPU: gradients as without it, bit for bit, less memory, nothing left behind. Needs a GPU."""
import errno
import gc
import os
import unittest
import unittest.mock
import warnings

import spillway
import support
from support import KIB, MIB
from test_activations import Block, Checks, gradients, wait_until

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # the same sums each time

try:
    import torch

    import spillway.torch as spw
    from spillway.torch import activations, activations_gpu
except ImportError:
    torch = None

WHY = "torch is not installed" if torch is None else "torch sees no GPU" if not torch.cuda.is_available() else None
WIDTH = 256


def blocks(dtype, n=6):
    torch.manual_seed(1)
    return torch.nn.Sequential(*(Block(WIDTH) for _ in range(n))).cuda().to(dtype)


def batch(dtype, seed=1, n=8):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 256, WIDTH, generator=generator).cuda().to(dtype)


@unittest.skipIf(WHY is not None, WHY)
class GpuTest(Checks, support.Case):
    sections = "[tier.dram]\nsize = 2 GiB\n"

    def setUp(self):
        super().setUp()
        warnings.simplefilter("error", RuntimeWarning)  # that there is no way to the pool
        torch.use_deterministic_algorithms(True, warn_only=True)
        self.addCleanup(self.is_empty)
        # Kernels are so small here that the host is never ahead.
        patch = unittest.mock.patch.object(activations._Mover, "host_has_time", lambda mover: True)
        patch.start()
        self.addCleanup(patch.stop)

    def is_empty(self):
        gc.collect()
        stat = self.space.stat

        def left():
            for way in self.pool.session._attachments.values():
                if way.mapped is not None:
                    way.mapped.slots.trim()
            return stat().objects

        wait_until(lambda: left() == 0, lambda: f"left behind: {stat()}")

    def context(self, pool=None, **options):
        return spw.offload_activations(pool or self.pool, **{"min_bytes": 64 * KIB, **options})

    def expected(self, model, x):
        model(x).float().square().sum().backward()
        return gradients(model)

    def steps(self, dtype, n=5, **options):
        """Are as without a context; its statistics."""
        model, context = blocks(dtype), self.context(**options)
        for step in range(n):
            x = batch(dtype, step)
            with context:
                loss = model(x).float().square().sum()
            loss.backward()
            self.same(gradients(model), self.expected(model, x))
            del loss
        return context.stats

    def test_gradients_bit_for_bit(self):
        for dtype in (torch.float32, torch.bfloat16):
            stats = self.steps(dtype)
            self.assertGreater(stats.offloaded, 0)
            self.assertEqual(stats.copied, stats.offloaded)
            self.assertGreater(stats.loaded, 0)
            self.assertGreater(stats.deduplicated, 0)
            self.assertNotIn("device", stats.kept)

    def test_gathered_where_memory_is_not_mapped(self):
        """Nothing is copied; it is said once."""

        def refuse(space, device, map_only=False, attach=activations_gpu.attach):
            if map_only:
                raise spillway.SpillwayError(errno.ENOTSUP, "not mapped")
            return attach(space, device)

        patch = unittest.mock.patch.object(activations_gpu, "attach", refuse)
        with patch, warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            stats = self.steps(torch.float32)
        self.assertEqual(len([w for w in said if "not pinned" in str(w.message)]), 1)
        self.assertGreater(stats.offloaded, 0)
        self.assertEqual(stats.copied, 0)

    def test_all_from_the_pool(self):
        model, context, x = blocks(torch.bfloat16), self.context(), batch(torch.bfloat16)
        with context:
            loss = model(x).float().square().sum()
        self.is_idle(context)
        loss.backward()
        del loss
        self.same(gradients(model), self.expected(model, x))
        self.assertEqual(context.stats.forwarded, 0)
        self.assertGreater(context.stats.loaded, context.stats.offloaded * 3 // 4)

    def test_little_in_flight(self):
        """With "wait": what the pool has yet to take, and what the GPU has yet to compute."""
        largest = 8 * 256 * 4 * WIDTH * 4
        for on_full, limit in (("keep", None), ("wait", 4 * largest)):
            stats = self.steps(torch.float32, in_flight_bytes=2 * MIB, prefetch_bytes=2 * MIB, on_full=on_full)
            self.assertGreater(stats.offloaded, 0)
            self.assertNotIn("in_flight", stats.kept)
            if limit is not None:
                self.assertLessEqual(stats.peak_in_flight, limit)

    def test_a_host_that_is_ahead_is_held_back(self):
        """When it is through, most of what it saved has been copied."""
        model, context, x = blocks(torch.float32), self.context(in_flight_bytes=MIB), batch(torch.float32)
        with context:
            for _ in range(3):
                torch.cuda._sleep(50_000_000)
                loss = model(x).float().square().sum()
        stats = context.stats
        self.assertGreater(stats.offloaded, context._offloader._in_flight)
        del loss

    def test_on_side_streams(self):
        """What the stream has not done yet when a tensor is saved, or its memory used again, is waited for."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        model, context = blocks(torch.float32), self.context()
        for step in range(4):
            x = batch(torch.float32, step)
            expected = self.expected(model, x)
            torch.cuda.synchronize()
            with torch.cuda.stream(stream):
                torch.cuda._sleep(100_000_000)
                with context:
                    loss = model(x).float().square().sum()
                torch.cuda._sleep(100_000_000)
                loss.backward()
                del loss
                mine = gradients(model)
            torch.cuda.synchronize()
            self.same(mine, expected)
        self.assertGreater(context.stats.offloaded, 0)

    def test_a_consumer_on_another_stream(self):
        """Takes a saved tensor, and lets it go while its kernels have not run: nobody else gets the memory."""
        side = torch.cuda.Stream()
        x = torch.randn(4 << 20, device="cuda", requires_grad=True)
        with self.context() as context:
            y = (x * 1).sin()
        self.is_idle(context)
        with torch.cuda.stream(side):
            torch.cuda._sleep(200_000_000)
            taken = y.grad_fn._saved_self + 0
        others = [torch.full((4 << 20,), float("nan"), device="cuda") for _ in range(4)]
        torch.cuda.synchronize()
        self.assertTrue(torch.equal(taken, x))
        self.assertEqual(len(others), 4)
        del y

    def test_a_second_backward(self):
        model, context, x = blocks(torch.float32), self.context(), batch(torch.float32)
        with context:
            loss = model(x).square().sum()
        expected = self.expected(model, x)
        for retained in (True, True, False):
            loss.backward(retain_graph=retained)
            self.same(gradients(model), expected)
        del loss

    def test_backward_within_the_context_and_a_change_in_place(self):
        x = torch.randn(1 << 20, device="cuda", requires_grad=True)
        with self.context() as context:
            (x * 2).sin().sum().backward()
            y = x * 2
            loss = y.sin().sum()
            self.is_idle(context)
            y.add_(1)
        with self.assertRaisesRegex(RuntimeError, "inplace"):
            loss.backward()
        del loss
        self.assertTrue(torch.equal(x.grad, 2 * (x.detach() * 2).cos()))

    def test_a_pool_that_is_too_small(self):
        daemon = support.Daemon("[tier.dram]\nsize = 64 MiB\n")
        self.addCleanup(daemon.stop)
        pool = spw.connect("test", socket=daemon.socket, start=False)
        self.addCleanup(pool.session.close)
        model = blocks(torch.float32, 12)
        context = self.context(pool, timeout=0.01)
        for step in range(3):
            x = batch(torch.float32, step, 16)
            with context:
                loss = model(x).square().sum()
                self.is_idle(context)
            loss.backward()
            del loss
            self.same(gradients(model), self.expected(model, x))
        self.assertGreater(context.stats.kept.get("full", 0), 0)
        self.assertGreater(context.stats.offloaded, 0)

    def test_memory(self):
        """Less at most, and none more in the end."""
        model, x = blocks(torch.float32, 12), batch(torch.float32, n=16)

        def peak(context):
            torch.cuda.synchronize()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            for _ in range(3):
                with context:
                    loss = model(x).square().sum()
                loss.backward()
                del loss
                model.zero_grad(set_to_none=True)
            torch.cuda.synchronize()
            wait_until(lambda: torch.cuda.memory_allocated() == before, "memory is not given back")
            return torch.cuda.max_memory_allocated() - before

        self.expected(model, x)  # cuBLAS has its memory
        nothing = torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t)
        plain = peak(nothing)
        context = self.context(in_flight_bytes=16 * MIB, prefetch_bytes=16 * MIB, on_full="wait")
        mine = peak(context)
        self.assertLess(mine, plain * 0.6)
        self.assertEqual(context.stats.kept.get("in_flight", 0), 0)

    def test_a_graph_that_is_dropped(self):
        self.expected(blocks(torch.float32), batch(torch.float32))  # cuBLAS has its memory
        before = torch.cuda.memory_allocated()
        model, context = blocks(torch.float32), self.context()
        for _ in range(3):
            with context:
                loss = model(batch(torch.float32)).sum()
            del loss
        self.is_idle(context)
        del model
        gc.collect()
        wait_until(lambda: torch.cuda.memory_allocated() <= before, "memory is not given back")


if __name__ == "__main__":
    support.main()
