# SPDX-License-Identifier: Apache-2.0
"""redis: SET and GET over a Unix socket, pipelined. It keeps everything in memory."""

import os
import re
import socket
import struct
import subprocess
import time
from collections import deque

import harness

READY_SECONDS = 20
BUFFER_BYTES = 4 << 20


class Redis(harness.Peer):
    name = "redis"
    server = None

    def open(self):
        path = os.path.join(self.folder, "redis.sock")
        self.server = subprocess.Popen(
            [
                "redis-server",
                "--port",
                "0",
                "--unixsocket",
                path,
                "--save",
                "",
                "--appendonly",
                "no",
                "--dir",
                self.folder,
                "--daemonize",
                "no",
                "--loglevel",
                "warning",
            ]
        )
        self.socket = connect(path, self.server)
        self.pending = deque()
        self.head = bytearray(len(f"${self.size}\r\n"))
        self.tail = bytearray(2)
        text = subprocess.run(["redis-server", "--version"], capture_output=True, text=True, check=True).stdout
        self.version = re.search(r"v=(\S+)", text)[1]
        self.tuning = f"Unix socket, one connection with {self.depth} commands in flight, no persistence, io-threads 1"

    def spill(self, key, index, slot):
        # The index alone: a new generation replaces the old one, so that memory stays what the set needs.
        head = f"*3\r\n$3\r\nSET\r\n$8\r\n{index:08d}\r\n${self.size}\r\n".encode()
        send(self.socket, [head, self.slots[slot], b"\r\n"])
        self.pending.append((slot, False))

    def fetch(self, key, index, slot):
        self.socket.sendall(f"*2\r\n$3\r\nGET\r\n$8\r\n{index:08d}\r\n".encode())
        self.pending.append((slot, True))

    def wait(self):
        slot, is_fetch = self.pending.popleft()
        if is_fetch:
            receive(self.socket, [self.head, self.slots[slot], self.tail])
            good = self.head == f"${self.size}\r\n".encode()
        else:
            answer = bytearray(5)
            receive(self.socket, [answer])
            good = answer == b"+OK\r\n"
        if not good:
            raise RuntimeError("redis answered something else")
        return [slot]

    def server_pids(self):
        return (self.server.pid,)

    def close(self):
        if self.server:
            self.server.terminate()
            self.server.wait(20)


def connect(path, server):
    """To a server that was just started."""
    end = time.monotonic() + READY_SECONDS
    while True:
        try:
            made = socket.socket(socket.AF_UNIX)
            # So that one call sends or takes an object. MSG_WAITALL works on blocking sockets only, hence no timeout of
            # Python's own.
            made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 30, 0))
            made.connect(path)
            return made
        except OSError:
            made.close()
            if server.poll() is not None or time.monotonic() > end:
                raise
            time.sleep(0.02)


def send(to, parts):
    total = sum(len(part) for part in parts)
    sent = to.sendmsg(parts)
    if sent < total:  # the buffer is smaller than the object
        to.sendall(b"".join(parts)[sent:])


def receive(source, parts):
    total = sum(len(part) for part in parts)
    got = source.recvmsg_into(parts, 0, socket.MSG_WAITALL)[0]
    if got != total:
        raise RuntimeError(f"{got} of {total} bytes: {bytes(parts[0])!r}")


if __name__ == "__main__":
    harness.main(Redis)
