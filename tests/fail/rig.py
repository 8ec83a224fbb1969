# SPDX-License-Identifier: Apache-2.0
"""A daemon with its device in a folder of its own, the workload, and what is left of them."""
import errno
import functools
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import time

from state import State

READY_S, STOP_S, ENDS_S, WORK_S = 60, 90, 10, 300
EXIT_BROKEN, EXIT_STRICT = 2, 3
DISK_MIB = 64
DIES_WITH_US = ["setpriv", "--pdeathsig", "KILL", "--"] if shutil.which("setpriv") else []
# Engines trade memory, in chunks: at any time there are more or fewer of them, larger or smaller. What one has on the heap is
# struct arena_chunk with its tables (tiering/arena.c) and struct memory_chunk.
CHUNK_HEAP_BYTES, FRAME_HEAP_BYTES, FRAME_BYTES = 176, 1100, 1 << 20
# No filter: the calls that are made to fail, and those that arrange it, are in nobody's list. A daemon that ended is not
# started again under its clients, which need not wait for that.
CONFIG = """[daemon]
socket = {dir}/socket
seccomp = off
engines = 2
log_level = info
reattach = 2 s
{daemon}
[device disk]
path = {dir}/disk
[tier.dram]
size = 128 MiB
[pool default]
gpu = 256 MiB
[pool shared]
trusted = no
gpu = 0 B
"""
DONE = re.compile(r"done: failed (\d+) first (.*) (-?\d+) fds (\d+) threads (\d+) bytes (-?\d+)")


class Failure(Exception):
    """A point that did what it must not."""


class Work:
    """How a run of the workload ended."""

    def __init__(self, status, text):
        self.status, self.text = status, text
        found = DONE.search(text)
        self.n_failed = int(found[1]) if found else -1
        self.first = f"{found[2]}: {errno_name(-int(found[3]))}" if found and self.n_failed else ""
        self.fds, self.threads, self.bytes = (int(found[i]) for i in (4, 5, 6)) if found else (0, 0, 0)

    def check(self):
        if self.status == EXIT_BROKEN:
            raise Failure(f"broken promise: {self.text.strip()}")
        if self.status == -signal.SIGALRM:
            raise Failure("the client hangs")
        if self.status not in (0, EXIT_STRICT):
            raise Failure(f"the client ended with {self.status}: {self.text[-2000:]}")


def errno_name(number):
    return errno.errorcode.get(number, str(number))


@functools.cache
def errno_numbers():
    return {name: getattr(errno, name) for name in dir(errno) if name.startswith("E")}


def kill_reason(status):
    return f"signal {-status}" if status < 0 else f"status {status}"


class Rig:
    """Not for two threads."""

    def __init__(self, folder, bin_dir, test_dir, preload, states):
        self.dir, self.bin, self.test, self.preload = folder, bin_dir, test_dir, preload
        self.daemon, self.olds = None, []
        self.number = 1000 if os.path.basename(folder) != "rig0" else 0 # other keys than the template's
        self.n_runs = 0
        os.makedirs(folder)
        self.states = {name: State(f"{folder}/{name}.state") for name in states}
        with open(f"{folder}/conf", "w", encoding="utf-8") as f:
            f.write(CONFIG.format(dir=folder, daemon=""))
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self.notify.bind(f"{folder}/notify")
        self.notify.setblocking(False)
        self.env = dict(os.environ, FAILCALLS_DIR=folder, NOTIFY_SOCKET=f"{folder}/notify",
                        FAKE_CUDA_CONTROL=f"{folder}/cuda", LD_LIBRARY_PATH=f"{test_dir}/fake:{bin_dir}")
        asan = self.env.get("ASAN_OPTIONS", "")
        self.env["ASAN_OPTIONS"] = f"{asan}:verify_asan_link_order=0:allocator_may_return_null=1".lstrip(":")

    def close(self):
        self.kill()
        for state in self.states.values():
            state.close()
        self.notify.close()
        shutil.rmtree(self.dir, ignore_errors=True)

    # --- The device ---

    def format(self):
        subprocess.run([f"{self.bin}/spillctl", "device", "format", f"{self.dir}/disk", "--capacity", f"{DISK_MIB} MiB",
                        "--partitions", "2", "--segment", "1 MiB"], check=True, capture_output=True, env=self.env)
        self.forget()

    def forget(self):
        """The ledger is of the device as it was before."""
        if os.path.exists(f"{self.dir}/ledger"):
            os.unlink(f"{self.dir}/ledger")

    def take(self, template):
        shutil.copyfile(f"{template}/disk", f"{self.dir}/disk")
        shutil.copyfile(f"{template}/ledger", f"{self.dir}/ledger")

    # --- The daemon ---

    def start(self, *args):
        """Begins it; ready() tells how that goes."""
        if not args:
            for name in ("spillwayd", "spillway-gpu"):
                self.states[name].fresh()
        self.listen()
        with open(f"{self.dir}/log", "wb") as log:
            self.daemon = subprocess.Popen(
                [*DIES_WITH_US, f"{self.bin}/spillwayd", "--user", "--config", f"{self.dir}/conf", *args],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=dict(self.env, LD_PRELOAD=self.preload),
                start_new_session=True)

    def upgrade(self):
        """Another one takes its place; True: that is ready, and the first one has ended in order. False: the other one has
        ended, and said why; the first one is `daemon` again, and lives or not."""
        old = self.daemon
        os.rename(f"{self.dir}/log", f"{self.dir}/log.old")
        self.olds.append(old)
        self.start("--upgrade")
        if self.ready():
            self.end_of(old)
            return True
        new, self.daemon = self.daemon, old
        log = self.check_end(new.returncode)
        if new.returncode == 0 or not log.strip():
            raise Failure(f"an upgrade that fails ends with status {new.returncode}: {log}")
        return False

    def end_of(self, process):
        try:
            status = process.wait(STOP_S)
        except subprocess.TimeoutExpired as e:
            raise Failure("the daemon whose place was taken does not end") from e
        if status not in (0, 1):
            raise Failure(f"the daemon whose place was taken ended with {kill_reason(status)}")

    def listen(self):
        """What the daemon tells its service manager is taken: if nobody does that, it waits, as it would for systemd."""
        try:
            while self.notify.recv(4096):
                pass
        except BlockingIOError:
            pass

    def log(self):
        with open(f"{self.dir}/log", encoding="utf-8", errors="replace") as f:
            return f.read()

    def _notified(self):
        try:
            return b"READY=1" in self.notify.recv(4096)
        except BlockingIOError:
            return False

    def ready(self):
        """True: it serves; False: it has ended."""
        end = time.monotonic() + READY_S
        while time.monotonic() < end:
            if self._notified() or " ready: " in self.log():
                return True
            if self.daemon.poll() is not None:
                return False
            time.sleep(0.003)
        raise Failure(f"the daemon is neither ready nor has it ended: {self.log()[-1000:]}")

    def start_clean(self):
        self.start()
        if not self.ready():
            raise Failure(f"an undisturbed start fails with {kill_reason(self.daemon.returncode)}: {self.log()[-2000:]}")

    def check_end(self, status):
        """It has ended by itself: with what it said, not by a signal."""
        log = self.log()
        if status < 0 or "Assertion" in log or "Sanitizer" in log or "runtime error" in log or status not in (0, 1, 78, 64):
            raise Failure(f"the daemon ended with {kill_reason(status)}: {log[-6000:]}")
        return log

    def wait_end(self):
        try:
            return self.daemon.wait(STOP_S)
        except subprocess.TimeoutExpired as e:
            raise Failure(f"the daemon does not stop: {self.log()[-1500:]}") from e

    def ends(self):
        """It has ended, or is about to: its clients may know before its process is gone."""
        try:
            self.daemon.wait(ENDS_S)
        except subprocess.TimeoutExpired:
            return False
        return True

    def stop(self):
        """SIGTERM; its exit status, and its log."""
        self.daemon.send_signal(signal.SIGTERM)
        status = self.wait_end()
        log = self.check_end(status)
        self.daemon = None
        return status, log

    def kill(self):
        for old in self.olds:
            old.kill()
            old.wait()
        self.olds = []
        if self.daemon:
            self.daemon.kill()
            self.daemon.wait()
            self.daemon = None

    def lives(self):
        return self.daemon is not None and self.daemon.poll() is None

    def must_live(self):
        if not self.lives():
            status = self.daemon.returncode
            self.check_end(status)
            raise Failure(f"the daemon has ended with {kill_reason(status)}: {self.log()[-2000:]}")

    def reload(self, change):
        """A configuration that differs, and SIGHUP."""
        with open(f"{self.dir}/conf", "w", encoding="utf-8") as f:
            f.write(CONFIG.format(dir=self.dir, daemon=f"spin_us = {50 + change % 2}"))
        self.listen()
        self.daemon.send_signal(signal.SIGHUP)

    def left(self):
        """What the daemon has: descriptors but for chunks', threads, bytes on the heap but for chunks'."""
        chunks, n_others = {}, 0
        for path in self.descriptor_paths():
            try:
                if "spillway-chunk" in os.readlink(path):
                    found = os.stat(path) # of the file, which may have two descriptors
                    chunks[found.st_ino] = found.st_size
                else:
                    n_others += 1
            except OSError:
                pass
        heap_bytes = sum(CHUNK_HEAP_BYTES + (size // FRAME_BYTES + 1) * FRAME_HEAP_BYTES for size in chunks.values())
        return n_others, len(self.threads()), self.states["spillwayd"].live_bytes() - heap_bytes

    def threads(self):
        """By name; without those that the kernel has for an io_uring, as it likes."""
        found = []
        for task in os.listdir(f"/proc/{self.daemon.pid}/task"):
            try:
                with open(f"/proc/{self.daemon.pid}/task/{task}/comm", encoding="utf-8") as f:
                    found.append(f.read().strip())
            except OSError:
                pass
        return sorted(name for name in found if not name.startswith("iou-"))

    def descriptor_paths(self):
        folder = f"/proc/{self.daemon.pid}/fd"
        return [f"{folder}/{fd}" for fd in os.listdir(folder)]

    def descriptors(self):
        found = []
        for path in self.descriptor_paths():
            try:
                found.append(re.sub(r":\[\d+\]", "", os.readlink(path)))
            except OSError:
                pass
        return sorted(found)

    def limit_descriptors(self, n):
        """So many more than it has now; returns what was the limit."""
        return resource.prlimit(self.daemon.pid, resource.RLIMIT_NOFILE,
                                (len(self.descriptors()) + n, resource.prlimit(self.daemon.pid, resource.RLIMIT_NOFILE)[1]))

    def connect(self):
        """A connection that says nothing; None: the daemon's queue of them is full."""
        s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            s.connect(f"{self.dir}/socket")
            return s
        except BlockingIOError:
            s.close()
            return None

    # --- The workload ---

    def begin_work(self, *args, preloaded=False):
        self.listen()
        self.number += 1 + 1  # --again uses the next one
        # The driver that is faked comes along: loaded later, it would have its threads' variables on the heap, now and then.
        libraries = f"{self.preload}:{self.test}/fake/libcuda.so.1"
        env = dict(self.env, LD_PRELOAD=libraries) if preloaded else self.env
        return subprocess.Popen([f"{self.test}/fail_workload", "--socket", f"{self.dir}/socket", "--number",
                                 str(self.number), "--ledger", f"{self.dir}/ledger", *args], stdin=subprocess.PIPE,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env)

    def begin_hold(self, preloaded):
        """A client that has leases, and waits for its end of input."""
        work = self.begin_work("--hold", preloaded=preloaded)
        line = work.stdout.readline()
        if line != b"held\n":
            raise Failure(f"a client cannot begin: {line}")
        return work

    def end_work(self, work):
        try:
            text, _ = work.communicate(timeout=WORK_S)
        except subprocess.TimeoutExpired as e:
            work.kill()
            work.communicate()
            raise Failure("the client does not end") from e
        done = Work(work.returncode, text.decode("utf-8", "replace"))
        done.check()
        return done

    def work(self, *args, preloaded=False):
        return self.end_work(self.begin_work(*args, preloaded=preloaded))

    def strict(self, *args, may_be_degraded=False):
        """Everything works; the outcome's word for how."""
        done = self.work("--strict", "--gpu", *args)
        if done.status == 0:
            return ""
        if may_be_degraded and self.work("--strict", "--gpu", "--degraded").status == 0:
            return "degraded"
        raise Failure(f"afterwards a call fails: {done.text.strip()}\n{self.log()[-1500:]}")

    def verify(self):
        done = self.work("--strict", "--verify")
        if done.status != 0:
            raise Failure(f"verify: {done.text.strip()}\n{self.log()[-1500:]}")
