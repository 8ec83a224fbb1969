# SPDX-License-Identifier: Apache-2.0
"""Groups that are stepped while the backward pass goes on, each as soon as its gradients are there.

    backward         layer n │ layer n - 1 │ …          │ layer 0 ┐
    thread "overlap"         │ step n      │ step n - 1 │ …       │ step 0 ┐
    step()                                                                └ waits

The groups' order is the reverse of a step's, since that is how gradients come; always the same one, so that a pool can
learn it. A group that lacks a gradient holds up those behind it, at most until the backward pass is over: then what has
no gradient by now has none.
"""
from __future__ import annotations

import threading
from typing import Any, Callable, Dict, Iterable, List, Optional, Set

import torch

from .device import is_remote


class Aborted(Exception):
    """The backward pass has failed: what has not been stepped is not."""


def _when_accumulated(p: torch.Tensor, call: Callable[[torch.Tensor], None]) -> Any:
    """Calls call(p) whenever a backward pass has added to p.grad all that it will; returns what remove() ends it by."""
    if hasattr(p, "register_post_accumulate_grad_hook"):
        return p.register_post_accumulate_grad_hook(call)
    node = p.expand_as(p).grad_fn.next_functions[0][0]
    handle = node.register_hook(lambda *_: call(p))
    handle.node = node  # else the graph may make another one
    return handle


class Gradients:
    """Which parameters have their gradients, of one backward pass."""

    def __init__(self, params: Iterable[torch.Tensor]) -> None:
        self._changed = threading.Condition()
        self._here: Dict[torch.Tensor, Any] = {}  # and on a GPU the event after which it is there
        self._over = self._aborted = False
        with torch.enable_grad():
            self._handles = [_when_accumulated(p, self._came) for p in params if p.requires_grad]

    def _came(self, p: torch.Tensor) -> None:
        event = torch.cuda.current_stream(p.device).record_event() if is_remote(p) else None
        with self._changed:
            self._here[p] = event
            self._changed.notify_all()

    @property
    def over(self) -> bool:
        """Is the backward pass over?"""
        return self._over

    def end(self, aborted: bool) -> None:
        """The backward pass is over."""
        for handle in self._handles:
            handle.remove()
        with self._changed:
            self._over = True
            self._aborted |= aborted
            self._changed.notify_all()

    def wait(self, params: Set[torch.Tensor]) -> List[Any]:
        """Until these have all that they get: the events after which those on GPUs are there. Aborted."""
        with self._changed:
            self._changed.wait_for(lambda: self._over or params <= self._here.keys())
            if self._aborted:
                raise Aborted()
            return [self._here[p] for p in params if self._here.get(p) is not None]


class Overlap:
    """A context manager around a backward pass. steps: makes the step, in a thread of its own, by asking the gradients;
    ended: is called when the pass is over, with whether it failed."""

    def __init__(
        self, params: Iterable[torch.Tensor], steps: Callable[[Gradients], None], ended: Callable[[bool], None]
    ) -> None:
        self._params = list(params)
        self._steps = steps
        self._ended = ended
        self._error: Optional[BaseException] = None
        self._gradients: Optional[Gradients] = None
        self._thread: Optional[threading.Thread] = None

    def __enter__(self) -> "Overlap":
        if self._gradients is not None:
            raise RuntimeError("overlap_backward() is for one backward pass")
        self._gradients = Gradients(self._params)
        self._thread = threading.Thread(target=self._run, args=(self._gradients,), name="spillway-overlap", daemon=True)
        self._thread.start()
        return self

    def _run(self, gradients: Gradients) -> None:
        try:
            with torch.no_grad():
                self._steps(gradients)
        except BaseException as error:
            self._error = error

    def __exit__(self, kind: Any, value: Any, trace: Any) -> None:
        self.end(kind is not None)

    def end(self, failed: bool) -> None:
        """The pass is over; if it failed, so has the step."""
        if self._gradients is None or self._thread is None:
            return
        if not failed:
            self._ended(False)
        self._gradients.end(failed)
        if failed:
            self._thread.join()
            self._ended(True)

    def finish(self) -> None:
        """Waits for the rest of the step, and raises what went wrong in it."""
        if self._gradients is None or self._thread is None or not self._gradients.over:
            raise RuntimeError("the backward pass of overlap_backward() is not over")
        self._thread.join()
        if self._error is not None:
            raise self._error


def changes(p: torch.Tensor) -> None:
    """Before p is written by its address: a graph that needs it as it was will say so, instead of using it."""
    p.view(-1)[:0].zero_()
