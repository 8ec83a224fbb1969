# SPDX-License-Identifier: Apache-2.0
"""
Call sites: their names for people, and those that the code has, to compare with those that were reached.

  sites.py FILE...    what is known of these programs and libraries goes beside them (FILE.sites): where there is no binutils
"""
import json
import os
import re
import subprocess
import sys

from state import address_of, call_of, module_of

# What liburing's functions ask of the kernel; a call of one is a site of these.
RAW = ("io_uring_setup", "io_uring_enter", "io_uring_register", "liburing mmap", "liburing munmap")
OPCODES = {22: "READ", 23: "WRITE", 3: "FSYNC", 4: "READ_FIXED", 5: "WRITE_FIXED", 6: "POLL_ADD", 7: "POLL_REMOVE"}
PROGRAM, LIBRARY, RING = 0, 1, 2

# Functions of libraries that allocate whenever they are called: a call of one is a site of an allocation.
ALLOCATING = {"strdup", "json_object_new_object", "json_object_new_array", "json_object_new_int", "json_object_new_uint64",
              "json_object_new_string", "json_object_new_boolean"}
ALLOCATIONS = ("malloc", "calloc", "realloc", "reallocarray", "aligned_alloc", "posix_memalign")

# Imports that cannot fail, that have nothing to fail with (they compute), or whose failure is a failure of the program
# itself: a mutex that is not one. What is neither here nor interposed makes the run fail, so that a new call is thought of.
CANNOT_FAIL = re.compile(r"""^(?:
    mem\w+|str(?!dup)\w+|__(?:mem\w+|explicit_bzero)_chk|__str\w+|\w*s?n?printf\w*|exp2?f|lround|qsort
    |sig(?:add|del|empty|fill)\w*set|sigprocmask|signal|raise|XXH3\w+|_ITM_\w+|__cxa_\w+
    |__gmon_start__|__libc_start_main|__errno_location|__ctype_\w+|__tls_get_addr
    |__assert_fail|__stack_chk_fail|_?exit|abort|__environ|environ|__progname|program_invocation_\w+|free
    |pthread_(?:mutex|cond|self|once|join|condattr|mutexattr|getspecific|setspecific|key_delete|sigmask)\w*
    |clock_gettime|time|sched_yield|getpid|gettid|gete?[ug]id|getenv|secure_getenv|__register_atfork
    |dlerror|dlsym|dlclose|ferror|fclose|fwrite|fputs|fputc|fflush|__sched_cpucount|__isoc99_sscanf|alarm
    |io_uring_\w+|json_\w+|ini_\w+|numa_\w+|sd_\w+|argp_\w+|posix_spawn\w*_destroy|strdup|_DYNAMIC|stderr|stdout|optarg
    |__asan_\w+|__ubsan_\w+|__sanitizer_\w+|__lsan_\w+|optind|getopt_long|setsockopt
    )$""", re.X)


class Binary:
    """What objdump and addr2line say of one program or library."""

    CALL = re.compile(r"^\s*([0-9a-f]+):\s+(?:bnd )?(call|jmp)q?\s+([0-9a-f]+) <([^>@+]+)(@plt)?[^>+]*>")
    OTHER_CALL = re.compile(r"^\s*([0-9a-f]+):\s+(?:notrack |bnd )?call\s+\*")
    SYMBOL = re.compile(r"^([0-9a-f]+) <([^>]+)>:")
    LINE = re.compile(r"^\s*([0-9a-f]+):\t")

    def __init__(self, path):
        self.path = path
        self.calls = []  # (address after the call, function of the PLT, symbol that holds it)
        self.jumps = []  # (function of the PLT, symbol that ends in it)
        self.inner = {}  # address after the call: symbol of ours that is called; None: by a pointer
        self.lines = {}
        if os.path.exists(f"{path}.sites"):
            self._load(f"{path}.sites")
        else:
            self._read()
            self.imported = self._imports()

    def _load(self, path):
        with open(path, encoding="utf-8") as f:
            known = json.load(f)
        self.calls, self.jumps, self.imported = known["calls"], known["jumps"], set(known["imports"])
        self.inner, self.lines = ({int(k): v for k, v in known[what].items()} for what in ("inner", "lines"))

    def save(self):
        self.resolve([address for address, _, _ in self.calls] + list(self.inner))
        with open(f"{self.path}.sites", "w", encoding="utf-8") as f:
            json.dump({"calls": self.calls, "jumps": self.jumps, "imports": sorted(self.imported), "inner": self.inner,
                       "lines": self.lines}, f)

    def _read(self):
        text = subprocess.run(["objdump", "-d", "--no-show-raw-insn", self.path], check=True, capture_output=True,
                              text=True).stdout
        symbol, waiting = "", None
        for line in text.splitlines():
            if (m := self.SYMBOL.match(line)):
                symbol = m[2]
                continue
            if not (m := self.LINE.match(line)):
                continue
            if waiting:
                self._note(waiting, int(m[1], 16))
                waiting = None
            if (m := self.CALL.match(line)):
                if m[2] == "call":
                    waiting = (m[4], bool(m[5]), symbol)
                elif m[5]:
                    self.jumps.append((m[4], symbol))
            elif self.OTHER_CALL.match(line):
                waiting = (None, False, symbol)

    def _note(self, waiting, address):
        callee, is_plt, symbol = waiting
        if is_plt:
            self.calls.append((address, callee, symbol))
        else:
            self.inner[address] = callee

    def _imports(self):
        text = subprocess.run(["nm", "-D", "--undefined-only", self.path], check=True, capture_output=True, text=True)
        return {line.split()[-1].split("@")[0] for line in text.stdout.splitlines()}

    def place(self, address):
        """FILE:LINE FUNCTION of a return address."""
        if address not in self.lines:
            self.resolve([address])
        return self.lines[address]

    def resolve(self, addresses):
        addresses = [address for address in addresses if address not in self.lines]
        if not addresses:
            return
        text = subprocess.run(["addr2line", "-a", "-i", "-p", "-f", "-e", self.path], check=True, capture_output=True,
                              text=True, input="".join(f"{a - 1:#x}\n" for a in addresses)).stdout
        for address, frames in zip(addresses, re.split(r"^0x[0-9a-f]+: ", text, flags=re.M)[1:]):
            self.lines[address] = self._innermost_of_ours(frames)

    @staticmethod
    def _innermost_of_ours(frames):
        """An inline function of a header is named by who uses it, and after that by itself."""
        found = []
        for frame in frames.splitlines():
            m = re.match(r"(?: \(inlined by\) )?(\S+) at (\S+?):(\d+)", frame)
            if m:
                found.append((re.sub(r"^.*/((?:daemon|io|tiering|client|include)/)", r"\1", m[2]), m[3], m[1]))
        for path, line, function in found:
            if not path.startswith("include/"):
                return f"{path}:{line} {function}" if path == found[0][0] else f"{path}:{line} {function} {found[0][2]}"
        return "?"


class Sites:
    """The sites of one program: its own and, in a client, the library's."""

    def __init__(self, names, binaries):
        self.names = names
        self.binaries = binaries  # {module: Binary}

    def name(self, key):
        call, module, address = self.names[call_of(key)], module_of(key), address_of(key)
        if module == RING:
            fixed = " of a device" if address & 0x100 else ""
            return f"completion {OPCODES.get(address & 0xff, address & 0xff)}{fixed}"
        return f"{call} {self.binaries[module].place(address)}"

    def resolve(self, keys):
        for module, binary in self.binaries.items():
            binary.resolve([address_of(k) for k in keys if module_of(k) == module])

    def unknown_imports(self):
        known = set(self.names)
        return sorted(name for binary in self.binaries.values() for name in binary.imported
                      if name not in known and not CANNOT_FAIL.match(name))

    def _reached_calls(self, keys, module):
        """{(address, name of the call)}, where what stands for a call counts as that."""
        reached = set()
        for key in keys:
            if module_of(key) == module:
                name = self.names[call_of(key)]
                reached.add((address_of(key), name))
                if name in RAW:
                    reached.add((address_of(key), "raw"))
                if name in ALLOCATIONS:
                    reached.add((address_of(key), "allocation"))
        return reached

    def never_reached(self, keys):
        """Sites in the code that are not among the keys: [(module, text)]."""
        missing = []
        for module, binary in self.binaries.items():
            binary.resolve([address for address, callee, _ in binary.calls
                            if self._wanted(callee)])
            reached = self._reached_calls(keys, module)
            tails = {(binary.inner.get(a), name) for a, name in reached if a in binary.inner}
            for address, callee, symbol in binary.calls:
                wanted = self._wanted(callee)
                if wanted and (address, wanted) not in reached:
                    missing.append((module, f"{callee} {binary.place(address)}"))
            for callee, symbol in binary.jumps:
                wanted, base = self._wanted(callee), symbol.split(".")[0]
                if wanted and not any(n == wanted and (f is None or f.split(".")[0] == base) for f, n in tails):
                    missing.append((module, f"{callee} at the end of {symbol}"))
        return missing

    def _wanted(self, callee):
        if callee in ("free", "pthread_sigmask", "sigaction"):
            return None
        if callee in self.names:
            return callee
        if callee in ALLOCATING:
            return "allocation"
        if callee.startswith("io_uring_"):
            return "raw"
        return None


if __name__ == "__main__":
    for file in sys.argv[1:]:
        Binary(file).save()
