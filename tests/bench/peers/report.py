# SPDX-License-Identifier: Apache-2.0
"""From the samples of contests to figures and tables. Pure.

A contest is {"peer", "size", "tier", "version", "tuning", "beside": {"version", "tuning"}, "rounds": {"spill": [pair…],
"fetch": [pair…]}}; a
pair is {"peer": round, "spillway": round}, and a round as harness.py reports it. Or it has an "error".

Goals (each for one size and direction):
  a peer that keeps objects on a disk   at most 1/1.5 of Spillway; but where the best of them passes 0.65 of fio, there
                                        is no room for that, and the goal is: fio at most 1/0.97 of Spillway
  a peer that has memory only           at most 1/1.5 of a Spillway whose memory tier holds the set
  CPU a GB, every peer                  no less than Spillway's, the checksums taken off that the peers lack
"""

import stats

KINDS = ("spill", "fetch")
CEILING, FLOOR = "fio", "memcpy"  # not peers
BEST_PART, CEILING_PART = 1 / 1.5, 1 / 0.97
CEILING_IS_NEAR = 0.65


def size_text(size):
    return f"{size >> 20}MiB" if size >= 1 << 20 else f"{size >> 10}KiB"


def gb_per_second(of):
    """What a device gave, where that is less: an object that was still in memory is no proof of speed."""
    return min(of["bytes"], of.get("device_bytes", of["bytes"])) / of["seconds"] / 1e9


def cpu_per_gb(of, less_s_per_gb=0.0):
    return max(of["cpu_seconds"] / (of["bytes"] / 1e9) - less_s_per_gb, 1e-6)


class Samples:
    """Of one contest in one direction."""

    def __init__(self, contest, kind, checksum_s_per_gb):
        pairs = contest["rounds"][kind]
        self.peer, self.tier, self.size, self.kind = contest["peer"], contest["tier"], contest["size"], kind
        self.theirs = [pair["peer"] for pair in pairs]
        self.ours = [pair["spillway"] for pair in pairs]
        self.less = checksum_s_per_gb if contest["tier"] == "disk" else 0.0  # in memory nothing is checksummed
        self.speed = stats.paired([gb_per_second(r) for r in self.theirs], [gb_per_second(r) for r in self.ours])
        self.cpu = stats.paired([cpu_per_gb(r) for r in self.theirs], [cpu_per_gb(r, self.less) for r in self.ours])

    @property
    def name(self):
        return f"peer/{self.peer}/{self.kind}/{size_text(self.size)}"

    def is_peer(self):
        return self.peer not in (CEILING, FLOOR)


def median(values):
    return stats.estimate(values).median


def figure(name, unit, value, beside, beside_value, of, goal=None, goal_kind=None):
    return {
        "name": name,
        "value": value,
        "unit": unit,
        "beside": beside,
        "beside_value": beside_value,
        "ratio": of.median,
        "goal": goal,
        "holds": None if goal is None else stats.verdict(of, goal_kind, goal),
        "goal_of": None if goal is None else "ratio ≥" if goal_kind == "at least" else "ratio ≤",
        "interval": [of.low, of.high],
        "samples": of.n,
    }


def ceiling_rules(all_samples):
    """{(kind, size)} in which the best peer on a disk is so near to fio that fio is the goal."""
    near = set()
    for ceiling in (s for s in all_samples if s.peer == CEILING):
        rivals = [
            s.speed.median
            for s in all_samples
            if s.is_peer() and s.tier == "disk" and (s.kind, s.size) == (ceiling.kind, ceiling.size)
        ]
        if rivals and max(rivals) > CEILING_IS_NEAR * ceiling.speed.median:
            near.add((ceiling.kind, ceiling.size))
    return near


def speed_goal(s, near):
    if s.peer == FLOOR:
        return None
    is_near = (s.kind, s.size) in near
    if s.peer == CEILING:
        return CEILING_PART if is_near else None
    return None if is_near and s.tier == "disk" else BEST_PART


def figures_of(s, near):
    ours = "spillway" if s.tier == "disk" else "spillway, in memory"
    rows = [
        figure(
            s.name,
            "GB/s",
            median(map(gb_per_second, s.theirs)),
            ours,
            median(map(gb_per_second, s.ours)),
            s.speed,
            speed_goal(s, near),
            "at most",
        )
    ]
    for part in ("p50", "p99"):
        theirs, own = ([r[f"{part}_us"] for r in side] for side in (s.theirs, s.ours))
        rows.append(figure(f"{s.name}/{part}", "µs", median(theirs), ours, median(own), stats.paired(theirs, own)))
    rows.append(
        figure(
            f"{s.name}/cpu",
            "s/GB",
            median(map(cpu_per_gb, s.theirs)),
            f"{ours} less XXH3" if s.less else ours,
            median([cpu_per_gb(r, s.less) for r in s.ours]),
            s.cpu,
            1.0 if s.is_peer() else None,
            "at least",
        )
    )
    return rows


def samples_of(contests, checksum_s_per_gb):
    return [
        Samples(contest, kind, checksum_s_per_gb) for contest in contests if "error" not in contest for kind in KINDS
    ]


def figures(contests, checksum_s_per_gb):
    samples = samples_of(contests, checksum_s_per_gb)
    near = ceiling_rules(samples)
    return [row for s in samples for row in figures_of(s, near)]


# ── tables ────────────────────────────────────────────────────────────────────────────────────────────────────────────

WORDS = {True: "holds", False: "MISSED", "noisy": "noisy", None: ""}


def row_text(rows):
    speed, p50, p99, cpu = rows
    ratio = f"{1 / speed['ratio']:.2f} [{1 / speed['interval'][1]:.2f}, {1 / speed['interval'][0]:.2f}]"
    cells = [
        speed["name"].split("/")[1],
        f"{speed['value']:.3f}",
        f"{p50['value']:.0f}",
        f"{p99['value']:.0f}",
        f"{cpu['value']:.3f}",
        f"{speed['beside_value']:.3f}",
        f"{p50['beside_value']:.0f}",
        f"{p99['beside_value']:.0f}",
        f"{cpu['beside_value']:.3f}",
        ratio,
        WORDS[speed["holds"]],
        WORDS[cpu["holds"]],
    ]
    return "| " + " | ".join(cells) + " |"


HEADINGS = (
    "| peer | GB/s | p50 µs | p99 µs | CPU s/GB | ours GB/s | p50 µs | p99 µs | CPU s/GB | ours / peer [95 %] | "
    "speed | CPU |\n" + "| --- |" + " ---: |" * 9 + " --- | --- |"
)


def tables(contests, checksum_s_per_gb):
    samples = samples_of(contests, checksum_s_per_gb)
    near, lines = ceiling_rules(samples), []
    for tier, title in (("disk", "on a disk"), ("memory", "in memory")):
        for size in sorted({s.size for s in samples if s.tier == tier}):
            for kind in KINDS:
                group = [s for s in samples if (s.tier, s.size, s.kind) == (tier, size, kind)]
                group.sort(key=lambda s: (s.is_peer(), -s.speed.median))
                rule = "goal: 0.97 of fio" if tier == "disk" and (kind, size) in near else "goal: 1.5 of the best"
                lines += ["", f"### {kind} {size_text(size)}, {title} ({rule})", "", HEADINGS]
                lines += [row_text(figures_of(s, near)) for s in group]
    lines += ["", "### How each was tuned", ""]
    seen = {}
    for contest in contests:
        if "error" in contest:
            lines.append(f"- {contest['peer']}, {size_text(contest['size'])}: cannot run: {contest['error']}")
        else:
            seen.setdefault(contest["peer"], f"- {contest['peer']} ({contest['version']}): {contest['tuning']}")
            seen.setdefault(
                f"spillway {contest['tier']}",
                f"- spillway beside {contest['tier']} ({contest['beside']['version']}): {contest['beside']['tuning']}",
            )
    lines += list(seen.values())
    lines.append(f"- XXH3-64 as Spillway computes it, measured apart: {checksum_s_per_gb:.3f} s/GB")
    return "\n".join(lines[1:]) + "\n"
