# SPDX-License-Identifier: Apache-2.0
"""What docs/training.md quotes runs: its configuration, its commands, and each of its pieces of Python, one by one."""
import importlib.util
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

import spillway
import support

try:
    import torch

    import spillway.torch as spw
except ImportError:
    torch = None

PAGE = (support.SOURCE / "docs/training.md").read_text(encoding="utf-8")
SMALLER = {"16 GiB": "256 MiB", "200 GiB": "512 MiB"}
# What a piece of the page has from its reader, or from the pieces before it.
MODEL = """
import torch
import spillway.torch as spw

torch.manual_seed(1)
model = torch.nn.Sequential(torch.nn.Linear(64, 512), torch.nn.Tanh(), torch.nn.Linear(512, 8))
x = torch.randn(1024, 64)
"""
POOL = 'pool = spw.connect("train")\n'
# Each in a process of its own, of one that has imported torch.
RUNNER = """
import json, os, sys, traceback
import torch, torch.distributed, spillway.torch

for program in json.load(sys.stdin):
    pid = os.fork()
    if pid == 0:
        try:
            exec(compile(program, "<page>", "exec"), {"__name__": "page"})
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""
OPTIMIZER = "opt = spw.OffloadAdamW(model.named_parameters(), pool, lr=1e-4)\n"
LOSS = "loss = model(x).sum()\n"
GRADIENTS = "model(x).sum().backward()\n"
SAVED = 'opt.save("step-1000")\n'


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def program_of(block):
    """A piece of Python with what it takes for granted."""
    parts = [MODEL]
    if "pool =" not in block:
        parts.append(POOL)
    if "opt" in block and "opt =" not in block:
        parts.append(OPTIMIZER)
    if "loss" in block and "loss =" not in block:
        parts.append(LOSS)
    elif ".step()" in block and "loss" not in block:
        parts.append(GRADIENTS)
    if "opt.load" in block and 'opt.save("step-1000")' not in block:
        parts.append(SAVED)
    if importlib.util.find_spec("matplotlib") is None:
        block = re.sub(r"^timeline\.picture\(.*\n", "", block, flags=re.MULTILINE)
    return "".join([*parts, block])


@unittest.skipIf(torch is None, "torch is not installed")
class TrainingPage(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = pathlib.Path(tempfile.mkdtemp(prefix="spillway-python-", dir="/var/tmp"))
        cls.addClassCleanup(shutil.rmtree, cls.folder)
        (cls.folder / "spillway").mkdir()
        cls.environment = dict(
            os.environ, XDG_RUNTIME_DIR=str(cls.folder), PATH=f"{support.BIN}:{os.environ['PATH']}", RANK="0",
            WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0",
        )
        cls.environment.pop("SPILLWAY_SOCKET", None)
        [config], [commands] = blocks("ini"), blocks("sh")
        (cls.folder / "train.conf").write_text(cls.here(config), encoding="utf-8")
        made, served = cls.here(commands).splitlines()
        subprocess.run(made, shell=True, check=True, env=cls.environment, stdout=subprocess.DEVNULL)
        with open(cls.folder / "log", "wb") as log:
            cls.daemon = subprocess.Popen(
                f"exec setpriv --pdeathsig KILL {served}", shell=True, env=cls.environment, stdout=log, stderr=log
            )
        cls.addClassCleanup(cls.stop)
        cls.socket = cls.folder / "spillway" / "spillwayd.sock"
        support.wait_for(lambda: "ready:" in (cls.folder / "log").read_text() or cls.daemon.poll() is not None)

    @classmethod
    def here(cls, text):
        """As the page has it, but for its sizes and folder."""
        for page, test in SMALLER.items():
            text = text.replace(page, test)
        return text.replace("/home/me/", f"{cls.folder}/")

    @classmethod
    def stop(cls):
        cls.daemon.terminate()
        cls.daemon.wait(support.READY_SECONDS)

    def test_what_is_configured_is_what_connect_opens(self):
        pool = spw.connect("train", socket=self.socket, start=False)
        self.addCleanup(pool.session.close)
        self.assertEqual(pool.name, "train")
        self.assertEqual(pool.info.dram_bytes, 256 * support.MIB)
        self.assertEqual(pool.info.nvme_bytes, 512 * support.MIB)

    def test_each_piece_runs(self):
        found = blocks("python")
        self.assertGreater(len(found), 5)
        done = subprocess.run(
            [sys.executable, "-c", RUNNER], env=self.environment, cwd=self.folder, text=True, check=True,
            input=json.dumps([program_of(block) for block in found]), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        codes = [line for line in done.stdout.splitlines() if line.lstrip("-").isdigit()]
        self.assertEqual(codes, ["0"] * len(found), done.stderr)


@unittest.skipIf(torch is None, "torch is not installed")
class WhichPool(unittest.TestCase):
    def daemon_with(self, *names):
        """Pools that have a share each."""
        pools = "".join(f"[pool {name}]\ndram = 64 MiB\n" for name in names)
        daemon = support.Daemon(f"[tier.dram]\nsize = {64 * max(len(names), 1)} MiB\n{pools}")
        self.addCleanup(daemon.stop)
        return daemon

    def name_of(self, daemon, *arguments, **options):
        pool = spw.connect(*arguments, socket=daemon.socket, start=False, **options)
        self.addCleanup(pool.session.close)
        return pool.name

    def test_that_of_the_name_else_default(self):
        daemon = self.daemon_with("train", "default")
        self.assertEqual(self.name_of(daemon, "train"), "train")
        for name in ("another", "what no pool is named: " + 60 * "x", "-"):
            self.assertEqual(self.name_of(daemon, name), "default")
        self.assertEqual(self.name_of(daemon, "train", "default"), "default")
        self.assertEqual(self.name_of(daemon, "default", pool="train"), "train")
        with self.assertRaisesRegex(spillway.NotFound, "no pool 'other', it has 'train', 'default'"):
            self.name_of(daemon, "train", pool="other")

    def test_neither(self):
        daemon = self.daemon_with("one", "two")
        words = "'train' or 'default', it has 'one', 'two': name one with `pool=`"
        with self.assertRaisesRegex(spillway.NotFound, words):
            self.name_of(daemon, "train")
        with daemon.connect() as session:
            self.assertEqual(len(session.admin({"get": "sessions"})["sessions"]), 1)  # no session is left


if __name__ == "__main__":
    support.main()
