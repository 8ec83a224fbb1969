# SPDX-License-Identifier: Apache-2.0
"""The wheel that `pip wheel client/python` makes beside an installed libspillway: what it has, and that it works."""
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest
import zipfile

import support

USE = """
import sys
import spillway
import spillway._native
assert spillway.__file__.startswith(sys.argv[1]), spillway.__file__
assert spillway._native.__file__.startswith(sys.argv[1]), spillway._native.__file__
with spillway.connect("wheel", socket=sys.argv[2]) as session:
    space = session.pool("default").space({"what": "wheel"})
    space.put([b"key"], [b"bytes"]).check()
    buffer = bytearray(5)
    space.get([b"key"], [buffer]).check()
    assert buffer == b"bytes", buffer
print(spillway.__version__)
"""


def run(*command, **more):
    """Its output; AssertionError with it if it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, **more)
    if done.returncode:
        raise AssertionError(f"{command}: {done.stdout}")
    return done.stdout


@unittest.skipIf(shutil.which("pip3") is None, "pip is not installed")
class WheelTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = pathlib.Path(tempfile.mkdtemp(prefix="spillway-wheel-", dir="/var/tmp"))
        cls.addClassCleanup(shutil.rmtree, cls.folder)
        run("cmake", "--install", support.BIN, "--prefix", cls.folder / "installed")
        (pc,) = (cls.folder / "installed").rglob("spillway.pc")
        cls.lib = pc.parent.parent
        shutil.copytree(support.SOURCE / "client/python", cls.folder / "source")
        run(
            *("pip3", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"),
            *("--wheel-dir", cls.folder, cls.folder / "source"),
            env={**os.environ, "PKG_CONFIG_PATH": str(pc.parent), "PYTHONPATH": ""},
        )
        (cls.wheel,) = cls.folder.glob("spillway-*.whl")

    def test_contents(self):
        """All of the package, its types, and nothing else."""
        package = support.SOURCE / "client/python/spillway"
        files = (p for end in ("py", "pyi", "typed") for p in package.rglob(f"*{end}"))
        wanted = {str(p.relative_to(package.parent)) for p in files}
        found = {n for n in zipfile.ZipFile(self.wheel).namelist() if ".dist-info/" not in n}
        native = {n for n in found if n.startswith("spillway/_native.") and n.endswith(".so")}
        self.assertEqual(found - native, wanted)
        self.assertEqual(len(native), 1)

    def test_it_works(self):
        """In an interpreter that has nothing else of ours."""
        target = self.folder / "target"
        run("pip3", "install", "--quiet", "--no-deps", "--no-index", "--target", target, self.wheel)
        daemon = support.Daemon("[tier.dram]\nsize = 64 MiB\n[pool default]\nweight = 1\n")
        self.addCleanup(daemon.stop)
        env = {**os.environ, "PYTHONPATH": str(target), "LD_LIBRARY_PATH": str(self.lib)}
        said = run(sys.executable, "-c", USE, target, daemon.socket, env=env, cwd="/")
        self.assertEqual(said.strip().splitlines()[-1], self.wheel.name.split("-")[1])


if __name__ == "__main__":
    support.main()
