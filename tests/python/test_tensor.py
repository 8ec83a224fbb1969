# SPDX-License-Identifier: Apache-2.0
"""Tensors: what is written in place is what is read, by whichever way, over the bounds of pieces too."""
import errno

import spillway
import support
from support import KIB, MIB, pattern


class Tensors(support.Case):
    disk_mib = 256

    def test_written_in_place_and_read_by_copy(self):
        tensor = self.space.tensor("t", MIB)
        with tensor.acquire(4096, 8192, write=True) as views:
            self.assertEqual(len(views), 1)
            self.assertEqual((views[0].size, views[0].offset, views[0].status), (8192, 4096, 0))
            views[0].data[:] = pattern(8192)
        got = bytearray(8192)
        tensor.get(4096, got)
        self.assertEqual(got, pattern(8192))

    def test_no_copy_is_between(self):
        tensor = self.space.tensor("t", MIB)
        with tensor.acquire(write=True) as writer, tensor.acquire() as reader:
            writer[0].data[77] = 0xA5
            self.assertEqual(reader[0].data[77], 0xA5)
            writer[0].data[77] = 0x5A
            self.assertEqual(reader[0].data[77], 0x5A)

    def test_written_by_copy_and_read_in_place(self):
        tensor = self.space.tensor(b"\0\xff", 64 * KIB)
        tensor.put(100, pattern(1000))
        with tensor.acquire(100, 1000) as views:
            self.assertEqual(views[0].data, pattern(1000))
            self.assertTrue(views[0].data.readonly)

    def test_pieces(self):
        piece = self.space.piece_bytes
        tensor = self.space.tensor("large", 2 * piece + 12288)
        start = piece - 4096
        with tensor.acquire(start, piece + 8192, write=True) as views:
            self.assertEqual([view.offset for view in views], [start, piece, 2 * piece])
            self.assertEqual([view.size for view in views], [4096, piece, 4096])
            for i, view in enumerate(views):
                view.data[:4] = bytes([i] * 4)
                view.data[-4:] = bytes([i + 100] * 4)
        got = bytearray(piece + 8192)
        tensor.get(start, got)
        for at, seed in ((0, 0), (4092, 100), (4096, 1), (4096 + piece - 4, 101), (4096 + piece, 2)):
            self.assertEqual(got[at : at + 4], bytes([seed] * 4), at)

    def test_what_an_exception_does(self):
        for durability in ("scratch", "durable"):
            space = self.pool.space(["fails", durability], durability=durability)
            piece = space.piece_bytes
            tensor = space.tensor("t", 2 * piece)
            tensor.put(0, bytes(2 * piece))
            if durability == "durable":
                tensor.sync()
            with self.assertRaises(KeyError):
                with tensor.acquire(write=True) as views:
                    views[1].data[:4] = b"half"
                    raise KeyError
            self.assertTrue(views[0].released and views[1].released)
            got = bytearray(4)
            tensor.get(0, got)  # nobody saw that one
            self.assertEqual(got, bytes(4))
            if durability == "durable":
                tensor.get(piece, got)
                self.assertEqual(got, bytes(4))
                continue
            with self.assertRaises(spillway.Corrupted):
                tensor.get(piece, got)
            tensor.put(piece, pattern(piece))
            tensor.get(piece, got)
            self.assertEqual(got, pattern(piece)[:4])

    def test_prefetch_sync_delete(self):
        space = self.pool.space("durable", durability="durable")
        tensor = space.tensor("t", MIB)
        tensor.put(0, pattern(MIB))
        tensor.sync()
        space.sync(["t"])
        space.sync([tensor])
        space.sync([])
        space.sync()
        tensor.prefetch(1.0)
        got = bytearray(MIB)
        tensor.get(0, got)
        self.assertEqual(got, pattern(MIB))
        tensor.delete()
        with self.assertRaises(spillway.NotFound):
            tensor.delete()
        self.space.sync([])  # of nothing, not of all
        with self.assertRaises(spillway.SpillwayError) as caught:
            self.space.sync()
        self.assertEqual(caught.exception.errno, errno.EINVAL)

    def test_prefetch_of_several_pieces(self):
        tensor = self.space.tensor("t", self.space.piece_bytes + 1)
        with self.assertRaises(spillway.SpillwayError) as caught:
            tensor.prefetch()
        self.assertEqual(caught.exception.errno, errno.EMSGSIZE)

    def test_another_size(self):
        self.space.tensor("t", 4096)
        with self.assertRaises(spillway.SpillwayError) as caught:
            self.space.tensor("t", 8192)
        self.assertEqual(caught.exception.errno, errno.EINVAL)

    def test_ranges_that_are_none(self):
        tensor = self.space.tensor("t", 4096)
        for offset, length in ((0, 0), (0, 4097), (4096, None), (-1, 1), (1, -1), (1 << 64, 1), (0, 1 << 70)):
            with self.assertRaises(ValueError):
                tensor.acquire(offset, length)
        for offset, length in ((0, None), (4095, None), (4095, 1)):
            tensor.acquire(offset, length).release()
        with self.assertRaises(TypeError):
            tensor.acquire(0.0, 1)
        for offset in (-1, 1 << 64):
            with self.assertRaises(OverflowError):
                tensor.put(offset, b"x")
            with self.assertRaises(OverflowError):
                tensor.get(offset, bytearray(1))
        for offset, n in ((4096, 1), (0, 4097), (1 << 63, 1), ((1 << 64) - 1, 2), (0, 0)):
            with self.assertRaises(spillway.SpillwayError):
                tensor.put(offset, bytes(n))
            with self.assertRaises(spillway.SpillwayError):
                tensor.get(offset, bytearray(n))
        with self.assertRaises(BufferError):
            tensor.get(0, b"read-only")
        with self.assertRaises(TypeError):
            tensor.put(0, "text")


if __name__ == "__main__":
    support.main()
