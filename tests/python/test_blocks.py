# SPDX-License-Identifier: Apache-2.0
"""Blocks: every call once with real bytes, lists in and statuses out."""
import errno

import spillway
import support
from support import KIB, MIB, pattern

BLOCK = 64 * KIB


class Blocks(support.Case):
    disk_mib = 256

    def setUp(self):
        super().setUp()
        self.space = self.pool.space(["blocks", self.id()], class_="kv", durability="cache")
        self.keys = [b"a", (b"a", 7), "b", b"\0" * 32]
        self.blocks = [pattern(BLOCK, seed) for seed in range(4)]

    def put(self):
        self.assertEqual(self.space.put(self.keys, self.blocks), [0] * 4)

    def test_put_get(self):
        self.put()
        self.assertEqual(self.space.put(self.keys[:1], [b"other"]), [-errno.EEXIST])
        got = [bytearray(BLOCK + 1) for _ in self.keys]
        statuses = self.space.get(self.keys, got, chain=True)
        self.assertEqual((statuses, statuses.sizes), ([0] * 4, [BLOCK] * 4))
        self.assertEqual([bytes(b[:BLOCK]) for b in got], self.blocks)
        small = bytearray(100)
        statuses = self.space.get([b"a", b"none"], [small, bytearray(10)], timeout=1)
        self.assertEqual(statuses, [-errno.EMSGSIZE, -errno.ENOENT])
        self.assertEqual(statuses.sizes[0], BLOCK)
        self.assertEqual(small, bytes(100))

    def test_many_pieces(self):
        block = pattern(9 * MIB)
        self.assertEqual(self.space.put([b"large"], [block]), [0])
        got = bytearray(9 * MIB)
        self.assertEqual(self.space.get([b"large"], [got]), [0])
        self.assertEqual(got, block)
        views = self.space.acquire([b"large"])
        self.assertEqual(views.statuses, [-errno.EMSGSIZE])

    def test_lookup(self):
        self.put()
        hits = self.space.lookup([*self.keys[:2], b"none", self.keys[3]], chain=True)
        self.assertEqual(hits.prefix, 2)
        self.assertEqual([hit.status for hit in hits], [0, 0, -errno.ENOENT, 0])
        self.assertEqual((hits[0].size, hits[0].tier, hits[0].pending), (BLOCK, "dram", False))
        self.assertEqual([hits.window_length(window) for window in (1, 2, 3)], [4, 2, 2])

    def test_reserve_commit(self):
        with self.space.reserve(self.keys, [BLOCK] * 4, timeout=1) as views:
            self.assertEqual(views.statuses, [0] * 4)
            self.assertEqual([hit.status for hit in self.space.lookup(self.keys[:1])], [-errno.EINPROGRESS])
            for view, block in zip(views, self.blocks):
                view.data[:] = block
        with self.space.acquire(self.keys, timeout=1) as views:
            self.assertEqual([bytes(view.data) for view in views], self.blocks)
            self.assertEqual([view.tier for view in views], ["dram"] * 4)
        again = self.space.reserve([b"a", b"c"], [BLOCK, BLOCK])
        self.assertEqual(again.statuses, [-errno.EEXIST, 0])
        with self.assertRaises(spillway.SpillwayError):
            again[0].data
        again[1].data[:] = self.blocks[0]
        self.assertEqual(again.commit(chain=True), [-errno.EEXIST, 0])
        again.abort()  # nothing is left of it
        self.assertEqual(self.space.lookup([b"c"]).prefix, 1)

    def test_abort(self):
        with self.assertRaises(KeyError):
            with self.space.reserve([b"x"], [BLOCK]) as views:
                views[0].data[:] = self.blocks[0]
                raise KeyError
        self.assertEqual(self.space.lookup([b"x"]).prefix, 0)
        views = self.space.reserve([b"x"], [BLOCK])
        with self.assertRaises(ValueError):
            views.release()
        views.abort()
        self.assertEqual(self.space.lookup([b"x"]).prefix, 0)

    def test_fixed_size(self):
        space = self.pool.space("fixed", "kv", "cache", item_bytes=BLOCK)
        with space.reserve([b"k"]) as views:
            views[0].data[:] = self.blocks[0]
        with self.assertRaises(spillway.SpillwayError) as caught:
            self.space.reserve([b"k"])
        self.assertEqual(caught.exception.errno, errno.EINVAL)

    def test_acquire(self):
        self.put()
        views = self.space.acquire([b"a", b"none"], no_wait=True, chain=True)
        self.assertEqual(views.statuses, [0, -errno.ENOENT])
        with self.assertRaises(spillway.NotFound):
            views.check()
        self.assertIs(views.check(errno.ENOENT), views)
        with self.assertRaises(spillway.NotFound):
            views[1].data
        views.release()
        with self.assertRaises(spillway.NotFound):
            self.space.acquire([b"a", b"none"], all_or_nothing=True).check()

    def test_from_a_device(self):
        self.put()
        keys = [b"%d" % i for i in range(100)]
        self.space.put(keys, [pattern(MIB, i) for i in range(100)], timeout=20).check()
        with self.space.acquire(self.keys, timeout=20) as views:
            self.assertEqual([bytes(view.data) for view in views], self.blocks)
            self.assertIn("nvme", [view.tier for view in views])
            self.assertTrue(any(view.fetched for view in views))
        self.assertEqual(self.space.prefetch(keys[:4], deadline=10), [0] * 4)
        stat = self.space.stat()
        self.assertEqual(stat.dram_budget, 64 * MIB)
        self.assertGreater(stat.bytes_written, 0)
        self.assertGreaterEqual(stat.objects, 104)

    def test_delete_touch_pin_advise(self):
        self.put()
        self.space.touch(self.keys, chain=True)
        self.assertEqual(self.space.pin(self.keys[:1], 10), [0])
        self.assertEqual(self.space.pin(self.keys[:1], 0), [0])
        self.space.advise(self.keys[1:2], "uses_left", 1)
        self.space.acquire(self.keys[1:2]).release()
        self.assertEqual(self.space.lookup(self.keys[1:2]).prefix, 0)
        self.assertEqual(self.space.delete([self.keys[0], b"none"]), [0, -errno.ENOENT])
        self.assertEqual(self.space.lookup(self.keys[:1]).prefix, 0)
        self.space.ping()
        self.space.prefetch(self.keys[2:], chain=True).check()

    def test_plan(self):
        names = [(b"state", i) for i in range(20)]
        self.assertEqual(self.space.plan(names), 0)  # of a class whose policy makes none
        space = self.pool.space(["plan", self.id()], class_="optimizer", durability="scratch")
        self.assertEqual(space.plan(names), 20)
        space.tensor("large", 3 * space.piece_bytes)
        self.assertEqual(space.plan([*names, "large", *names]), 43)
        pool = self.session.admin({"get": "pools"})["pools"][0]
        self.assertEqual((pool["plans"], pool["plan_accesses"]), (2, 43))
        self.assertEqual(space.plan((b"many", i) for i in range(10000)), 10000)
        with self.assertRaises(spillway.SpillwayError) as caught:
            space.plan((b"many", i) for i in range(65537))
        self.assertEqual(caught.exception.errno, errno.E2BIG)
        self.assertEqual(caught.exception.limit.name, "PLAN")
        self.assertIn("65536", str(caught.exception))
        self.assertEqual(space.plan([]), 0)
        self.assertEqual(self.session.admin({"get": "pools"})["pools"][0]["plan_accesses"], 0)
        self.assertEqual(space.plan(names[:7]), 0)

    def test_plans_have_a_limit(self):
        names = [(b"state", i) for i in range(10)]
        spaces = [self.pool.space(["plans", i, self.id()], class_="optimizer", durability="scratch") for i in range(17)]
        for space in spaces[:16]:
            space.tensor(names[0], BLOCK)
            self.assertEqual(space.plan(names), 10)
        with self.assertRaises(spillway.NoSpace) as caught:
            spaces[16].plan(names)
        self.assertEqual(caught.exception.limit.name, "PLANS")
        self.assertIn("16 other spaces", str(caught.exception))
        self.assertEqual(self.session.admin({"get": "pools"})["pools"][0]["plan_accesses"], 160)
        spaces[0].delete(names[:1])  # goes with all that it had
        self.assertEqual(spaces[16].plan(names), 10)
        for space in spaces:
            space.plan([])

    def test_arena(self):
        arena = self.space.tensor("arena", 256 * KIB)
        self.put()
        with arena.acquire(write=True) as views:
            self.assertEqual(self.space.get_to_view(self.keys, views[0], 0, [BLOCK] * 4), [0] * 4)
            self.assertEqual(views[0].data, b"".join(self.blocks))
            self.assertEqual(self.space.put_from_view([b"n"], views[0], BLOCK, [BLOCK], timeout=1), [0])
        with self.space.acquire([b"n"]) as views:
            self.assertEqual(views[0].data, self.blocks[1])

    def test_blocks_of_many_views(self):
        """More than the library asks for at once."""
        n = 70
        names = [f"arena {i}" for i in range(n)]
        data = [bytes([i]) * BLOCK for i in range(n)]
        for name, bytes_ in zip(names, data):
            self.space.tensor(name, BLOCK).put(0, bytes_)
        keys = [(b"many", i) for i in range(n)]
        with self.space.acquire(names) as views:
            self.assertEqual(self.space.put_from_views(keys, views), [0] * n)
            self.assertEqual(self.space.put_from_views([(b"some", 0), (b"some", 1)], [views[3], views[1]]), [0, 0])
            with self.assertRaises(ValueError):
                self.space.put_from_views(keys, views[:2])
        with self.space.acquire([*keys, (b"some", 0), (b"some", 1)]) as found:
            self.assertEqual([bytes(view.data) for view in found], [*data, data[3], data[1]])

    def test_long_lists(self):
        keys = [i.to_bytes(4, "little") for i in range(5000)]
        self.space.put(keys, [key * 16 for key in keys]).check()
        got = [bytearray(64) for _ in keys]
        self.space.get(keys, got).check()
        self.assertEqual(got, [key * 16 for key in keys])
        with self.space.acquire(keys) as views:
            self.assertEqual([bytes(view.data[:4]) for view in views], keys)

    def test_empty_lists(self):
        self.assertEqual(self.space.put([], []), [])
        self.assertEqual(self.space.get([], []), [])
        self.assertEqual((self.space.lookup([]), self.space.lookup([]).prefix), ([], 0))
        self.assertEqual(self.space.delete([]), [])
        with self.space.acquire([]) as views:
            self.assertEqual(list(views), [])
        self.assertEqual(self.space.reserve([], []).commit(), [])


if __name__ == "__main__":
    support.main()
