# SPDX-License-Identifier: Apache-2.0
"""The daemon goes, another comes, or none is there yet."""
import fcntl
import os
import pathlib
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import unittest

import spillway
import support
from support import KIB, pattern

CLIENT = """
import spillway
with spillway.connect(start=["--config", "{conf}"]) as session:
    session.pool().space("x", "kv", "cache").put(["k"], [b"value"])
"""


class Restarts(unittest.TestCase):
    def setUp(self):
        self.daemon = support.Daemon()
        self.session = self.daemon.connect()
        self.space = self.session.pool().space("x")
        self.tensor = self.space.tensor("t", 64 * KIB)
        self.tensor.put(0, pattern(64 * KIB))

    def test_crash(self):
        views = self.tensor.acquire()
        self.daemon.kill()
        with self.assertRaises(spillway.Disconnected):
            self.space.ping()
        self.assertEqual(views[0].data, pattern(64 * KIB))
        with self.assertRaises(spillway.Disconnected):
            views.release()
        self.assertEqual(views[0].data, pattern(64 * KIB))
        self.session.close()
        with self.assertRaises(ValueError):
            views[0].data
        with self.assertRaises(spillway.NoDaemon):
            self.daemon.connect()
        self.daemon.start()
        with self.daemon.connect() as session:
            session.pool().space("x").ping()
        self.daemon.stop()

    def test_upgrade(self):
        """A client goes on with the next process, and so do its leases."""
        views = self.tensor.acquire(write=True)
        errors, stop = [], threading.Event()

        def work():
            got = bytearray(64)
            try:
                while not stop.is_set():
                    self.space.put(["k"], [b"v" * 64])
                    self.space.get(["k"], [got]).check()
            except spillway.SpillwayError as error:
                errors.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        views[0].data[0] ^= 0xFF
        self.daemon.upgrade()
        views[0].data[1] ^= 0xFF
        views.release()
        stop.set()
        thread.join()
        self.assertEqual(errors, [])
        got = bytearray(64 * KIB)
        self.tensor.get(0, got)
        wanted = bytearray(pattern(64 * KIB))
        wanted[0] ^= 0xFF
        wanted[1] ^= 0xFF
        self.assertEqual(got, wanted)
        self.session.close()
        self.daemon.stop()


class Starts(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="spillway-python-", dir="/var/tmp"))
        self.addCleanup(shutil.rmtree, self.folder)
        self.socket = self.folder / "spillway" / "spillwayd.sock"
        self.conf = self.folder / "conf"
        self.conf.write_text("[daemon]\nengines = 1\n[tier.dram]\nsize = 64 MiB\n", encoding="utf-8")
        self.environment = dict(os.environ, XDG_RUNTIME_DIR=str(self.folder))
        self.environment.pop("SPILLWAY_SOCKET", None)

    def client(self, **environment):
        return subprocess.Popen(
            [sys.executable, "-c", CLIENT.format(conf=self.conf)], env=dict(self.environment, **environment),
            stderr=subprocess.PIPE, text=True,
        )

    def daemon_pid(self):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as there:
            there.connect(str(self.socket))
            return struct.unpack("3i", there.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]

    def stop_daemon(self):
        os.kill(self.daemon_pid(), signal.SIGTERM)
        while self.socket.exists():
            time.sleep(0.01)

    def test_several_start_one(self):
        stale = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # of a daemon that was killed
        self.socket.parent.mkdir()
        stale.bind(str(self.socket))
        stale.close()
        clients = [self.client() for _ in range(4)]
        for client in clients:
            self.assertEqual((client.communicate()[1], client.returncode), ("", 0))
        self.addCleanup(self.stop_daemon)
        self.assertEqual(pathlib.Path(f"{self.socket}.log").read_text(encoding="utf-8").count("ready:"), 1)
        with spillway.connect(socket=self.socket) as session:  # it outlives who started it
            self.assertEqual(session.pool().space("x", "kv", "cache").lookup(["k"]).prefix, 1)

    def test_who_has_the_lock_starts_it(self):
        self.socket.parent.mkdir()
        with open(f"{self.socket}.lock", "a", encoding="ascii") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            client = self.client()
            with self.assertRaises(subprocess.TimeoutExpired):
                client.communicate(timeout=0.5)
            self.assertFalse(self.socket.exists())
            # Before it has the lock somebody else's daemon is there: it takes that one.
            daemon = support.Daemon(socket=self.socket)
        self.addCleanup(daemon.stop)
        self.assertEqual((client.communicate()[1], client.returncode), ("", 0))
        self.assertEqual(self.daemon_pid(), daemon.process.pid)

    def test_that_cannot_start(self):
        self.conf.write_text("[nonsense]\n", encoding="utf-8")
        client = self.client()
        words = client.communicate()[1]
        self.assertEqual(client.returncode, 1)
        self.assertIn("NoDaemon", words)
        self.assertIn("nonsense", words)
        client = self.client(SPILLWAY_BIN="/nonexistent")
        self.assertIn("no spillwayd in /nonexistent", client.communicate()[1])

    def without_runtime_dir(self):
        """The folder that is taken then, if nobody uses it."""
        run = pathlib.Path(f"/run/user/{os.geteuid()}")
        folder = run / "spillway" if run.exists() else pathlib.Path(f"/tmp/spillway-{os.geteuid()}")
        if folder.exists():
            self.skipTest(f"{folder} is in use")
        self.addCleanup(shutil.rmtree, folder, ignore_errors=True)
        self.environment.pop("XDG_RUNTIME_DIR")
        return folder

    def status(self):
        """Of `spillctl status`, which finds a daemon as the library does."""
        command = [support.BIN / "spillctl", "status"]
        return subprocess.run(command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def test_without_a_runtime_dir(self):
        self.socket = self.without_runtime_dir() / "spillwayd.sock"
        client = self.client()
        self.assertEqual((client.communicate()[1], client.returncode), ("", 0))
        self.addCleanup(support.end_listener, self.socket)
        self.assertEqual(self.socket.parent.stat().st_mode & 0o777, 0o700)
        self.assertEqual(self.status().returncode, 0)
        client = self.client()  # takes the one that runs
        self.assertEqual((client.communicate()[1], client.returncode), ("", 0))
        self.assertEqual(pathlib.Path(f"{self.socket}.log").read_text(encoding="utf-8").count("ready:"), 1)

    def test_a_folder_that_others_can_use_is_refused(self):
        folder = self.without_runtime_dir()
        if folder.parent.name != "tmp":
            self.skipTest("the folder lies where nobody else can make it")
        self.socket = folder / "spillwayd.sock"
        folder.mkdir(mode=0o700)
        daemon = support.Daemon(socket=self.socket)  # an impostor's
        self.addCleanup(daemon.stop)
        self.assertEqual(self.status().returncode, 0)
        folder.chmod(0o755)
        self.assertNotEqual(self.status().returncode, 0)
        client = self.client()
        self.assertIn(f"{folder} is not a folder of this user's alone (mode 0700)", client.communicate()[1])
        command = [support.BIN / "spillwayd", "--user", "--config", self.conf]
        refused = subprocess.run(command, env=self.environment, stderr=subprocess.PIPE, text=True)
        self.assertEqual(refused.returncode, 1)
        self.assertIn("is not this user's alone", refused.stderr)


if __name__ == "__main__":
    support.main()
