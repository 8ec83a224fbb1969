# SPDX-License-Identifier: Apache-2.0
"""A spillwayd of a test's own, from the build that $SPILLWAY_BIN names, and how the tests here end.

A test file ends with `support.main()`: exit status 0 or 1, and a line "SKIP: reason" for each case that was left out.
"""
import os
import pathlib
import random
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import unittest

import spillway

BIN = pathlib.Path(os.environ["SPILLWAY_BIN"])
SOURCE = pathlib.Path(os.environ["SPILLWAY_SOURCE"])
READY_SECONDS = 60
KIB, MIB = 1024, 1 << 20


class Daemon:
    """Runs in a folder of its own, which goes with it; ends with the test's process at the latest."""

    def __init__(self, sections="[tier.dram]\nsize = 64 MiB\n", keys="", disk_mib=0, socket=None, engines=1):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="spillway-python-", dir="/var/tmp"))
        self.socket = socket or self.folder / "socket"
        self.log = self.folder / "log"
        disk = ""
        if disk_mib:
            format_disk(self.folder / "disk.spill", disk_mib, engines)
            disk = f"[device disk]\npath = {self.folder / 'disk.spill'}\n"
        (self.folder / "conf").write_text(
            f"[daemon]\nsocket = {self.socket}\nengines = {engines}\n{keys}\n{disk}{sections}", encoding="utf-8"
        )
        self.process = self.waker = None
        self.start()

    def start(self, *arguments):
        """Starts it, and waits until it serves."""
        command = ["setpriv", "--pdeathsig", "KILL", BIN / "spillwayd", "--user", "--config", self.folder / "conf"]
        with open(self.log, "ab") as log:
            seen = log.tell()
            self.process = subprocess.Popen([*command, *arguments], stdout=log, stderr=log)
        for _ in range(READY_SECONDS * 100):
            if "ready:" in self.log.read_text(encoding="utf-8", errors="replace")[seen:]:
                return
            if self.process.poll() is not None:
                break
            time.sleep(0.01)
        raise AssertionError(f"spillwayd is not ready: {self.log.read_text(encoding='utf-8', errors='replace')}")

    def upgrade(self):
        """Another process takes its place."""
        old = self.process
        self.start("--upgrade")
        old.wait(READY_SECONDS)

    def stand_still(self, seconds):
        """Stops it, for so long or until go_on(): when this returns, no thread of it runs.

        Another process lets it go on, so that a test that hangs meanwhile does not hang for ever.
        """
        self.process.send_signal(signal.SIGSTOP)
        tasks = pathlib.Path("/proc", str(self.process.pid), "task")
        while any("State:\tT" not in (task / "status").read_text() for task in tasks.iterdir()):
            time.sleep(0.001)
        self.waker = subprocess.Popen(["sh", "-c", f"sleep {seconds}; kill -CONT {self.process.pid}"])

    def go_on(self):
        """After stand_still()."""
        self.process.send_signal(signal.SIGCONT)
        if self.waker:
            self.waker.kill()
            self.waker.wait()
            self.waker = None

    def stop(self):
        """Ends it, and removes its folder."""
        self.go_on()
        self.process.terminate()
        status = self.process.wait(READY_SECONDS)
        log = self.log.read_text(encoding="utf-8", errors="replace")
        self.remove()
        assert status == 0, log

    def remove(self):
        """Its folder, after its end."""
        shutil.rmtree(self.folder)

    def kill(self):
        """As a crash does."""
        self.process.kill()
        self.process.wait(READY_SECONDS)

    def connect(self, **options):
        """A session."""
        return spillway.connect("test", self.socket, **options)


def format_disk(path, size_mib, partitions=1):
    """A file as a device, with a partition for each engine."""
    subprocess.run(
        [BIN / "spillctl", "device", "format", path, "--capacity", f"{size_mib} MiB", "--partitions",
         str(partitions), "--segment", "1 MiB"],
        check=True, stdout=subprocess.DEVNULL,
    )


def wait_for(condition):
    """Until it holds."""
    end = time.monotonic() + READY_SECONDS
    while not condition():
        if time.monotonic() > end:
            raise AssertionError("it does not come to pass")
        time.sleep(0.01)


def listener_pid(path):
    """Of the daemon that listens there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as there:
        there.connect(str(path))
        return struct.unpack("3i", there.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]


def end_listener(path):
    """Ends it, and waits until it has ended: a daemon that connect() started is nobody's child any more."""
    process = os.pidfd_open(listener_pid(path))
    try:
        signal.pidfd_send_signal(process, signal.SIGTERM)
        if not select.select([process], [], [], READY_SECONDS)[0]:
            raise AssertionError("the daemon does not end")
    finally:
        os.close(process)


class Case(unittest.TestCase):
    """Has a daemon for all of its tests, and a session and a space for each."""

    sections = "[tier.dram]\nsize = 64 MiB\n"
    disk_mib = 0

    @classmethod
    def setUpClass(cls):
        cls.daemon = Daemon(cls.sections, disk_mib=cls.disk_mib)
        cls.addClassCleanup(cls.daemon.stop)

    def setUp(self):
        self.session = self.daemon.connect()
        self.addCleanup(self.session.close)
        self.pool = self.session.pool()
        self.space = self.pool.space(["test", self.id()])


def pattern(n, seed=1):
    """n bytes that another seed, or another place, does not have."""
    return random.Random(seed).randbytes(n)


def main():
    """Runs the tests of the file that was started."""
    outcome = unittest.main(module="__main__", exit=False, verbosity=2).result
    for case, reason in outcome.skipped:
        print(f"SKIP: {case.id()}: {reason}")
    sys.exit(0 if outcome.wasSuccessful() else 1)
