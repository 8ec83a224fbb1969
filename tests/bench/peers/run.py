#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Rivals beside Spillway: the same objects spilled and fetched through each, in turns. `./dev bench peers` runs this.

For each size and peer there is a contest: a process for the peer and one for Spillway, each with its servers, and
rounds in pairs, one of each, in alternating order, so that what the machine does meanwhile happens to both. What a
contest found is kept in build/peers/results: an interrupted run goes on where it was. See report.py for the goals.
"""

import argparse
import ctypes
import json
import os
import pathlib
import select
import shutil
import signal
import subprocess
import sys
import time

import install
import report

KIB, MIB = 1 << 10, 1 << 20
SIZES = (64 * KIB, 256 * KIB, MIB, 2 * MIB)
PAIRS_MIN, PAIRS_MAX = 6, 40
ANSWER_SECONDS = 300
OPEN_SECONDS = 300
QUIT_SECONDS = 40
HERE = pathlib.Path(__file__).resolve().parent
SOURCE = HERE.parents[2]


class PeerError(Exception):
    pass


def say(text):
    print(text, file=sys.stderr, flush=True)


# ── processes ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Worker:
    """A peer's process, in a group of its own: its servers end with it."""

    def __init__(self, environment, options, module, variant, size, python, name):
        self.folder = environment.folder / "run" / name
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        command = [
            python,
            str(HERE / f"peer_{module}.py"),
            "--size",
            str(size),
            "--depth",
            str(options.depth),
            "--set-bytes",
            str(options.set_mib * MIB),
            "--round-bytes",
            str(options.round_mib * MIB),
            "--memory-bytes",
            str(options.memory_mib * MIB),
            "--folder",
            str(self.folder),
            "--variant",
            variant,
            "--bin",
            str(options.bin),
        ]
        with open(environment.log / f"{name}.log", "w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment.variables(),
                start_new_session=True,
            )
        self.buffer = b""
        try:
            self.about = self.answer(OPEN_SECONDS)
        except BaseException:
            self.close()
            raise

    def answer(self, seconds):
        end, out = time.monotonic() + seconds, self.process.stdout.fileno()
        while b"\n" not in self.buffer:
            if not select.select([out], [], [], max(0, end - time.monotonic()))[0]:
                raise PeerError(f"no answer within {seconds} s")
            if not (got := os.read(out, 65536)):
                raise PeerError(f"ended with {self.process.wait()}")
            self.buffer += got
        line, self.buffer = self.buffer.split(b"\n", 1)
        answer = json.loads(line)
        if "error" in answer:
            raise PeerError(answer["error"])
        return answer

    def ask(self, what):
        self.process.stdin.write(what.encode() + b"\n")
        self.process.stdin.flush()
        return self.answer(ANSWER_SECONDS)

    def close(self):
        try:
            self.process.stdin.write(b"quit\n")
            self.process.stdin.close()
            self.process.wait(QUIT_SECONDS)
        except (OSError, subprocess.TimeoutExpired):
            pass
        try:
            os.killpg(self.process.pid, signal.SIGKILL)  # whatever is left of the group
        except ProcessLookupError:
            pass
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


# ── contests ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def pairs_take(theirs, ours, kind, seconds):
    """How many depends on the time alone, never on what came out. A first pair warms up and does not count."""
    pairs, end = [], None
    while end is None or len(pairs) < PAIRS_MIN or (time.monotonic() < end and len(pairs) < PAIRS_MAX):
        pair = {}
        order = (("peer", theirs), ("spillway", ours))
        for name, worker in order if len(pairs) % 2 else reversed(order):
            pair[name] = worker.ask(kind)
        if end is None:
            end = time.monotonic() + seconds
        else:
            pairs.append(pair)
    return pairs


def contest(environment, options, peer, size):
    result = {"peer": peer.name, "size": size, "tier": peer.tier, "settings": settings(options)}
    workers = []
    try:
        workers.append(
            Worker(environment, options, peer.module, peer.variant, size, environment.python(peer), peer.name)
        )
        workers.append(
            Worker(
                environment,
                options,
                "spillway",
                "memory" if peer.tier == "memory" else "",
                size,
                sys.executable,
                "spillway",
            )
        )
        theirs, ours = workers
        for worker in workers:
            worker.ask("prepare")
        result |= {name: theirs.about[name] for name in ("version", "tuning")}
        result["beside"] = {name: ours.about[name] for name in ("version", "tuning")}
        result["load"] = os.getloadavg()
        result["rounds"] = {kind: pairs_take(theirs, ours, kind, options.seconds) for kind in report.KINDS}
    except PeerError as error:
        who = "" if len(workers) < 2 else " (beside Spillway; see both logs)"
        result["error"] = f"{error}{who}"
    finally:
        for worker in workers:
            worker.close()
    return result


def settings(options):
    return {name: getattr(options, name) for name in ("depth", "set_mib", "round_mib", "memory_mib")}


def line_of(found):
    if "error" in found:
        return f"cannot run: {found['error']}"
    samples = report.samples_of([found], 0)
    return ", ".join(
        f"{s.kind} {report.median(map(report.gb_per_second, s.theirs)):.2f} GB/s beside "
        f"{report.median(map(report.gb_per_second, s.ours)):.2f}"
        for s in samples
    )


def path_of(environment, peer, size):
    return environment.folder / "results" / f"{peer.name}-{report.size_text(size)}.json"


def kept(environment, options):
    """Whatever the settings were."""
    paths = [path_of(environment, peer, size) for size in options.sizes for peer in options.only]
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]


def contest_or_kept(environment, options, peer, size, broken):
    path = path_of(environment, peer, size)
    if path.exists() and not options.fresh:
        found = json.loads(path.read_text(encoding="utf-8"))
        if "error" not in found and found["settings"] == settings(options):
            say(f"  {peer.name}: {line_of(found)} (kept)")
            return found
    if peer.name in broken:
        found = {"peer": peer.name, "size": size, "tier": peer.tier, "error": broken[peer.name]}
    else:
        found = contest(environment, options, peer, size)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(found), encoding="utf-8")
    say(f"  {peer.name}: {line_of(found)}")
    return found


# ── the price of a checksum ───────────────────────────────────────────────────────────────────────────────────────────


def checksum_cost(environment):
    """CPU seconds a GB of Spillway's own checksum code, over memory that no cache holds."""
    library = environment.folder / "libchecksum.so"
    subprocess.run(
        [
            "cc",
            "-O2",
            "-shared",
            "-fPIC",
            "-std=gnu17",
            "-D_GNU_SOURCE",
            "-I",
            str(SOURCE),
            "-o",
            str(library),
            str(SOURCE / "io/checksum.c"),
            "-lxxhash",
        ],
        check=True,
    )
    sums_of = ctypes.CDLL(str(library)).checksum_granules
    length = 256 * MIB
    memory, sums = (
        ctypes.create_string_buffer(os.urandom(MIB) * 256, length),
        (ctypes.c_uint64 * (length // (64 * KIB)))(),
    )
    seconds = []
    for _ in range(7):
        began = time.process_time()
        sums_of(ctypes.c_uint64(1), ctypes.c_uint64(0), memory, ctypes.c_size_t(length), sums)
        seconds.append(time.process_time() - began)
    return report.median(seconds) / (length / 1e9)


# ── the command ───────────────────────────────────────────────────────────────────────────────────────────────────────


def names_of(text):
    chosen = text.split(",")
    peers = [p for p in install.PEERS if p.name in chosen or p.module in chosen]
    unknown = [name for name in chosen if not any(name in (p.name, p.module) for p in install.PEERS)]
    if unknown:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: there are {', '.join(p.name for p in install.PEERS)}")
    return peers


def arguments_parse(argv):
    parser = argparse.ArgumentParser(prog="./dev bench peers", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only",
        type=names_of,
        default=list(install.PEERS),
        metavar="PEER,…",
        help="these peers (redis,fio; lmcache stands for all of its kinds)",
    )
    parser.add_argument(
        "--sizes",
        type=lambda text: [int(s) * KIB for s in text.split(",")],
        default=list(SIZES),
        metavar="KIB,…",
        help="sizes of objects in KiB (64,256,1024,2048)",
    )
    parser.add_argument("--depth", type=int, default=16, help="objects in flight (16)")
    parser.add_argument("--set-mib", type=int, default=1536, help="what is stored (1536)")
    parser.add_argument("--memory-mib", type=int, default=128, help="Spillway's memory tier beside disks (128)")
    parser.add_argument(
        "--round-mib", type=int, default=512, help="what one round moves: some times the memory tier (512)"
    )
    parser.add_argument(
        "--seconds", type=float, default=10, help="for the pairs of a direction, beyond the least 6 (10)"
    )
    parser.add_argument("--fresh", action="store_true", help="measure again what was measured before")
    parser.add_argument("--report", action="store_true", help="measure nothing: figures and tables of what is kept")
    parser.add_argument("--folder", default=str(SOURCE / "build/peers"), help="the throw-away environment")
    parser.add_argument("--bin", default=str(SOURCE / "build/release"), help="Spillway's programs and library")
    return parser.parse_args(argv)


def install_all(environment, peers):
    """{name: why} of those that cannot be installed."""
    broken = {}
    for peer in peers:
        say(f"── {peer.name}: installing what is missing")
        try:
            environment.install(peer)
        except (install.InstallError, OSError) as error:
            broken[peer.name] = str(error)
            say(f"  {error}")
    return broken


def measure(environment, options):
    broken = install_all(environment, options.only)
    found = []
    for size in options.sizes:
        say(f"── {report.size_text(size)}")
        found += [contest_or_kept(environment, options, peer, size, broken) for peer in options.only]
    return found


def main():
    options = arguments_parse(sys.argv[1:])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    environment = install.Environment(options.folder)
    found = kept(environment, options) if options.report else measure(environment, options)
    checksum = checksum_cost(environment)
    out = SOURCE / "build/bench"
    out.mkdir(parents=True, exist_ok=True)
    (out / "peers.json").write_text(
        json.dumps(report.figures(found, checksum), indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    tables = report.tables(found, checksum)
    (out / "peers.md").write_text(tables, encoding="utf-8")
    print(tables)
    say(f"figures: {out / 'peers.json'}; tables: {out / 'peers.md'}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted; what was measured is kept")
