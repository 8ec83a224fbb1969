# SPDX-License-Identifier: Apache-2.0
"""Sessions and pools: a connection to spillwayd, and the shares of its memory that this user may open.

Every method may be called from any thread at any time. What waits, waits without the GIL; a signal's handler runs when
the call has returned. After fork() the child's objects are the parent's, and calls on them raise SpillwayError with
errno ECHILD: connect anew there.
"""
from __future__ import annotations

import errno
import hashlib
import json
import os
import sys
import threading
import warnings
import weakref
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterable, List, NamedTuple, Optional, Sequence, Set, Tuple, Union

from . import daemon
from ._convert import c_string, choice, milliseconds
from ._native import ffi, lib
from .errors import Limit, NoDaemon, SpillwayError, last_error
from .space import Space
from .views import Grant, Unpicklable

if TYPE_CHECKING:
    from .gpu import Gpu
    from .queue import Queue

CLASSES = {
    "generic": lib.SPW_CLASS_GENERIC,
    "kv": lib.SPW_CLASS_KV,
    "weights": lib.SPW_CLASS_WEIGHTS,
    "activation": lib.SPW_CLASS_ACTIVATION,
    "optimizer": lib.SPW_CLASS_OPTIMIZER,
}
DURABILITIES = {
    "default": lib.SPW_DURABILITY_DEFAULT,
    "cache": lib.SPW_CACHE,
    "scratch": lib.SPW_SCRATCH,
    "durable": lib.SPW_DURABLE,
}


class PoolInfo(NamedTuple):
    """A pool's budgets in bytes. trusted: it is this user's alone, and writers write in place."""

    trusted: bool
    dram_bytes: int
    cxl_bytes: int
    nvme_bytes: int
    gpu_bytes: int


class ManifestEntry(NamedTuple):
    """Objects of one size. size: of each, in bytes; slots: how many are leased at once; total: how many there are (at
    least as many as slots are meant); write: they are leased for writing."""

    size: int
    slots: int = 0
    total: int = 0
    write: bool = False


class Sizing(NamedTuple):
    """What a manifest takes of a pool, and what there is for one space of it, whoever else uses it. In bytes.

    leased_bytes: all slots at once, each piece in whole sectors of 4 KiB; leasable_bytes: what this user may lease at
    once. memory_bytes: of the pool, so that all slots can be leased; memory_max_bytes: that it has. private_bytes,
    private_max_bytes: of the session, for slots that are written: 0 in a pool that is this user's alone. leases,
    leases_max: of the session, one a piece. stored_bytes, stored_max_bytes: all objects; memory and devices. limit: the
    first that does not allow it, or None: it fits.
    """

    leased_bytes: int
    leasable_bytes: int
    memory_bytes: int
    memory_max_bytes: int
    private_bytes: int
    private_max_bytes: int
    leases: int
    leases_max: int
    stored_bytes: int
    stored_max_bytes: int
    limit: Optional[Limit]


def layout_digest(layout: Any) -> bytes:
    """What identifies a space: the SHA-256 of the layout as JSON in ASCII, keys sorted, no white space. 32 bytes."""
    text = json.dumps(layout, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).digest()


class Pool(Unpicklable):
    """A tenant's share. Lives as long as its session."""

    def __init__(self, session: "Session", name: str, handle: Any) -> None:
        self.session: "Session" = session
        self.name = name
        self._handle = handle
        self._spaces: Dict[Tuple[Any, ...], Any] = {}

    @property
    def info(self) -> PoolInfo:
        """The budgets when it was opened."""
        c = ffi.new("struct spw_pool_info *")
        with self.session._in_call():
            lib.spw_pool_info(self._handle, c)
        return PoolInfo(bool(c.flags & lib.SPW_POOL_TRUSTED), c.dram_bytes, c.cxl_bytes, c.nvme_bytes, c.gpu_bytes)

    def manifest(self, entries: Iterable[ManifestEntry]) -> Sizing:
        """What it takes to lease objects of these sizes at once, before there are any, and whether the pool has that.

        An answer, not a promise: nothing is set aside. Entries (256 at most) come in any order. SpillwayError with
        EINVAL: an entry without a size, or of one above 1 TiB; E2BIG: more entries, or sums that no machine has.
        """
        wanted = [ManifestEntry(*entry) for entry in entries]
        array = ffi.new("struct spw_manifest_entry[]", len(wanted))
        for c, entry in zip(array, wanted):
            c.size_bytes, c.count, c.slots = entry.size, entry.total, entry.slots
            c.flags = lib.SPW_MANIFEST_WRITE if entry.write else 0
        out = ffi.new("struct spw_sizing *")
        self.session._call(lib.spw_manifest, self._handle, array, len(wanted), out)
        return Sizing._make([*(getattr(out, field) for field in Sizing._fields[:-1]), Limit.of(out.limit)])

    def space(
        self,
        layout: Any,
        class_: str = "optimizer",
        durability: str = "scratch",
        item_bytes: int = 0,
        node: Optional[int] = None,
        must_exist: bool = False,
    ) -> Space:
        """Finds or creates the space of objects with this layout.

        layout: what the bytes mean (model, revision, data type, shapes, tokens a block, …), anything that JSON can
        say: who says the same can use the bytes. class_: "generic", "kv", "weights", "activation", "optimizer".
        durability: "cache" (may be dropped), "scratch" (not while its owner lives), "durable" (survives a crash once
        it is synced), "default" (the class's). item_bytes: the size of its blocks, or 0: each has its own. node: the
        NUMA node to prefer; None: the calling thread's.

        SpillwayError with EINVAL if it exists with another size, class or durability; NotFound with must_exist.
        """
        digest = layout_digest(layout)
        if node is not None and node < 0:
            raise ValueError(f"a NUMA node is a number from 0 on, not {node}")
        options = ffi.new("struct spw_space_options *")
        ffi.memmove(options.digest, digest, len(digest))
        options.item_bytes = item_bytes
        options.class_id = choice("class_", CLASSES, class_)
        options.durability = choice("durability", DURABILITIES, durability)
        options.flags = lib.SPW_SPACE_MUST_EXIST if must_exist else 0
        options.node = 0 if node is None else node + 1
        key = (digest, item_bytes, class_, durability, node)
        handle = self._spaces.get(key)  # the library keeps each until the session ends
        if handle is None:
            out = ffi.new("spw_space **")
            self.session._call(lib.spw_space_open, self._handle, options, out)
            handle = self._spaces.setdefault(key, out[0])
        return Space(self, digest, item_bytes, handle)

    def __repr__(self) -> str:
        return f"<Pool {self.name!r}>"


class _InCall:
    """Keeps what has the library's handle open: its close() waits for the end of this."""

    __slots__ = ("owner",)

    def __init__(self, owner: "InUse") -> None:
        self.owner = owner

    def __enter__(self) -> None:
        owner = self.owner
        with owner._lock:
            if owner._handle is None or owner._closing:
                raise SpillwayError(errno.ENOTCONN, owner._CLOSED)
            owner._calls += 1

    def __exit__(self, *_: Any) -> None:
        with self.owner._lock:
            self.owner._leave()


class InUse(Unpicklable):
    """Has a handle of the library's, and counts the calls that use it, under _lock. _idle: the last one has ended."""

    _CLOSED: str
    _handle: Any
    _lock: Any
    _idle: threading.Condition
    _calls: int
    _closing: bool

    def _in_call(self) -> _InCall:
        return _InCall(self)

    def _leave(self) -> None:
        self._calls -= 1
        if self._closing and self._calls == 0:
            self._idle.notify_all()


class Session(InUse):
    """A connection to spillwayd: made by connect(), a context manager that closes it."""

    _CLOSED = "the session was closed"

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self._pools: Dict[str, Any] = {}
        self._grants: "weakref.WeakSet[Grant]" = weakref.WeakSet()
        self._queues: "weakref.WeakSet[Queue]" = weakref.WeakSet()
        self._gpus: "weakref.WeakSet[Gpu]" = weakref.WeakSet()
        self._gpu_handles: Set[Any] = set()  # are detached before the session ends, whatever became of their objects
        self._attachments: Dict[Any, Any] = {}  # to GPUs, that others share and leave to it
        self._forked = False
        self._locks_init()
        _sessions.add(self)

    def _locks_init(self) -> None:
        self._lock = threading.RLock()  # not held in a call; a finaliser may come while it is, hence the R
        self._idle = threading.Condition(self._lock)
        self._calls = 0
        self._closing = False

    def pool(self, name: str = "default") -> Pool:
        """Opens a pool. NotFound: there is none of that name; SpillwayError with EACCES: not for this user."""
        with self._in_call():
            handle = self._pools.get(name)
        if handle is None:
            out = ffi.new("spw_pool **")
            self._call(lib.spw_pool_open, self._handle, c_string(name, "a pool's name"), out)
            handle = self._pools.setdefault(name, out[0])
        return Pool(self, name, handle)

    @property
    def owner_token(self) -> bytes:
        """The owner's token (16 bytes): other processes of the same job pass it to connect()."""
        token = ffi.new("uint8_t[]", lib.SPW_TOKEN_BYTES)
        with self._in_call():
            lib.spw_owner_token(self._handle, token)
        return bytes(ffi.buffer(token))

    def admin(self, request: Any) -> Any:
        """One administrator's request and its answer, as objects of JSON (docs/admin-json.md).

        SpillwayError with EACCES unless root, the daemon's user or in its admin group.
        """
        out = ffi.new("char **")
        self._call(lib.spw_admin, self._handle, c_string(json.dumps(request), "the request"), out)
        try:
            return json.loads(ffi.string(out[0]))
        finally:
            lib.free(out[0])

    @property
    def closed(self) -> bool:
        """Was it closed?"""
        return self._handle is None

    def close(self) -> None:
        """Ends the session: its leases are released, reservations dropped, queues and attachments to GPUs closed; its
        views become invalid.

        Waits for calls that other threads are in. BufferError if a view's bytes are still exported: then it stays open.
        """
        if self._forked:
            self._close_in_child()
            return
        for queue in list(self._queues):
            queue.close()
        for gpu in list(self._gpus):
            gpu.close()
        with self._lock:
            while self._closing and self._handle is not None:
                self._idle.wait()
            if self._handle is None:
                return
            self._closing = True
            grants: List[Grant] = []
            try:
                while self._calls > 0:
                    self._idle.wait()
                grants = list(self._grants)
                for grant in grants:
                    grant.close(0, grant.n)
            except BaseException:
                self._closing = False
                self._idle.notify_all()
                for grant in grants:
                    grant.reopen()
                raise
            for grant in grants:
                grant.session_closes()
            handle, self._handle = self._handle, None
        lib.spw_close(handle)
        with self._lock:
            self._closing = False
            self._idle.notify_all()

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, kind: Any, value: Any, trace: Any) -> None:
        try:
            self.close()
        except BufferError:
            if kind is None:
                raise
            # Else the exception is what counts; the session goes with who has its bytes.

    def __del__(self) -> None:
        handle = getattr(self, "_handle", None)
        if handle is None or sys.is_finalizing():
            return
        # Views, queues and whoever is in a call refer to the session: there is none any more.
        self._handle = None
        if not self._forked:
            warnings.warn("a session was not closed", ResourceWarning)
        for gpu in self._gpu_handles:
            lib.spw_gpu_detach(gpu)
        lib.spw_close(handle)

    def __repr__(self) -> str:
        return f"<Session, {'closed' if self.closed else 'open'}>"

    def _call(self, function: Callable[..., int], *args: Any) -> int:
        """What a function of the library returned, 0 or more; else its error."""
        with self._in_call():
            result = function(*args)
            if result < 0:
                raise last_error(result)
        return result

    def _is_usable(self) -> bool:
        return self._handle is not None and not self._closing and not self._forked

    def _check_process(self) -> None:
        if self._forked:
            raise SpillwayError(errno.ECHILD, "the handle belongs to the parent process: connect anew after fork()")

    def _after_fork(self) -> None:
        """In the child: other threads' locks are held by nobody, and there are no bytes."""
        self._forked = True
        self._locks_init()
        for grant in list(self._grants):
            grant.in_child()
        for gpu in list(self._gpus):
            gpu._locks_init()

    def _close_in_child(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            lib.spw_close(handle)


_sessions: "weakref.WeakSet[Session]" = weakref.WeakSet()


def _after_fork() -> None:
    for session in list(_sessions):
        session._after_fork()


os.register_at_fork(after_in_child=_after_fork)


def _connect(options: Any) -> Session:
    out = ffi.new("spw_session **")
    status = lib.spw_connect(options, out)
    if status < 0:
        raise last_error(status, NoDaemon if -status in (errno.ENOENT, errno.ECONNREFUSED) else None)
    return Session(out[0])


def connect(
    name: Optional[str] = None,
    socket: Union[str, bytes, "os.PathLike[str]", None] = None,
    *,
    owner_token: Optional[bytes] = None,
    timeout: Optional[float] = 5.0,
    copy_threads: int = 2,
    ring_entries: int = 256,
    scratch_bytes: int = 2 << 20,
    spin_us: Optional[int] = 100,
    start: Union[bool, Sequence[str]] = False,
    dram: Optional[int] = None,
    disk: daemon.Disk = "auto",
) -> Session:
    """Connects to spillwayd.

    name: for `spillctl sessions`; None: the program's. socket: its path; None: $SPILLWAY_SOCKET, else the user's own
    daemon, else the system's. owner_token: of the job to belong to; None: a new owner. timeout: for the connection, in
    seconds. copy_threads: for put and get. ring_entries, scratch_bytes: of each thread's ring. spin_us: how long a
    blocking call polls for its answer at most, in microseconds; None: never, so waiting uses no CPU time. start: where
    no daemon is found, start one of the user's own (`spillwayd --user`), which outlives this program; a list: with
    these arguments more (["--config", path]). See spillway.daemon.

    dram, disk: of a daemon that start=True starts, in bytes; one that runs is taken as it is. dram None: a quarter of
    the memory. disk "auto": a device of 64 GiB, or of half of what is free in $XDG_STATE_HOME (~/.local/state) if that
    is less; it is made once, and whatever is durable stays there. 0 or None: no device.

    NoDaemon: there is none; SpillwayError with EACCES, EPROTONOSUPPORT (versions differ), EMFILE or EUSERS (limits).
    """
    if start is not True and (dram is not None or disk != "auto"):
        raise ValueError("dram and disk are for a daemon that start=True starts")
    options = ffi.new("struct spw_connect_options *")
    path = None if socket is None else c_string(os.fsencode(socket), "a socket's path")
    program = c_string(name or os.path.basename(sys.argv[0] if sys.argv else "") or "python", "a session's name")
    token = ffi.NULL if owner_token is None else ffi.from_buffer("uint8_t[]", owner_token)
    if owner_token is not None and len(owner_token) != lib.SPW_TOKEN_BYTES:
        raise ValueError(f"an owner's token has {lib.SPW_TOKEN_BYTES} bytes, not {len(owner_token)}")
    options.socket_path = ffi.NULL if path is None else path
    options.name = program
    options.owner_token = token
    options.copy_threads = copy_threads
    options.timeout_ms = milliseconds(timeout)
    options.ring_entries = ring_entries
    options.scratch_bytes = scratch_bytes
    options.spin_us = lib.SPW_SPIN_NEVER if spin_us is None else spin_us
    try:
        return _connect(options)
    except NoDaemon:
        if start is False:
            raise
    arguments: Union[Sequence[str], daemon.Size] = daemon.Size(dram, disk)
    if start is not True:
        arguments = list(start)
    return daemon.start(lambda: _connect(options), socket, arguments)
