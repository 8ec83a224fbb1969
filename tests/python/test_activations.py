# SPDX-License-Identifier: Apache-2.0
"""offload_activations: gradients as without it, bit for bit, less memory, and nothing left behind."""
import contextlib
import gc
import subprocess
import sys
import threading
import time
import unittest
import unittest.mock

import spillway
import support
from support import KIB, MIB

try:
    import torch
    from torch.multiprocessing.reductions import StorageWeakRef
    from torch.utils.checkpoint import checkpoint

    import spillway.torch as spw
    from spillway.torch import activations
except ImportError:
    torch = None

WIDTH = 64
SIZE = 8 * 32 * WIDTH * 4  # of a batch, in bytes
SECONDS = 10  # for what happens soon


class Block(torch.nn.Module if torch else object):
    """Attention whose q, k and v are views of one storage, an MLP, and a change in place that autograd allows."""

    def __init__(self, width=WIDTH, heads=4):
        super().__init__()
        self.heads = heads
        self.norm = torch.nn.LayerNorm(width)
        self.qkv = torch.nn.Linear(width, 3 * width)
        self.out = torch.nn.Linear(width, width)
        self.mlp = torch.nn.Sequential(
            torch.nn.LayerNorm(width), torch.nn.Linear(width, 4 * width), torch.nn.ReLU(inplace=True),
            torch.nn.Linear(4 * width, width)
        )

    def forward(self, x):
        n, tokens, width = x.shape
        q, k, v = (part.view(n, tokens, self.heads, -1).transpose(1, 2) for part in self.qkv(self.norm(x)).chunk(3, -1))
        weights = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(n, tokens, width))
        return x + self.mlp(x)


def blocks(n=4, seed=1, **options):
    torch.manual_seed(seed)
    return torch.nn.Sequential(*(Block(**options) for _ in range(n)))


def batch(seed=1, tokens=32):
    return torch.randn(8, tokens, WIDTH, generator=torch.Generator().manual_seed(seed))


def gradients(model):
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad(set_to_none=True)
    return found


def expected(model, x):
    model(x).square().sum().backward()
    return gradients(model)


def wait_until(true, what):
    end = time.monotonic() + SECONDS
    while not true():
        if time.monotonic() > end:
            raise AssertionError(what() if callable(what) else what)
        time.sleep(0.002)


class Gate:
    """Stands before the calls of a method: counts those that came, and lets them pass while it is open."""

    def __init__(self, owner, name):
        self.calls = []
        self.open = threading.Event()
        self._real = getattr(owner, name)
        self._patch = unittest.mock.patch.object(owner, name, lambda *args: self._call(*args))

    def _call(self, *args):
        self.calls.append(args[1])
        self.open.wait(SECONDS)
        return self._real(*args)

    def __enter__(self):
        self._patch.start()
        return self

    def __exit__(self, *_):
        self.open.set()
        self._patch.stop()


class Alive:
    """Storages of what autograd saves, and how many bytes of them are in memory."""

    def __init__(self):
        self._seen = {}

    def note(self, tensor):
        storage = activations._storage(tensor)
        if storage._cdata not in self._seen:
            self._seen[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())

    @property
    def nbytes(self):
        return sum(nbytes for reference, nbytes in self._seen.values() if not reference.expired())

    def plain(self):
        """Hooks that only note."""
        return torch.autograd.graph.saved_tensors_hooks(lambda t: (self.note(t), t.detach())[1], lambda t: t)

    def of(self, context):
        """Notes what a context is given."""
        pack = context._offloader.pack
        context.pack_hook = lambda tensor: (self.note(tensor), pack(tensor))[1]
        return context


class Checks:
    """What any test of a context may ask."""

    def is_idle(self, context):
        wait_until(lambda: context._offloader._in_flight == 0, "copies do not end")

    def same(self, mine, other):
        self.assertEqual(len(mine), len(other))
        for a, b in zip(mine, other):
            self.assertTrue(torch.equal(a, b))


@unittest.skipIf(torch is None, "torch is not installed")
class Base(Checks, support.Case):
    """A context's usual checks. A test leaves nothing in the pool."""

    def setUp(self):
        super().setUp()
        self.contexts = []
        self.addCleanup(self.is_empty)  # each graph has gone by then

    def is_empty(self):
        gc.collect()
        for context in self.contexts:
            self.is_idle(context)
        stat = self.space.stat
        wait_until(lambda: stat().objects == 0 and stat().dram_used == 0, lambda: f"left behind: {stat()}")

    def context(self, **options):
        self.contexts.append(spw.offload_activations(self.pool, **{"min_bytes": KIB, **options}))
        return self.contexts[-1]


class Activations(Base):
    # --- The same numbers

    def test_gradients_bit_for_bit(self):
        model, context = blocks(), self.context()
        for step in range(5):
            with context:
                loss = model(batch(step)).square().sum()
            loss.backward()
            mine = gradients(model)
            self.same(mine, expected(model, batch(step)))
        stats = context.stats
        self.assertGreater(stats.offloaded, 0)
        self.assertGreater(stats.deduplicated, 0)
        self.assertGreater(stats.kept["leaf"], 0)

    def test_all_from_the_pool(self):
        model, context = blocks(), self.context()
        with context:
            loss = model(batch()).square().sum()
        self.is_idle(context)
        loss.backward()
        self.same(gradients(model), expected(model, batch()))
        stats = context.stats
        self.assertEqual(stats.forwarded, 0)
        self.assertGreater(stats.loaded, stats.offloaded * 3 // 4)
        self.assertGreater(stats.waited_seconds, 0)

    def test_bfloat16(self):
        model, context = blocks().bfloat16(), self.context()
        x = batch().bfloat16()
        with context:
            loss = model(x).float().square().sum()
        self.is_idle(context)
        loss.backward()
        self.same(gradients(model), expected(model, x))

    def test_backward_within_the_context(self):
        model = blocks()
        with self.context():
            model(batch()).square().sum().backward()
        self.same(gradients(model), expected(model, batch()))

    def test_a_second_backward(self):
        model, context = blocks(), self.context()
        with context:
            loss = model(batch()).square().sum()
        self.is_idle(context)
        loss.backward(retain_graph=True)
        first = gradients(model)
        used = self.space.stat().objects
        self.assertGreater(used, 0)
        loss.backward()
        self.same(first, gradients(model))
        self.same(first, expected(model, batch()))
        self.assertGreater(context.stats.loaded, context.stats.offloaded)
        with self.assertRaisesRegex(RuntimeError, "second time"):
            loss.backward()

    def test_gradients_of_gradients(self):
        def second(context):
            x = batch().requires_grad_()
            with context:
                y = (x.sin() * x.exp()).tanh()
                (first,) = torch.autograd.grad(y.sum(), x, create_graph=True)
                loss = first.square().sum()
            (found,) = torch.autograd.grad(loss, x)
            return found

        self.assertTrue(torch.equal(second(self.context()), second(contextlib.nullcontext())))

    def test_checkpointing(self):
        model = blocks()
        for reentrant in (False, True):
            context = self.context()
            x = batch().requires_grad_()
            with context:
                hidden = checkpoint(model[1], model[0](x), use_reentrant=reentrant)
                loss = model[3](checkpoint(model[2], hidden, use_reentrant=reentrant)).square().sum()
            self.is_idle(context)
            loss.backward()
            self.same(gradients(model), expected(model, batch()))
            self.assertGreater(context.stats.offloaded, 0)

    def test_views_of_one_storage(self):
        class Keep(torch.autograd.Function):
            @staticmethod
            def forward(ctx, *tensors):
                ctx.save_for_backward(*tensors)
                return sum(t.sum() for t in tensors)

            @staticmethod
            def backward(ctx, grad):
                self.unpacked = ctx.saved_tensors
                return tuple(grad * torch.ones_like(t) for t in self.unpacked)

        def views(base):
            return [base, base.t(), base[3:9, 2::3], base[7], base.view(-1)[5:4000].view(5, 799), base.double(),
                    base.unfold(0, 4, 2), base[:1].expand(64, 64)]

        context = self.context(min_bytes=64)
        with context:
            tensors = views(torch.randn(64, 64, requires_grad=True) * 2)
            loss = Keep.apply(*tensors)
        saved = [t.detach().clone() for t in tensors]
        strides = [t.stride() for t in tensors]
        del tensors
        self.is_idle(context)
        loss.backward()
        self.same(self.unpacked, saved)
        self.assertEqual([t.stride() for t in self.unpacked], strides)
        self.assertEqual(context.stats.offloaded, 64 * 64 * (4 + 8))
        self.assertEqual(context.stats.loaded, 64 * 64 * (4 + 8))
        self.unpacked = None

    # --- Changes in place

    def test_changed_in_place(self):
        for stored in (False, True):
            for change in (lambda y: y.add_(1), lambda y: y[1:].zero_(), lambda y: y.view(-1).mul_(2)):
                context = self.context()
                with context:
                    y = batch().requires_grad_().exp()
                if stored:
                    self.is_idle(context)
                with torch.no_grad():
                    change(y)
                with self.assertRaisesRegex(RuntimeError, "modified by an inplace operation.*at version 1; expected"):
                    y.sum().backward()

    def test_changed_in_place_where_it_is_kept(self):
        weight = torch.nn.Parameter(torch.randn(WIDTH, WIDTH))
        with self.context():
            loss = (batch().requires_grad_() @ weight).sum()
        with torch.no_grad():
            weight.mul_(2)
        with self.assertRaisesRegex(RuntimeError, "modified by an inplace operation"):
            loss.backward()

    def test_changed_before_the_copy_began(self):
        with Gate(activations._CpuMover, "put") as gate:
            context = self.context()
            with context:
                y = batch().requires_grad_().exp()
            y.detach().zero_()
            gate.open.set()
            self.is_idle(context)
        with self.assertRaisesRegex(RuntimeError, "modified by an inplace operation"):
            y.sum().backward()

    def test_saved_anew_after_a_change(self):
        def run(context, is_idle):
            x = batch().requires_grad_()
            with context:
                y = x * 2
                unused = y.sin()
                is_idle()
                y.add_(1)
                loss = y.sin().sum()
            del y
            is_idle()
            loss.backward()
            del unused
            return x.grad

        context = self.context()
        mine = run(context, lambda: self.is_idle(context))
        self.assertGreaterEqual(context.stats.loaded, SIZE)
        self.assertTrue(torch.equal(mine, run(contextlib.nullcontext(), lambda: None)))

    # --- Memory

    def test_memory_goes(self):
        model = blocks(8)
        plain, mine = Alive(), Alive()
        with plain.plain():
            loss = model(batch()).square().sum()
        everything = plain.nbytes
        del loss
        leaves = plain.nbytes
        self.assertLess(leaves, everything // 2)
        context = mine.of(self.context(prefetch_bytes=256 * KIB))
        peak = []
        with context:
            loss = batch().requires_grad_() * 1
            for block in model:
                loss = block(loss)
                loss.register_hook(lambda _: peak.append(self.in_memory(context)))
            loss = loss.square().sum()
        self.is_idle(context)
        self.assertLess(mine.nbytes - leaves, (everything - leaves) // 10)
        loss.backward()
        self.assertEqual(len(peak), len(model))
        self.assertLess(max(peak), (everything - leaves) // 4)
        self.assertEqual(self.in_memory(context), 0)
        gradients(model)

    def in_memory(self, context):
        order = [reference() for _, reference in context._offloader._order]
        return sum(a.nbytes for a in order if a is not None and not a.seen.expired())

    def test_a_graph_that_is_dropped(self):
        context = self.context()
        for idle in (True, False):
            with context:
                loss = blocks()(batch()).square().sum()
            if idle:
                self.is_idle(context)
                self.assertGreater(self.space.stat().objects, 0)
            del loss
            self.is_empty()

    def test_a_dropped_graph_is_not_copied(self):
        with Gate(activations._CpuMover, "put") as gate:
            alive = Alive()
            context = alive.of(self.context())
            with context:
                y = batch().requires_grad_().exp().exp().exp().exp()
            wait_until(lambda: gate.calls, "no copy begins")
            del y
            self.assertEqual(alive.nbytes, SIZE)
            gate.open.set()
            self.is_idle(context)
            self.assertEqual(len(gate.calls), 1)

    def test_an_exception_in_forward(self):
        model = blocks()
        with contextlib.suppress(ZeroDivisionError), self.context():
            model(batch())
            raise ZeroDivisionError
        with self.assertRaisesRegex(RuntimeError, "invalid for input of size"), self.context() as context:
            hidden = model(batch())
            self.is_idle(context)
            hidden.view(7)
        del hidden

    def test_many_steps(self):
        model, context = blocks(2), self.context()
        alive = Alive()
        alive.of(context)
        for step in range(60):
            with context:
                loss = model(batch(step, tokens=8)).square().sum()
            if step % 3:
                loss.backward()
                gradients(model)
            del loss
            if step in (19, 59):
                self.is_idle(context)
                self.is_empty()
                self.assertEqual(len(context._offloader._known), 0)
                self.assertLess(len(context._offloader._order), 128)
        self.assertLessEqual(alive.nbytes, sum(p.numel() * 4 for p in model.parameters()))

    def test_in_flight_is_bounded(self):
        with Gate(activations._CpuMover, "put") as gate:
            context = self.context(in_flight_bytes=3 * SIZE)
            x = batch().requires_grad_()
            with context:
                y = x
                for _ in range(10):
                    y = y.exp().reciprocal().clamp(max=1.5).tanh()
            wait_until(lambda: gate.calls, "no copy begins")
            self.assertEqual(context.stats.peak_in_flight, 3 * SIZE)
            self.assertGreaterEqual(context.stats.kept["in_flight"], 10 * SIZE)
            y.sum().backward()
            self.assertEqual(context.stats.forwarded, 3 * SIZE)
            self.assertEqual(context.stats.loaded, 0)
            del y
            gate.open.set()
            self.is_idle(context)
            self.assertEqual(len(gate.calls), 1)

    def test_what_is_kept_is_not_copied_for_another_view(self):
        with Gate(activations._CpuMover, "put") as gate:
            context = self.context(in_flight_bytes=1)
            with context:
                first = batch().requires_grad_().exp()
                other = batch().requires_grad_().exp()
                wait_until(lambda: gate.calls, "no copy begins")
                gate.open.set()
                self.is_idle(context)
                loss = sum(part.sin().sum() for part in other.chunk(4))
            self.is_idle(context)
            self.assertEqual(len(gate.calls), 1)
            self.assertEqual(context.stats.kept["in_flight"], SIZE)
            self.assertEqual(context.stats.deduplicated, SIZE)
            del first
            loss.backward()

    def test_what_is_larger_than_the_bound_goes_alone(self):
        context = self.context(in_flight_bytes=1)
        with context:
            y = batch().requires_grad_().exp()
            self.is_idle(context)
        self.assertEqual(context.stats.offloaded, SIZE)
        y.sum().backward()

    # --- Backward

    def test_forwarding(self):
        with Gate(activations._CpuMover, "put") as gate:
            model, context = blocks(), self.context()
            with context:
                loss = model(batch()).square().sum()
            wait_until(lambda: gate.calls, "no copy begins")
            loss.backward()
            self.same(gradients(model), expected(model, batch()))
            self.assertEqual(len(gate.calls), 1)  # the others have been cancelled
            self.assertGreater(context.stats.forwarded, 0)
            self.assertEqual(context.stats.loaded, 0)

    def test_forwarded_and_used_again(self):
        with Gate(activations._CpuMover, "put") as gate:
            model, context = blocks(), self.context()
            with context:
                loss = model(batch()).square().sum()
            wait_until(lambda: gate.calls, "no copy begins")
            loss.backward(retain_graph=True)
            first = gradients(model)
            gate.open.set()
            self.is_idle(context)
            loss.backward()
            self.same(first, gradients(model))

    def test_what_others_hold_is_not_read(self):
        context = self.context()
        with context:
            y = batch().requires_grad_().exp()
        self.is_idle(context)
        y.sum().backward()
        self.assertEqual(context.stats.resident, SIZE)
        self.assertEqual(context.stats.loaded, 0)

    def test_what_was_handed_out_is_not_read_again(self):
        context = self.context()
        with context:
            node = (batch().requires_grad_() * 2).sin().grad_fn
        self.is_idle(context)
        first = node._saved_self
        again = node._saved_self
        self.assertTrue(torch.equal(first, again))
        self.assertEqual((context.stats.loaded, context.stats.resident), (SIZE, SIZE))
        del first, again
        self.assertTrue(torch.equal(node._saved_self, batch() * 2))
        self.assertEqual(context.stats.loaded, 2 * SIZE)
        del node

    def test_reads_run_ahead_in_reverse(self):
        reads = []

        class Sine(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                y = x + 1
                ctx.save_for_backward(y)
                return y.sin()

            @staticmethod
            def backward(ctx, grad):
                ctx.saved_tensors
                wait_until(lambda: len(gate.calls) >= min(len(reads) + 4, 8), "a read is missing")
                reads.append(len(gate.calls))
                return grad * 1

        context = self.context(prefetch_bytes=3 * SIZE)
        with context:
            y = batch().requires_grad_() * 1
            for _ in range(8):
                y = Sine.apply(y)
        self.is_idle(context)
        with Gate(activations._CpuMover, "get") as gate:
            gate.open.set()
            y.sum().backward()
            first = max(gate.calls)  # backward's own, at any time; the reader has the others in their order
            ahead = [key for key in gate.calls if key != first]
            self.assertEqual(sorted(ahead, reverse=True), ahead)
        self.assertEqual(reads, [4, 5, 6, 7, 8, 8, 8, 8])  # three ahead

    def test_threads(self):
        context = self.context()
        models = [blocks(2, seed) for seed in range(4)]
        wanted = [expected(model, batch(seed)) for seed, model in enumerate(models)]
        found, errors = [None] * 4, []

        def work(seed):
            try:
                for _ in range(5):
                    with context:
                        loss = models[seed](batch(seed)).square().sum()
                    loss.backward()
                    found[seed] = gradients(models[seed])
                    self.same(found[seed], wanted[seed])
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(errors, [])

    def test_one_graph_in_two_threads(self):
        model, context = blocks(), self.context()
        with context:
            loss = model(batch()).square().sum()
        self.is_idle(context)
        threads = [threading.Thread(target=loss.backward, kwargs={"retain_graph": True}) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        mine = gradients(model)
        for a, b in zip(mine, expected(model, batch())):
            self.assertTrue(torch.equal(a, 2 * b))

    # --- What is none of ours

    def test_what_stays(self):
        class Mine(torch.Tensor):
            pass

        def kept(function):
            context = self.context(min_bytes=8 * KIB)
            with context:
                y = function()
            self.is_idle(context)
            y.real.sum().backward()
            self.assertEqual(context.stats.offloaded, 0)
            return context.stats.kept

        def x(n=WIDTH):
            return torch.randn(n, n, requires_grad=True)

        frozen = torch.nn.Parameter(torch.randn(WIDTH, WIDTH), requires_grad=False)
        self.assertEqual(set(kept(lambda: x() * x())), {"leaf"})
        self.assertEqual(set(kept(lambda: x() @ frozen.t())), {"leaf"})
        self.assertEqual(set(kept(lambda: x()[1:] * x()[:-1].view(-1).view(63, 64))), {"leaf"})
        self.assertEqual(set(kept(lambda: x(8).exp())), {"small"})
        self.assertIn("kind", kept(lambda: (torch.randn(WIDTH, WIDTH).as_subclass(Mine).requires_grad_() * 1).sin()))
        conjugate = torch.randn(WIDTH, WIDTH // 2, dtype=torch.complex64).conj()
        self.assertIn("kind", kept(lambda: torch.view_as_complex(x().view(WIDTH, -1, 2)) * conjugate))
        sparse = torch.eye(WIDTH).to_sparse()
        self.assertIn("kind", kept(lambda: torch.sparse.mm(sparse, x())))

    def test_wrong_arguments(self):
        with self.assertRaisesRegex(ValueError, "on_full is one of keep, wait, raise"):
            self.context(on_full="drop")

    # --- The session

    def own_daemon(self):
        """What a session leaves behind goes only after a while."""
        daemon = support.Daemon()
        self.addCleanup(daemon.stop)
        return daemon

    def test_a_session_that_was_closed(self):
        session = self.own_daemon().connect()
        before = threading.active_count()
        context = spw.offload_activations(session.pool(), min_bytes=KIB)
        with context:
            y = batch().requires_grad_().exp().exp()
            z = y.exp()
            del y
        self.is_idle(context)
        session.close()
        with self.assertRaisesRegex((OSError, RuntimeError), "cannot be read back.*the session was closed"):
            z.sum().backward()
        del z, context, session
        gc.collect()
        wait_until(lambda: threading.active_count() <= before, "threads are left")

    def test_a_program_that_just_ends(self):
        program = (
            "import sys, torch, spillway.torch as spw\n"
            "pool = spw.connect('ends', socket=sys.argv[1], start=False)\n"
            "context = spw.offload_activations(pool)\n"
            "with context:\n"
            "    y = torch.randn(1 << 22, requires_grad=True).exp().exp()\n"
            "print(context.stats.peak_in_flight)\n"
        )
        socket = self.own_daemon().socket
        for _ in range(2):
            done = subprocess.run(
                [sys.executable, "-c", program, socket], stdout=subprocess.PIPE, timeout=60, check=True
            )
            self.assertGreaterEqual(int(done.stdout), 16 * MIB)


class Chains(Base):
    """A pool whose memory has room for two of a chain's activations."""

    sections = "[tier.dram]\nsize = 64 MiB\n[pool default]\ndram = 16 MiB\n"
    SIZE = 6 * MIB

    def chain(self, n=4, seed=1):
        torch.manual_seed(seed)
        y = torch.randn(self.SIZE // 4, requires_grad=True)
        for _ in range(n):
            y = y.tanh()  # saves its result
        return y

    def gradient(self, y):
        node = y.grad_fn
        while node.next_functions:
            node = node.next_functions[0][0]
        y.sum().backward()
        return node.variable.grad


class Full(Chains):
    def test_keep(self):
        context = self.context(timeout=0.05)
        with context:
            y = self.chain()
        self.is_idle(context)
        self.assertEqual(context.stats.offloaded, 2 * self.SIZE)
        self.assertEqual(context.stats.kept["full"], 2 * self.SIZE)
        mine = self.gradient(y)
        self.assertTrue(torch.equal(mine, self.gradient(self.chain())))
        del y
        self.is_empty()
        with context:
            y = self.chain(2)
        self.is_idle(context)
        self.assertEqual(context.stats.offloaded, 4 * self.SIZE)  # there is room again
        del y

    def test_raise(self):
        context = self.context(on_full="raise", timeout=0.05)
        with Gate(activations._CpuMover, "put") as gate, self.assertRaises(spillway.NoSpace) as caught, context:
            y = self.chain()
            gate.open.set()
            self.is_idle(context)
        self.assertEqual(caught.exception.limit.name, "POOL_DRAM")
        self.assertIn("pool 'default' has no room for 6291456 bytes of activations: ", str(caught.exception))
        self.assertIn("dram", str(caught.exception))
        with self.assertRaises((spillway.NoSpace, RuntimeError)) as caught:
            y.sum().backward()
        self.assertIn("has no room for", str(caught.exception))
        del y
        with context:
            y = self.chain(2)
        self.is_idle(context)
        y.sum().backward()

    def test_raise_in_the_middle_of_forward(self):
        context = self.context(on_full="raise", timeout=0.05)
        with self.assertRaises(spillway.NoSpace) as caught, context:
            for seed in range(4):
                y = self.chain(seed=seed)
                self.is_idle(context)
        self.assertEqual(seed, 1)
        self.assertEqual(caught.exception.limit.name, "POOL_DRAM")
        del y

    def test_wait(self):
        first = self.context()
        with first:
            held = self.chain(2)
        self.is_idle(first)
        context, found = self.context(on_full="wait", in_flight_bytes=self.SIZE), []

        def work():
            with context:
                found.append(self.chain(3))

        thread = threading.Thread(target=work)
        thread.start()
        thread.join(0.3)
        self.assertTrue(thread.is_alive())
        self.assertEqual(context.stats.offloaded, 0)
        del held
        thread.join(SECONDS)
        self.assertFalse(thread.is_alive())
        wait_until(lambda: context.stats.offloaded == 2 * self.SIZE, "no copy is made")
        self.assertEqual(context.stats.kept, {"leaf": 0} if "leaf" in context.stats.kept else {})
        mine = self.gradient(found.pop())
        self.assertTrue(torch.equal(mine, self.gradient(self.chain(3))))
        self.is_idle(context)

    def test_wait_in_vain(self):
        context = self.context(on_full="wait", in_flight_bytes=self.SIZE, timeout=0.2)
        with self.assertRaises(spillway.NoSpace) as caught, context:
            self.chain(5)
            self.fail("the chain does not fit")
        self.assertEqual(caught.exception.limit.name, "POOL_DRAM")


class Disk(Chains):
    """What does not fit in memory goes there."""

    disk_mib = 64

    def test_more_than_memory(self):
        context = self.context()
        with context:
            y = self.chain(6)
        self.is_idle(context)
        self.assertEqual(context.stats.offloaded, 6 * self.SIZE)
        self.assertGreater(self.space.stat().nvme_used, 0)
        mine = self.gradient(y)
        self.assertTrue(torch.equal(mine, self.gradient(self.chain(6))))
        self.assertEqual(context.stats.loaded, 5 * self.SIZE)
        del y


@unittest.skipIf(torch is None, "torch is not installed")
class Faults(unittest.TestCase):
    def setUp(self):
        self.daemon = support.Daemon()
        self.addCleanup(self.daemon.stop)
        self.session = self.daemon.connect()
        self.addCleanup(self.session.close)
        self.context = spw.offload_activations(self.session.pool(), min_bytes=KIB)

    def is_idle(self):
        wait_until(lambda: self.context._offloader._in_flight == 0, "copies do not end")

    def test_the_daemon_dies_before_backward(self):
        model = blocks()
        with self.context:
            loss = model(batch()).square().sum()
        self.is_idle()
        self.daemon.kill()
        with self.assertRaisesRegex((spillway.Disconnected, RuntimeError), "an activation of .* cannot be read back: "):
            loss.backward()
        model.zero_grad(set_to_none=True)
        self.same_as_without(model)

    def test_the_daemon_dies_in_forward(self):
        model = blocks()
        with self.assertRaises(spillway.Disconnected), self.context:
            hidden = model[0](batch())
            self.is_idle()
            self.daemon.kill()
            for block in model[1:]:
                hidden = block(hidden)
                self.is_idle()
        self.same_as_without(model)

    def same_as_without(self, model):
        self.daemon.start()
        with self.daemon.connect() as session:
            with spw.offload_activations(session.pool(), min_bytes=KIB):
                loss = model(batch()).square().sum()
            loss.backward()
            for a, b in zip(gradients(model), expected(model, batch())):
                self.assertTrue(torch.equal(a, b))

    def test_the_daemon_is_upgraded(self):
        model = blocks()
        with self.context:
            hidden = model[:2](batch())
            self.daemon.upgrade()
            loss = model[2:](hidden).square().sum()
        self.is_idle()
        self.daemon.upgrade()
        loss.backward()
        for a, b in zip(gradients(model), expected(model, batch())):
            self.assertTrue(torch.equal(a, b))


if __name__ == "__main__":
    support.main()
