# SPDX-License-Identifier: Apache-2.0
"""Activations on a GPU, without a GPU: a device that is late, and whose bytes are the CPU's."""
import contextlib
import threading
import time
import unittest
import unittest.mock
import warnings

import spillway
import support
from support import KIB, MIB
from test_activations import Base, batch, blocks, expected, gradients, wait_until

try:
    import torch

    import spillway.torch as spw
    from spillway.torch import activations, activations_gpu
except ImportError:
    torch = None


class Stream:
    """A stream of the device's; `cuda_stream` is the number of its own."""

    numbers = iter(range(1, 1 << 30))

    def __init__(self, device=None):
        self.cuda_stream = next(self.numbers)


class Event:
    """Comes when the device has computed what came before: at once, unless it is held."""

    may_compute = threading.Event()

    def __init__(self, blocking):
        assert blocking

    def record(self, stream):
        pass

    def query(self):
        return self.may_compute.is_set()

    def synchronize(self):
        assert self.may_compute.wait(20)


class Job:
    """Ends when the link may move bytes."""

    may_move = threading.Event()

    def __init__(self, move):
        self._move = move

    def wait(self):
        assert self.may_move.wait(20)
        self._move()
        return spillway.Statuses([0])


class Gpu:
    """The attachment."""

    def __init__(self):
        self.failure = None
        self.puts, self.gets = [], []

    def put(self, ranges, stream, *, space, timeout):
        ((tensor, offset, region),) = ranges
        self.puts.append((tensor, stream, timeout))
        return Job(lambda: self._copy(lambda data: tensor.put(offset, data, timeout), region))

    def get(self, ranges, stream, *, space):
        ((key, offset, region),) = ranges
        self.gets.append((key, stream))
        return Job(lambda: self._copy(lambda data: space.tensor(key, region.nbytes).get(offset, data), region))

    def _copy(self, copy, region):
        if self.failure is not None:
            raise self.failure()  # a new one, which has no traceback
        copy(activations._bytes(region.owner))


@unittest.skipIf(torch is None, "torch is not installed")
class DeviceTest(Base):
    def setUp(self):
        super().setUp()
        self.gpu = Gpu()
        self.current = Stream()
        Event.may_compute.set()
        Job.may_move.set()
        for owner, name, value in (
            (torch.cuda, "Stream", Stream),
            (torch.cuda, "Event", Event),
            (torch.cuda, "current_stream", lambda device: self.current),
            (torch.cuda, "stream", lambda stream: contextlib.nullcontext()),
            (torch.cuda, "is_current_stream_capturing", lambda: False),
            (activations_gpu, "attach", lambda space, device: self.gpu),
            (activations, "_new_mover", activations_gpu.new_mover),
        ):
            patch = unittest.mock.patch.object(owner, name, value)
            patch.start()
            self.addCleanup(patch.stop)
        self.addCleanup(Event.may_compute.set)
        self.addCleanup(Job.may_move.set)

    def forward(self, model, context, x):
        """In a thread, for it may wait: what it is, and its loss as soon as it is there."""
        losses = []

        def run():
            with context:
                losses.append(model(x).square().sum())

        thread = threading.Thread(target=run)
        thread.start()
        return thread, losses

    def test_gradients_bit_for_bit(self):
        model, context = blocks(), self.context()
        for step in range(3):
            with context:
                loss = model(batch(step)).square().sum()
            self.is_idle(context)
            loss.backward()
            self.same(gradients(model), expected(model, batch(step)))
            del loss
        self.assertGreater(context.stats.offloaded, 0)
        self.assertGreater(context.stats.loaded, 0)
        self.assertEqual({stream for _, stream in self.gpu.gets}, {self.current.cuda_stream})
        self.assertNotIn(self.current.cuda_stream, {stream for _, stream, _ in self.gpu.puts})

    def test_one_attachment_for_all_contexts(self):
        made = []
        with unittest.mock.patch.object(activations_gpu, "attach", lambda *_: (made.append(1), self.gpu)[1]):
            for _ in range(3):
                with self.context():
                    loss = blocks(1)(batch()).square().sum()
                loss.backward()
        self.assertEqual(len(made), 1)

    def test_nothing_is_copied_before_it_is_computed(self):
        Event.may_compute.clear()
        model, context = blocks(1), self.context()
        thread, losses = self.forward(model, context, batch())
        thread.join(20)
        time.sleep(0.05)
        self.assertEqual(self.gpu.puts, [])
        Event.may_compute.set()
        self.is_idle(context)
        self.assertGreater(len(self.gpu.puts), 0)
        losses.pop().backward()
        self.same(gradients(model), expected(model, batch()))

    def test_a_host_that_is_ahead_waits(self):
        """The pool is not too slow then, and what is saved is not kept."""
        Event.may_compute.clear()
        model, context = blocks(), self.context(in_flight_bytes=MIB)
        thread, losses = self.forward(model, context, batch())
        wait_until(lambda: context.stats.peak_in_flight > MIB // 2, "nothing is saved")
        thread.join(0.2)
        self.assertTrue(thread.is_alive())
        self.assertNotIn("in_flight", context.stats.kept)
        Event.may_compute.set()
        thread.join(20)
        self.assertLessEqual(context.stats.peak_in_flight, MIB)
        losses.pop().backward()
        self.same(gradients(model), expected(model, batch()))

    def test_a_pool_that_is_slow_is_not_waited_for(self):
        Job.may_move.clear()
        model, context = blocks(), self.context(in_flight_bytes=MIB)
        thread, losses = self.forward(model, context, batch())
        thread.join(10)
        self.assertFalse(thread.is_alive())
        self.assertGreater(context.stats.kept["in_flight"], 0)
        Job.may_move.set()
        losses.pop().backward()
        self.same(gradients(model), expected(model, batch()))

    def test_copies_overlap(self):
        Job.may_move.clear()
        context = self.context()
        thread, losses = self.forward(blocks(), context, batch())
        wait_until(lambda: len(self.gpu.puts) == 2, "copies do not begin")
        Job.may_move.set()
        thread.join(20)
        self.is_idle(context)
        losses.clear()

    def test_no_room(self):
        """Is kept, and nothing is left of the attempt."""
        for failure in (spillway.NoSpace(28, "no room"), spillway.Timeout(110, "not in time")):
            self.gpu.failure = lambda: type(failure)(failure.errno, failure.strerror)
            model, context = blocks(), self.context()
            with context:
                loss = model(batch()).square().sum()
                self.is_idle(context)
            wait_until(lambda: self.space.stat().objects == 0, "left behind")
            self.assertGreater(context.stats.kept["full"], 0)
            self.assertEqual(context.stats.offloaded, 0)
            loss.backward()
            self.same(gradients(model), expected(model, batch()))
            del loss

    def test_no_room_is_raised(self):
        self.gpu.failure = lambda: spillway.Timeout(110, "not in time")
        with self.assertRaisesRegex(spillway.NoSpace, "no room for .* bytes of activations"):
            with self.context(on_full="raise") as context:
                y = (torch.randn(64 * KIB, requires_grad=True) * 1).sin()
                self.is_idle(context)
        del y

    def test_bytes_that_do_not_come_back(self):
        model, context = blocks(), self.context()
        with context:
            loss = model(batch()).square().sum()
        self.is_idle(context)
        self.gpu.failure = lambda: spillway.SpillwayError(32, "the transfer failed")
        with self.assertRaisesRegex(Exception, "the transfer failed"):
            loss.backward()
        del loss

    def test_another_stream_is_told_to_the_allocator(self):
        told = []
        with unittest.mock.patch.object(torch.Tensor, "record_stream", lambda t, stream: told.append(stream)):
            x = torch.randn(64 * KIB, requires_grad=True)
            with self.context() as context:
                y = (x * 1).sin()
            self.is_idle(context)
            self.current = Stream()
            y.sum().backward()
        self.assertEqual(told, [self.current])
        del y

    def test_memory_that_the_path_does_not_take(self):
        x = torch.randn(64 * KIB + 1, requires_grad=True)
        with self.context() as context:
            y = (x * 1).sin()
        self.assertEqual(context.stats.kept["device"], 4 * (64 * KIB + 1))
        self.assertEqual(context.stats.offloaded, 0)
        y.sum().backward()
        del y

    def test_without_a_path_all_is_kept(self):
        def attach(space, device):
            raise spillway.NoGpu(38, "libcuda.so.1 is not there")

        model = blocks()
        patch = unittest.mock.patch.object(activations_gpu, "attach", attach)
        with patch, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(2):
                with self.context() as context:
                    loss = model(batch()).square().sum()
                loss.backward()
                self.same(gradients(model), expected(model, batch()))
        self.assertGreater(context.stats.kept["device"], 0)
        self.assertEqual(context.stats.offloaded, 0)
        self.assertEqual(len([w for w in caught if "activations stay on cpu: " in str(w.message)]), 1)
        self.assertEqual(spw.offload_activations(self.pool).stats.offloaded, 0)


if __name__ == "__main__":
    support.main()
