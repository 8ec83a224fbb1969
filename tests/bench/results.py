#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What becomes of the benchmarks' figures: tables, a reference, and a guard against getting worse.

    results.py machine                                  describes this machine, as JSON
    results.py guard REFERENCE FOLDER [TOLERANCE]       compares FOLDER/*.json with the reference
    results.py tables FOLDER FILE.md                    writes the tables between FILE.md's markers
    results.py reference FOLDER REFERENCE               makes what was measured the reference
    results.py join FILE...                             prints one list of the figures of several runs of a benchmark

FOLDER holds machine.json and, for each benchmark, NAME.json: the list that `spillbench NAME -o json` prints.

The guard compares ratios to what was measured beside, never times: another machine, or a busier one, is slower on both
sides. A figure got worse if all of its 95 % interval lies beyond the reference by more than the tolerance. What was
counted, not measured, got worse if it held and holds no more. Status: 0 no worse, 1 worse, 2 nothing to compare with.
"""
import datetime
import json
import os
import pathlib
import platform
import subprocess
import sys

TOLERANCE = 0.15
COMMANDS = {  # where it is not just the name
    "mix": "spillbench mix --figures -o json",
    "step_peers": "tests/bench/train/step_peers.py --spillbench spillbench --steps 4 --seconds 4 --json {}.json",
}


# ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def read_folder(folder):
    """Returns {benchmark: figures}, and the machine."""
    files = sorted(pathlib.Path(folder).glob("*.json"))
    found = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}
    machine = found.pop("machine", {})
    return found, machine


def less_is_better(figure):
    """True, False, or None where the figure has no goal to tell."""
    goal_of = figure.get("goal_of")
    return None if goal_of is None else goal_of.endswith("≤")


def ratio_interval(figure):
    """The ends of the ratio's interval; of a figure whose interval is its value's, in the same proportion."""
    low, high = figure["interval"] or (figure["ratio"],) * 2
    if figure["goal_of"].startswith("value") and figure["interval"]:
        if not figure["value"]:
            return figure["ratio"], figure["ratio"]
        return low / figure["value"] * figure["ratio"], high / figure["value"] * figure["ratio"]
    return low, high


# ── the guard ───────────────────────────────────────────────────────────────────────────────────────────────────────


def compare(before, now, tolerance):
    """Returns "worse", "maybe", "better", "same" or None (nothing to compare), and a text."""
    less = less_is_better(now)
    if less is None:
        return None, ""
    if now["samples"] == 0 and before["samples"] == 0:
        worse = before["holds"] is True and now["holds"] is not True
        return ("worse" if worse else "same"), f"{before['value']:g} → {now['value']:g} {now['unit']}"
    if not before["ratio"] or not now["ratio"]:
        return None, ""
    ends = [end / before["ratio"] if less else before["ratio"] / end for end in ratio_interval(now) if end > 0]
    middle = now["ratio"] / before["ratio"] if less else before["ratio"] / now["ratio"]
    text = f"{before['ratio']:.3g}× → {now['ratio']:.3g}× ({(middle - 1) * 100:+.0f} % worse)"
    if ends and min(ends) > 1 + tolerance:
        return "worse", text
    if middle > 1 + tolerance:
        return "maybe", text
    return ("better" if ends and max(ends) < 1 - tolerance else "same"), text


def guard(reference, found, tolerance):
    """Returns the lines to print, and whether something got worse."""
    lines, counts = [], {"worse": 0, "maybe": 0, "better": 0, "same": 0}
    missing = 0
    words = {"worse": "WORSE ", "maybe": "noisy ", "better": "better"}
    for benchmark, figures in found.items():
        now = {figure["name"]: figure for figure in figures}
        for before in reference.get(benchmark, []):
            if before["name"] not in now:
                missing += 1
                continue
            verdict, text = compare(before, now[before["name"]], tolerance)
            if verdict is None:
                continue
            counts[verdict] += 1
            if verdict in words:
                lines.append(f"{words[verdict]}  {benchmark}: {before['name']}: {text}")
    lines.append(
        f"compared with the reference: {counts['worse']} worse, {counts['maybe']} too noisy to say, "
        f"{counts['better']} better, {counts['same']} the same, {missing} not measured this time"
    )
    return lines, counts["worse"] > 0


# ── tables ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def number(value):
    if value is None:
        return "–"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def goal_text(figure):
    if figure["goal"] is None:
        return "–", "–"
    of, sign = figure["goal_of"].split()
    goal = f"{sign} {number(figure['goal'])}" + ("×" if of == "ratio" else "")
    holds = {True: "holds", False: "**missed**", "noisy": "noisy"}[figure["holds"]]
    return goal, holds


def table(figures):
    rows = ["| figure | value | beside | ratio | 95 % interval | samples | goal | |", "| --- " * 8 + "|"]
    for figure in figures:
        beside = "–" if figure["beside"] is None else f"{figure['beside']}: {number(figure['beside_value'])}"
        ratio = "–" if figure["ratio"] is None else f"{figure['ratio']:.2f}×"
        ends = figure["interval"]
        interval = "–" if ends is None else f"{number(ends[0])} to {number(ends[1])}"
        value = f"{number(figure['value'])} {figure['unit']}".rstrip()
        rows.append(
            f"| {figure['name']} | {value} | {beside} | {ratio} | {interval} | {figure['samples'] or '–'} | "
            + " | ".join(goal_text(figure))
            + " |"
        )
    return "\n".join(rows)


def section(benchmark, figures, machine):
    command = COMMANDS.get(benchmark, f"spillbench {benchmark} -o json")
    known = {key: machine.get(key, "?") for key in ("cpu", "cpus", "memory", "kernel", "date", "commit")}
    gpu = machine.get("gpu", "?")
    return (
        ("" if gpu == "?" or benchmark != "gpu" else f"{gpu}, ")
        + "{cpu}, {cpus} CPUs, {memory}, Linux {kernel}; {date}, {commit}; ".format(**known)
        + f"`{command}` → `{benchmark}.json`\n\n"
        + table(figures)
    )


def tables_write(text, found, machine):
    """Replaces what lies between <!-- NAME --> and <!-- /NAME -->; what has no markers is added at the end."""
    for benchmark, figures in found.items():
        begin, end = f"<!-- {benchmark} -->", f"<!-- /{benchmark} -->"
        body = f"{begin}\n{section(benchmark, figures, machine)}\n{end}"
        if begin in text and end in text:
            text = text[: text.index(begin)] + body + text[text.index(end) + len(end) :]
        else:
            text = text.rstrip("\n") + f"\n\n## {benchmark}\n\n{body}\n"
    return text


# ── the machine ─────────────────────────────────────────────────────────────────────────────────────────────────────


def first_line(path, start):
    with open(path, encoding="utf-8") as file:
        return next((line.split(":", 1)[1].strip() for line in file if line.startswith(start)), "?")


def output_of(*command):
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "?"


def machine_describe():
    memory_kib = int(first_line("/proc/meminfo", "MemTotal").split()[0])
    return {
        "cpu": first_line("/proc/cpuinfo", "model name"),
        "cpus": len(os.sched_getaffinity(0)),
        "memory": f"{memory_kib / 2**20:.0f} GiB",
        "kernel": platform.release(),
        "date": datetime.date.today().isoformat(),
        "commit": os.environ.get("SPILLWAY_COMMIT") or output_of("git", "describe", "--always", "--dirty"),
        "fio": output_of("fio", "--version"),
        "gpu": output_of("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"),
    }


def join(files):
    """What was measured row by row, as if it were one run's."""
    return [figure for file in files for figure in json.loads(pathlib.Path(file).read_text(encoding="utf-8"))]


# ── main ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def main(argv):
    if argv[1:] == ["machine"]:
        print(json.dumps(machine_describe(), indent=1, ensure_ascii=False))
        return 0
    if len(argv) in (4, 5) and argv[1] == "guard":
        reference = pathlib.Path(argv[2])
        if not reference.exists():
            print(f"there is no {reference} to compare with")
            return 2
        found, _ = read_folder(argv[3])
        tolerance = float(argv[4]) if len(argv) == 5 else TOLERANCE
        lines, worse = guard(json.loads(reference.read_text(encoding="utf-8"))["benchmarks"], found, tolerance)
        print("\n".join(lines))
        return 1 if worse else 0
    if len(argv) == 4 and argv[1] == "tables":
        found, machine = read_folder(argv[2])
        file = pathlib.Path(argv[3])
        file.write_text(tables_write(file.read_text(encoding="utf-8"), found, machine), encoding="utf-8")
        return 0
    if len(argv) == 4 and argv[1] == "reference":
        found, machine = read_folder(argv[2])
        file = pathlib.Path(argv[3])
        kept = json.loads(file.read_text(encoding="utf-8"))["benchmarks"] if file.exists() else {}
        text = json.dumps({"machine": machine, "benchmarks": {**kept, **found}}, indent=1, ensure_ascii=False)
        file.write_text(text + "\n", encoding="utf-8")
        return 0
    if len(argv) > 2 and argv[1] == "join":
        print(json.dumps(join(argv[2:]), indent=1, ensure_ascii=False))
        return 0
    print(__doc__, file=sys.stderr)
    return 64


if __name__ == "__main__":
    sys.exit(main(sys.argv))
