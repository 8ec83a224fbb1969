# SPDX-License-Identifier: Apache-2.0
"""One memcpy in the client's own memory: no server, no store. Not a peer, but a floor: every figure has this harness in
it, and whoever keeps objects in memory has at least this copy."""

import mmap

import harness


class Memcpy(harness.Peer):
    name = "memcpy"

    def open(self):
        self.store = memoryview(mmap.mmap(-1, self.n_objects * self.size))
        self.ended = []
        self.tuning = "a copy to or from anonymous memory of the same process, one thread"

    def spill(self, key, index, slot):
        self.store[index * self.size : (index + 1) * self.size] = self.slots[slot]
        self.ended.append(slot)

    def fetch(self, key, index, slot):
        self.slots[slot][:] = self.store[index * self.size : (index + 1) * self.size]
        self.ended.append(slot)

    def wait(self):
        ended, self.ended = self.ended, []
        return ended


if __name__ == "__main__":
    harness.main(Memcpy)
