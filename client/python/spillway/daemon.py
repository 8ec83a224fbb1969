# SPDX-License-Identifier: Apache-2.0
"""Starting a daemon of the user's own, for connect(start=True).

    no daemon ─▶ lock ─▶ still none? ─▶ device, configuration ─▶ spillwayd --user ─▶ it answers ─▶ unlock

Programs that start at the same time start one daemon: whoever has the lock (flock() on a file beside the socket) looks
once more, and holds it until its daemon answers. `spillwayd` is looked for in $SPILLWAY_BIN, a folder, or else on PATH.
The daemon is in a session of its own, so that it outlives this program and its terminal; its log and its configuration
lie beside its socket. Nothing ends it but `kill`: what is in its memory is for the next program.

Its device is a file that takes disk space only as it is used, in $XDG_STATE_HOME/spillway or else
~/.local/state/spillway: disk.spill, and for a socket of another place than the usual one a file of its own. It is made
once, and stays when the daemon ends: what is durable is there for the next one.
"""
from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import pathlib
import shutil
import stat
import subprocess
import threading
import time
import warnings
from typing import TYPE_CHECKING, Callable, Iterator, List, Literal, NamedTuple, Optional, Sequence, Union

from .errors import NoDaemon, Timeout

if TYPE_CHECKING:
    from .session import Session

READY_SECONDS = 60.0
LOOK_SECONDS = 0.02
MIB = 1 << 20
LEAST_DRAM = 64 * MIB  # of spillwayd
LEAST_DISK = 256 * MIB  # with less room there is no device, unless it was asked for
MOST_DISK = 64 << 30  # so much, or half of what is free, unless it was asked for

Disk = Union[int, None, Literal["auto"]]


class Size(NamedTuple):
    """Of a daemon that is started, in bytes. dram None: a quarter of the memory; disk 0 or None: no device."""

    dram: Optional[int] = None
    disk: Disk = "auto"


# ── where it listens


def socket_path(asked: Union[str, bytes, "os.PathLike[str]", None]) -> pathlib.Path:
    """Where a daemon of the user's own listens, and where the library looks for it."""
    if asked is not None:
        return pathlib.Path(os.fsdecode(asked))
    if os.environ.get("SPILLWAY_SOCKET"):
        return pathlib.Path(os.environ["SPILLWAY_SOCKET"])
    return usual_folder() / "spillwayd.sock"


def usual_folder() -> pathlib.Path:
    """Of the socket, as include/base/user_dir.h has it."""
    if os.environ.get("XDG_RUNTIME_DIR"):
        return pathlib.Path(os.environ["XDG_RUNTIME_DIR"], "spillway")
    run = pathlib.Path(f"/run/user/{os.geteuid()}")
    return run / "spillway" if _is_private(run) else _fallback_folder()


def _fallback_folder() -> pathlib.Path:
    return pathlib.Path(f"/tmp/spillway-{os.geteuid()}")


def _is_private(folder: pathlib.Path) -> bool:
    """Is it a folder of this user's that nobody else may look into?"""
    try:
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077


def _make_folder(folder: pathlib.Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise NoDaemon(error.errno or errno.EIO, f"no daemon, and no place to start one at: {error}") from None
    if folder == _fallback_folder() and not _is_private(folder):
        raise NoDaemon(
            errno.EPERM,
            f"no daemon, and {folder} is not a folder of this user's alone (mode 0700): remove it, set "
            "XDG_RUNTIME_DIR, or name a socket",
        )


def program_path(name: str = "spillwayd") -> str:
    """The program, or NoDaemon."""
    folder = os.environ.get("SPILLWAY_BIN")
    program = shutil.which(name, path=folder)
    if program is None:
        raise NoDaemon(errno.ENOENT, f"no daemon, and there is no {name} in {folder or 'PATH'} to start")
    return program


# ── how large it is


def memory_bytes() -> int:
    """Of the machine, or of the container if that is less."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([machine, *_memory_limits()])


def _memory_limits() -> Iterator[int]:
    """Of the process's control groups, those above it included."""
    root = pathlib.Path("/sys/fs/cgroup")
    try:
        [line] = [x for x in pathlib.Path("/proc/self/cgroup").read_text("ascii").splitlines() if x.startswith("0::")]
        group = root / line[len("0::/") :]
    except (OSError, ValueError):
        group = root
    folders = [folder for folder in [group, *group.parents] if folder.is_relative_to(root)]
    for file in [*(folder / "memory.max" for folder in folders), root / "memory" / "memory.limit_in_bytes"]:
        try:
            yield int(file.read_text("ascii"))
        except (OSError, ValueError):
            pass  # there is no such file, or no limit ("max")


def state_folder() -> pathlib.Path:
    """Where devices are. RuntimeError: the user has no home."""
    home = os.environ.get("XDG_STATE_HOME")
    return pathlib.Path(home) / "spillway" if home else pathlib.Path.home() / ".local" / "state" / "spillway"


def device_path(socket: pathlib.Path) -> pathlib.Path:
    """Of the daemon that listens there."""
    if socket == usual_folder() / "spillwayd.sock":
        return state_folder() / "disk.spill"
    return state_folder() / f"disk-{hashlib.sha256(os.fsencode(socket.absolute())).hexdigest()[:8]}.spill"


def device(socket: pathlib.Path, disk: Disk) -> Optional[pathlib.Path]:
    """The device, which is made if it is not there; None if there is to be none.

    ValueError: there is one of another size than was asked for. With "auto" what stands in the way is a warning.
    """
    if not disk:
        return None
    try:
        path = device_path(socket)
        if not path.exists():
            _make_device(path, disk)
    except (OSError, RuntimeError) as error:
        if disk != "auto":
            raise NoDaemon(errno.ENODEV, f"no daemon, and no device can be made for one: {error}") from None
        warnings.warn(f"the daemon starts without a device, so nothing is durable: {error}", RuntimeWarning)
        return None
    has = path.stat().st_size
    if disk != "auto" and has != _whole_mib(disk):
        raise ValueError(f"{path} has {has >> 20} MiB: leave out `disk`, or remove it with all that it has")
    return path


def _make_device(path: pathlib.Path, disk: Union[int, Literal["auto"]]) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if disk == "auto":
        room = os.statvfs(path.parent)
        disk = min(room.f_bavail * room.f_frsize // 2, MOST_DISK)
        if disk < LEAST_DISK:
            raise OSError(errno.ENOSPC, f"{path.parent} has too little room")
    new = path.with_suffix(".new")  # what is cut off leaves no device
    new.unlink(missing_ok=True)
    command = [program_path("spillctl"), "device", "format", "--sparse", "--partitions", "1"]
    command += ["--capacity", str(_whole_mib(disk)), str(new)]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
    if done.returncode != 0:
        raise OSError(errno.EIO, os.fsdecode(done.stderr).strip())
    new.rename(path)


def _whole_mib(nbytes: int) -> int:
    return nbytes // MIB * MIB


def write_configuration(socket: pathlib.Path, size: Size) -> pathlib.Path:
    """Of a daemon of that size, beside its socket."""
    dram = max(memory_bytes() // 4, LEAST_DRAM) if size.dram is None else size.dram
    disk = device(socket, size.disk)
    # One engine: it has all of the memory, and copies states to snapshots by itself.
    text = f"[daemon]\nengines = 1\n\n[tier.dram]\nsize = {_whole_mib(dram)}\npretouch = no\n"
    if disk is not None:
        text += f"\n[device disk]\npath = {disk.absolute()}\nsparse = yes\n"
    path = socket.with_name(f"{socket.name}.conf")
    path.write_text(f"; Written at each start by the Python package spillway.\n{text}", encoding="utf-8")
    return path


# ── the start


def start(
    connect: Callable[[], "Session"],
    asked: Union[str, bytes, "os.PathLike[str]", None],
    arguments: Union[Sequence[str], Size],
) -> "Session":
    """Starts a daemon, unless somebody else does, and connects. NoDaemon, with its last words, if it does not start."""
    path = socket_path(asked)
    program = program_path()
    _make_folder(path.parent)
    with open(f"{path}.lock", "a", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            return connect()
        except NoDaemon:
            pass
        if isinstance(arguments, Size):
            arguments = ["--config", str(write_configuration(path, arguments))]
        log = f"{path}.log"
        process = spawn([program, "--user", "--socket", str(path), *arguments], log)
        return wait(connect, process, log)


def spawn(command: List[str], log: str) -> "subprocess.Popen[bytes]":
    """Starts it in a session of its own, with nothing of ours but its log."""
    with open(log, "ab") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd="/", start_new_session=True
        )
    # It is reaped if it ends before us, and no object warns that it has not.
    threading.Thread(target=process.wait, name="spillway-daemon", daemon=True).start()
    return process


def wait(connect: Callable[[], "Session"], process: "subprocess.Popen[bytes]", log: str) -> "Session":
    """A connection, as soon as it listens."""
    end = time.monotonic() + READY_SECONDS
    while True:
        try:
            return connect()
        except (NoDaemon, Timeout):  # it listens before it serves
            if process.poll() is not None or time.monotonic() > end:
                raise NoDaemon(errno.ENOENT, f"spillwayd does not start: {last_line(log)} ({log})") from None
        time.sleep(LOOK_SECONDS)


def last_line(log: str) -> str:
    """Of a log."""
    lines = pathlib.Path(log).read_text(encoding="utf-8", errors="replace").splitlines()
    return lines[-1] if lines else "it said nothing"
