# SPDX-License-Identifier: Apache-2.0
"""What an optimizer does in time, and what its pool holds meanwhile: for Chrome's trace viewer, or as a picture.

    step()   │ wait │ step 0 │ release │ step 1 │ …     threads call span(): a track each
    reader   │ read 0 │ read 1 │ …
    sampler  .    .    .    .    .    .    .            the pool's numbers, every few milliseconds

Who works calls span(), which is a look at one variable as long as nothing records. Events are appended to a list,
without a lock; all else is done by save() and picture(). Copies that a GPU makes have no thread that waits for them, so
one of the timeline's does (watched()).
"""
from __future__ import annotations

import functools
import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Mapping, NamedTuple, Optional, TypeVar, Union, cast

from ..space import Stat

if TYPE_CHECKING:
    from .adamw import OffloadAdamW

_Function = TypeVar("_Function", bound=Callable[..., Any])
_Path = Union[str, "os.PathLike[str]"]

WHOLE = "optimizer step"  # the event that has all others of its thread
LINK = "spillway-link"  # the track of copies that come over from a GPU
_NOTHING: "AbstractContextManager[None]" = nullcontext()
_recording: Optional["Timeline"] = None


class Event(NamedTuple):
    """Something that a thread did. begin: seconds since the timeline began; group, nbytes: of what, or None and 0."""

    name: str
    thread: str
    begin: float
    seconds: float
    group: Optional[int]
    nbytes: int

    @property
    def end(self) -> float:
        """Seconds since the timeline began."""
        return self.begin + self.seconds


class Sample(NamedTuple):
    """The pool's numbers at a time, of the engine that has the optimizer's states."""

    time: float
    stat: Stat


class Rate(NamedTuple):
    """Of the devices between two samples, in bytes a second."""

    begin: float
    end: float
    read: float
    written: float


class Timeline:
    """Records what is done in a `with`, by all optimizers of this process.

    optimizer: whose pool is sampled, each `interval` seconds. One records at a time: RuntimeError for another.
    """

    def __init__(self, optimizer: "OffloadAdamW", interval: float = 0.002) -> None:
        self.pool = optimizer.pool.name
        self.samples: List[Sample] = []
        self._space = optimizer._space
        self._interval = interval
        self._events: List[Event] = []
        self._began = 0.0
        self._link_free = 0.0  # since when nothing is on its way
        self._end = threading.Event()
        self._sampler = threading.Thread(target=self._sample_until_end, name="spillway-timeline", daemon=True)
        self._watcher = ThreadPoolExecutor(1, LINK)

    def __enter__(self) -> "Timeline":
        global _recording
        if _recording is not None:
            raise RuntimeError("another timeline records")
        if self.samples:
            raise RuntimeError("a timeline records once: make another")
        self._began = time.perf_counter()
        self._sample()
        self._sampler.start()
        _recording = self
        return self

    def __exit__(self, *_: Any) -> None:
        global _recording
        _recording = None
        self._end.set()
        self._sampler.join()
        self._watcher.shutdown()

    # --- Recording

    def _now(self) -> float:
        return time.perf_counter() - self._began

    def add(self, name: str, begin: float, group: Optional[int], nbytes: int, thread: Optional[str] = None) -> None:
        """It ends now. begin: of time.perf_counter()."""
        thread = thread or threading.current_thread().name
        self._events.append(Event(name, thread, begin - self._began, self._now() + self._began - begin, group, nbytes))

    def watch(self, name: str, wait: Callable[[], None], group: int, nbytes: int) -> None:
        """A copy is on its way; they end in the order in which they begin."""
        begun = time.perf_counter()

        def until_there() -> None:
            wait()
            self.add(name, max(begun, self._link_free), group, nbytes, LINK)
            self._link_free = time.perf_counter()

        self._watcher.submit(until_there)

    def _sample(self) -> None:
        stat = self._space.stat()
        self.samples.append(Sample(self._now(), stat))

    def _sample_until_end(self) -> None:
        try:
            while not self._end.wait(self._interval):
                self._sample()
            self._sample()
        except OSError:
            pass  # the daemon is gone, which step() says better

    # --- What was recorded

    @property
    def events(self) -> List[Event]:
        """By time; of two that begin together, the longer first."""
        return sorted(self._events, key=lambda event: (event.begin, -event.seconds))

    @property
    def threads(self) -> List[str]:
        """Those that have events, in the order of their tracks: who steps first."""
        names = sorted({event.thread for event in self._events})
        steps = {event.thread for event in self._events if event.name == WHOLE}
        return sorted(names, key=lambda name: (name not in steps, _place(name)))

    def rates(self) -> List[Rate]:
        """What devices read and wrote between samples."""
        found = []
        for (begin, before), (end, after) in zip(self.samples, self.samples[1:]):
            read, written = after.bytes_read - before.bytes_read, after.bytes_written - before.bytes_written
            found.append(Rate(begin, end, read / (end - begin), written / (end - begin)))
        return found

    def save(self, path: _Path) -> None:
        """As a file that chrome://tracing and ui.perfetto.dev open: the trace event format, as JSON."""
        number = {name: i for i, name in enumerate(self.threads, 1)}
        trace: List[Dict[str, Any]] = [_metadata("process_name", 0, name=f"spillway: pool {self.pool}")]
        for name, i in number.items():
            trace.append(_metadata("thread_name", i, name=name))
            trace.append(_metadata("thread_sort_index", i, sort_index=i))
        for event in self.events:
            args = {"bytes": event.nbytes} if event.group is None else {"group": event.group, "bytes": event.nbytes}
            at = {"ts": 1e6 * event.begin, "dur": 1e6 * event.seconds}
            trace.append({"name": event.name, "ph": "X", "pid": 1, "tid": number[event.thread], **at, "args": args})
        for at_seconds, stat in self.samples:
            tiers = {"DRAM": stat.dram_used, "CXL": stat.cxl_used, "NVMe": stat.nvme_used, "GPU": stat.gpu_used}
            trace.append(_counter("bytes by tier", at_seconds, tiers))
            trace.append(_counter("bytes in memory", at_seconds, {"leased": stat.leased, "dirty": stat.dirty}))
        for rate in self.rates():
            device = {"read": rate.read / 1e6, "written": rate.written / 1e6}
            trace.append(_counter("devices, MB/s", rate.begin, device))
        with open(path, "w", encoding="utf-8") as file:
            json.dump({"traceEvents": trace, "displayTimeUnit": "ms"}, file)

    def picture(self, path: _Path) -> None:
        """As a PNG: memory by tier, devices, and what threads did. ImportError without matplotlib."""
        from .picture import draw

        draw(self, path)


def _place(name: str) -> int:
    order = ("overlap", "reader", "link", "writer", "copier", "committer")
    return next((i for i, part in enumerate(order) if part in name), -1)


def _metadata(what: str, thread: int, **args: Any) -> Dict[str, Any]:
    return {"name": what, "ph": "M", "pid": 1, "tid": thread, "args": args}


def _counter(what: str, seconds: float, values: Mapping[str, float]) -> Dict[str, Any]:
    return {"name": what, "ph": "C", "pid": 1, "ts": 1e6 * seconds, "args": values}


# --- For who works --------------------------------------------------------------------------------------------------


class _Span:
    __slots__ = ("_timeline", "_name", "_group", "_nbytes", "_began")

    def __init__(self, timeline: Timeline, name: str, group: Optional[int], nbytes: int) -> None:
        self._timeline, self._name, self._group, self._nbytes = timeline, name, group, nbytes
        self._began = 0.0

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *_: Any) -> None:
        self._timeline.add(self._name, self._began, self._group, self._nbytes)


def span(name: str, group: Optional[int] = None, nbytes: int = 0) -> "AbstractContextManager[None]":
    """Is an event, if something records."""
    timeline = _recording
    return _NOTHING if timeline is None else cast("AbstractContextManager[None]", _Span(timeline, name, group, nbytes))


def spanned(name: str) -> Callable[[_Function], _Function]:
    """Each call of the function is an event."""

    def decorate(function: _Function) -> _Function:
        @functools.wraps(function)
        def call(*args: Any, **options: Any) -> Any:
            with span(name):
                return function(*args, **options)

        return cast(_Function, call)

    return decorate


class ending:
    """The context, whose end is an event."""

    def __init__(self, context: Any, name: str, group: int, nbytes: int) -> None:
        self._context = context
        self._what = name, group, nbytes

    def __enter__(self) -> Any:
        return self._context.__enter__()

    def __exit__(self, *exception: Any) -> Any:
        with span(*self._what):
            return self._context.__exit__(*exception)


def watched(name: str, wait: Callable[[], None], group: int, nbytes: int) -> Callable[[], None]:
    """What waits for a copy that is on its way: the copy is an event, and waiting for it another one."""
    timeline = _recording
    if timeline is None:
        return wait
    timeline.watch(name, wait, group, nbytes)

    def call() -> None:
        with span(f"wait for {name}", group):
            wait()

    return call
