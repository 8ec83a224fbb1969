#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Is a file a list of a benchmark's figures, and are these among them?

figures.py FILE BENCHMARK FIGURE...
"""
import json
import sys

KEYS = {"name", "value", "unit", "beside", "beside_value", "ratio", "goal", "holds", "goal_of", "interval", "samples"}
NUMBER = (int, float)


def main(path, benchmark, *wanted):
    def check(truth, figure, what):
        if not truth:
            sys.exit(f"FAILED: spillbench {benchmark}: {what}: {figure}")

    with open(path, encoding="utf-8") as file:
        figures = json.load(file)
    check(isinstance(figures, list) and figures, figures, "no list")
    for f in figures:
        check(set(f) == KEYS, f, "not the members of a figure")
        check(isinstance(f["name"], str) and isinstance(f["unit"], str), f, "name or unit")
        check(isinstance(f["value"], NUMBER), f, "no value")
        check((f["beside"] is None) == (f["beside_value"] is None), f, "half a neighbour")
        check(f["beside"] is None or isinstance(f["ratio"], NUMBER), f, "no ratio")
        check((f["goal"] is None) == (f["holds"] is None) == (f["goal_of"] is None), f, "half a goal")
        check(f["holds"] in (None, True, False, "noisy"), f, "holds what?")
        check((f["samples"] == 0) == (f["interval"] is None), f, "samples without an interval, or the other way round")
        if f["samples"]:
            check(f["samples"] >= 6 and f["interval"][0] <= f["interval"][1], f, "too few samples, or an interval upside down")
    names = [f["name"] for f in figures]
    check(len(set(names)) == len(names), names, "two of one name")
    for name in wanted:
        check(name in names, names, f"'{name}' is missing")


if __name__ == "__main__":
    main(*sys.argv[1:])
