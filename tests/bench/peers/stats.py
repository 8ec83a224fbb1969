# SPDX-License-Identifier: Apache-2.0
"""What a row of samples says. The same rules as spillbench's (client/bench/pairs.c): medians, an interval that holds
the true median in 95 of 100 cases whatever the samples' distribution, and a verdict that needs the whole interval."""

import math
import statistics
from dataclasses import dataclass

SAMPLES_MIN = 6  # of five, even the least and the largest enclose the median in 93.75 % of cases only
MISS = 0.05  # both sides together


def rank(n):
    """The interval lies between the k-th smallest and the k-th largest of n samples; 0: n is too few for one."""
    below, k = 0.0, 0
    while 2 * (below + math.comb(n, k) / 2**n) <= MISS:
        below += math.comb(n, k) / 2**n
        k += 1
    return k


@dataclass(frozen=True)
class Estimate:
    median: float
    low: float
    high: float
    n: int


def estimate(samples):
    ordered = sorted(samples)
    k = max(rank(len(ordered)), 1)
    return Estimate(statistics.median(ordered), ordered[k - 1], ordered[-k], len(ordered))


def paired(ours, theirs):
    """Of the ratios of pairs that were measured one after the other."""
    return estimate([a / b for a, b in zip(ours, theirs, strict=True)])


def verdict(of, kind, goal):
    """True or False if the whole interval says so, else "noisy". kind: "at least" or "at most"."""

    def meets(x):
        return x >= goal if kind == "at least" else x <= goal

    if of.n < SAMPLES_MIN or meets(of.low) != meets(of.high):
        return "noisy"
    return meets(of.low)
