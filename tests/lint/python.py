#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Every Python file is one, and pyflakes finds nothing. The package is Python 3.9's; 120 columns, as its tests."""
import ast
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
PACKAGE = "client/python/"
PACKAGE_VERSION = (3, 9)
COLUMNS = 120
NARROW = (PACKAGE, "tests/python/")


def files():
    """Ours, as paths from the root."""
    found = subprocess.run([ROOT / "tests/lint/files.sh", "py", "pyi"], check=True, stdout=subprocess.PIPE, text=True)
    return found.stdout.splitlines()


def complaints(name):
    """What is wrong with one file."""
    text = (ROOT / name).read_text(encoding="utf-8")
    if "SPDX-License-Identifier: Apache-2.0" not in "".join(text.splitlines(keepends=True)[:2]):
        yield f"{name}:1: no SPDX line"
    for number, line in enumerate(text.splitlines(), 1):
        if len(line) > COLUMNS and name.startswith(NARROW):
            yield f"{name}:{number}: {len(line)} columns"
    try:
        ast.parse(text, name, feature_version=PACKAGE_VERSION if name.startswith(PACKAGE) else None)
    except SyntaxError as error:
        yield f"{name}:{error.lineno}: {error.msg}"


def main():
    """Prints what is wrong; exits 1 if anything is."""
    names = files()
    found = [complaint for name in names for complaint in complaints(name)]
    print("\n".join(found))
    status = 1 if found else 0
    try:
        import pyflakes
    except ImportError:
        print("SKIP: pyflakes is not installed")
        return status
    print(f"pyflakes {pyflakes.__version__}")
    return subprocess.run([sys.executable, "-m", "pyflakes", *names], cwd=ROOT, check=False).returncode or status


if __name__ == "__main__":
    sys.exit(main())
