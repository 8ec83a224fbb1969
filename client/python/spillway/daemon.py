# SPDX-License-Identifier: Apache-2.0
"""Starting a daemon of the user's own, for connect(start=True).

    no daemon ─▶ lock ─▶ still none? ─▶ spillwayd --user ─▶ it answers ─▶ unlock

Programs that start at the same time start one daemon: whoever has the lock (flock() on a file beside the socket) looks
once more, and holds it until its daemon answers. `spillwayd` is looked for in $SPILLWAY_BIN, a folder, or else on PATH.
The daemon is in a session of its own, so that it outlives this program and its terminal; it writes its log beside its
socket. Nothing ends it but `kill`: what is in its memory is for the next program.
"""
from __future__ import annotations

import errno
import fcntl
import os
import pathlib
import shutil
import subprocess
import time
from typing import TYPE_CHECKING, Callable, List, Sequence, Union

from .errors import NoDaemon, Timeout

if TYPE_CHECKING:
    from .session import Session

READY_SECONDS = 60.0
LOOK_SECONDS = 0.02

_started: List["subprocess.Popen[bytes]"] = []  # so that they are reaped if they end before us


def socket_path(asked: Union[str, bytes, "os.PathLike[str]", None]) -> pathlib.Path:
    """Where a daemon of the user's own listens, and where the library looks for it."""
    if asked is not None:
        return pathlib.Path(os.fsdecode(asked))
    if os.environ.get("SPILLWAY_SOCKET"):
        return pathlib.Path(os.environ["SPILLWAY_SOCKET"])
    if os.environ.get("XDG_RUNTIME_DIR"):
        return pathlib.Path(os.environ["XDG_RUNTIME_DIR"], "spillway", "spillwayd.sock")
    raise NoDaemon(errno.ENOENT, "no daemon, and no place to start one at: set XDG_RUNTIME_DIR, or name a socket")


def program_path() -> str:
    """The program, or NoDaemon."""
    folder = os.environ.get("SPILLWAY_BIN")
    program = shutil.which("spillwayd", path=folder)
    if program is None:
        raise NoDaemon(errno.ENOENT, f"no daemon, and there is no spillwayd in {folder or 'PATH'} to start")
    return program


def start(
    connect: Callable[[], "Session"], asked: Union[str, bytes, "os.PathLike[str]", None], arguments: Sequence[str]
) -> "Session":
    """Starts a daemon, unless somebody else does, and connects. NoDaemon, with its last words, if it does not start."""
    path = socket_path(asked)
    program = program_path()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(f"{path}.lock", "a", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            return connect()
        except NoDaemon:
            pass
        log = f"{path}.log"
        process = spawn([program, "--user", "--socket", str(path), *arguments], log)
        return wait(connect, process, log)


def spawn(command: List[str], log: str) -> "subprocess.Popen[bytes]":
    """Starts it in a session of its own, with nothing of ours but its log."""
    with open(log, "ab") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd="/", start_new_session=True
        )
    _started.append(process)
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
