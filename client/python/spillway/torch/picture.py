# SPDX-License-Identifier: Apache-2.0
"""A timeline as a picture: memory by tier, what devices read and write, and a lane for each thread. By matplotlib."""
from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, List, NamedTuple, Union

from .timeline import LINK, WHOLE, Event

if TYPE_CHECKING:
    from .timeline import Timeline

# Okabe's and Ito's colours: told apart by all eyes, and by their lightness where there is no colour.
COLOURS = {
    "read": "#0072b2",
    "gradients": "#56b4e9",
    "step": "#e69f00",
    "parameters": "#d55e00",
    "release": "#009e73",
    "snapshot copy": "#cc79a7",
    "snapshot commit": "#8f4a70",
    "wait": "#d9d9d9",
    "other": "#999999",
    WHOLE: "#f2f2f2",
}
_DARK = ("read", "parameters", "release", "snapshot commit")
_TIERS = (("DRAM", "dram_used", "#a6cee3"), ("CXL", "cxl_used", "#f0e442"), ("NVMe", "nvme_used", "#cfcfcf"),
          ("GPU (staging)", "gpu_used", "#b2df8a"))  # fmt: skip
_LANES = {LINK: "link: gradients", "spillway-reader": "reader", "spillway-writer": "writer", "MainThread": "step()",
          "spillway-overlap": "overlap", "spillway-copier": "copier", "spillway-committer": "committer"}  # fmt: skip
_TEXT_SHARE = 0.018  # of the width, that a group's number needs
_SEEN_SHARE = 0.004  # what is shorter is a hair


class _Scale(NamedTuple):
    unit: str
    one: float


def draw(timeline: "Timeline", path: Union[str, "os.PathLike[str]"]) -> None:
    """Writes the picture."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Timeline.picture() needs matplotlib (Debian's python3-matplotlib)") from error
    threads = timeline.threads
    has_device = any(sample.stat.nvme_budget for sample in timeline.samples)
    heights = {"memory": 2.6, **({"devices": 1.3} if has_device else {}), "lanes": 0.4 + 0.42 * len(threads)}
    figure = Figure(figsize=(11, 1.2 + 1.1 * sum(heights.values())), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(heights), 1, sharex=True, gridspec_kw={"height_ratios": list(heights.values())})
    _draw_memory(panels[0], timeline)
    if has_device:
        _draw_devices(panels[1], timeline)
    _draw_lanes(panels[-1], timeline, threads)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlim(0, 1e3 * max([s.time for s in timeline.samples] + [event.end for event in timeline.events]))
    figure.align_ylabels(panels[:-1])
    figure.savefig(path, format="png")


def _scale(most: float) -> _Scale:
    return _Scale("GiB", 1 << 30) if most >= 2 << 30 else _Scale("MiB", 1 << 20)


def _draw_memory(axes: Any, timeline: "Timeline") -> None:
    times = [1e3 * sample.time for sample in timeline.samples]
    tiers = [(name, [getattr(s.stat, field) for s in timeline.samples], colour) for name, field, colour in _TIERS]
    tiers = [tier for tier in tiers if max(tier[1]) > 0]
    unit, one = _scale(max((max(values) for _, values, _ in tiers), default=0))
    below = [0.0] * len(times)
    for name, values, colour in tiers:
        above = [b + value / one for b, value in zip(below, values)]
        axes.fill_between(times, below, above, color=colour, linewidth=0, label=name)
        axes.plot(times, above, color="white", linewidth=0.8)
        below = above
    axes.plot(times, [s.stat.leased / one for s in timeline.samples], color="black", linewidth=1.3, label="leased")
    dirty = [s.stat.dirty / one for s in timeline.samples]
    axes.plot(times, dirty, color="#d55e00", linewidth=1.3, linestyle=(0, (4, 2)), label="not written yet")
    axes.set_ylim(0, 1.08 * max(max(below), 1e-9))
    axes.set_ylabel(f"bytes [{unit}]")
    axes.set_title(f"Pool “{timeline.pool}”: bytes by tier, stacked", loc="left", fontsize=11)
    _legend(axes)


def _draw_devices(axes: Any, timeline: "Timeline") -> None:
    rates = timeline.rates()
    times = [1e3 * rate.begin for rate in rates] + [1e3 * rate.end for rate in rates[-1:]]
    for name, values, colour, style in (
        ("read", [rate.read for rate in rates], COLOURS["read"], "-"),
        ("written", [rate.written for rate in rates], COLOURS["parameters"], (0, (4, 2))),
    ):
        values = [value / 1e9 for value in values + values[-1:]]
        axes.step(times, values, where="post", color=colour, linestyle=style, linewidth=1.3, label=name)
    axes.set_ylim(0, 1.08 * max([rate.read for rate in rates] + [rate.written for rate in rates] + [1e6]) / 1e9)
    axes.set_ylabel("rate [GB/s]")
    axes.set_title("Devices", loc="left", fontsize=11)
    _legend(axes)


def _draw_lanes(axes: Any, timeline: "Timeline", threads: List[str]) -> None:
    from matplotlib.patches import Patch

    events = timeline.events
    width = max((event.end for event in events), default=1.0)
    for event in events:
        row, colour = threads.index(event.thread), COLOURS[_kind(event)]
        height = 0.9 if event.name == WHOLE else 0.66
        axes.broken_barh(
            [(1e3 * event.begin, 1e3 * event.seconds)], (row - height / 2, height),
            facecolor=colour, edgecolor="white", linewidth=0.5 if event.seconds > _SEEN_SHARE * width else 0,
        )  # fmt: skip
        if event.group is not None and not _waits(event) and event.seconds > _TEXT_SHARE * width:
            at = 1e3 * (event.begin + event.seconds / 2)
            text = "white" if event.name in _DARK else "black"
            axes.text(at, row, str(event.group), ha="center", va="center", fontsize=8, color=text)
    seen = {_kind(event) for event in events if event.seconds > _SEEN_SHARE * width}
    handles = [Patch(facecolor=colour, label=kind) for kind, colour in COLOURS.items() if kind in seen - {WHOLE}]
    axes.set_yticks(range(len(threads)), [_lane(thread) for thread in threads])
    axes.set_ylim(len(threads) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("time [ms]")
    axes.set_title("Threads; the numbers are those of groups", loc="left", fontsize=11)
    _legend(axes, handles)


def _waits(event: Event) -> bool:
    return event.name.startswith("wait")


def _kind(event: Event) -> str:
    if _waits(event):
        return "wait"
    return event.name if event.name in COLOURS else "other"


def _lane(thread: str) -> str:
    return next((lane for name, lane in _LANES.items() if thread.startswith(name)), thread)


def _legend(axes: Any, handles: Any = None) -> None:
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.005, 1.03), frameon=False, fontsize=9)
