# SPDX-License-Identifier: Apache-2.0
"""The example of docs/python.md is what the page quotes, and runs as it stands, twice."""
import os
import re
import subprocess
import sys
import unittest

import support


class Example(unittest.TestCase):
    def test_quoted(self):
        page = (support.SOURCE / "docs/python.md").read_text(encoding="utf-8")
        quoted = re.search(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE).group(1)
        self.assertEqual(quoted, (support.SOURCE / "docs/example.py").read_text(encoding="utf-8"))
        self.assertLessEqual(quoted.count("\n"), 40)

    def test_runs(self):
        daemon = support.Daemon()
        self.addCleanup(daemon.stop)
        for _ in range(2):
            output = subprocess.run(
                [sys.executable, "-W", "error", support.SOURCE / "docs/example.py"],
                env=dict(os.environ, SPILLWAY_SOCKET=str(daemon.socket)), check=True, stdout=subprocess.PIPE, text=True,
            ).stdout
            self.assertEqual(output, "hello world\nelement 0: No such file or directory\n")


if __name__ == "__main__":
    support.main()
