#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Counts what ctest wrote as JUnit XML.

A test that exits 77 and says why ("SKIP: reason") is skipped; one that does not say why has failed. A test that ran, but had to leave out cases for lack of hardware, prints a line
"SKIP: reason" for each: those are counted as skipped as well, beside the test itself. A test that could not be started
is a failure. Prints what failed and what was skipped, and on the last line "passed failed skipped".
"""
import re
import sys
import xml.etree.ElementTree as ElementTree

SKIP_LINE = re.compile(r"^SKIP: *(.*)$", re.MULTILINE)


def tally(path):
    """Returns (lines to print, passed, failed, skipped)."""
    lines, passed, failed, skipped = [], 0, 0, 0
    for case in ElementTree.parse(path).getroot().iter("testcase"):
        name, status = case.get("name"), case.get("status")
        reasons = SKIP_LINE.findall(case.findtext("system-out") or "")
        note = case.find("skipped")
        message = note.get("message", "") if note is not None else ""
        if status == "run":
            passed += 1
            skipped += len(reasons)
            lines += [f"skipped in {name}: {reason}" for reason in reasons]
        elif status == "notrun" and message.startswith("SKIP_") and reasons:
            skipped += 1
            lines.append(f"skipped {name}: {'; '.join(reasons)}")
        elif status == "notrun" and message.startswith("SKIP_"):
            failed += 1
            lines.append(f"FAILED {name}: it exits as if it was skipped, and does not say why")
        else:
            failed += 1
            lines.append(f"FAILED {name}" + (f": {message}" if message else ""))
    return lines, passed, failed, skipped


def main():
    try:
        lines, *counts = tally(sys.argv[1])
    except (OSError, ElementTree.ParseError) as error:
        print(f"tally: {error}", file=sys.stderr)
        return 1
    print("\n".join(lines + [" ".join(map(str, counts))]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
