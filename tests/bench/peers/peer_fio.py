# SPDX-License-Identifier: Apache-2.0
"""fio: io_uring with fixed buffers and a registered file, O_DIRECT. The ceiling: it stores nothing that it could find
again and compares nothing. Its own clocks count, without its start-up. It writes deeper than the others, since who
writes behind, as Spillway does, is not bound to what one client has in flight."""

import json
import os
import subprocess

import harness

WRITE_DEPTH = 32


class Fio(harness.Peer):
    name = "fio"

    def open(self):
        self.path = os.path.join(self.folder, "fio.data")
        self.round_bytes = max(self.options.round_bytes // self.size, self.depth) * self.size
        self.write_depth = max(self.depth, WRITE_DEPTH)
        self.offset, self.seed = 0, 0
        self.version = subprocess.run(["fio", "--version"], capture_output=True, text=True, check=True).stdout.strip()
        self.tuning = (
            f"io_uring fixedbufs registerfiles direct=1, depth {self.depth} (writes {self.write_depth}), one job, "
            "written in sequence over a file written before, read at random, each block once"
        )
        self.fio("write", self.write_depth, 0, self.n_objects * self.size)  # no unwritten extents in what is measured

    def fio(self, how, depth, offset, size, io_size=None):
        self.seed += 1
        command = [
            "fio",
            "--name=peer",
            f"--filename={self.path}",
            f"--offset={offset}",
            f"--size={size}",
            f"--io_size={io_size or size}",
            f"--bs={self.size}",
            f"--rw={how}",
            "--direct=1",
            "--ioengine=io_uring",
            "--fixedbufs",
            "--registerfiles",
            f"--iodepth={depth}",
            f"--randseed={self.seed}",
            "--output-format=json",
            "--lat_percentiles=1",
        ]
        return parse(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    def round(self, kind):
        set_bytes = self.n_objects * self.size
        if kind == "fetch":
            return self.fio("randread", self.depth, 0, set_bytes, self.round_bytes)
        offset, self.offset = self.offset, (self.offset + self.round_bytes) % set_bytes
        return self.fio("write", self.write_depth, offset, min(self.round_bytes, set_bytes - offset))


def parse(text):
    """fio's JSON of one job, as the harness reports a round. Lines before it are fio's warnings."""
    job = json.loads(text[text.index("{") :])["jobs"][0]
    if job["error"]:
        raise RuntimeError(f"fio: {os.strerror(job['error'])}")
    side = job["read"] if job["read"]["io_bytes"] else job["write"]
    seconds = side["runtime"] / 1e3
    latency = side["lat_ns"].get("percentile") or side["clat_ns"]["percentile"]
    return {
        "bytes": side["io_bytes"],
        "seconds": seconds,
        "cpu_seconds": (job["usr_cpu"] + job["sys_cpu"]) / 100 * job["job_runtime"] / 1e3,
        "p50_us": latency["50.000000"] / 1e3,
        "p99_us": latency["99.000000"] / 1e3,
        "device_bytes": side["io_bytes"],
    }


if __name__ == "__main__":
    harness.main(Fio)
