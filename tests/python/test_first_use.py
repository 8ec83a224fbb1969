# SPDX-License-Identifier: Apache-2.0
"""What a user does first: three lines, no daemon, no configuration. The daemon ends, another one has the snapshot."""
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

import spillway
import support
from support import MIB

try:
    import torch
except ImportError:
    torch = None

BEFORE = """
import torch

torch.manual_seed(1)
model = torch.nn.Sequential(torch.nn.Linear(64, 512), torch.nn.Tanh(), torch.nn.Linear(512, 8))
x = torch.randn(1024, 64)
"""
SNIPPET = """
import spillway.torch as spw
pool = spw.connect("train")                        # starts a per-user daemon if none runs
opt = spw.OffloadAdamW(model.parameters(), pool, lr=1e-4, tier="nvme")
with spw.offload_activations(pool, min_bytes=1 << 20, on_full="keep"):
    loss = model(x).sum()
loss.backward(); opt.step(); opt.zero_grad()       # read i+1 | step i | write i-1
opt.save("step-1000")                              # durable; resharded on load
"""
SUM = """
print(sum(p.double().sum().item() for p in model.parameters()), set(opt._steps.values()))
"""
LOAD = """
import spillway.torch as spw
pool = spw.connect("train")
opt = spw.OffloadAdamW(model.parameters(), pool, lr=1e-4, tier="nvme")
before = [p.clone() for p in model.parameters()]
opt.load("step-1000")
assert not any(torch.equal(a, b) for a, b in zip(before, model.parameters()))
"""
CLOSE = """
opt.close()
pool.session.close()
"""


class OwnDaemon(unittest.TestCase):
    """Has folders of its own for socket and device."""

    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="spillway-python-", dir="/var/tmp"))
        self.addCleanup(shutil.rmtree, self.folder)
        self.socket = self.folder / "run" / "spillway" / "spillwayd.sock"
        self.device = self.folder / "state" / "spillway" / "disk.spill"
        self.environment = dict(
            os.environ, XDG_RUNTIME_DIR=str(self.folder / "run"), XDG_STATE_HOME=str(self.folder / "state")
        )
        self.environment.pop("SPILLWAY_SOCKET", None)
        self.addCleanup(self.stop_daemon)

    def python(self, program, **environment):
        return subprocess.run(
            [sys.executable, "-W", "error", "-c", program], env=dict(self.environment, **environment), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=110,
        )

    def output(self, program, **environment):
        done = self.python(program, **environment)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        return done.stdout

    def stop_daemon(self):
        """Ends it, and waits until it has ended."""
        if self.socket.exists():
            support.end_listener(self.socket)


@unittest.skipIf(torch is None, "torch is not installed")
class FirstUse(OwnDaemon):
    def test_a_later_process_has_what_was_saved(self):
        """The second finds the daemon of the first, and a snapshot of that name; the third starts another daemon."""
        snippet = "import warnings; warnings.simplefilter('default')\n" + BEFORE + SNIPPET + SUM  # it closes nothing
        first, second = self.python(snippet), self.python(snippet)
        self.assertEqual((first.returncode, second.returncode), (0, 0), first.stderr + second.stderr)
        self.assertEqual(first.stdout, second.stdout)
        self.stop_daemon()
        self.assertEqual(self.output(BEFORE + LOAD + SUM + CLOSE), first.stdout)


class OwnDevice(OwnDaemon):
    START = "import spillway\nwith spillway.connect(start=True{}) as s: print(*s.pool().info[1:4])"

    def info(self, options="", **environment):
        """Memory and device of the daemon's pool, in MiB."""
        dram, _, nvme = map(int, self.output(self.START.format(options), **environment).split())
        return dram // MIB, nvme // MIB

    def test_of_a_sane_size(self):
        dram, nvme = self.info()
        self.assertAlmostEqual(dram, spillway.daemon.memory_bytes() // 4 // MIB, delta=2)
        room = os.statvfs(self.folder)
        self.assertLessEqual(nvme, 64 << 10)
        self.assertLessEqual(nvme, room.f_bavail * room.f_frsize // 2 // MIB + 1024)
        self.assertGreater(nvme, 0)
        self.assertLess(self.device.stat().st_blocks * 512, 64 * MIB)  # it takes no room before it is used

    def test_of_the_size_that_was_asked_for(self):
        options = ", dram=128 << 20, disk=1 << 30"
        self.assertEqual(self.info(options), (128, 1024))
        self.stop_daemon()
        self.assertEqual(self.info(", dram=192 << 20"), (192, 1024))  # the device is what it was
        self.stop_daemon()
        done = self.python(self.START.format(", disk=2 << 30"))
        self.assertIn("has 1024 MiB: leave out `disk`", done.stderr)

    def test_none(self):
        for disk in ("0", "None"):
            self.assertEqual(self.info(f", dram=64 << 20, disk={disk}"), (64, 0))
            self.stop_daemon()
        self.assertFalse(self.device.exists())

    def test_no_place_for_one(self):
        (self.folder / "file").touch()
        nowhere = {"XDG_STATE_HOME": str(self.folder / "file")}
        done = self.python(self.START.format(", dram=64 << 20, disk=1 << 30"), **nowhere)
        self.assertIn("NoDaemon", done.stderr)
        self.assertIn("no device can be made", done.stderr)
        done = self.python("import warnings; warnings.simplefilter('always')\n" + self.START.format(", dram=64 << 20"),
                           **nowhere)
        self.assertIn("without a device, so nothing is durable", done.stderr)
        self.assertEqual(done.stdout.split()[-1], "0")

    def test_only_of_a_daemon_that_is_started(self):
        for start in ("False", "['--config', 'x']"):
            done = self.python(f"import spillway; spillway.connect(start={start}, dram=1 << 30)")
            self.assertIn("ValueError", done.stderr)

    def test_a_socket_of_another_place_has_another_device(self):
        other = self.folder / "other.sock"
        self.info(", dram=64 << 20, disk=1 << 30")
        self.info(", dram=64 << 20, disk=1 << 30", SPILLWAY_SOCKET=str(other))
        self.addCleanup(support.end_listener, other)
        self.assertEqual(len(list(self.device.parent.glob("disk*.spill"))), 2)


if __name__ == "__main__":
    support.main()
