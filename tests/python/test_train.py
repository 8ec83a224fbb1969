# SPDX-License-Identifier: Apache-2.0
"""Layouts of states, and the optimizer's step on memory of the caller's own."""
import array
import math
import random
import unittest

import support
from spillway import train


def floats(n, make=lambda i: 0.0):
    return array.array("f", (make(i) for i in range(n)))


def address(a):
    return a.buffer_info()[0]


class LayoutTest(unittest.TestCase):
    def test_each_element_lies_somewhere_once(self):
        random.seed(3)
        for arrays in (2, 3):
            sizes = [1, 4096, 4097, 0, 100000, 7, 1 << 20] + [random.randrange(1, 200000) for _ in range(30)]
            layout = train.Layout(sizes, arrays, 1 << 20)
            there = [0] * len(sizes)
            for chunk, extents in enumerate(layout.chunks):
                end = 0
                for extent in extents:
                    self.assertEqual(extent.first, there[extent.tensor])
                    self.assertEqual(extent.first % train.BLOCK, 0)
                    self.assertGreaterEqual(extent.at, end)
                    end = extent.at + extent.n
                    there[extent.tensor] += extent.n
                self.assertLessEqual(end, layout.chunk_elements(chunk))
                self.assertLessEqual(layout.chunk_bytes(chunk), 1 << 20)
            self.assertEqual(there, sizes)
            used = sum(sizes) * 4 * arrays
            self.assertLess(layout.nbytes - used, len(sizes) * train.BLOCK * 4 * arrays)
            self.assertEqual(layout.nbytes, sum(map(layout.chunk_bytes, range(len(layout.chunks)))))

    def test_a_chunk_too_small_for_a_block_is_refused(self):
        with self.assertRaises(ValueError):
            train.Layout([10], 3, 4096)


class StepTest(unittest.TestCase):
    def test_a_step_is_adamws(self):
        n = 5000
        grad = floats(n, lambda i: math.sin(i))
        master = floats(n, lambda i: math.cos(i))
        before = list(master)
        m, v = floats(n), floats(n)
        with train.Workers(2) as workers:
            self.assertEqual(workers.count, 2)
            options = train.Adam(0.01, (0.9, 0.99), 1e-8, 0.1, 1)
            stat = train.adam(options, [train.Slice(n, *map(address, (grad, master, m, v)))], workers)
        self.assertAlmostEqual(stat.sum_squares, sum(g * g for g in grad), places=3)
        self.assertFalse(stat.nonfinite)
        for i in range(0, n, 97):
            # the first step: m / c1 = g, v / c2 = g²
            want = before[i] * (1 - 0.01 * 0.1) - 0.01 * grad[i] / (abs(grad[i]) + 1e-8)
            self.assertAlmostEqual(master[i], want, places=5)

    def test_gradients_that_are_not_finite_are_told(self):
        grad = floats(100, lambda i: float("inf") if i == 77 else 1.0)
        self.assertTrue(train.grad_stat([train.Slice(100, address(grad), 0, 0, 0)]).nonfinite)
        self.assertEqual(train.grad_stat([train.Slice(77, address(grad), 0, 0, 0)]), (77.0, False))

    def test_copies(self):
        source, to = floats(1000, float), floats(1000)
        copies = [(address(to) + 4 * at, address(source) + 4 * at, 4 * n) for at, n in ((0, 3), (10, 0), (500, 500))]
        with train.Workers(2) as workers:
            train.copy(copies, workers)
        self.assertEqual(list(to), [float(i) if i < 3 or i >= 500 else 0.0 for i in range(1000)])
        with self.assertRaisesRegex(OSError, "copy 1: an address is NULL"):
            train.copy([copies[0], (0, address(source), 4)])

    def test_bad_arguments(self):
        grad = floats(4)
        piece = train.Slice(4, *[address(grad)] * 4)
        with self.assertRaisesRegex(OSError, "step"):
            train.adam(train.Adam(0.1, (0.9, 0.99), 1e-8, 0, 0), [piece])
        with self.assertRaises(KeyError):
            train.adam(train.Adam(0.1, (0.9, 0.99), 1e-8, 0, 1), [piece._replace(grad_dtype="float16")])
        workers = train.Workers(1)
        workers.close()
        with self.assertRaises(ValueError):
            train.grad_stat([piece], workers)


if __name__ == "__main__":
    support.main()
