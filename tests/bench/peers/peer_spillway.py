# SPDX-License-Identifier: Apache-2.0
"""Spillway itself: the release build's daemon with a memory tier and a device file, through libspillway.

From and to the client's own memory. Spills are two jobs with half of what is in flight each, so that one is copied
while the other is at the device; fetches are four jobs, since small ones are all at the device together, and the client
copies one while the others are there.
`memory` as the variant gives the daemon a memory tier that holds the whole set, for peers that only have memory, and
one job with all: there is no device to wait for."""

import ctypes
import os
import select
import subprocess
import time

import harness

KIB, MIB = 1 << 10, 1 << 20
READY_SECONDS = 60
TIMEOUT_MS = 30000
CLASS_KV, CACHE = 1, 1


class Key(ctypes.Structure):
    _fields_ = [
        ("bytes", ctypes.c_uint8 * 32),
        ("group", ctypes.c_uint32),
        ("len", ctypes.c_uint8),
        ("reserved0", ctypes.c_uint8),
        ("part", ctypes.c_uint16),
        ("n_parts", ctypes.c_uint16),
        ("reserved1", ctypes.c_uint16),
    ]


class Iovec(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("size_bytes", ctypes.c_uint64)]


class ConnectOptions(ctypes.Structure):
    _fields_ = [
        ("socket_path", ctypes.c_char_p),
        ("name", ctypes.c_char_p),
        ("owner_token", ctypes.c_void_p),
        ("copy_threads", ctypes.c_uint32),
        ("timeout_ms", ctypes.c_uint32),
        ("ring_entries", ctypes.c_uint32),
        ("spin_us", ctypes.c_uint32),
        ("scratch_bytes", ctypes.c_uint64),
    ]


class SpaceOptions(ctypes.Structure):
    _fields_ = [
        ("digest", ctypes.c_uint8 * 32),
        ("item_bytes", ctypes.c_uint64),
        ("class_id", ctypes.c_uint8),
        ("durability", ctypes.c_uint8),
        ("reserved", ctypes.c_uint8 * 6),
        ("flags", ctypes.c_uint32),
        ("node", ctypes.c_uint32),
    ]


class Stat(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_uint64)
        for name in (
            "dram_budget dram_used cxl_budget cxl_used nvme_budget nvme_used gpu_budget gpu_used leased dirty objects "
            "resident hits_dram hits_cxl hits_nvme misses bytes_read bytes_written"
        ).split()
    ] + [("reserved", ctypes.c_uint64 * 14)]


def library_load(folder):
    lib = ctypes.CDLL(os.path.join(folder, "libspillway.so"))
    pointer, pointer_to = ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p)
    signatures = {
        "spw_connect": [ctypes.POINTER(ConnectOptions), pointer_to],
        "spw_pool_open": [pointer, ctypes.c_char_p, pointer_to],
        "spw_space_open": [pointer, ctypes.POINTER(SpaceOptions), pointer_to],
        "spw_queue_new": [pointer, pointer, ctypes.c_uint32, pointer_to],
        "spw_queue_fd": [pointer],
        "spw_queue_arm": [pointer],
        "spw_queue_next": [pointer, pointer_to],
        "spw_job_status": [pointer],
        "spw_stat": [pointer, ctypes.POINTER(Stat)],
        "spw_delete": [pointer, ctypes.POINTER(Key), ctypes.c_size_t, ctypes.POINTER(ctypes.c_int32)],
    }
    for name in ("spw_submit_put", "spw_submit_get"):
        signatures[name] = [
            pointer,
            pointer,
            ctypes.POINTER(Key),
            ctypes.POINTER(Iovec),
            ctypes.c_size_t,
            ctypes.c_uint,
            ctypes.c_uint32,
            ctypes.POINTER(ctypes.c_int32),
            pointer,
            pointer_to,
        ]
    for name, arguments in signatures.items():
        getattr(lib, name).argtypes = arguments
        getattr(lib, name).restype = ctypes.c_int
    lib.spw_error_text.restype = ctypes.c_char_p
    lib.spw_job_user.argtypes = [pointer]
    lib.spw_job_user.restype = pointer
    for name in ("spw_job_free", "spw_queue_free", "spw_close"):
        getattr(lib, name).argtypes = [pointer]
        getattr(lib, name).restype = None
    return lib


class Batch:
    """What a job was given is the job's until it ends."""

    def __init__(self, n, number):
        self.keys, self.iovecs, self.statuses = (Key * n)(), (Iovec * n)(), (ctypes.c_int32 * n)()
        self.number, self.slots = number, []


def key_set(at, key):
    at.len = 8
    ctypes.memmove(ctypes.addressof(at), key.to_bytes(8, "little"), 8)


class Spillway(harness.BatchPeer):
    name = "spillway"
    daemon = None

    def open(self):
        self.in_memory = self.options.variant == "memory"
        self.batches_of = {"spill": 1, "fetch": 1} if self.in_memory else {"spill": 2, "fetch": 4}
        self.daemon_start()
        self.lib = library_load(self.options.bin)
        self.session = self.get(
            "spw_connect",
            ctypes.byref(
                ConnectOptions(
                    socket_path=self.socket.encode(), name=b"peers", copy_threads=2, timeout_ms=1000 * READY_SECONDS
                )
            ),
        )
        pool = self.get("spw_pool_open", self.session, b"bench")
        layout = SpaceOptions(item_bytes=self.size, class_id=CLASS_KV, durability=CACHE)
        layout.digest[0] = 1
        self.space = self.get("spw_space_open", pool, ctypes.byref(layout))
        self.queue = self.get("spw_queue_new", self.session, self.space, 0)
        self.poll = select.poll()
        self.poll.register(self.lib.spw_queue_fd(self.queue), select.POLLIN)
        self.call = {"spill": self.lib.spw_submit_put, "fetch": self.lib.spw_submit_get}
        self.idle = [Batch(self.depth, number) for number in range(self.depth)]
        self.running = {}
        self.addresses = [harness.address_of(slot) for slot in self.slots]
        self.job = ctypes.c_void_p()

    def daemon_start(self):
        self.socket = os.path.join(self.folder, "socket")
        device, config = os.path.join(self.folder, "disk.spill"), os.path.join(self.folder, "config")
        set_bytes = self.n_objects * self.size
        dram = self.options.memory_bytes if not self.in_memory else set_bytes * 2 + 256 * MIB
        tuned = "engines = 1, workers auto, chain, trusted pool, copy_threads 2, "
        tuned += "{spill} spill and {fetch} fetch jobs in flight".format(**self.batches_of)
        text = f"[daemon]\nsocket = {self.socket}\nengines = 1\n"
        text += f"[tier.dram]\nsize = {dram} B\n"
        if not self.in_memory:
            capacity = set_bytes * 2 + 512 * MIB
            subprocess.run(
                [
                    os.path.join(self.options.bin, "spillctl"),
                    "device",
                    "format",
                    device,
                    "--capacity",
                    str(capacity),
                    "--partitions",
                    "1",
                    "--label",
                    "peers",
                ],
                check=True,
                stdout=subprocess.DEVNULL,
            )
            text += f"[device disk]\npath = {device}\n"
        with open(config, "w", encoding="utf-8") as file:
            file.write(text + "[pool bench]\n")
        self.daemon = subprocess.Popen(
            [os.path.join(self.options.bin, "spillwayd"), "--user", "--config", config, "--socket", self.socket]
        )
        end = time.monotonic() + READY_SECONDS
        while not os.path.exists(self.socket):
            if self.daemon.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"spillwayd did not start: {self.daemon.returncode}")
            time.sleep(0.02)
        self.version = subprocess.run(
            [os.path.join(self.options.bin, "spillwayd"), "--version"], check=False, capture_output=True, text=True
        ).stdout.strip()
        self.tuning = f"memory tier {dram // MIB} MiB, {'no device' if self.in_memory else 'a file, O_DIRECT'}; {tuned}"

    def get(self, name, *arguments):
        made = ctypes.c_void_p()
        self.check(name, getattr(self.lib, name)(*arguments, ctypes.byref(made)))
        return made

    def check(self, name, result):
        if result < 0:
            raise OSError(-result, f"{name}: {self.lib.spw_error_text().decode()}")
        return result

    def gather(self, kind, *what):
        self.batches = self.batches_of[kind]
        super().gather(kind, *what)

    def start(self, kind, batch):
        lists = self.idle.pop()
        lists.slots = [slot for _, _, slot in batch]
        for i, (key, _, slot) in enumerate(batch):
            key_set(lists.keys[i], key)
            lists.iovecs[i].data, lists.iovecs[i].size_bytes = self.addresses[slot], self.size
        self.running[lists.number] = lists
        self.check(
            "submit",
            self.call[kind](
                self.queue,
                self.space,
                lists.keys,
                lists.iovecs,
                len(batch),
                0,
                TIMEOUT_MS,
                lists.statuses,
                lists.number,
                ctypes.byref(self.job),
            ),
        )

    def reap(self):
        done, lib = [], self.lib
        while True:
            while lib.spw_queue_next(self.queue, ctypes.byref(self.job)) == 0:
                lists = self.running.pop(lib.spw_job_user(self.job) or 0)
                self.check("job", lib.spw_job_status(self.job))
                lib.spw_job_free(self.job)
                for status in lists.statuses[: len(lists.slots)]:
                    if status < 0:
                        raise OSError(-status, f"an object: {os.strerror(-status)}")
                done += lists.slots
                self.idle.append(lists)
            if done:
                return done
            if lib.spw_queue_arm(self.queue) == 0 and not self.poll.poll(2 * TIMEOUT_MS):
                raise TimeoutError("no job has ended")

    def forget(self, keys):
        """What was replaced is of no use to anyone. Without a device it would have to be evicted; with one, a cache
        keeps it until there is no room: as it is."""
        if not self.in_memory:
            return
        array = (Key * len(keys))()
        for at, key in zip(array, keys, strict=True):
            key_set(at, key)
        self.check("spw_delete", self.lib.spw_delete(self.space, array, len(keys), None))

    def server_pids(self):
        return (self.daemon.pid,)

    def device_bytes(self):
        if self.in_memory:
            return None
        stat = Stat()
        self.check("spw_stat", self.lib.spw_stat(self.space, ctypes.byref(stat)))
        return stat.bytes_read, stat.bytes_written

    def close(self):
        if self.daemon:
            self.daemon.terminate()
            self.daemon.wait(30)


if __name__ == "__main__":
    harness.main(Spillway)
