# SPDX-License-Identifier: Apache-2.0
"""memcached: set and get over a Unix socket, pipelined. It keeps everything in memory."""

import os
import subprocess
from collections import deque

import harness
from peer_redis import connect, receive, send

MIB = 1 << 20


class Memcached(harness.Peer):
    name = "memcached"
    server = None

    def open(self):
        path = os.path.join(self.folder, "memcached.sock")
        # Slabs waste up to a half at these sizes: it is given enough never to evict.
        memory_mib = 3 * self.n_objects * self.size // MIB + 512
        self.server = subprocess.Popen(
            [
                "memcached",
                "-u",
                "root",
                "-s",
                path,
                "-m",
                str(memory_mib),
                "-I",
                "8m",
                "-t",
                "1",
                "-R",
                str(max(20, self.depth)),
                "-M",
            ]
        )
        self.socket = connect(path, self.server)
        self.pending = deque()
        self.expect = f"VALUE {0:08d} 0 {self.size}\r\n"
        self.tail = bytearray(len(b"\r\nEND\r\n"))
        self.head = bytearray(len(self.expect))
        text = subprocess.run(["memcached", "--version"], capture_output=True, text=True, check=True).stdout
        self.version = text.split()[-1]
        self.tuning = f"Unix socket, one connection with {self.depth} commands in flight, -t 1 -I 8m -M, memory ample"

    def spill(self, key, index, slot):
        send(self.socket, [f"set {index:08d} 0 0 {self.size}\r\n".encode(), self.slots[slot], b"\r\n"])
        self.pending.append((slot, None))

    def fetch(self, key, index, slot):
        self.socket.sendall(f"get {index:08d}\r\n".encode())
        self.pending.append((slot, index))

    def wait(self):
        slot, index = self.pending.popleft()
        if index is None:
            answer = bytearray(8)
            receive(self.socket, [answer])
            good = answer == b"STORED\r\n"
        else:
            answer = self.head
            receive(self.socket, [self.head, self.slots[slot], self.tail])
            good = answer.startswith(f"VALUE {index:08d} ".encode())
        if not good:
            raise RuntimeError(f"memcached answered {bytes(answer)!r}")
        return [slot]

    def server_pids(self):
        return (self.server.pid,)

    def close(self):
        if self.server:
            self.server.terminate()
            self.server.wait(20)


if __name__ == "__main__":
    harness.main(Memcached)
