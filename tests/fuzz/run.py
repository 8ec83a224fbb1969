#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The long form of the fuzzers: `./dev fuzz` calls it when they are built.

    run.py BUILD [TARGET...] [--minutes M] [--until-nothing-new] [--jobs N] [--beside W]
    run.py BUILD --coverage

Each target runs in slices of at most an hour of a core, so many targets at a time as there are cores, until each has had its
minutes, or, --until-nothing-new, until a whole hour brought no new edge in the code under test; --beside W: in W processes,
which share what they find and what an hour is. It begins with the corpus that is checked in; what it finds is merged
into that, minimised, and packed again. It prints how many inputs were run, and after each slice what was new in it: edges, how
many of them are in the code under test, and in which of its functions. The other new edges are of code that a target needs but
is not there for, such as the inner branches of tiering/, which are the simulator's field: nobody waits for their end. Where
there is no llvm-symbolizer, all edges count. --coverage: which lines of the code under test the corpora reach.
"""
import argparse
import concurrent.futures
import contextlib
import fnmatch
import gzip
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CORPUS = ROOT / "tests/fuzz/corpus"
FOUND = ROOT / "tests/fuzz/found"
SLICE_S = 3600  # of a core
INPUT_BYTES_MAX = 1024
PACKED_FILES_MAX = 4000  # of a target: the smallest, and what only others reach is lost

# Targets that take another one's inputs, too, behind so many bytes.
TAKES_TOO = {"request_race": ("request", 4)}

# What the fuzzers are there for: whose lines are counted.
UNDER_TEST = [
    "daemon/access.c", "daemon/admin*.c", "daemon/config*.c", "daemon/gpu_talk.c", "daemon/owner.c", "daemon/request*.c",
    "daemon/ring.c", "daemon/session*.c", "daemon/spaces.c", "client/lib/call.c", "client/lib/chunk.c",
    "client/lib/control.c", "client/lib/gpu_layout.c", "client/lib/manifest.c", "client/lib/map.c",
    "client/lib/op.c", "client/lib/ring*.c",
    "client/lib/session.c", "client/lib/transfer*.c", "io/gpu/*.c", "io/gpu_port.c", "io/log*.c", "io/segment.c",
    "io/store*.c", "io/superblock.c", "tiering/recover.c", "include/base/units.h",
]  # fmt: skip
NOT_UNDER_TEST = ["io/gpu/main.c", "io/gpu/visible.c"]


def targets_of(build: Path) -> list[str]:
    return sorted(p.name.removeprefix("fuzz_") for p in (build / "fuzz").glob("fuzz_*") if os.access(p, os.X_OK))


def unpack(target: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    packed = CORPUS / f"{target}.tar.gz"
    if packed.exists():
        with tarfile.open(packed) as tar:
            tar.extractall(folder)


def unpack_others(target: str, folder: Path) -> None:
    if target not in TAKES_TOO:
        return
    other, n_bytes = TAKES_TOO[target]
    with tempfile.TemporaryDirectory() as name:
        unpack(other, Path(name))
        for path in Path(name).iterdir():
            (folder / f"{other}-{path.name}").write_bytes((bytes(n_bytes) + path.read_bytes())[:INPUT_BYTES_MAX])


def pack(target: str, folder: Path) -> int:
    """The same files give the same bytes, so that nothing changes where nothing was found."""
    files = sorted(folder.iterdir(), key=lambda p: (p.stat().st_size, p.name))[:PACKED_FILES_MAX]
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for path in sorted(files, key=lambda p: p.name):
            info = tarfile.TarInfo(path.name)
            info.size = path.stat().st_size
            with path.open("rb") as file:
                tar.addfile(info, file)
    with (CORPUS / f"{target}.tar.gz").open("wb") as out, gzip.GzipFile("", "wb", 9, out, mtime=0) as packed:
        packed.write(raw.getvalue())
    return len(files)


def program(build: Path, target: str) -> list[str]:
    return [str(build / "fuzz" / f"fuzz_{target}")]


def environment(build: Path) -> dict[str, str]:
    return {**os.environ, "LD_LIBRARY_PATH": str(build / "tests/fake")}


def options(build: Path, target: str) -> list[str]:
    dictionary = ROOT / "tests/fuzz" / f"{target}.dict"
    return [
        f"-max_len={INPUT_BYTES_MAX}", "-len_control=0", "-timeout=60", "-rss_limit_mb=4096",
        f"-artifact_prefix={build}/fuzz/{target}-", *([f"-dict={dictionary}"] if dictionary.exists() else []),
    ]  # fmt: skip


class Result:
    def __init__(self, target: str):
        self.target = target
        self.runs = self.edges = self.features = 0
        self.new_edges = self.new_under_test = self.new_features = 0  # of the last slice
        self.failed = ""


def counts(log: str) -> list[tuple[int, int]]:
    """Edges and features, from the corpus on."""
    begin = log.find("INITED")
    return [(int(c), int(f)) for c, f in re.findall(r"cov: (\d+) ft: (\d+)", log[begin:])] if begin >= 0 else []


def is_under_test(path: str) -> bool:
    with contextlib.suppress(ValueError):
        name = str(Path(path).relative_to(ROOT))
        return name not in NOT_UNDER_TEST and any(fnmatch.fnmatchcase(name, pattern) for pattern in UNDER_TEST)
    return False


def new_places(logs: list[str]) -> set[str]:
    """Offsets in the program: libFuzzer names each place that no input reached before."""
    return {place for log in logs for place in re.findall(r"NEW_PC: 0x[0-9a-f]+ +\(.*?\+(0x[0-9a-f]+)\)", log)}


def functions_of(command: list[str], places: set[str]) -> list[str] | None:
    """For each place in the code under test its function, "FILE: NAME"; None: there is no symboliser."""
    symbolizer = shutil.which("llvm-symbolizer")
    if not symbolizer:
        return None
    run = [symbolizer, f"--obj={command[0]}"]
    text = subprocess.run(run, input="\n".join(sorted(places)), check=True, capture_output=True, text=True).stdout
    functions = []
    for frames in text.strip().split("\n\n"):  # the innermost comes first: a name, and FILE:LINE:COLUMN
        name, _, rest = frames.partition("\n")
        path = rest.split("\n")[0].rsplit(":", 2)[0]
        if is_under_test(path):
            functions.append(f"{Path(path).relative_to(ROOT)}: {name}")
    return functions


def note_new(result: Result, command: list[str], logs: list[str]) -> None:
    places = new_places(logs)
    functions = functions_of(command, places) if places else []
    result.new_edges = len(places)
    result.new_under_test = len(places) if functions is None else len(functions)
    what = "no llvm-symbolizer says where" if functions is None else f"{len(functions)} in the code under test"
    print(f"{result.target}: {result.runs} inputs, {len(places)} new edges, {what}", flush=True)
    for function in sorted(set(functions or [])):
        print(f"    {function}", flush=True)


def failure(command: list[str], env: dict[str, str], log: str) -> str:
    """The end of the log; run once more, where that fails again, with names in place of addresses."""
    found = re.search(r"Test unit written to (\S+)", log)
    if found:
        again = subprocess.run([*command, found[1]], env=env, capture_output=True, check=False)
        if again.returncode != 0:
            log = again.stderr.decode(errors="replace")
    return log[-4000:]


def run_beside(command: list[str], env: dict[str, str], n: int) -> list[tuple[int, str]]:
    """N of them at once: how each ended, and what it said."""
    ended = []
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(n)]
        runs = [subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=file) for file in files]
        for run, file in zip(runs, files):
            status = run.wait()
            file.seek(0)
            ended.append((status, file.read().decode(errors="replace")))
    return ended


def fuzz(build: Path, target: str, seconds: int, beside: int, until_nothing_new: bool) -> Result:
    result = Result(target)
    work = build / "fuzz/work" / target
    unpack(target, work)
    unpack_others(target, work)
    while seconds > 0 and not result.failed:
        slice_s = min(seconds, SLICE_S // beside)
        seconds -= slice_s
        stop = ["-print_final_stats=1", "-print_pcs=1", f"-max_total_time={slice_s}", "-reload=1"]
        env = environment(build)
        unnamed = {**env, "ASAN_OPTIONS": "symbolize=0"}  # names cost more than the rest of a slice
        ended = run_beside([*program(build, target), *options(build, target), *stop, str(work)], unnamed, beside)
        seen = [counts(log) for _, log in ended]
        first, last = ([max(c[i] for c in seen if c) if any(seen) else (0, 0) for i in (0, -1)])
        result.runs += sum(int(n) for _, log in ended for n in re.findall(r"number_of_executed_units: (\d+)", log)[-1:])
        result.edges, result.features = last
        result.new_features = last[1] - first[1]
        note_new(result, program(build, target), [log for _, log in ended])
        result.failed = next((failure(program(build, target), env, log) for status, log in ended if status != 0), "")
        if until_nothing_new and slice_s == SLICE_S // beside and result.new_under_test == 0:
            break
    return result


def merge(build: Path, target: str) -> int:
    """As few inputs as reach what the old and the new ones reach together."""
    merged = build / "fuzz/merged" / target
    shutil.rmtree(merged, ignore_errors=True)
    merged.mkdir(parents=True)
    command = [*program(build, target), "-merge=1", *options(build, target), str(merged)]
    command.append(str(build / "fuzz/work" / target))
    subprocess.run(command, env=environment(build), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    if not any(merged.iterdir()):
        return 0
    return pack(target, merged)


def coverage(build: Path) -> int:
    """Lines of the code under test that the corpora reach, file by file."""
    profiles, objects = [], []
    for target in targets_of(build):
        folder = build / "fuzz/cover" / target
        shutil.rmtree(folder, ignore_errors=True)
        unpack(target, folder)
        profile = build / f"fuzz/{target}.profraw"
        found = [FOUND / target] if (FOUND / target).exists() else []
        env = {**environment(build), "LLVM_PROFILE_FILE": str(profile)}
        run = subprocess.run([*program(build, target), folder, *found], env=env, capture_output=True, check=False)
        if run.returncode != 0:
            sys.stderr.write(run.stderr.decode(errors="replace"))
            return 1
        profiles.append(profile)
        objects += ["-object", program(build, target)[0]]
    merged = build / "fuzz/all.profdata"
    subprocess.run(["llvm-profdata", "merge", "-sparse", "-o", merged, *profiles], check=True)
    files = sorted({p for pattern in UNDER_TEST for p in ROOT.glob(pattern)} - {ROOT / n for n in NOT_UNDER_TEST})
    command = ["llvm-cov", "export", "-summary-only", f"-instr-profile={merged}", *objects[1:], *map(str, files)]
    report = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["data"][0]
    for entry in report["files"]:
        lines = entry["summary"]["lines"]
        name = Path(entry["filename"]).relative_to(ROOT)
        print(f"  {str(name):32} {lines['covered']:5} of {lines['count']:5} lines  {lines['percent']:5.1f} %")
    total = report["totals"]["lines"]
    print(f"  {'together':32} {total['covered']:5} of {total['count']:5} lines  {total['percent']:5.1f} %")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", type=Path)
    parser.add_argument("targets", nargs="*")
    parser.add_argument("--minutes", type=float, default=10, help="of each target")
    parser.add_argument("--until-nothing-new", action="store_true", help="ends a target when an hour brought nothing new there")
    parser.add_argument("--jobs", type=int, help="targets at a time; as many as there are cores for")
    parser.add_argument("--beside", type=int, default=1, metavar="W", help="processes of each target")
    parser.add_argument("--coverage", action="store_true", help="nothing but the coverage; BUILD is that of fuzz-coverage")
    args = parser.parse_args()
    build = args.build.resolve()
    if args.coverage:
        return coverage(build)
    unknown = set(args.targets) - set(targets_of(build))
    if unknown:
        parser.error(f"no such target: {', '.join(sorted(unknown))}; there are {', '.join(targets_of(build))}")
    targets = args.targets or targets_of(build)
    jobs = args.jobs or max(1, (os.cpu_count() or 1) // args.beside)
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        seconds, dry = int(args.minutes * 60), args.until_nothing_new
        results = list(pool.map(lambda target: fuzz(build, target, seconds, args.beside, dry), targets))
        packed = list(pool.map(lambda target: merge(build, target), targets))
    print(f"{'':14} {'':>12} {'':>7} {'':>9} {'new in the last slice':>33}")
    new = f"{'edges':>11} {'under test':>10} {'features':>10}"
    print(f"{'target':14} {'inputs':>12} {'edges':>7} {'features':>9} {new} {'corpus':>7}")
    for r, n in zip(results, packed):
        new = f"{r.new_edges:11} {r.new_under_test:10} {r.new_features:10}"
        print(f"{r.target:14} {r.runs:12} {r.edges:7} {r.features:9} {new} {n:7}")
    print(f"{'together':14} {sum(r.runs for r in results):12}")
    for r in results:
        if r.failed:
            print(f"\nFAILED {r.target}: the input is {build}/fuzz/{r.target}-*; the end of its log:\n{r.failed}")
    return 1 if any(r.failed for r in results) else 0


if __name__ == "__main__":
    sys.exit(main())
