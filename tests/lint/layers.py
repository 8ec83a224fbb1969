#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Checks who includes whom against tests/lint/layers.conf, which explains its own language.

Fails on: an include that no rule allows; a header outside the files that own it; a cycle of headers; a quoted include
that is no path from the root, or an angled one that is ours; a C file or header that no rule covers; a header that
nobody includes. An installed header names its siblings without a path, as it must where it is installed: "abi.h".
With --allow-unused the last is forgiven: for a tree whose users of a header are still being written.
"""
import argparse
import fnmatch
import os
import pathlib
import re
import sys

SUFFIXES = {".c", ".h", ".cu", ".inc"}
SKIPPED_FOLDERS = {"build", "__pycache__"}
COMMENT = re.compile(r'/\*.*?\*/|//[^\n]*|("(?:\\.|[^"\\\n])*")', re.DOTALL)
INCLUDE = re.compile(r'^[ \t]*#[ \t]*include(?:_next)?\b[ \t]*(?:<([^>\n]+)>|"([^"\n]+)"|(.*))$', re.MULTILINE)


class ConfError(Exception):
    pass


class Rules:
    def __init__(self, text):
        self.allow = []  # (file patterns, header patterns)
        self.only = []  # (header patterns, file patterns)
        self.installed = []
        for number, line in enumerate(text.splitlines(), 1):
            words = line.split("#", 1)[0].replace(":", " : ").split()
            if not words:
                continue
            if words[0] == "installed" and len(words) > 1 and ":" not in words:
                self.installed += words[1:]
            elif words[0] in ("allow", "only") and words.count(":") == 1:
                colon = words.index(":")
                left, right = words[1:colon], words[colon + 1 :]
                if not left or not right:
                    raise ConfError(f"line {number}: something is missing beside the colon")
                (self.allow if words[0] == "allow" else self.only).append((left, right))
            else:
                raise ConfError(f"line {number}: neither `allow … : …`, `only … : …` nor `installed …`: {line.strip()}")


def matches(path, patterns):
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)


def find_files(root):
    files = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in SKIPPED_FOLDERS and not name.startswith(".")]
        files += [pathlib.Path(folder, name) for name in names if pathlib.Path(name).suffix in SUFFIXES]
    return sorted(path.relative_to(root).as_posix() for path in files)


def read_includes(path):
    """Yields (line number, text between the marks, is it quoted); the text is None for `#include MACRO`."""
    text = path.read_text(encoding="utf-8", errors="replace")
    # Comments become blanks of the same number of lines; strings stay, an include is one.
    text = COMMENT.sub(lambda m: m.group(1) or "\n" * m.group(0).count("\n"), text)
    for found in INCLUDE.finditer(text):
        angled, quoted, _ = found.groups()
        yield text.count("\n", 0, found.start()) + 1, quoted or angled, quoted is not None


def check_include(rules, files, allowed, file, include, quoted):
    """Returns what is wrong with one include, or None."""
    for headers, owners in rules.only:
        if matches(include, headers) and not matches(file, owners):
            return f"{include} is for {' '.join(owners)} alone"
    if not quoted:
        return f"<{include}> is ours: use quotes" if include in files else None
    if include not in files:
        if matches(file, rules.installed):
            return f"includes {include}: an installed header names its siblings alone"
        return f'"{include}" is no path from the root of the repository'
    own_header = file.endswith(".c") and include == file[:-2] + ".h"
    if not own_header and not matches(include, allowed):
        return f"may not include {include} (may: {' '.join(allowed)})"
    return None


def find_cycle(graph):
    """Returns the headers of one cycle, the first repeated at the end, or None. Depth first, without recursion."""
    done = set()
    for start in graph:
        if start in done:
            continue
        path, pending = [start], [iter(graph[start])]
        while path:
            following = next(pending[-1], None)
            if following is None:
                done.add(path.pop())
                pending.pop()
            elif following in path:
                return path[path.index(following) :] + [following]
            elif following not in done:
                path.append(following)
                pending.append(iter(graph.get(following, ())))
    return None


def check(root, rules, allow_unused=False):
    """Returns a list of complaints; empty if the tree keeps to the rules."""
    complaints, graph, used = [], {}, set()
    files = find_files(root)
    known = set(files)
    for file in files:
        allowed = next((headers for patterns, headers in rules.allow if matches(file, patterns)), None)
        if allowed is None:
            complaints.append(f"{file}: no rule covers it")
            continue
        graph[file] = []
        for line, include, quoted in read_includes(root / file):
            if include is None:
                complaints.append(f"{file}:{line}: an include by macro cannot be checked")
                continue
            if quoted and matches(file, rules.installed):
                sibling = f"{file.rpartition('/')[0]}/{include}"
                include = sibling if sibling in known else f"{include} (not beside it)"
            wrong = check_include(rules, known, allowed, file, include, quoted)
            if wrong:
                complaints.append(f"{file}:{line}: {wrong}")
            if include in known and include != file:
                used.add(include)
            if include in known:
                graph[file].append(include)
    cycle = find_cycle(graph)
    if cycle:
        complaints.append(f"cycle: {' → '.join(cycle)}")
    if not allow_unused:
        unused = (file for file in files if file.endswith(".h") and file not in used)
        complaints += [f"{file}: nobody includes it" for file in unused if not matches(file, rules.installed)]
    return complaints


def main():
    here = pathlib.Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=pathlib.Path, default=here.parent.parent)
    parser.add_argument("--conf", type=pathlib.Path, default=here / "layers.conf")
    parser.add_argument("--allow-unused", action="store_true", help="forgive headers that nobody includes")
    args = parser.parse_args()
    try:
        rules = Rules(args.conf.read_text(encoding="utf-8"))
    except ConfError as error:
        print(f"{args.conf}: {error}", file=sys.stderr)
        return 2
    complaints = check(args.root, rules, args.allow_unused)
    for complaint in complaints:
        print(complaint)
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
