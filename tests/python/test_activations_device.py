# SPDX-License-Identifier: Apache-2.0
"""Activations on a GPU, without a GPU: a device that is late, and whose bytes are the CPU's. Either way."""
import contextlib
import errno
import gc
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
    from spillway.torch import activations, activations_gpu, activations_link, slots
except ImportError:
    torch = None


class Stream:
    """A stream of the device's; `cuda_stream` is the number of its own."""

    numbers = iter(range(1, 1 << 30))

    def __init__(self, device=None):
        self.cuda_stream = next(self.numbers)
        self.waited = []

    def wait_event(self, event):
        self.waited.append(event)
        if isinstance(event, Copying):
            event.synchronize()  # what comes into the stream runs at once

    def record_event(self, event):
        """After copies: they end when the link may move bytes."""
        return Copied(event)


class Copied:
    """An event after copies."""

    failure = None

    def __init__(self, event):
        assert isinstance(event, Event)

    def synchronize(self):
        Job.begins()
        assert Job.may_move.wait(20)
        if Copied.failure is not None:
            raise Copied.failure()


class Event:
    """Comes when the device has computed what came before: at once, unless it is held when this is recorded."""

    may_compute = threading.Event()
    compute = None

    def __init__(self, blocking, enable_timing=False):
        assert blocking

    def record(self, stream):
        self.stream = stream
        self.has_come = self.may_compute.is_set()
        self.time = self.compute.next() if self.compute is not None else 0.0

    def query(self):
        return (self.has_come or self.may_compute.is_set()) and time.monotonic() >= self.time

    def synchronize(self):
        assert self.has_come or self.may_compute.wait(20)
        time.sleep(max(self.time - time.monotonic(), 0))


class Compute:
    """What the device does, one kernel after the other: each event that is recorded ends one."""

    SECONDS = 0.02

    def __init__(self):
        self._ends = 0.0

    def next(self):
        """When the kernel ends that the host queues now."""
        self._ends = max(self._ends, time.monotonic()) + self.SECONDS
        return self._ends


class Job:
    """Ends when the link may move bytes, or when it is cancelled before."""

    may_move = threading.Event()

    @staticmethod
    def begins():
        """Something is about to wait for the link."""

    def __init__(self, move):
        self._move = move
        self._cancelled = threading.Event()

    def wait(self):
        Job.begins()
        end = time.monotonic() + 20
        while not self.may_move.is_set():
            if self._cancelled.wait(0.002):
                return spillway.Statuses([-errno.ECANCELED])
            assert time.monotonic() < end
        self._move()
        return spillway.Statuses([0])

    def cancel(self):
        self._cancelled.set()


class Copying:
    """Copies that a stream is told to make, and its event: they are made when somebody waits for them, none earlier."""

    def __init__(self, lane, pairs, after):
        self.lane, self.pairs, self.after = lane, pairs, after
        self.done = False

    def query(self):
        if not self.done and Job.may_move.is_set() and all(event.query() for event in self.after):
            self.lane.run(self)
        return self.done

    def synchronize(self):
        end = time.monotonic() + 20
        while not self.query():
            assert time.monotonic() < end
            time.sleep(0.002)

    def run(self):
        for to, source in self.pairs:
            to.copy_(source)
        self.nbytes = sum(to.numel() for to, _ in self.pairs)
        self.pairs = []
        self.done = True

    def elapsed_time(self, end):
        return 1.0


class Lane:
    """A stream of the device's that copies, in order."""

    made = []

    def __init__(self, device):
        self.copies = []
        self._left = []
        self._lock = threading.Lock()
        self.made.append(self)

    def copy(self, pairs, after):
        copying = Copying(self, pairs, [] if after is None else [after])
        self.copies.append(copying)
        self._left.append(copying)
        return activations_gpu._Sent(copying, copying)

    def copied(self, pairs, after):
        sent = self.copy(pairs, after)
        sent.end.synchronize()
        return sent.seconds()

    def run(self, upto):
        with self._lock:
            while not upto.done:
                self._left.pop(0).run()


class Gpu:
    """The attachment."""

    def __init__(self):
        self.failure = None
        self.refusal = None
        self.puts, self.gets, self.mapped = [], [], []
        self.is_open = True

    def map(self, view):
        assert self.is_open
        if self.refusal is not None:
            raise self.refusal()  # a new one, which has no traceback
        self.mapped.append(view.address)
        return view.address

    def close(self):
        self.is_open = False

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
            raise self.failure()
        copy(activations._bytes(region.owner))


SIZE = 256 * KIB


class Device(Base):
    """One that is late."""

    SLOTS_PERCENT = 0
    HOST_HAS_TIME = staticmethod(lambda mover: True)  # the device computes in no time

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
            (activations_gpu, "_raw_stream", lambda index: self.current.cuda_stream),
            (activations_gpu, "attach", self.attach),
            (activations_gpu, "_CopyStream", Lane),
            (activations_gpu, "SLOTS_PERCENT", self.SLOTS_PERCENT),
            (activations, "_new_mover", activations_gpu.new_mover),
            (activations._Mover, "host_has_time", self.HOST_HAS_TIME or activations._Mover.host_has_time),
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

    def chain(self, context, n):
        """Nodes that have saved SIZE bytes each, and nothing else."""
        nodes = []
        with context:
            x = torch.randn(SIZE // 4, requires_grad=True) * 1
            for _ in range(n):
                x = x.sin()
                nodes.append(x.grad_fn)
        return nodes


@unittest.skipIf(torch is None, "torch is not installed")
class KernelTest(Device):
    ATTEMPTS = 2  # first for the copy engines

    def fail_by(self, failure):
        """What moves bytes raises what this makes: anew, for it should have no traceback."""
        self.gpu.failure = failure

    def attach(self, space, device, map_only=False):
        if map_only:
            raise spillway.SpillwayError(1, "memory is not registered here")
        warnings.filterwarnings("ignore", "the pool's memory is not pinned here", RuntimeWarning)
        return self.gpu

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
        self.assertNotIn(self.current.cuda_stream, {stream for _, stream in self.gpu.gets})
        self.assertNotIn(self.current.cuda_stream, {stream for _, stream, _ in self.gpu.puts})

    def test_one_attachment_for_all_contexts(self):
        made = []
        attach = lambda *a, **options: (made.append(1), self.attach(*a, **options))[1]
        with unittest.mock.patch.object(activations_gpu, "attach", attach):
            for _ in range(3):
                with self.context():
                    loss = blocks(1)(batch()).square().sum()
                loss.backward()
        self.assertEqual(len(made), self.ATTEMPTS)

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
        """And two storages may be ahead, however large they are."""
        for in_flight_bytes, n in ((1, 3), (4 * SIZE, 5)):
            Event.may_compute.clear()
            context = self.context(in_flight_bytes=in_flight_bytes)
            found = []
            thread = threading.Thread(target=lambda: found.append(self.chain(context, 8)))
            thread.start()
            wait_until(lambda: context.stats.peak_in_flight == n * SIZE, "not enough is saved")
            thread.join(0.1)
            self.assertTrue(thread.is_alive())
            self.assertEqual(context.stats.peak_in_flight, n * SIZE)
            Event.may_compute.set()
            thread.join(20)
            self.assertFalse(thread.is_alive())
            self.is_idle(context)
            self.assertEqual(context.stats.offloaded, 8 * SIZE)
            found.clear()

    def test_a_pool_that_is_slow_is_not_waited_for(self):
        """Copies that have not begun when backward does are left out."""
        Job.may_move.clear()
        context = self.context(in_flight_bytes=1)
        nodes = self.chain(context, 8)
        wait_until(lambda: len(self.gpu.puts) == 2, "copies do not begin")
        nodes[7]._saved_self
        Job.may_move.set()
        self.is_idle(context)
        self.assertEqual(context.stats.offloaded, 2 * SIZE)
        self.assertEqual(context.stats.forwarded, 6 * SIZE)
        self.assertNotIn("in_flight", context.stats.kept)
        nodes.clear()

    def test_copies_go_on_until_the_device_is_in_backward(self):
        Job.may_move.clear()
        context = self.context()
        nodes = self.chain(context, 8)
        wait_until(lambda: len(self.gpu.puts) == 2, "copies do not begin")
        Event.may_compute.clear()
        nodes[7]._saved_self
        Job.may_move.set()
        self.is_idle(context)
        self.assertEqual(context.stats.offloaded, 7 * SIZE)
        nodes.clear()

    def test_of_the_next_graph_all_is_copied(self):
        context = self.context()
        for _ in range(2):
            nodes = self.chain(context, 4)
            self.is_idle(context)
            nodes[3]._saved_self
            del nodes
        self.assertEqual(context.stats.offloaded, 8 * SIZE)

    def test_in_each_step_what_hides_is_copied(self):
        """Kernels are long, copies are not: with one context and with new ones, all but what is saved last."""
        n, least = 12, 6  # a machine that is busy may stand still for some kernels
        one = self.context(in_flight_bytes=1)
        for context_of in (lambda: one, lambda: self.context(in_flight_bytes=1)):
            for step in range(3):
                context = context_of()
                before = context.stats.offloaded
                with unittest.mock.patch.object(Event, "compute", Compute()):
                    nodes = self.chain(context, n)
                    for node in reversed(nodes):
                        node._saved_self
                self.is_idle(context)
                moved = (context.stats.offloaded - before) // SIZE
                self.assertGreaterEqual(moved, least, f"of {n}, in step {step}")
                del node, nodes

    def test_a_copy_that_backward_overtakes_is_given_up(self):
        """The next step's are not behind it, with one context and with new ones."""
        one = self.context()
        for context_of in (lambda: one, self.context):
            for _ in range(2):
                Job.may_move.clear()
                slow, begun = context_of(), len(self.gpu.puts)
                nodes = self.chain(slow, 4)
                wait_until(lambda: len(self.gpu.puts) == begun + 2, "copies do not begin")
                before = slow.stats
                for node in reversed(nodes):
                    node._saved_self
                wait_until(lambda: slow._offloader._in_flight == 0, "copies go on")
                self.assertEqual(slow.stats.offloaded, before.offloaded)
                self.assertEqual(slow.stats.forwarded, before.forwarded + 4 * SIZE)
                self.assertNotIn("full", slow.stats.kept)
                for node in reversed(nodes):  # what was given up is there
                    node._saved_self
                del node, nodes
                Job.may_move.set()
                context = context_of()
                before = context.stats
                nodes = self.chain(context, 4)
                self.is_idle(context)
                self.assertEqual(context.stats.offloaded, before.offloaded + 4 * SIZE)
                del nodes

    def test_with_wait_the_pool_is_waited_for(self):
        Job.may_move.clear()
        context = self.context(in_flight_bytes=2 * SIZE, on_full="wait")
        found = []
        thread = threading.Thread(target=lambda: found.append(self.chain(context, 8)))
        thread.start()
        wait_until(lambda: len(self.gpu.puts) == 2, "copies do not begin")
        thread.join(0.1)
        self.assertTrue(thread.is_alive())
        self.assertEqual(context.stats.peak_in_flight, 2 * SIZE)
        Job.may_move.set()
        thread.join(20)
        self.is_idle(context)
        self.assertEqual(context.stats.offloaded, 8 * SIZE)
        found.clear()

    def test_half_of_what_backward_gives_back_goes_to_reads(self):
        context = self.context(prefetch_bytes=SIZE)
        with self.nothing_moves_after(context, 6) as nodes:
            for i, n in ((11, 1), (10, 1), (9, 1), (8, 2)):
                nodes[i]._saved_self
                wait_until(lambda: len(self.gpu.gets) >= n, "no read begins")
                time.sleep(0.05)
                self.assertEqual(len(self.gpu.gets), n)
            del nodes[:]

    def test_a_read_does_not_wait_for_what_comes_later(self):
        """Its memory, and its place in the stream, are of when the hook queued it."""
        context = self.context(prefetch_bytes=3 * SIZE)
        with self.nothing_moves_after(context, 6) as nodes:
            stream = self.current
            nodes[11]._saved_self
            rooms = [a.room for _, r in context._offloader._order for a in [r()] if a is not None and a.room]
            self.assertEqual(len(rooms), 3)
            self.assertEqual({room.event.stream for room in rooms}, {stream})
            self.assertEqual(len({room.storage.data_ptr() for room in rooms}), 3)
            del rooms, nodes[:]

    @contextlib.contextmanager
    def nothing_moves_after(self, context, stored):
        """Twelve nodes."""
        puts = []

        def begins():
            puts.append(1)
            if len(puts) > stored:
                Job.may_move.clear()

        with unittest.mock.patch.object(Job, "begins", begins):
            nodes = self.chain(context, 12)
            wait_until(lambda: len(puts) == stored + 2, "copies do not begin")
            wait_until(lambda: context.stats.offloaded == stored * SIZE, "not all is stored")
            yield nodes
            Job.may_move.set()

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
            self.fail_by(lambda: type(failure)(failure.errno, failure.strerror))
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
        self.fail_by(lambda: spillway.Timeout(110, "not in time"))
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
        self.fail_by(lambda: spillway.SpillwayError(32, "the transfer failed"))
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
        def attach(space, device, **_):
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


class CopyTest(KernelTest):
    """What holds for both; puts and gets are told apart by what the mover does. Without slots."""

    ATTEMPTS = 1
    test_a_copy_that_backward_overtakes_is_given_up = None  # it is over before that matters
    test_memory_that_the_path_does_not_take = None  # it takes any

    def setUp(self):
        super().setUp()
        mover = activations_gpu._CopyMover
        put, get = mover.put, mover.get

        def watched_put(mover, key, storage, timeout):
            self.gpu.puts.append((key, None, timeout))
            put(mover, key, storage, timeout)

        def watched_get(mover, key, nbytes, room):
            self.gpu.gets.append((key, None))
            return get(mover, key, nbytes, room)

        for name, value in (("put", watched_put), ("get", watched_get)):
            patch = unittest.mock.patch.object(mover, name, value)
            patch.start()
            self.addCleanup(patch.stop)

    def test_free_memory_is_mapped_ahead(self):
        """And what is there stays there."""
        self.space.put(["a"], [bytes(MIB)]).check()
        self.gpu.mapped.clear()
        with unittest.mock.patch.object(slots, "AHEAD_BYTES", 8 * MIB):
            found = slots.Slots(self.space, self.gpu, 20 * MIB)
            found.map_ahead()
            self.assertEqual(len(self.gpu.mapped), 2)
            self.assertEqual(found.nbytes, 0)
            free = self.pool.info.dram_bytes - self.space.stat().dram_used
            slots.Slots(self.space, self.gpu, 1 << 40).map_ahead()
            self.assertLessEqual(len(self.gpu.mapped) - 2, free // (8 * MIB))
        self.assertEqual(self.session.admin({"get": "sessions"})["sessions"][0]["leases"], 0)
        self.assertEqual(self.space.stat().objects, 1)
        self.space.delete(["a"])

    def test_more_than_a_piece(self):
        n = (2 * self.space.piece_bytes + 4 * KIB) // 4
        with unittest.mock.patch.object(activations_gpu, "BATCH_PIECES", 2):
            with self.context() as context:
                x = torch.randn(n, requires_grad=True) * 1
                y = x.sin()
            self.is_idle(context)
            self.assertEqual(context.stats.offloaded, 4 * n)
            expected_x = x.detach().clone()
            node = y.grad_fn
            del x, y
            self.assertTrue(torch.equal(node._saved_self.detach(), expected_x))
        self.assertEqual(context.stats.loaded, 4 * n)
        self.assertEqual(len(self.gpu.mapped), 1 + 2 * 3)
        del node
        wait_until(lambda: self.space.stat().objects == 0, "left behind")

    def fail_by(self, failure):
        self.addCleanup(setattr, Copied, "failure", None)
        Copied.failure = failure

    def attach(self, space, device, map_only=False):
        assert map_only
        return self.gpu


class SlotDevice(Device):
    """With a copy engine, to memory that is mapped."""

    SLOTS_PERCENT = 50

    def setUp(self):
        super().setUp()
        Lane.made = []
        self.addCleanup(self.no_slot_is_lost)

    def attach(self, space, device, map_only=False):
        assert map_only
        return self.gpu

    def no_slot_is_lost(self):
        """Those that there are, nobody uses; then the pool may be empty."""
        slots = self.slots()
        if slots is not None:
            gc.collect()
            wait_until(self.all_are_free, "slots are not given back")
            slots.trim()
            self.assertEqual(slots.nbytes, 0)

    @property
    def out(self):
        return Lane.made[0].copies

    @property
    def back(self):
        return Lane.made[1].copies

    def slots(self):
        ways = [way for key, way in self.pool.session._attachments.items() if key[0] == "activations"]
        return ways[0].mapped.slots if ways else None

    def free_slots(self):
        slots = self.slots()
        with slots._lock:
            slots._collect()
            return list(slots._free)

    def all_are_free(self):
        return sum(slot.nbytes for slot in self.free_slots()) == self.slots().nbytes


@unittest.skipIf(torch is None, "torch is not installed")
class SlotTest(SlotDevice):
    def test_gradients_bit_for_bit(self):
        """And no memory is mapped after the first step."""
        model, mapped = blocks(), []
        for step in range(3):
            with self.context() as context:
                loss = model(batch(step)).square().sum()
            self.is_idle(context)
            loss.backward()
            self.same(gradients(model), expected(model, batch(step)))
            del loss
            stats = context.stats
            self.assertGreater(stats.offloaded, 0)
            self.assertEqual(stats.copied, stats.offloaded)
            self.assertEqual(stats.loaded + stats.resident, stats.offloaded)
            self.assertGreater(stats.loaded, stats.offloaded // 2)
            self.assertGreater(stats.put_seconds, 0)
            self.assertGreater(stats.get_seconds, 0)
            mapped.append(len(self.gpu.mapped))
            wait_until(self.all_are_free, "slots are not free")
        self.assertEqual(mapped[0], mapped[2])
        self.assertEqual(self.gpu.puts, [])

    def test_a_copy_that_backward_overtakes_is_given_up(self):
        """Between two batches; its slot is free then, and the next step's copies go on."""
        with unittest.mock.patch.object(activations_gpu, "BATCH_BYTES", SIZE // 4):
            self.pieces_of(SIZE // 4)
            Job.may_move.clear()
            context = self.context()
            nodes = self.chain(context, 4)
            wait_until(lambda: len(self.out) == 2, "copies do not begin")
            for node in reversed(nodes):
                node._saved_self
            Job.may_move.set()
            self.is_idle(context)
            self.assertEqual(len(self.out), 2)
            stats = context.stats
            self.assertEqual((stats.offloaded, stats.forwarded, stats.overtaken), (0, 4 * SIZE, 2))
            del node, nodes
            nodes = self.chain(context, 4)
            self.is_idle(context)
            self.assertEqual(context.stats.offloaded, 4 * SIZE)
            self.assertEqual(len(self.out), 2 + 4 * 4)
            del nodes

    def pieces_of(self, nbytes):
        """So small ones, if the store's are larger."""
        patch = unittest.mock.patch.object(spillway.Space, "piece_bytes", nbytes, create=True)
        made = spillway.Space.__init__

        def smaller(space, *args):
            made(space, *args)
            del space.piece_bytes

        patch.start()
        self.addCleanup(patch.stop)
        init = unittest.mock.patch.object(spillway.Space, "__init__", smaller)
        init.start()
        self.addCleanup(init.stop)

    @contextlib.contextmanager
    def late_consumer(self):
        """Streams that run nothing of what comes after an event."""
        with unittest.mock.patch.object(Stream, "wait_event", lambda stream, event: stream.waited.append(event)):
            yield

    def test_the_consumers_stream_waits_for_the_copy_and_the_host_does_not(self):
        context = self.context()
        nodes = self.chain(context, 3)
        self.is_idle(context)
        Event.may_compute.clear()  # what a read comes after
        done = threading.Event()
        with self.late_consumer():
            thread = threading.Thread(target=lambda node=nodes[2]: (node._saved_self, done.set()))
            thread.start()
            self.assertTrue(done.wait(5), "the host waits for the device")
        self.assertTrue(set(self.current.waited) & set(self.back))
        Event.may_compute.set()
        thread.join(20)
        del nodes

    def test_reads_begin_when_backward_is_at_what_was_kept(self):
        """Which is needed first: so they have time."""
        context = self.context(prefetch_bytes=2 * SIZE)
        stored = self.chain(context, 3)
        with context:
            small = torch.randn(8, requires_grad=True) * 1
            kept = [small.sin().grad_fn for _ in range(2)]
        self.is_idle(context)
        for times in (1, 2):  # the graph is kept
            for node in reversed(kept):
                self.assertEqual(node._saved_self.tolist(), small.tolist())
            if times == 1:
                wait_until(lambda: len(self.back) == 2, "no read begins")
            for node in reversed(stored):
                self.assertEqual(node._saved_self.numel(), SIZE // 4)
            self.assertEqual(context.stats.loaded + context.stats.resident, times * 3 * SIZE)
        del node, stored

    def test_what_nobody_used_is_not_free_before_it_has_arrived(self):
        context = self.context(prefetch_bytes=8 * SIZE)
        nodes = self.chain(context, 4)
        self.is_idle(context)
        with self.late_consumer():
            nodes[3]._saved_self
        wait_until(lambda: len(self.back) == 4, "reads do not begin")
        (mover,) = context._offloader._movers.values()
        unused = [arrival.event for arrival in mover._arrivals.values() if arrival.storage is not None]
        self.assertEqual(len(unused), 3)
        self.assertFalse(any(copying.done for copying in unused))
        del nodes
        wait_until(lambda: all(copying.done for copying in unused), "reads are forgotten")

    def test_a_slot_is_not_overwritten_before_it_has_been_read(self):
        context = self.context(prefetch_bytes=SIZE)
        for _ in range(2):
            nodes = self.chain(context, 1)
            self.is_idle(context)
            nodes[0]._saved_self
            del nodes
            wait_until(lambda: len(self.free_slots()) == 1, "the slot is not given back")
        self.assertEqual(self.out[0].after, [])
        self.assertEqual(self.out[1].after, [self.back[0]])
        self.assertEqual(len(self.back[0].after), 1)  # who had the memory before
        self.assertIs(self.back[0].after[0].stream, self.current)

    def test_slots_of_other_sizes_make_room(self):
        slots = activations_gpu.Slots(self.space, self.gpu, 10 * KIB)
        one, two = slots.take(4 * KIB), slots.take(4 * KIB)
        self.assertIsNone(slots.take(4 * KIB))
        slots.give(one)
        self.assertIs(slots.take(3 * KIB + 512), one)
        slots.give(one)
        self.assertIsNone(slots.take(8 * KIB))  # two is in use
        self.assertEqual(slots.nbytes, 4 * KIB)
        slots.give(two)
        small, larger = slots.take(KIB), slots.take(8 * KIB)
        self.assertIsNot(small, two)
        self.assertEqual((larger.nbytes, slots.nbytes), (8 * KIB, 9 * KIB))
        slots.give(larger)
        slots.trim()
        self.assertEqual(slots.nbytes, KIB)
        slots.give(small)
        slots.trim()

    def test_what_has_no_slot_goes_to_blocks(self):
        with unittest.mock.patch.object(activations_gpu, "SLOTS_PERCENT", 1):  # of 64 MiB: two slots
            context = self.context()
            nodes = self.chain(context, 4)
            self.is_idle(context)
            self.assertEqual(context.stats.offloaded, 4 * SIZE)
            self.assertEqual(context.stats.copied, 2 * SIZE)
            values = [node._saved_self for node in reversed(nodes)]
            self.assertEqual(context.stats.loaded + context.stats.resident, 4 * SIZE)
            del values, nodes

    def test_memory_that_cannot_be_mapped_any_more(self):
        """What has no slot then is kept; that is said once."""
        model = blocks()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for step in range(3):
                with self.context() as context:
                    loss = model(batch()).square().sum()
                self.is_idle(context)
                loss.backward()
                self.same(gradients(model), expected(model, batch()))
                del loss
                if step == 0:
                    self.assertNotIn("full", context.stats.kept)
                    wait_until(self.all_are_free, "slots are not free")
                    self.slots().trim()
                    self.gpu.refusal = lambda: spillway.SpillwayError(errno.EEXIST, "registered already")
        self.assertEqual(len([w for w in caught if "registered already" in str(w.message)]), 1)
        self.assertEqual(context.stats.offloaded, 0)
        self.assertGreater(context.stats.kept["full"], 0)


@unittest.skipIf(torch is None, "torch is not installed")
class PaceTest(SlotDevice):
    """Of the host, beside the device."""

    HOST_HAS_TIME = None

    def test_a_host_that_is_ahead(self):
        """What is saved while the device has something to do is stored, all of it, in one pass after the other."""
        context = self.context(in_flight_bytes=16 * SIZE)
        for step in range(1, 3):
            Event.may_compute.clear()
            nodes = self.chain(context, 6)
            Event.may_compute.set()
            self.is_idle(context)
            self.assertEqual(context.stats.offloaded, step * 6 * SIZE)
            for node in reversed(nodes):
                node._saved_self
            del node, nodes
        self.assertNotIn("host", context.stats.kept)

    def test_a_host_that_is_held_back(self):
        """Is ahead: the device computes what is saved as soon as there are two more, and all of it is stored."""
        saved, computed = [], [0]

        def record(event, stream):
            saved.append(event)
            event.stream, event.number = stream, len(saved)

        def query(event):
            return event.number <= max(computed[0], len(saved) - 2)

        def synchronize(event):
            if threading.current_thread() is threading.main_thread():
                computed[0] = max(computed[0], event.number)
            wait_until(event.query, "nothing is computed")

        with unittest.mock.patch.multiple(Event, record=record, query=query, synchronize=synchronize):
            context = self.context(in_flight_bytes=1)
            nodes = self.chain(context, 12)
            computed[0] = 1 << 30  # from here on all is
            self.is_idle(context)
            self.assertEqual(context.stats.offloaded, 12 * SIZE)
            for node in reversed(nodes):
                node._saved_self
        del node, nodes

    def test_a_host_that_is_not(self):
        """Of what is saved while the device waits for it nothing is, but the first, when nobody knows."""
        context = self.context()
        nodes = self.chain(context, 6)
        self.is_idle(context)
        self.assertEqual(context.stats.offloaded, SIZE)
        self.assertEqual(context.stats.kept["host"], 5 * SIZE)
        Event.may_compute.clear()  # from here on it is ahead
        more = self.chain(context, 3)
        Event.may_compute.set()
        self.is_idle(context)
        self.assertEqual(context.stats.offloaded, 1 * SIZE + 2 * SIZE)
        for node in reversed(more):
            node._saved_self
        del node, nodes, more

    def test_only_the_largest_where_the_device_waits(self):
        """Of those no more than twice what could be stored; until it does not wait any more. In new contexts, too."""

        def a_pass(is_ahead, **options):
            """A pair of storages, a small one first, four times. What was stored, in units of SIZE."""
            context = self.context(**options)
            nodes = []
            (Event.may_compute.clear if is_ahead else Event.may_compute.set)()
            with context:
                x, y = (torch.randn(n * SIZE // 4, requires_grad=True) * 1 for n in (1, 4))
                for _ in range(4):
                    x, y = x.sin(), y.sin()
                    nodes += [x.grad_fn, y.grad_fn]
            Event.may_compute.set()
            self.is_idle(context)
            for node in reversed(nodes):
                node._saved_self
            return context.stats.offloaded // SIZE, context.stats.kept.get("host", 0) // SIZE

        constants = {"LEAST_BYTES": 6 * SIZE, "LEAST_STORAGE": SIZE, "PATIENCE": 2}
        with unittest.mock.patch.multiple(activations_link, **constants):
            self.assertEqual(a_pass(is_ahead=False), (1, 19))  # the first, when nobody knows
            self.assertEqual(a_pass(is_ahead=True), (8, 12))  # 2 * 1 + 6: of the large ones that is two
            self.assertEqual(a_pass(is_ahead=True), (16, 4))  # all four of them, so those of half their size are tried,
            self.assertEqual(a_pass(is_ahead=True, on_full="wait"), (20, 0))
            self.assertEqual(a_pass(is_ahead=True), (16, 4))  # and a quarter
            self.assertEqual(a_pass(is_ahead=True), (20, 0))
            self.assertEqual(a_pass(is_ahead=False), (1, 19))
            self.assertEqual(a_pass(is_ahead=True), (20, 0))  # twice what could be stored once is more than there is

    def test_the_largest_may_come_too_late(self):
        """Then smaller ones are looked at, until something is stored."""
        link = activations_link.Link()

        def a_pass(refused):
            """Ten storages of a MiB, of which two can be stored, and then one of 64, which cannot. Stored, in MiB."""
            stored = []
            for n in 10 * [1] + [64]:
                if link.leaves_out(n << 20) or not link.takes(n << 20):
                    continue
                if refused and n == 1:
                    link.refuse(n << 20)
                elif n == 1 and len(stored) < 2:
                    link.queue(n << 20).stored += n << 20
                    stored.append(n)
            link.backward_begins()
            return sum(stored)

        with unittest.mock.patch.multiple(activations_link, LEAST_BYTES=1 << 20):
            a_pass(refused=True)
            self.assertEqual([a_pass(refused=False) for _ in range(8)], 6 * [0] + [1, 2])

    def test_what_the_device_does_not_wait_for_is_tried_again(self):
        """Soon, and later and later if it does after all."""
        link = activations_link.Link()

        def a_pass(refused):
            """Ten storages of a MiB, ten of eight. Which sizes were queued, in MiB; of each one is stored."""
            taken = set()
            for nbytes in 10 * [1 << 20, 8 << 20]:
                if not link.leaves_out(nbytes) and link.takes(nbytes):
                    if refused and taken:
                        link.refuse(nbytes)
                        continue
                    passed = link.queue(nbytes)
                    if nbytes >> 20 not in taken:
                        passed.stored += nbytes
                    taken.add(nbytes >> 20)
            link.backward_begins()
            return taken

        with unittest.mock.patch.multiple(activations_link, LEAST_BYTES=1 << 20, PATIENCE=4):
            link = activations_link.Link()
            a_pass(refused=True)
            for patience in (4, 8, 16):
                for step in range(patience + 2):  # of 8 MiB at least, then of 4 and 2 as the device does not wait
                    self.assertEqual(a_pass(refused=False), {8}, (patience, step))
                self.assertEqual(a_pass(refused=False), {1, 8})
                a_pass(refused=True)
            a_pass(refused=True)
            self.assertEqual(a_pass(refused=False), {8})
            for _ in range(3 * activations_link.LEFT_OUT_MAX):  # another model, of small ones
                self.assertTrue(link.leaves_out(1 << 20))
            self.assertEqual(a_pass(refused=False), {1, 8})
            a_pass(refused=True)
            self.assertEqual(a_pass(refused=False), {8})
            for nbytes in 40 * [8 << 20]:  # another one, of large ones: what was stored before says nothing of it
                self.assertFalse(link.leaves_out(nbytes))
                link.takes(nbytes)
            link.backward_begins()
            self.assertEqual(a_pass(refused=False), {1, 8})

    def test_who_waits_for_the_pool_waits_for_all(self):
        context = self.context(on_full="wait")
        nodes = self.chain(context, 6)
        self.is_idle(context)
        self.assertEqual(context.stats.offloaded, 6 * SIZE)
        del nodes


if __name__ == "__main__":
    support.main()
