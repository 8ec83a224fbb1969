# SPDX-License-Identifier: Apache-2.0
"""What a snapshot says of itself: two kinds of JSON documents, so that whoever loads it needs to know nothing else.

    manifest   one a snapshot: parameters by their global names, shapes and types, how many steps each has made, the
               numbers of parameter groups, and which shards there are. Without it the rest is nothing.
    index      one a shard, written by the rank that has it: its blocks, and which range of which parameter lies where.

A block is arrays of fp32, one behind the other, as a chunk is. "parameter" is a parameter's own values: those of its
master, where it has one. Ranges are given in elements, so a snapshot can be cut anew by whoever loads it.
"""
from __future__ import annotations

import json
from typing import Any, Dict, Iterable, List, NamedTuple, Sequence, Tuple

FORMAT = 1
KIND = "spillway.torch.OffloadAdamW"
STATES = ("exp_avg", "exp_avg_sq")
PARAMETER = "parameter"
NUMBERS = ("lr", "betas", "eps", "weight_decay")

Document = Dict[str, Any]


class Run(NamedTuple):
    """Elements of a parameter that lie in a block. at: where the first is in each of its arrays."""

    parameter: int
    first: int
    n: int
    at: int


class Block(NamedTuple):
    """One block of a shard."""

    arrays: Tuple[str, ...]
    elements: int  # of each array
    runs: List[Run]

    @property
    def nbytes(self) -> int:
        """Its size."""
        return 4 * len(self.arrays) * self.elements


class Place(NamedTuple):
    """Where elements of one array of a parameter are. offset: of the first, in bytes of the block."""

    first: int
    n: int
    rank: int
    block: int
    offset: int


def encode(document: Document) -> bytes:
    """A document's bytes."""
    return json.dumps(document, separators=(",", ":"), ensure_ascii=True).encode("ascii")


def index_of(blocks: Sequence[Block]) -> Document:
    """The index of a shard."""
    return {
        "format": FORMAT,
        "blocks": [{"arrays": b.arrays, "elements": b.elements, "runs": [list(run) for run in b.runs]} for b in blocks],
    }


def blocks_of(index: Document) -> List[Block]:
    """What index_of() was given."""
    check_format(index)
    return [Block(tuple(b["arrays"]), b["elements"], [Run(*run) for run in b["runs"]]) for b in index["blocks"]]


def check_format(document: Document) -> None:
    """ValueError if it is of another version."""
    if document.get("format") != FORMAT:
        raise ValueError(f"the snapshot has format {document.get('format')}; this version reads format {FORMAT}")


class Map:
    """Of all shards: where each array of each parameter is."""

    def __init__(self) -> None:
        self._places: Dict[Tuple[int, str], List[Place]] = {}

    def add(self, rank: int, blocks: Iterable[Block]) -> None:
        """A shard's blocks."""
        for number, block in enumerate(blocks):
            for run in block.runs:
                for i, array in enumerate(block.arrays):
                    place = Place(run.first, run.n, rank, number, 4 * (i * block.elements + run.at))
                    self._places.setdefault((run.parameter, array), []).append(place)

    def has(self, parameter: int, array: str) -> bool:
        """Is there anything of it?"""
        return (parameter, array) in self._places

    def find(self, parameter: int, array: str, first: int, n: int) -> List[Place]:
        """The places of a range, cut to it, in order. ValueError: a part of it is nowhere."""
        found = []
        for place in sorted(self._places.get((parameter, array), [])):
            begin, end = max(place.first, first), min(place.first + place.n, first + n)
            if begin < end:
                offset = place.offset + 4 * (begin - place.first)
                found.append(place._replace(first=begin, n=end - begin, offset=offset))
        at = first
        for place in found:
            if place.first != at:
                break
            at += place.n
        if at != first + n:
            raise ValueError(f"the snapshot has no {array} of elements {at} on of parameter {parameter}")
        return found


def without_names(params: Any) -> Tuple[List[Any], List[str]]:
    """What torch.optim.Optimizer takes, in each of its forms, without names; and the names, or numbers, in order."""
    groups = list(params)
    names: List[str] = []

    def bare(found: Any) -> List[Any]:
        plain = []
        for each in [found] if hasattr(found, "grad_fn") else found:
            name, p = each if isinstance(each, tuple) else (str(len(names)), each)
            names.append(name)
            plain.append(p)
        return plain

    if groups and isinstance(groups[0], dict):
        groups = [{**group, "params": bare(group["params"])} for group in groups]
    else:
        groups = bare(groups)
    if len(set(names)) != len(names):
        raise ValueError("two parameters have the same name")
    return groups, names


def check_parameters(saved: Sequence[Document], wanted: Sequence[Document]) -> List[int]:
    """Of each wanted parameter its number among the saved ones. ValueError says what does not fit."""
    number = {p["name"]: i for i, p in enumerate(saved)}
    names = {p["name"] for p in wanted}
    missing = [p["name"] for p in wanted if p["name"] not in number]
    unknown = [p["name"] for p in saved if p["name"] not in names]
    if missing or unknown:
        found = [f"has no {_some(missing)}"] * bool(missing) + [f"has {_some(unknown)}, too"] * bool(unknown)
        raise ValueError(f"the snapshot is of other parameters: it {' and '.join(found)}")
    for p in wanted:
        other = saved[number[p["name"]]]
        for what in ("shape", "dtype", "group"):
            if list_of(p[what]) != list_of(other[what]):
                raise ValueError(f"parameter {p['name']!r} has {what} {p[what]}, in the snapshot {other[what]}")
    return [number[p["name"]] for p in wanted]


def list_of(value: Any) -> Any:
    """As JSON has it."""
    return list(value) if isinstance(value, (list, tuple)) else value


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:3])
    return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")
