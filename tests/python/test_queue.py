# SPDX-License-Identifier: Apache-2.0
"""Queues: awaited calls have the bytes, and a task that is cancelled leaves nothing behind."""
import asyncio
import errno
import gc

import spillway
import support
from support import KIB, MIB, pattern

BLOCK = 64 * KIB


class Queues(support.Case):
    disk_mib = 256

    def setUp(self):
        super().setUp()
        self.space = self.pool.space(["queue", self.id()], "kv", "cache")
        self.keys = [b"%d" % i for i in range(8)]
        self.blocks = [pattern(BLOCK, i) for i in range(8)]

    def run_with_queue(self, function, entries=256):
        async def main():
            async with self.space.queue(entries) as queue:
                return await asyncio.wait_for(function(queue), 60)

        return asyncio.run(main())

    def leases(self):
        return self.session.admin({"get": "sessions"})["sessions"][0]["leases"]

    def test_every_call(self):
        async def work(queue):
            self.assertEqual(await queue.put(self.keys, self.blocks, chain=True, timeout=10), [0] * 8)
            got = [bytearray(BLOCK) for _ in self.keys]
            statuses = await queue.get([*self.keys, b"none"], [*got, bytearray(1)])
            self.assertEqual(statuses, [0] * 8 + [-errno.ENOENT])
            self.assertEqual(statuses.sizes[:8], [BLOCK] * 8)
            self.assertEqual(got, self.blocks)
            self.assertEqual((await queue.lookup([*self.keys, b"none"])).prefix, 8)
            with await queue.acquire(self.keys, timeout=10) as views:
                self.assertEqual([bytes(view.data) for view in views], self.blocks)
            self.assertEqual(await queue.prefetch(self.keys, deadline=10), [0] * 8)
            with self.assertRaises(spillway.SpillwayError) as caught:
                await queue.sync()
            self.assertEqual(caught.exception.errno, errno.EINVAL)
            with self.assertRaises(BufferError):
                await queue.get(["a"], [b"read-only"])

        self.run_with_queue(work)
        self.assertEqual(self.leases(), 0)

    def test_sync(self):
        self.space = self.pool.space(["durable", self.id()], durability="durable")

        async def work(queue):
            await queue.put(["a", "b"], self.blocks[:2])
            await queue.sync(["a", "b"], timeout=30)
            await queue.sync([])
            await queue.sync()
            with await queue.acquire(["a"], write=False) as views:
                self.assertEqual(views[0].data, self.blocks[0])

        self.run_with_queue(work)

    def test_many_at_once(self):
        async def one(queue, i):
            key, block = b"many %d" % i, pattern(4096, i)
            await queue.put([key], [block])
            got = bytearray(4096)
            await queue.get([key], [got])
            self.assertEqual(got, block)

        async def work(queue):
            await asyncio.gather(*(one(queue, i) for i in range(500)))

        self.run_with_queue(work, entries=8)

    def test_large(self):
        async def work(queue):
            block = pattern(20 * MIB)
            self.assertEqual(await queue.put(["large"], [block]), [0])
            got = bytearray(20 * MIB)
            self.assertEqual(await queue.get(["large"], [got]), [0])
            self.assertEqual(got, block)

        self.run_with_queue(work)

    def test_the_loop_goes_on(self):
        """The daemon stands still; the loop does not."""

        async def work(queue):
            await queue.put(self.keys, self.blocks)
            self.daemon.stand_still(5)
            task = asyncio.create_task(queue.get(self.keys, [bytearray(BLOCK) for _ in self.keys]))
            turns = 0
            while turns < 20:
                await asyncio.sleep(0.001)
                turns += 1
            self.assertFalse(task.done())
            self.daemon.go_on()
            self.assertEqual(await task, [0] * 8)

        self.run_with_queue(work)

    def test_cancelled(self):
        async def work(queue):
            await queue.put(self.keys, self.blocks)
            tensor = self.space.tensor("t", BLOCK)
            tensor.put(0, self.blocks[0])
            self.daemon.stand_still(5)
            buffers = [bytearray(BLOCK) for _ in self.keys]
            tasks = [
                asyncio.create_task(call)
                for call in (
                    queue.get(self.keys, buffers),
                    queue.acquire(self.keys),
                    queue.acquire(["t"], write=True),
                    queue.lookup(self.keys),
                    queue.prefetch(self.keys),
                )
            ]
            await asyncio.sleep(0.01)
            for task in tasks:
                task.cancel()
            await asyncio.sleep(0.05)
            # The destination is the job's: it cannot go away under it, whoever is cancelled, and however often.
            gc.collect()
            for buffer in buffers:
                with self.assertRaises(BufferError):
                    buffer.clear()
            tasks[0].cancel()
            await asyncio.sleep(0.01)
            with self.assertRaises(BufferError):
                buffers[0].clear()
            self.daemon.go_on()
            for task in tasks:
                with self.assertRaises(asyncio.CancelledError):
                    await task
            for buffer in buffers:
                buffer.clear()
            self.assertEqual(await queue.get(self.keys[:1], [bytearray(BLOCK)]), [0])
            tensor.get(0, bytearray(BLOCK))

        self.run_with_queue(work)
        self.assertEqual(self.leases(), 0)

    def test_cancelled_put(self):
        async def work(queue):
            data = bytearray(pattern(8 * MIB))
            tasks = [asyncio.create_task(queue.put([b"p%d" % i], [data])) for i in range(6)]
            await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            self.assertTrue(all(isinstance(result, asyncio.CancelledError) for result in results))
            data.clear()
            for i in range(6):
                got = bytearray(8 * MIB)
                status = (await queue.get([b"p%d" % i], [got]))[0]
                self.assertIn(status, (0, -errno.ENOENT))
                self.assertTrue(status or got == pattern(8 * MIB))

        self.run_with_queue(work)
        self.assertEqual(self.leases(), 0)

    def test_timeout(self):
        async def work(queue):
            self.daemon.stand_still(0.1)
            with self.assertRaises(asyncio.TimeoutError):
                await asyncio.wait_for(queue.lookup(self.keys), 0.02)
            self.daemon.go_on()

        self.run_with_queue(work)

    def test_closed_while_it_works(self):
        async def main():
            queue = self.space.queue()
            await queue.put(self.keys, self.blocks)
            self.daemon.stand_still(0.1)
            task = asyncio.create_task(queue.acquire(self.keys))
            await asyncio.sleep(0.01)
            self.session.close()
            self.daemon.go_on()
            with self.assertRaises(spillway.SpillwayError):
                await task
            with self.assertRaises(spillway.SpillwayError):
                await queue.get(["a"], [bytearray(1)])
            queue.close()

        asyncio.run(main())

    def test_another_loop(self):
        queue = self.space.queue()
        self.addCleanup(queue.close)
        asyncio.run(queue.lookup(self.keys))
        with self.assertRaises(RuntimeError):
            asyncio.run(queue.lookup(self.keys))

    def test_forgotten(self):
        with self.assertWarns(ResourceWarning):
            self.space.queue()


if __name__ == "__main__":
    support.main()
