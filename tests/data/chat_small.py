#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes chat_small.jsonl, and the hits that test_policy_small.c expects on it.

    chat_small.py trace > chat_small.jsonl
    chat_small.py hits FILE [SHARE...]

The trace has the shape of multi-turn chat in the format of Mooncake's published traces: a request a line, `hash_ids` is
the chain of its prefix's blocks. Conversations come and go; each starts with one of a few system prompts, or with the
block that all share, and every turn repeats the chain so far and adds some blocks. Short ones are common, a few go on for
long, some are never continued. The generator is a 64-bit LCG (Knuth's constants, the upper 32 bits), seed 20250219, so the
file is the same everywhere.

The models below are written for being plainly right, not fast: lists, and nothing shared with the C code.
"""
import json
import sys


class Random:
    def __init__(self, seed):
        self.x = seed

    def below(self, n):
        self.x = (self.x * 6364136223846793005 + 1442695040888963407) % 2**64
        return (self.x >> 32) % n


def trace(requests=1200):
    rnd = Random(20250219)
    fresh = [1]  # block 0 begins everything

    def new(n):
        ids = list(range(fresh[0], fresh[0] + n))
        fresh[0] += n
        return ids

    prompts = [[0] + new(n) for n in (0, 0, 2, 5)]
    alive = []
    for _ in range(requests):
        if alive and rnd.below(100) < 55:
            # Recent conversations are the likelier to go on.
            at = len(alive) - 1 - min(rnd.below(len(alive)), rnd.below(len(alive)), rnd.below(len(alive)))
            chain = alive.pop(at)
            chain = chain + new(1 + rnd.below(3))
        else:
            chain = prompts[rnd.below(len(prompts))] + new(1 + rnd.below(9))
        yield chain
        if rnd.below(100) < 70 and len(chain) < 40:
            alive.append(chain)
            if len(alive) > 150:
                alive.pop(0)


def lru(refs, c):
    queue, hits = [], 0
    for h in refs:
        if h in queue:
            hits += 1
            queue.remove(h)
        elif len(queue) == c:
            queue.pop(0)
        queue.append(h)
    return hits


def s3_fifo(refs, c):
    small_share = max(1, c // 10)
    main_share = c - small_share
    small, main, ghosts, count, hits = [], [], [], {}, 0

    def evict_main():
        while main:
            h = main.pop(0)
            if count[h] == 0:
                return
            count[h] -= 1
            main.append(h)

    def evict_small():
        while small:
            h = small.pop(0)
            if count[h] <= 1:
                ghosts.append(h)
                if len(ghosts) > main_share:
                    ghosts.pop(0)
                return
            main.append(h)
            count[h] = 0
            if len(main) > main_share:
                return evict_main()

    for h in refs:
        if h in small or h in main:
            hits += 1
            count[h] = min(3, count[h] + 1)
            continue
        while len(small) + len(main) >= c:
            if len(small) >= small_share:
                evict_small()
            else:
                evict_main()
        count[h] = 0
        if h in ghosts:
            ghosts.remove(h)
            main.append(h)
        else:
            small.append(h)
    return hits


def arc(refs, c):
    """As in the paper's figure 4."""
    t1, t2, b1, b2, p, hits = [], [], [], [], 0, 0

    def replace(h):
        if t1 and (len(t1) > p or (h in b2 and len(t1) == p)):
            b1.append(t1.pop(0))
        else:
            b2.append(t2.pop(0))

    for h in refs:
        if h in t1 or h in t2:
            hits += 1
            (t1 if h in t1 else t2).remove(h)
            t2.append(h)
        elif h in b1:
            p = min(c, p + max(1, len(b2) // len(b1)))
            replace(h)
            b1.remove(h)
            t2.append(h)
        elif h in b2:
            p = max(0, p - max(1, len(b1) // len(b2)))
            replace(h)
            b2.remove(h)
            t2.append(h)
        else:
            if len(t1) + len(b1) == c:
                if len(t1) < c:
                    b1.pop(0)
                    replace(h)
                else:
                    t1.pop(0)
            elif len(t1) + len(t2) + len(b1) + len(b2) >= c:
                if len(t1) + len(t2) + len(b1) + len(b2) == 2 * c:
                    b2.pop(0)
                replace(h)
            t1.append(h)
    return hits


def main(args):
    if args[:1] == ["trace"]:
        for chain in trace():
            print(json.dumps({"hash_ids": chain}, separators=(",", ":")))
        return 0
    if len(args) >= 2 and args[0] == "hits":
        with open(args[1], encoding="ascii") as f:
            refs = [h for line in f for h in json.loads(line)["hash_ids"]]
        distinct = len(set(refs))
        print(f"{len(refs)} references, {distinct} distinct")
        for permille in map(int, args[2:] or ["5", "20", "50", "100", "300"]):
            c = distinct * permille // 1000
            print(f"{{{permille}, {c}, {lru(refs, c)}, {s3_fifo(refs, c)}, {arc(refs, c)}}},")
        return 0
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
