# SPDX-License-Identifier: Apache-2.0
"""Errors name the limit and its knob, and what makes no sense is refused before it does harm."""
import errno
import os

import spillway
import support
from support import MIB, pattern


class Limits(support.Case):
    sections = "[tier.dram]\nsize = 64 MiB\n[pool default]\nmax_leases_percent = 50\n"

    def test_pool_too_small(self):
        tensor = self.space.tensor("large", 128 * MIB)
        self.addCleanup(tensor.delete)
        with self.assertRaises(spillway.NoSpace) as caught:
            for at in range(0, 128 * MIB, MIB):
                tensor.put(at, bytes(MIB), timeout=0.1)
        error = caught.exception
        self.assertEqual((error.errno, error.limit.name), (errno.ETIMEDOUT, "POOL_DRAM"))
        self.assertIsInstance(error, spillway.Timeout)
        self.assertIn("`dram`", error.limit.text)
        self.assertIn(error.limit.text, str(error))
        self.assertIsInstance(error, OSError)
        statuses = self.space.put(["a"], [bytes(MIB)], timeout=0)
        self.assertEqual(statuses, [-errno.ENOSPC])
        with self.assertRaises(spillway.NoSpace):
            statuses.check()
        views = self.space.reserve(["a"], [MIB], timeout=0)
        self.assertEqual((views[0].status, views[0].limit.name), (-errno.ENOSPC, "POOL_DRAM"))
        with self.assertRaises(spillway.NoSpace) as caught:
            views.check()
        self.assertEqual(caught.exception.limit.name, "POOL_DRAM")
        with self.assertRaises(spillway.NoSpace) as caught:
            views[0].data
        self.assertEqual(caught.exception.limit.name, "POOL_DRAM")

    def test_too_many_leases(self):
        tensor = self.space.tensor("leased", 48 * MIB)
        tensor.put(0, bytes(48 * MIB))
        with self.assertRaises(spillway.NoSpace) as caught:
            tensor.acquire(write=True, timeout=0.1)
        self.assertIn("max_leases_percent", caught.exception.limit.text)
        self.assertEqual(self.session.admin({"get": "sessions"})["sessions"][0]["leases"], 0)
        tensor.get(0, bytearray(48 * MIB))  # what was granted, and given back, is what it was

    def test_names(self):
        with self.assertRaises(spillway.NotFound):
            self.session.pool("none")
        with self.assertRaises(spillway.NotFound):
            self.pool.space("never", must_exist=True)
        self.pool.space("once", "kv", "cache")
        with self.assertRaises(spillway.SpillwayError) as caught:
            self.pool.space("once", "weights", "cache")
        self.assertEqual(caught.exception.errno, errno.EINVAL)
        with self.assertRaises(spillway.NotFound):
            self.space.acquire(["none"]).check()

    def test_no_daemon(self):
        for path in ("/nonexistent/socket", self.daemon.folder / "conf"):
            with self.assertRaises(spillway.NoDaemon) as caught:
                spillway.connect(socket=path)
            self.assertIn(caught.exception.errno, (errno.ENOENT, errno.ECONNREFUSED))
            self.assertIsInstance(caught.exception, ConnectionError)


class Hostile(support.Case):
    def refused(self, function, *args, **options):
        with self.assertRaises((TypeError, ValueError, OverflowError, BufferError)):
            function(*args, **options)

    def test_keys(self):
        for key in (b"", b"x" * 33, "é" * 17, 5, None, bytearray(b"x"), (b"x",), (b"x", -1), (b"x", 1 << 32),
                    (b"x", "1"), (b"x", 1, 2), [b"x"]):
            for call in (lambda k: self.space.lookup([k]), lambda k: self.space.put([k], [b"x"]),
                         lambda k: self.space.tensor(k, 1), lambda k: self.space.delete([b"good", k])):
                self.refused(call, key)
        self.refused(self.space.lookup, b"not a list")
        self.refused(self.space.lookup, "not a list")
        self.refused(self.space.lookup, None)
        self.refused(self.space.lookup, 7)

    def test_buffers(self):
        self.refused(self.space.put, ["a", "b"], [b"x"])
        self.refused(self.space.put, ["a"], [b"x", b"y"])
        self.refused(self.space.put, ["a"], ["text"])
        self.refused(self.space.put, ["a"], [None])
        self.refused(self.space.put, ["a"], [memoryview(bytes(16))[::2]])
        self.space.put(["a"], [b"12345678"])
        for buffer in (b"12345678", memoryview(b"12345678"), "text", 8):
            self.refused(self.space.get, ["a"], [buffer])
        buffer = bytearray(8)
        tensor = self.space.tensor("t", 4)
        for call in (lambda: self.space.get(["a", "b"], [buffer]), lambda: tensor.get(0, buffer),
                     lambda: self.space.put(["c"], [buffer], timeout=-1)):
            try:
                call()
            except (ValueError, spillway.SpillwayError) as error:
                buffer.clear()  # is not exported by what the traceback has
                buffer += bytes(8)
                self.assertIsNotNone(error.__traceback__)
        with self.assertRaises(spillway.SpillwayError):
            self.space.put(["b"], [b""])
        self.assertEqual(self.space.lookup(["b"]).prefix, 0)

    def test_sizes(self):
        for sizes in ([-1], [1 << 64], [1.5], ["1"], [1, 2], [], 1):
            self.refused(self.space.reserve, ["a"], sizes)
        for sizes in ([0], [1 << 63], [self.space.piece_bytes + 1], None):
            with self.assertRaises(spillway.SpillwayError):
                self.space.reserve(["a"], sizes)
        for nbytes in (-1, 1 << 64, 1.5, "1", None):
            self.refused(self.space.tensor, "t", nbytes)
        for nbytes in (0, (1 << 64) - 1):
            with self.assertRaises(spillway.SpillwayError):
                self.space.tensor("t", nbytes)

    def test_timeouts(self):
        for timeout in (-1, -0.001, float("nan"), "1", [], float("-inf")):
            self.refused(self.space.acquire, ["a"], timeout=timeout)
        self.space.put(["a"], [b"x"])
        for timeout in (0, 0.0001, 1, 1e300, float("inf"), None, True):
            self.space.acquire(["a"], timeout=timeout).release()
        self.refused(self.space.pin, ["a"], -1)
        with self.assertRaises(spillway.SpillwayError):
            self.space.pin(["a"], 1e300)

    def test_options(self):
        for class_ in ("", "KV", None, 1, []):
            self.refused(self.pool.space, "x", class_=class_)
        for durability in ("forever", 2):
            self.refused(self.pool.space, "x", durability=durability)
        for item_bytes in (-1, 1 << 64, "1"):
            self.refused(self.pool.space, "x", item_bytes=item_bytes)
        for node in (-1, 1 << 32, "0"):
            self.refused(self.pool.space, "x", node=node)
        for layout in (object(), float("nan"), {1, 2}, b"bytes"):
            self.refused(self.pool.space, layout)
        for name in ("", "x" * 64):
            with self.assertRaises(spillway.SpillwayError):
                self.session.pool(name)
        self.refused(self.session.pool, "nul\0here")
        self.refused(self.session.pool, 5)
        self.refused(self.space.advise, ["a"], "maybe")
        self.refused(self.space.advise, ["a"], "score", -1)
        self.refused(self.daemon.connect, owner_token=b"short")
        self.refused(self.daemon.connect, copy_threads=-1)
        self.refused(spillway.connect, "a\0b", self.daemon.socket)
        with self.assertRaises(spillway.SpillwayError):
            self.daemon.connect(ring_entries=7)
        with self.assertRaises(spillway.SpillwayError):
            self.session.admin({"get": "nonsense"})

    def test_arena(self):
        views = self.space.tensor("t", MIB).acquire(write=True)
        self.refused(self.space.get_to_view, ["a"], views[0], -4096, [4096])
        for offset, size in ((1, 4096), (0, 1), (MIB, 4096), (1 << 63, 4096), (0, 2 * MIB)):
            with self.assertRaises(spillway.SpillwayError):
                self.space.put_from_view(["a"], views[0], offset, [size])
        views.release()
        self.refused(self.space.put_from_view, ["a"], views[0], 0, [4096])
        self.refused(self.space.put_from_views, ["a"], [views[0]])

    def test_the_library_cannot_be_used_bare(self):
        self.refused(spillway.View)
        self.refused(spillway.Session)


class Same(support.Case):
    """What identifies things."""

    def test_layouts(self):
        first = spillway.layout_digest({"b": [1, 2], "a": "é"})
        self.assertEqual(first, spillway.layout_digest({"a": "é", "b": (1, 2)}))
        self.assertEqual(first.hex(), "e72bd1bfe08db42c7cb48a01fcbbe441a57d28e5e64fcb08dcfab2cffe99f7a2")
        self.assertNotEqual(first, spillway.layout_digest({"a": "é", "b": [2, 1]}))
        self.assertEqual(self.pool.space("x").digest, spillway.layout_digest("x"))

    def test_handles_are_shared(self):
        for _ in range(1000):  # a session has 256 at most
            self.session.pool().space("same").put(["k"], [b"v"])
        self.assertEqual(self.pool.space("same").lookup(["k"]).prefix, 1)

    def test_info(self):
        info = self.pool.info
        self.assertEqual((info.trusted, info.dram_bytes), (True, 64 * MIB))
        token = self.session.owner_token
        self.assertEqual(len(token), 16)
        with self.daemon.connect(owner_token=token, timeout=10, spin_us=None, copy_threads=1) as other:
            self.assertEqual(other.owner_token, token)
            other.pool().space(["other"]).put(["k"], [pattern(MIB)]).check()
        for thing in (self.session, self.pool, self.space, self.space.tensor("t", 1)):
            self.assertIn(type(thing).__name__, repr(thing))

    def test_a_manifest_is_sized_before_anything_is_there(self):
        none = self.pool.manifest([])
        self.assertEqual((none.leased_bytes, none.memory_bytes, none.limit), (0, 0, None))
        self.assertEqual((none.memory_max_bytes, none.private_max_bytes), (64 * MIB, 0))
        fits = self.pool.manifest([spillway.ManifestEntry(8 * MIB, slots=6, write=True), (5000, 3, 10)])
        self.assertEqual(fits.leased_bytes, 48 * MIB + 3 * 8192)
        self.assertEqual((fits.leases, fits.stored_bytes), (9, 48 * MIB + 10 * 8192))
        self.assertLessEqual(fits.memory_bytes, 64 * MIB)
        self.assertIsNone(fits.limit)
        more = self.pool.manifest([(8 * MIB, 7)])
        self.assertEqual(more.memory_bytes, 71 * MIB)  # 56 of 70 would be a few bytes more than 80 %
        self.assertEqual(more.limit.name, "POOL_LEASES")
        self.assertIn("`dram`", more.limit.text)
        self.assertEqual(self.pool.manifest([(8 * MIB, 1, 9)]).limit.name, "POOL_DRAM")  # there is no device
        too_much = [(1 << 40, 1 << 31)]
        for wrong, number in (([(0, 1)], errno.EINVAL), ([(1, 1)] * 257, errno.E2BIG), (too_much, errno.E2BIG)):
            with self.assertRaises(spillway.SpillwayError) as caught:
                self.pool.manifest(wrong)
            self.assertEqual(caught.exception.errno, number)
        with self.assertRaises(OverflowError):
            self.pool.manifest([(1, 1 << 32)])

    def test_version(self):
        with open(os.path.join(support.SOURCE, "CMakeLists.txt"), encoding="utf-8") as file:
            self.assertIn(f"project(spillway VERSION {spillway.__version__} ", file.read())


if __name__ == "__main__":
    support.main()
