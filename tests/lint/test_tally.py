#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""tally.py tells passed, failed, skipped and never started apart, as ctest 3.25 writes them."""
import pathlib
import tempfile
import unittest

import tally

JUNIT = """<?xml version="1.0" encoding="UTF-8"?>
<testsuite name="x" tests="6">
  <testcase name="good" status="run"><system-out>SKIP: no second NUMA node
well, the rest went fine
SKIP: no hugepages
</system-out></testcase>
  <testcase name="quiet" status="run"/>
  <testcase name="bad" status="fail"><failure message="Failed"/><system-out>SKIP: not counted</system-out></testcase>
  <testcase name="left out" status="notrun"><skipped message="SKIP_RETURN_CODE=77"/>
    <system-out>SKIP: no GPU</system-out></testcase>
  <testcase name="no word" status="notrun"><skipped message="SKIP_RETURN_CODE=77"/>
    <system-out>ERROR: libFuzzer: deadly signal</system-out></testcase>
  <testcase name="gone" status="notrun"><skipped message="Unable to find executable: gone"/></testcase>
</testsuite>
"""


class TallyTest(unittest.TestCase):
    def test_counts(self):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "junit.xml")
            path.write_text(JUNIT, encoding="utf-8")
            lines, passed, failed, skipped = tally.tally(path)
        self.assertEqual((passed, failed, skipped), (2, 3, 3))
        self.assertIn("skipped in good: no second NUMA node", lines)
        self.assertIn("skipped left out: no GPU", lines)
        self.assertIn("FAILED no word: it exits as if it was skipped, and does not say why", lines)
        self.assertIn("FAILED gone: Unable to find executable: gone", lines)


if __name__ == "__main__":
    unittest.main()
