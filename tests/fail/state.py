# SPDX-License-Identifier: Apache-2.0
"""The file that the interposed library shares with us (failcalls.h), and what its keys mean."""
import mmap
import os
import struct

MAGIC = 0x736C6C6163666C61
CALLS = 160
NAME_BYTES = 40
SITES = 4096
NAMES_AT = 4096
SITES_AT = NAMES_AT + CALLS * NAME_BYTES
BYTES = SITES_AT + SITES * 16

OFF, ONCE, FOR_GOOD = 0, 1, 2
SHORT = -1  # in the place of an errno: a completion with fewer bytes

# Offsets in struct fail_state.
TARGET, NTH, MODE, ERROR, SEEN, FIRED, LIVE_BYTES, LIVE_BLOCKS, LEFT_OUT, WHOLE = 8, 16, 24, 28, 32, 40, 48, 56, 64, 72


class State:
    """One program's file; made empty, so that the program finds it."""

    def __init__(self, path):
        with open(path, "wb") as f:
            f.truncate(BYTES)
        self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self.mem = mmap.mmap(self.fd, BYTES)

    def close(self):
        self.mem.close()
        os.close(self.fd)

    def get(self, at, form="<Q"):
        return struct.unpack_from(form, self.mem, at)[0]

    def put(self, at, value, form="<Q"):
        struct.pack_into(form, self.mem, at, value)

    def is_alive(self):
        return self.get(0) == MAGIC

    def arm(self, key, nth, mode, error, is_whole):
        self.disarm()
        self.put(WHOLE, is_whole, "<I")
        self.put(TARGET, key)
        self.put(NTH, nth)
        self.put(ERROR, error, "<i")
        self.put(SEEN, 0)
        self.put(FIRED, 0)
        self.put(MODE, mode, "<I")

    def disarm(self):
        self.put(MODE, OFF, "<I")

    def fired(self):
        return self.get(FIRED)

    def live_bytes(self):
        return self.get(LIVE_BYTES, "<q")

    def left_out(self):
        return self.get(LEFT_OUT)

    def fresh(self):
        """For a program that starts: nothing is on the heap yet."""
        self.put(LIVE_BYTES, 0)
        self.put(LIVE_BLOCKS, 0)
        self.put(0, 0)

    def reset_counts(self):
        for i in range(SITES):
            self.put(SITES_AT + i * 16 + 8, 0)

    def counts(self):
        """Calls of each site since reset_counts(): {key: n}."""
        found = {}
        for key, n in struct.iter_unpack("<QQ", self.mem[SITES_AT:BYTES]):
            if key and n:
                found[key] = n
        return found

    def keys(self):
        """All sites ever seen."""
        return {key for key, _ in struct.iter_unpack("<QQ", self.mem[SITES_AT:BYTES]) if key}

    def names(self):
        raw = self.mem[NAMES_AT:SITES_AT]
        return [raw[i * NAME_BYTES : (i + 1) * NAME_BYTES].split(b"\0")[0].decode() for i in range(CALLS)]


def call_of(key):
    return key >> 48


def module_of(key):
    return (key >> 40) & 0xFF


def address_of(key):
    return key & 0xFFFFFFFFFF
