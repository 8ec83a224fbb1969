# SPDX-License-Identifier: Apache-2.0
"""Mooncake's store (the build without CUDA): a master, and a client that holds the segment, over TCP and the loopback
device. Registered buffers, batches of `depth` objects: its calls block. Everything is in memory."""

import importlib.metadata
import os
import socket
import subprocess
import time

import harness

MIB = 1 << 20
READY_SECONDS = 30


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Mooncake(harness.BatchPeer):
    name = "mooncake"
    master = store = None

    def open(self):
        os.environ.setdefault("MC_STORE_MEMCPY", "1")  # same process: copied, not sent
        import mooncake
        from mooncake.store import MooncakeDistributedStore

        port, metrics = free_port(), free_port()
        program = os.path.join(os.path.dirname(mooncake.__file__), "mooncake_master")
        self.master = subprocess.Popen(
            [program, f"--rpc_port={port}", f"--metrics_port={metrics}", "--rpc_address=127.0.0.1"]
        )
        end = time.monotonic() + READY_SECONDS
        while socket.socket().connect_ex(("127.0.0.1", port)) != 0:
            if self.master.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"mooncake_master did not start: {self.master.returncode}")
            time.sleep(0.05)
        segment = -(-(2 * self.n_objects * self.size + 256 * MIB) // (16 * MIB)) * 16 * MIB
        self.store = MooncakeDistributedStore()
        result = self.store.setup("127.0.0.1", "P2PHANDSHAKE", segment, 64 * MIB, "tcp", "", f"127.0.0.1:{port}")
        if result != 0:
            raise RuntimeError(f"setup: {result}")
        self.addresses = [harness.address_of(slot) for slot in self.slots]
        for address in self.addresses:
            if (result := self.store.register_buffer(address, self.size)) != 0:
                raise RuntimeError(f"register_buffer: {result}")
        self.ended = []
        self.version = importlib.metadata.version("mooncake-transfer-engine-non-cuda")
        self.tuning = f"tcp on loopback, MC_STORE_MEMCPY=1, registered buffers, batches of {self.depth}, one client"

    def start(self, kind, batch):
        slots = [slot for _, _, slot in batch]
        call, good = (self.store.batch_put_from, 0) if kind == "spill" else (self.store.batch_get_into, self.size)
        results = call(
            [f"{key:x}" for key, _, _ in batch], [self.addresses[slot] for slot in slots], [self.size] * len(slots)
        )
        if any(result != good for result in results):
            raise RuntimeError(f"mooncake: {results}")
        self.ended += slots

    def reap(self):
        ended, self.ended = self.ended, []
        return ended

    def forget(self, keys):
        for key in keys:
            self.store.remove(f"{key:x}", True)  # whatever leases a read a moment ago left

    def server_pids(self):
        return (self.master.pid,)

    def close(self):
        if self.store:
            self.store.close()
        if self.master:
            self.master.terminate()
            self.master.wait(20)


if __name__ == "__main__":
    harness.main(Mooncake)
