# SPDX-License-Identifier: Apache-2.0
"""Views: nothing reaches bytes that are no longer leased, however it got there."""
import copy
import gc
import pickle
import unittest
import weakref

import spillway
import support
from support import KIB, pattern

try:
    import numpy
except ImportError:
    numpy = None
try:
    import torch
except ImportError:
    torch = None

SIZE = 64 * KIB


class Views(support.Case):
    def setUp(self):
        super().setUp()
        self.tensor = self.space.tensor("t", SIZE)
        self.tensor.put(0, pattern(SIZE))

    def leases(self):
        """How many this session has, as the daemon counts them."""
        return self.session.admin({"get": "sessions"})["sessions"][0]["leases"]

    def test_released(self):
        views = self.tensor.acquire()
        data = views[0].data
        self.assertIs(views[0].data, data)
        self.assertFalse(views[0].released)
        self.assertEqual(self.leases(), 1)
        views.release()
        self.assertTrue(views[0].released)
        self.assertEqual(self.leases(), 0)
        for use in (lambda: data[0], lambda: bytes(data), lambda: views[0].data, lambda: memoryview(data)):
            with self.assertRaises(ValueError):
                use()
        views.release()
        views[0].release()
        views.discard()

    def exports(self, view):
        """What holds the bytes beyond view.data itself."""
        yield "slice", view.data[10:20]
        yield "memoryview", memoryview(view.data)
        yield "cast", view.data.cast("I")
        yield "slice of a cast", view.data.cast("I")[1:]
        if numpy is not None:
            yield "array", numpy.frombuffer(view.data, numpy.float32)
            yield "slice of an array", numpy.frombuffer(view.data, numpy.uint8)[1:2]
            yield "asarray", numpy.asarray(view.data)
        yield "capsule", view.__dlpack__(max_version=(1, 0))

    def test_exported(self):
        for write in (False, True):
            views = self.tensor.acquire(write=write)
            for name, export in self.exports(views[0]):
                for release in (views.release, views.discard, views[0].release, self.session.close):
                    with self.subTest(name, release=release), self.assertRaises(BufferError):
                        release()
                    self.assertFalse(views[0].released)
                    self.assertEqual(views[0].data, pattern(SIZE))
                self.assertEqual(self.leases(), 1)
                del export
            views.release()
            self.assertEqual(self.leases(), 0)
        if numpy is None:
            self.skipTest("there is no numpy: its arrays are left out")

    def test_exported_from_one_of_several(self):
        views = self.tensor.space.acquire(["t", "t"])
        part = views[1].data[1:]
        with self.assertRaises(BufferError):
            views.release()
        self.assertEqual((self.leases(), views[0].data[0]), (2, pattern(SIZE)[0]))
        views[0].release()
        self.assertEqual((self.leases(), part[0]), (1, pattern(SIZE)[1]))
        with self.assertRaises(ValueError):
            views[0].data
        del part
        views.release()

    def test_exported_while_an_exception_flies(self):
        with self.assertRaises(KeyError):
            with self.tensor.acquire(write=True) as views:
                part = views[0].data[1:]
                raise KeyError
        self.assertEqual(part, pattern(SIZE)[1:])
        self.assertEqual(self.leases(), 1)
        with self.assertWarns(ResourceWarning):
            del part, views
        self.assertEqual(self.leases(), 0)

    def test_read_only(self):
        with self.tensor.acquire() as views:
            with self.assertRaises(TypeError):
                views[0].data[0] = 1
            with self.assertRaises((TypeError, BufferError)):
                self.tensor.get(0, views[0])

    def test_forgotten(self):
        gc.disable()  # references alone must do
        self.addCleanup(gc.enable)
        views = self.tensor.acquire()
        data, dead = views[0].data, weakref.ref(views)
        part = data[5:9]
        del views, data
        self.assertIsNone(dead())
        self.assertEqual((part, self.leases()), (pattern(SIZE)[5:9], 1))
        with self.assertWarns(ResourceWarning):
            del part
        self.assertEqual(self.leases(), 0)
        with self.assertWarns(ResourceWarning):
            self.space.reserve(["r"], [4096])
        self.assertEqual((self.leases(), self.space.lookup(["r"]).prefix), (0, 0))

    def test_view_alone(self):
        views = self.space.acquire(["t", "t"], write=True)
        views[0].release()
        views[1].discard()
        self.assertEqual(self.leases(), 0)

    def test_as_buffers(self):
        other = self.space.tensor("other", SIZE)
        with self.tensor.acquire() as views:
            other.put(0, views[0])
        with other.acquire(write=True) as views:
            self.assertEqual(views[0].data, pattern(SIZE))
            self.assertEqual(bytes(views[0].__buffer__(0)), pattern(SIZE))
            other.put(0, bytes(SIZE))
            self.tensor.get(0, views[0])
            self.assertEqual(views[0].data, pattern(SIZE))
            self.assertEqual(len(views[0]), SIZE)

    def test_closing(self):
        reader, writer = self.tensor.acquire(), self.tensor.acquire(write=True)
        data = reader[0].data
        writer[0].data[0] = 1
        self.session.close()
        self.session.close()
        self.assertTrue(self.session.closed)
        for use in (lambda: data[0], lambda: reader[0].data, lambda: writer[0].data):
            with self.assertRaises(ValueError):
                use()
        reader.release()
        writer.discard()
        with self.assertRaises(spillway.SpillwayError):
            self.tensor.acquire()
        with self.assertRaises(spillway.SpillwayError):
            self.session.pool()

    def test_closed_before_the_release(self):
        """Another thread's close() comes between a release and its call."""
        views = self.tensor.acquire()
        data = views[0].data
        call = self.session._call

        def closes_first(*args):
            self.session._call = call
            self.session.close()
            return call(*args)

        self.session._call = closes_first
        with self.assertRaises(spillway.SpillwayError):
            views.release()
        for use in (lambda: data[0], lambda: views[0].data):
            with self.assertRaises(ValueError):
                use()

    def test_closed_while_an_exception_flies(self):
        with self.assertRaises(KeyError):
            with self.daemon.connect() as session:
                views = session.pool().space("x").tensor("t", SIZE).acquire()
                part = views[0].data[1:]
                raise KeyError
        self.assertEqual((len(part), session.closed), (SIZE - 1, False))
        del part
        views.release()
        session.close()

    def test_session_forgotten(self):
        self.session.close()
        self.session = self.pool = self.space = self.tensor = None
        session = self.daemon.connect()
        space = session.pool().space(["test", self.id()])
        views = space.tensor("t", SIZE).acquire()
        part = views[0].data[1:]
        del session, space, views
        self.assertEqual(len(part), SIZE - 1)
        self.assertEqual(bytes(part), bytes(part))
        with self.assertWarns(ResourceWarning):
            del part

    def test_never_pickled(self):
        with self.tensor.acquire() as views:
            queue = self.space.queue()
            self.addCleanup(queue.close)
            for thing in (self.session, self.pool, self.space, self.tensor, views, views[0], queue):
                with self.assertRaises(TypeError):
                    pickle.dumps(thing)
                with self.assertRaises(TypeError):
                    copy.copy(thing)
        error = pickle.loads(pickle.dumps(spillway.NoSpace(28, "full", spillway.Limit(1, "POOL_DRAM", "text"))))
        self.assertEqual((type(error), error.errno, error.limit.name), (spillway.NoSpace, 28, "POOL_DRAM"))

    @unittest.skipIf(numpy is None, "there is no numpy")
    def test_numpy(self):
        def double(view):
            array = numpy.frombuffer(view.data, numpy.float32)
            array[:] = 1.5
            array *= 2

        with self.tensor.acquire(write=True) as views:
            double(views[0])
        got = numpy.empty(SIZE // 4, numpy.float32)
        self.tensor.get(0, got)
        self.assertTrue((got == 3).all())
        with self.assertRaises(ValueError):
            self.tensor.put(0, got[::2])


    @unittest.skipIf(numpy is None, "there is no numpy")
    def test_dlpack(self):
        def part_of(view):
            array = numpy.from_dlpack(view)  # read-only before NumPy 2.1
            self.assertEqual((array.dtype, array.shape, bytes(array)), (numpy.uint8, (SIZE,), pattern(SIZE)))
            return array[3:]

        with self.tensor.acquire(write=True) as views:
            self.assertEqual(views[0].__dlpack_device__(), (1, 0))
            part = part_of(views[0])
            with self.assertRaises(BufferError):
                views.release()
            self.assertEqual(part[0], pattern(SIZE)[3])
            del part
        with self.assertRaises(ValueError):
            views[0].__dlpack__()

    def test_dlpack_of_what_is_only_read(self):
        with self.tensor.acquire() as views:
            with self.assertRaisesRegex(BufferError, "for reading"):
                views[0].__dlpack__()
            for options in ({"stream": 1}, {"dl_device": (2, 0)}, {"copy": True}):
                with self.assertRaises(BufferError):
                    views[0].__dlpack__(max_version=(1, 0), **options)
            capsule = views[0].__dlpack__(max_version=(1, 0), dl_device=(1, 0), copy=False)
            self.assertIn("dltensor_versioned", repr(capsule))
            del capsule

    @unittest.skipIf(torch is None or numpy is None, "torch or numpy is not installed")
    def test_dlpack_to_torch(self):
        def change(view):
            bits = torch.from_dlpack(view)
            bits.view(torch.float32).fill_(2.5)
            return bits[4:].view(torch.float32)  # keeps the storage

        with self.tensor.acquire(write=True) as views:
            part = change(views[0])
            with self.assertRaises(BufferError):
                views.release()
            self.assertEqual(part[0].item(), 2.5)
            del part
        got = torch.empty(SIZE // 4)
        self.tensor.get(0, got.numpy())
        self.assertTrue((got == 2.5).all())


if __name__ == "__main__":
    support.main()
