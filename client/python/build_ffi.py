# SPDX-License-Identifier: Apache-2.0
"""Makes the extension spillway._native: libspillway's functions and types, as the installed headers declare them.

Nothing is declared a second time. The headers' declarations are the cdef, without what the C preprocessor alone
understands, and the compiler compares the two when it compiles what comes out.

    setup.py calls for_setuptools(): the headers and the library are those that pkg-config names;
    build_ffi.py INCLUDE_DIR OUTPUT.c writes the extension's source, for CMake.
"""
import pathlib
import re
import subprocess
import sys

import cffi

# In the order of their includes. Of abi.h a client needs what spillway.h names: its numbers, and what STAT and MANIFEST
# take and answer.
WIRE_HEADER = "abi.h"
HEADERS = ("spillway.h", "train.h", "gpu.h")
SOURCE = "".join(f"#include <spillway/{header}>\n" for header in HEADERS) + "#include <stdlib.h>\n"
# What a header says in a way that only a preprocessor reads: the compiler fills in the value.
EXTRA = """
#define SPW_FOREVER ...
#define SPW_SPIN_NEVER ...
#define SPW_ADAM_L2 ...
void free(void *);
"""

COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
CPLUSPLUS = re.compile(r"^#ifdef __cplusplus$.*?^#endif$", re.DOTALL | re.MULTILINE)
NUMBER = re.compile(r"^#define SPW_\w+ \d+$", re.MULTILINE)
DIRECTIVE = re.compile(r"^#(?!define SPW_\w+ \d+$).*$", re.MULTILINE)
NAMED = re.compile(r"^(?:enum(?: \w+)?|struct spw_(?:stat|manifest_entry|sizing)) \{.*?^\};$", re.DOTALL | re.MULTILINE)


def declarations(include_dir):
    """The headers' declarations as cffi takes them."""
    folder = pathlib.Path(include_dir) / "spillway"
    wire = COMMENT.sub("", (folder / WIRE_HEADER).read_text(encoding="utf-8"))
    parts = NUMBER.findall(wire) + NAMED.findall(wire)
    for header in HEADERS:
        text = COMMENT.sub("", (folder / header).read_text(encoding="utf-8"))
        parts.append(DIRECTIVE.sub("", CPLUSPLUS.sub("", text)))
    return "\n".join(parts) + EXTRA


def builder(include_dir, **extension):
    """An FFI that has the headers of include_dir, for setuptools or for emit_c_code()."""
    made = cffi.FFI()
    made.cdef(declarations(include_dir))
    made.set_source("spillway._native", SOURCE, libraries=["spillway"], **extension)
    return made


def pkg_config(*options):
    """What pkg-config says of libspillway, as words."""
    return subprocess.run(
        ["pkg-config", *options, "spillway"], check=True, stdout=subprocess.PIPE, universal_newlines=True
    ).stdout.split()


def for_setuptools():
    """An FFI for setup.py: of the libspillway that pkg-config knows."""
    include_dirs = pkg_config("--variable=includedir")
    return builder(include_dirs[0], include_dirs=include_dirs, library_dirs=pkg_config("--variable=libdir"))


def main():
    """For CMake."""
    include_dir, output = sys.argv[1:]
    builder(include_dir).emit_c_code(output)


if __name__ == "__main__":
    main()
