# SPDX-License-Identifier: Apache-2.0
"""What every peer's process runs: the same work, the same client, one object's bytes from and to its own memory.

A peer is a class with `spill`, `fetch` and `wait`; the loop here keeps `depth` objects in flight, stamps what is
spilled, checks what is fetched, and accounts for time and CPU of the client and of the servers. The runner talks to
it in lines of JSON over its standard input and output; whatever the peer's libraries print goes to standard error.

What is stored: every object has the same pseudo-random bytes, but for a stamp in each 64 KiB that names the object, the
generation (round of spilling) and the place, so that wrong, stale or misplaced bytes show. The stamps of every fetched
object are checked within the measured time; whole objects are compared afterwards, the last `depth` ones of each round.
"""

import argparse
import ctypes
import json
import mmap
import os
import random
import resource
import struct
import sys
import time
import traceback

STAMP = struct.Struct("<QQ")
GRANULE_BYTES = 64 * 1024
PAGE_BYTES = 4096
HUGEPAGE_BYTES = 2 * 1024 * 1024


class Peer:
    """One system under test. Subclasses set `name`, and `tuning` and `version` once they are open."""

    name = "?"
    tuning = ""
    version = ""

    def __init__(self, options):
        self.size, self.depth = options.size, options.depth
        self.n_objects = options.set_bytes // options.size
        self.folder, self.options = options.folder, options

    def open(self):
        """Starts what it needs. May replace self.slots: a writable memoryview of `size` bytes for each in flight."""

    def spill(self, key, index, slot):
        """Starts to write slot's bytes as object `index`; key is unique to this generation of it."""
        raise NotImplementedError

    def fetch(self, key, index, slot):
        """Starts to read object `index` into slot."""
        raise NotImplementedError

    def wait(self):
        """Slots whose work has ended since the last call, at least one. Raises if any failed."""
        raise NotImplementedError

    def forget(self, keys):
        """Of objects that were spilled again since; not measured."""

    def server_pids(self):
        return ()

    def device_bytes(self):
        """(read, written) so far, where the peer can tell; None: the client's bytes are what it is."""
        return None

    def close(self):
        pass


class BatchPeer(Peer):
    """One whose interface takes lists: what is in flight is `batches` lists of depth / batches objects."""

    batches = 1

    def __init__(self, options):
        super().__init__(options)
        self.gathered = []

    def start(self, kind, batch):
        """Starts a list of (key, index, slot)."""
        raise NotImplementedError

    def reap(self):
        """As wait()."""
        raise NotImplementedError

    def spill(self, key, index, slot):
        self.gather("spill", key, index, slot)

    def fetch(self, key, index, slot):
        self.gather("fetch", key, index, slot)

    def gather(self, kind, *what):
        self.gathered.append(what)
        if len(self.gathered) == max(self.depth // self.batches, 1):
            self.flush(kind)
        self.kind = kind

    def flush(self, kind):
        batch, self.gathered = self.gathered, []
        self.start(kind, batch)

    def wait(self):
        if self.gathered:
            self.flush(self.kind)
        return self.reap()


def slots_make(size, depth):
    """Memory as a client of any of them would have: aligned for O_DIRECT, on hugepages if there are any, touched."""
    length = -(-size * depth // HUGEPAGE_BYTES) * HUGEPAGE_BYTES
    memory = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    view = memoryview(memory)
    for at in range(0, length, PAGE_BYTES):
        view[at] = 1
    return [view[i * size : (i + 1) * size] for i in range(depth)]


def address_of(view):
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


# ── bytes ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def stamp_offsets(size):
    return range(0, size, GRANULE_BYTES)


def stamp(view, key):
    for at in stamp_offsets(len(view)):
        STAMP.pack_into(view, at, key, at)


def stamps_check(view, key):
    for at in stamp_offsets(len(view)):
        if STAMP.unpack_from(view, at) != (key, at):
            raise ValueError(f"wrong bytes: object {key:#x} at {at} is {STAMP.unpack_from(view, at)}")


def expected(base, key):
    whole = bytearray(base)
    stamp(memoryview(whole), key)
    return whole


def key_of(generation, index):
    return generation << 32 | index


# ── CPU ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


def process_cpu_ns(pid):
    """Of all threads that live, to the nanosecond: utime and stime come in ticks of 10 ms, too coarse for a round."""
    total = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        try:
            with open(f"/proc/{pid}/task/{task}/schedstat", encoding="ascii") as file:
                total += int(file.read().split()[0])
        except FileNotFoundError:
            pass
    return total


def own_cpu_ns():
    total = 0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        usage = resource.getrusage(who)
        total += int((usage.ru_utime + usage.ru_stime) * 1e9)
    return total


def cpu_ns(peer):
    return own_cpu_ns() + sum(process_cpu_ns(pid) for pid in peer.server_pids())


# ── a round ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def percentile(ordered, part):
    """The smallest value that at least `part` of them do not exceed."""
    return ordered[max(0, -(-len(ordered) * part // 100) - 1)]


class Rounds:
    """Spills the next part of the set, or fetches the next part of it in a random order, each object once a turn of the
    whole set: whatever the order of eviction, an object comes back only after all others."""

    def __init__(self, peer, options):
        self.peer, self.size = peer, options.size
        self.per_round = max(options.round_bytes // options.size, options.depth)
        self.generation = [0] * peer.n_objects
        self.next = {"spill": 0, "fetch": 0}
        self.order = list(range(peer.n_objects))
        random.Random(options.size).shuffle(self.order)
        self.base = random.Random(1).randbytes(options.size)

    def fill(self, kind):
        """What is fetched goes to memory that holds something else, so that a fetch that does nothing shows."""
        what = self.base if kind == "spill" else bytes(self.size)
        for slot in self.peer.slots:
            slot[:] = what

    def indices(self, kind):
        start, count = self.next[kind], self.peer.n_objects
        self.next[kind] = (start + self.per_round) % count
        turn = [(start + i) % count for i in range(min(self.per_round, count))]
        return turn if kind == "spill" else [self.order[i] for i in turn]

    def run(self, kind):
        peer, indices, old = self.peer, self.indices(kind), []
        self.fill(kind)
        if kind == "spill":
            for i in indices:
                if self.generation[i]:
                    old.append(key_of(self.generation[i], i))
                self.generation[i] += 1
        keys = [key_of(self.generation[i], i) for i in indices]
        device, cpu, began = peer.device_bytes(), cpu_ns(peer), time.perf_counter_ns()
        latencies, last = self.loop(kind, indices, keys)
        ended, cpu_after = time.perf_counter_ns(), cpu_ns(peer)
        result = self.result(len(indices), latencies, ended - began, cpu_after - cpu)
        if device:
            read, written = (b - a for a, b in zip(device, peer.device_bytes(), strict=True))
            result["device_bytes"] = read if kind == "fetch" else written
        if kind == "fetch":
            for slot, key in last.items():
                if peer.slots[slot] != expected(self.base, key):
                    raise ValueError(f"wrong bytes: object {key:#x} differs")
            result["compared"] = len(last)
        elif old:
            peer.forget(old)
        return result

    def loop(self, kind, indices, keys):
        """Returns latencies, and the keys that the slots hold."""
        peer, slots, now = self.peer, self.peer.slots, time.perf_counter_ns
        start = peer.spill if kind == "spill" else peer.fetch
        free, began, holds, latencies, n = list(range(peer.depth)), {}, {}, [], 0
        while n < len(keys) or len(free) < peer.depth:
            while free and n < len(keys):
                slot = free.pop()
                if kind == "spill":
                    stamp(slots[slot], keys[n])
                began[slot] = now()
                start(keys[n], indices[n], slot)
                holds[slot] = keys[n]
                n += 1
            for slot in peer.wait():
                latencies.append(now() - began[slot])
                if kind == "fetch":
                    stamps_check(slots[slot], holds[slot])
                free.append(slot)
        return latencies, holds

    def result(self, count, latencies, elapsed_ns, cpu):
        ordered = sorted(latencies)
        return {
            "bytes": count * self.size,
            "seconds": elapsed_ns / 1e9,
            "cpu_seconds": cpu / 1e9,
            "p50_us": percentile(ordered, 50) / 1e3,
            "p99_us": percentile(ordered, 99) / 1e3,
        }


# ── the conversation with the runner ──────────────────────────────────────────────────────────────────────────────────


def options_parse(argv):
    parser = argparse.ArgumentParser()
    for name in ("size", "depth", "set-bytes", "round-bytes", "memory-bytes"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--folder", required=True)
    parser.add_argument("--variant", default="")
    parser.add_argument("--bin", default="")
    return parser.parse_args(argv)


def serve(peer, rounds, requests, answer):
    for line in requests:
        what = line.strip()
        if what == "quit":
            return
        if hasattr(peer, "round"):  # it measures itself
            answer({"prepared": True} if what == "prepare" else peer.round(what))
        elif what == "prepare":  # the whole set once
            for _ in range(-(-peer.n_objects // rounds.per_round)):
                rounds.run("spill")
            answer({"prepared": True})
        else:
            answer(rounds.run(what))


def main(peer_class):
    """Becomes the peer's process."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    options = options_parse(sys.argv[1:])
    peer = peer_class(options)

    def answer(what):
        out.write(json.dumps(what) + "\n")
        out.flush()

    try:
        peer.slots = slots_make(options.size, options.depth)
        peer.open()
        answer({"ready": True, "version": peer.version, "tuning": peer.tuning})
        serve(peer, Rounds(peer, options), sys.stdin, answer)
    except Exception as error:  # the runner reports it; the traceback goes to the log
        traceback.print_exc()
        answer({"error": f"{type(error).__name__}: {error}"})
    finally:
        try:
            peer.close()
        except Exception:
            traceback.print_exc()
    # Libraries with threads of their own do not always survive an orderly end of the interpreter.
    sys.stderr.flush()
    os._exit(0)
