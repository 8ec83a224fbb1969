# SPDX-License-Identifier: Apache-2.0
"""Memory of a GPU and the store, on the fake CUDA driver; on a real GPU with SPILLWAY_TEST_GPU=1."""
import asyncio
import atexit
import ctypes
import errno
import gc
import mmap
import os
import struct
import tempfile
import threading
import time
import unittest
import weakref

import spillway
import spillway.gpu
import support
from support import KIB, MIB, pattern

REAL = os.environ.get("SPILLWAY_TEST_GPU")
HANG = 4  # where struct fake_cuda_control has roles[FAKE_CUDA_CLIENT].hang
BLOCK = 64 * KIB
WAIT = 20.0


class Driver:
    """libcuda.so.1, with the first device's primary context."""

    def __init__(self):
        self.library = ctypes.CDLL("libcuda.so.1")
        self.context = ctypes.c_void_p()
        device = ctypes.c_int()
        self("cuInit", 0)
        self("cuDeviceGet", ctypes.byref(device), 0)
        self("cuDevicePrimaryCtxRetain", ctypes.byref(self.context), device)

    def __call__(self, name, *args):
        result = getattr(self.library, name)(*args)
        if result != 0:
            raise OSError(errno.EIO, f"{name}: {result}")

    def make_current(self):
        self("cuCtxSetCurrent", self.context)

    def stream(self):
        handle = ctypes.c_void_p()
        self("cuStreamCreateWithPriority", ctypes.byref(handle), 1, 0)
        return handle.value


class Array:
    """Bytes on the device."""

    def __init__(self, data):
        self.nbytes = len(data)
        self.address = ctypes.c_uint64()
        driver("cuMemAlloc_v2", ctypes.byref(self.address), ctypes.c_size_t(self.nbytes))
        driver("cuMemcpyHtoD_v2", self.address, bytes(data), ctypes.c_size_t(self.nbytes))

    @property
    def __cuda_array_interface__(self):
        data = (self.address.value, False)
        return {"version": 3, "shape": (self.nbytes // 4,), "typestr": "<f4", "data": data, "strides": None}

    def read(self):
        return device_bytes(self.address.value, self.nbytes)

    def __del__(self):
        driver.make_current()  # in whatever thread the last reference goes
        driver("cuMemFree_v2", self.address)


def device_bytes(address, nbytes):
    data = ctypes.create_string_buffer(nbytes)
    driver("cuMemcpyDtoH_v2", data, ctypes.c_uint64(address), ctypes.c_size_t(nbytes))
    return data.raw


control = tempfile.NamedTemporaryFile(prefix="spillway-fake-cuda-")  # struct fake_cuda_control
atexit.register(control.close)
if not REAL:
    os.environ["FAKE_CUDA_CONTROL"] = control.name
try:
    driver, why = Driver(), None
except OSError as problem:
    driver, why = None, f"no CUDA driver can be loaded: {problem}"
if driver and not REAL and b"fake" not in os.environ.get("LD_LIBRARY_PATH", "").encode():
    driver, why = None, "the CUDA driver is a real one, and SPILLWAY_TEST_GPU is not set"


class NoGpuTest(support.Case):
    @unittest.skipIf(driver is not None, "there is a driver")
    def test_it_says_so(self):
        with self.assertRaisesRegex(spillway.NoGpu, "libcuda"):
            spillway.gpu.attach(self.space)


class RegionTest(unittest.TestCase):
    def test_arrays(self):
        class Given:
            def __init__(self, shape, strides=None):
                self.__cuda_array_interface__ = {"version": 3, "shape": shape, "typestr": "<f2", "data": (4096, False),
                                                 "strides": strides}  # fmt: skip

        for shape, strides, nbytes in (
            ((3, 5), None, 30),
            ((3, 5), (10, 2), 30),
            ((3, 1, 5), (10, 77, 2), 30),
            ((), None, 2),
            ((0, 5), (3, 3), 0),
        ):
            array = Given(shape, strides)
            self.assertEqual(spillway.gpu.region(array), (4096, nbytes, array))
        for shape, strides in (((3, 5), (20, 2)), ((3, 5), (2, 6)), ((4,), (-2,))):
            with self.assertRaises(ValueError):
                spillway.gpu.region(Given(shape, strides))
        with self.assertRaises(TypeError):
            spillway.gpu.region(b"bytes")
        self.assertEqual(spillway.gpu.region(spillway.gpu.Region(16, 32)), (16, 32, None))


@unittest.skipIf(driver is None, why)
class GpuTest(support.Case):
    sections = "[tier.dram]\nsize = 256 MiB\n[pool default]\ngpu = 512 MiB\n"
    disk_mib = 256

    def setUp(self):
        super().setUp()
        driver.make_current()
        self.gpu = spillway.gpu.attach(self.space)
        self.addCleanup(self.gpu.close)
        self.stream = driver.stream()

    def hang(self, wanted):
        """The client's streams end nothing meanwhile."""
        if REAL:
            self.skipTest("the driver is a real one: it does not hang on command")
        with mmap.mmap(control.fileno(), 0) as shared:
            shared[HANG : HANG + 4] = struct.pack("=I", wanted)
        if wanted:
            self.addCleanup(self.hang, 0)

    def tensor(self, data, name="t"):
        tensor = self.space.tensor(name, len(data))
        tensor.put(0, data)
        return tensor

    def test_tensors(self):
        data = pattern(20 * MIB)
        tensor = self.space.tensor("t", len(data))
        source = Array(data)
        job = self.gpu.put([(tensor, 0, source)], self.stream)
        job.join(self.stream, WAIT)
        job.wait_source_free(WAIT)
        self.assertTrue(job.source_free)
        self.assertEqual(job.wait(WAIT), [0])
        self.assertTrue(job.done)
        got = bytearray(len(data))
        tensor.get(0, got)
        self.assertEqual(got, data)
        target = Array(bytes(len(data)))
        half = len(data) // 2
        ranges = [
            (("t", 0), half, spillway.gpu.Region(target.address.value, half, target)),
            (tensor, 0, spillway.gpu.Region(target.address.value + half, half)),
        ]
        job = self.gpu.get(ranges, self.stream)
        self.assertEqual(job.wait(WAIT), [0, 0])
        self.assertEqual(target.read(), data[half:] + data[:half])
        job.join(self.stream)
        self.assertEqual(job.wait(), [0, 0])
        self.assertEqual(job.progress, (0, 0))

    def test_the_stream_of_a_call_that_names_none(self):
        asked = []

        def current_stream():
            asked.append(None)
            return self.stream

        data = pattern(MIB)
        tensor = self.tensor(bytes(MIB))
        with spillway.gpu.attach(self.space, current_stream=current_stream) as gpu:
            source, target = Array(data), Array(bytes(MIB))
            self.assertEqual(gpu.put([(tensor, 0, source)]).wait(WAIT), [0])
            self.assertEqual(len(asked), 1)
            job = gpu.get([(tensor, 0, target)], 0)
            self.assertEqual(len(asked), 1)
            job.join()
            self.assertEqual(len(asked), 2)
            self.assertEqual(job.wait(WAIT), [0])
            self.assertEqual(target.read(), data)

    def test_statuses_and_errors(self):
        tensor = self.tensor(bytes(MIB))
        target = Array(bytes(64 * KIB))
        statuses = self.gpu.get([("none", 0, target), (tensor, 0, target)]).wait(WAIT)
        self.assertEqual(statuses, [-errno.ENOENT, 0])
        with self.assertRaises(spillway.NotFound):
            statuses.check()
        with self.assertRaises(spillway.NotFound):
            self.gpu.activate([("none", 0, target), (tensor, 0, target)]).wait(WAIT)
        with self.assertRaisesRegex(spillway.SpillwayError, "multiples of 16"):
            self.gpu.get([(tensor, 0, spillway.gpu.Region(target.address.value + 4, 64))])
        self.assertEqual(self.gpu.get([]).wait(WAIT), [])

    def test_activate(self):
        data = [pattern(MIB, i) for i in range(3)]
        tensors = [self.tensor(d, f"weights {i}") for i, d in enumerate(data)]
        memory = self.gpu.alloc(3 * MIB)
        job = self.gpu.activate([(t, 0, memory.region(i * MIB, MIB)) for i, t in enumerate(tensors)], self.stream)
        self.assertEqual(job.wait(WAIT), [])
        self.assertEqual(device_bytes(memory.address, 3 * MIB), b"".join(data))
        self.assertEqual(spillway.gpu.region(memory), (memory.address, 3 * MIB, memory))
        with self.assertRaises(ValueError):
            memory.region(MIB, 3 * MIB)
        memory.free()
        with self.assertRaises(AttributeError):
            memory.__cuda_array_interface__

    def test_blocks(self):
        space = self.pool.space(["kv", self.id()], "kv", "cache", item_bytes=2 * BLOCK)
        layers = [Array(pattern(8 * BLOCK, i)) for i in range(2)]
        keys = [b"%d" % i for i in range(4)]
        layout = self.gpu.layout(layers, 8, space=space)
        self.assertEqual(layout.spill(keys, range(4), self.stream, chain=True).wait(WAIT), [0] * 4)
        self.assertEqual(layout.spill(keys[:1], [0]).wait(WAIT), [-errno.EEXIST])
        statuses = layout.fetch([*keys, b"x"], [7, 6, 5, 4, 3], self.stream).wait(WAIT)
        self.assertEqual(statuses, [0] * 4 + [-errno.ENOENT])
        for i, layer in enumerate(layers):
            data = pattern(8 * BLOCK, i)
            blocks = [data[k * BLOCK : (k + 1) * BLOCK] for k in (0, 1, 2, 3, 3, 2, 1, 0)]
            got = layer.read()
            for k in (0, 1, 2, 4, 5, 6, 7):  # what the missing block's place has is nobody's business
                self.assertEqual(got[k * BLOCK : (k + 1) * BLOCK], blocks[k])
        with self.assertRaises(ValueError):
            layout.fetch(keys, [0])
        with self.assertRaises(spillway.SpillwayError):
            layout.fetch(keys[:1], [8])
        layout.close()
        with self.assertRaises(ValueError):
            layout.fetch(keys[:1], [0])
        half = spillway.gpu.Piece(layers[0], 2 * BLOCK, BLOCK)
        with self.assertRaisesRegex(spillway.SpillwayError, "the pieces have"):
            self.gpu.layout([half], 4, space=space)

    def test_what_a_job_was_given_is_kept_until_its_source_is_free(self):
        data = pattern(MIB)
        tensor = self.space.tensor("t", MIB)
        source = Array(data)
        kept = weakref.ref(source)
        self.hang(1)
        job = self.gpu.put([(tensor, 0, source)], self.stream)
        del source
        gc.collect()
        self.assertFalse(job.source_free)
        self.assertIsNotNone(kept())
        with self.assertRaises(spillway.Timeout):
            job.wait(0.05)
        with self.assertRaises(spillway.Timeout):
            job.wait_source_free(0.05)
        self.assertIsNotNone(kept())
        self.hang(0)
        job.wait_source_free(WAIT)
        self.assertIsNone(kept())
        job.wait(WAIT).check()
        got = bytearray(MIB)
        tensor.get(0, got)
        self.assertEqual(got, data)

    def test_a_job_that_nobody_refers_to_goes_on(self):
        data = pattern(MIB)
        tensor = self.space.tensor("t", MIB)
        source = Array(data)
        self.hang(1)
        self.gpu.put([(tensor, 0, source)], self.stream)
        del source
        gc.collect()
        self.hang(0)
        end = time.monotonic() + WAIT
        while self.gpu._jobs and time.monotonic() < end:
            self.gpu.get([]).wait(WAIT)
        got = bytearray(MIB)
        tensor.get(0, got)
        self.assertEqual(got, data)

    def test_asyncio(self):
        data = [pattern(MIB, i) for i in range(4)]
        tensors = [self.space.tensor(f"t {i}", MIB) for i in range(4)]

        async def work():
            jobs = [self.gpu.put([(t, 0, Array(d))], self.stream) for t, d in zip(tensors, data)]
            for statuses in await asyncio.gather(*jobs):
                statuses.check()
            target = Array(bytes(MIB))
            (await self.gpu.get([(tensors[2], 0, target)], self.stream)).check()
            self.assertEqual(target.read(), data[2])

        asyncio.run(work())

    def test_a_task_that_is_cancelled(self):
        tensor = self.tensor(pattern(MIB))
        target = Array(bytes(MIB))
        self.hang(1)
        job = self.gpu.get([(tensor, 0, target)], self.stream)

        async def wait():
            return await job

        async def work():
            task = asyncio.ensure_future(wait())
            await asyncio.sleep(0.05)
            task.cancel()
            await asyncio.sleep(0.05)
            self.assertFalse(task.done())  # the job has its end first
            self.hang(0)
            with self.assertRaises(asyncio.CancelledError):
                await asyncio.wait_for(task, WAIT)
            self.assertTrue(job.done)

        asyncio.run(work())

    def test_views_are_mapped(self):
        data = pattern(MIB)
        tensor = self.tensor(data)
        with spillway.gpu.attach(self.space, map_only=True) as mapper:
            self.assertEqual(mapper.mapped_bytes, 0)
            with tensor.acquire() as views:
                address = mapper.map(views[0])
                self.assertGreaterEqual(mapper.mapped_bytes, MIB)
                target = Array(bytes(MIB))
                driver("cuMemcpyDtoDAsync_v2", target.address, ctypes.c_uint64(address), ctypes.c_size_t(MIB), None)
                driver("cuCtxSynchronize")
                self.assertEqual(target.read(), data)
            with self.assertRaises(ValueError):
                mapper.map(views[0])
            with self.assertRaises(spillway.SpillwayError) as caught:
                mapper.alloc(MIB)
            self.assertEqual(caught.exception.errno, errno.ENOTSUP)
            mapper.unmap()
            self.assertEqual(mapper.mapped_bytes, 0)

    def test_budget_of_the_pool(self):
        with self.assertRaises(spillway.NoSpace) as caught:
            self.gpu.alloc(1 << 30)
        self.assertEqual(caught.exception.limit.name, "POOL_GPU")

    def test_another_gpu(self):
        with self.assertRaises(spillway.NoGpu):
            spillway.gpu.attach(self.space, uuid=bytes(16))
        with self.assertRaises(ValueError):
            spillway.gpu.attach(self.space, uuid=b"short")

    def test_without_a_context(self):
        driver("cuCtxSetCurrent", None)
        with self.assertRaisesRegex(spillway.SpillwayError, "no current context"):
            spillway.gpu.attach(self.space)

    def test_close_ends_what_others_wait_for(self):
        tensor = self.tensor(pattern(MIB))
        target = Array(bytes(MIB))
        self.hang(1)
        job = self.gpu.get([(tensor, 0, target)], self.stream)
        outcomes = []

        def wait():
            try:
                outcomes.append(job.wait())
            except OSError as error:
                outcomes.append(error)

        waiting = threading.Thread(target=wait)
        waiting.start()
        time.sleep(0.05)
        closing = threading.Thread(target=self.gpu.close)
        closing.start()
        time.sleep(0.05)
        self.hang(0)
        for thread in (waiting, closing):
            thread.join(WAIT)
            self.assertFalse(thread.is_alive())
        self.assertEqual(len(outcomes), 1)
        self.assertTrue(job.done)
        with self.assertRaises(spillway.SpillwayError) as caught:
            self.gpu.get([(tensor, 0, target)])
        self.assertEqual(caught.exception.errno, errno.ENOTCONN)
        self.gpu.close()

    def test_a_session_closes_its_attachments(self):
        session = self.daemon.connect()
        space = session.pool().space(["test", "other"])
        gpu = spillway.gpu.attach(space)
        memory = gpu.alloc(MIB)
        session.close()
        self.assertIn("closed", repr(gpu))
        with self.assertRaises(spillway.SpillwayError):
            memory.free()

    def test_an_attachment_that_was_forgotten(self):
        gpu = spillway.gpu.attach(self.space)
        with self.assertWarns(ResourceWarning):
            del gpu
            gc.collect()
        session = self.daemon.connect()
        gpu = spillway.gpu.attach(session.pool().space(["test", "other"]))
        with self.assertWarns(ResourceWarning):
            del gpu, session
            gc.collect()

    def test_the_daemon_is_gone(self):
        daemon = support.Daemon(self.sections)
        session = daemon.connect()
        space = session.pool().space(["test"])
        tensor = space.tensor("t", MIB)
        tensor.put(0, bytes(MIB))
        gpu = spillway.gpu.attach(space)
        daemon.kill()
        with self.assertRaises(OSError):
            self.assertEqual(gpu.get([(tensor, 0, Array(bytes(MIB)))], timeout=2).wait(WAIT).check(), [0])
        gpu.close()
        session.close()

    def test_in_a_child(self):
        pid = os.fork()
        if pid == 0:
            try:
                self.gpu.get([])
                os._exit(1)
            except spillway.SpillwayError as error:
                os._exit(0 if error.errno == errno.ECHILD else 2)
        self.assertEqual(os.waitpid(pid, 0)[1], 0)


if __name__ == "__main__":
    support.main()
