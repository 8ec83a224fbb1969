#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""
Each call fails. A short life of a daemon (start on a device with contents, clients, a reload, a GPU's helper, stop) is run once
to see which calls are made where; then again for each of these calls, which fails, once or from then on. What is checked is
told in docs/reliability.md, "Failing calls".

  failcalls.py                    all points
  failcalls.py --seconds 30       a sample, each site once as far as time goes
  failcalls.py --shard 2/8        a part of all points; the eight of them are all
  failcalls.py --log F --resume   those that F does not have yet
  failcalls.py --point POINT      one of them, as its line in the report names it, with the daemon's log
"""
import argparse
import concurrent.futures
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
import zlib

import state as st
from points import PHASES, is_expected_degradation, points_of, was_found_once
from rig import DISK_MIB, Failure, Rig
from sites import LIBRARY, PROGRAM, Binary, Sites
from unreachable import is_allowed

SETTLE_S = 30
EQUAL_LOOKS = 8 # 0.15 s apart
HEAP_SLACK = 4096  # of what a hash table or a list of a library may have grown by
POINTS_A_DAEMON = 40
POINTS_A_DEVICE = 4  # each leaves 3 MiB there, all of it in one of two partitions perhaps
BASELINES = 2
CONNECTIONS, HELD_CONNECTIONS = 10000, 200
LEFT_ALONE_S, CALLS_LEFT_ALONE, PATIENCE = 2, 100, 20
SAMPLE_AT_LEAST = 24
OTHER_ID = 65533


class Runner:
    """One at a time of everything: a rig, and the points that are run on it."""

    def __init__(self, options, index, template):
        self.options, self.template = options, template
        self.rig = Rig(f"{options.folder}/rig{index}", options.bin, options.test, options.preload,
                       ("spillwayd", "spillway-gpu", "fail_workload"))
        self.n_points = self.n_stops = 0
        self.baseline = None
        if template:
            self.rig.take(template)

    def close(self):
        self.rig.close()

    # --- A daemon that serves ---

    def serve(self):
        """One that is warm, and what it has then."""
        if self.rig.lives() and self.baseline and self.n_points < POINTS_A_DAEMON:
            return
        if self.rig.lives():
            self.rig.stop()
        self.rig.take(self.template)
        self.rig.start_clean()
        self.rig.strict()
        self.rig.reload(0)
        self.rig.strict()
        self.n_points = 0
        self.baseline = self.settled(None)

    def settled(self, wanted):
        """What the daemon has when that does not change any more, or is what is wanted."""
        end, before, n_equal = time.monotonic() + SETTLE_S, None, 0
        while time.monotonic() < end:
            now = self.rig.left()
            if wanted and now[0] <= wanted[0] and now[1] <= wanted[1] and now[2] <= wanted[2] + HEAP_SLACK:
                return now
            # A chunk that is being made has a descriptor for a while, and nothing on the heap.
            n_equal = n_equal + 1 if now == before else 0
            if not wanted and n_equal == EQUAL_LOOKS:
                return now
            before = now
            time.sleep(0.02 if wanted else 0.15)
        return self.rig.left()

    def check_baseline(self):
        now = self.settled(self.baseline)
        if now[0] > self.baseline[0] or now[1] > self.baseline[1] or now[2] > self.baseline[2] + HEAP_SLACK:
            raise Failure(f"left behind: descriptors {self.baseline[0]} -> {now[0]}, threads {self.baseline[1]} -> "
                          f"{now[1]}, heap {self.baseline[2]} -> {now[2]}: {self.rig.threads()} "
                          f"{self.rig.descriptors()}")

    def drop(self):
        """The next point gets a daemon of its own."""
        self.rig.kill()
        self.baseline = None
        self.rig.take(self.template)

    # --- One life, counted ---

    def count(self):
        """{phase: {key: calls}}, undisturbed. A life of a helper is also one of a daemon: they are counted together."""
        rig, counts = self.rig, {}
        daemon, helper, client = (rig.states[name] for name in ("spillwayd", "spillway-gpu", "fail_workload"))
        daemon.reset_counts()
        rig.start_clean()
        counts["start"] = daemon.counts()
        daemon.reset_counts()
        helper.reset_counts()
        self.life(0)
        counts["first"], counts["helper start"] = daemon.counts(), helper.counts()
        rig.strict("--keep")
        daemon.reset_counts()
        rig.stop()
        counts["stop"] = daemon.counts()
        self.serve()
        daemon.reset_counts()
        helper.reset_counts()
        self.life(0)
        counts["serve"], counts["helper"] = daemon.counts(), helper.counts()
        client.reset_counts()
        rig.work("--gpu", preloaded=True)
        counts["library"] = client.counts()
        self.options.library_left = self.library_left()
        daemon.reset_counts()
        client.reset_counts()
        self.taken(preloaded=True)
        counts["upgrade"], counts["ride"] = daemon.counts(), client.counts()
        for key in list(counts["upgrade"]): # what is done by any daemon
            if any(key in counts[phase] for phase in ("start", "first", "serve", "stop")):
                del counts["upgrade"][key]
        for key in list(counts["ride"]):
            if key in counts["library"]:
                del counts["ride"][key]
        self.baseline = None
        self.rig.stop()
        return {phase: counts[phase] for phase in PHASES}

    def library_left(self):
        """What the library has when all is closed; some of libc's and the fake driver's depends on how threads met."""
        left = []
        self.serve()
        for _ in range(BASELINES):
            self.rig.states["fail_workload"].fresh()
            done = self.rig.work("--gpu", "--again", preloaded=True)
            if done.status != 0:
                raise Failure(f"the library does not work undisturbed: {done.text.strip()}")
            left.append((done.fds, done.threads, done.bytes))
        return tuple(max(column) for column in zip(*left))

    def taken(self, preloaded):
        """Its place is taken while a client has leases: (was it, how that client ended)."""
        work = self.rig.begin_hold(preloaded)
        is_taken = self.rig.upgrade()
        return is_taken, self.rig.end_work(work)

    def life(self, change):
        """What a serving daemon goes through; a reload meanwhile."""
        work = self.rig.begin_work("--gpu")
        self.rig.reload(1 + change)
        return self.rig.end_work(work)

    # --- Points ---

    def run(self, point):
        """The outcome's word; Failure otherwise."""
        try:
            return getattr(self, "run_" + PHASES[point.phase].runs)(point)
        except Failure:
            self.failed_log = self.rig.log()
            self.drop()
            raise
        finally:
            for state in self.rig.states.values():
                state.disarm()

    def arm(self, point):
        state = self.rig.states[PHASES[point.phase].program]
        state.arm(point.key, point.nth, point.mode, point.error, point.is_whole())
        return state

    def run_start(self, point):
        rig = self.rig
        if rig.lives():
            rig.stop()
            self.baseline = None
        state = self.arm(point)
        rig.start()
        is_ready = rig.ready()
        fired = state.fired()
        state.disarm()
        if not is_ready:
            return self.refused(point)
        outcome = "survived" if fired else "not met"
        try:
            rig.verify()
            outcome = rig.strict(may_be_degraded=is_expected_degradation(point)) or outcome
        except Failure: # it was ready, and then its loop could not wait
            if not point.may_end_daemon() or not rig.ends():
                raise
            return self.refused(point)
        status, log = rig.stop()
        if status != 0:
            raise Failure(f"the stop after it ends with {status}: {log[-1000:]}")
        if outcome == "degraded":
            rig.take(self.template)
        return outcome

    def refused(self, point):
        """It said why, and the next start finds everything."""
        rig = self.rig
        log = rig.log() if point.is_end_by_libc() else rig.check_end(rig.daemon.returncode)
        if rig.daemon.returncode == 0:
            raise Failure(f"a start that fails ends with status 0: {log}")
        said = [line for line in log.splitlines() if line.strip()]
        if not said and not point.is_early() and not point.is_end_by_libc():
            raise Failure("a start is refused without a word")
        rig.start_clean()
        rig.verify()
        rig.stop()
        return "refused: " + (said[-1][:160] if said else "")

    def run_serve(self, point):
        rig = self.rig
        self.serve()
        self.n_points += 1
        state = self.arm(point)
        done = self.life(self.n_points)
        fired = state.fired()
        state.disarm()
        try:
            rig.must_live()
            degraded = rig.strict(may_be_degraded=is_expected_degradation(point))
            rig.must_live()
        except Failure:
            if not point.may_end_daemon() or not rig.ends():
                raise
            log = rig.check_end(rig.daemon.returncode)
            self.drop()
            return "ended: " + ([line for line in log.splitlines() if line.strip()] or [""])[-1][:160]
        self.check_baseline()
        if degraded:
            rig.stop()
            rig.start_clean()
            rig.verify()
            rig.stop()
            self.drop()
        return degraded or ("not met" if not fired else f"error: {done.first}" if done.n_failed else "survived")

    def run_first(self, point):
        """A daemon of its own, as its helper starts but once."""
        rig = self.rig
        if rig.lives():
            rig.stop()
        rig.take(self.template)
        rig.start_clean()
        self.baseline = None
        state = self.arm(point)
        done = self.life(0)
        fired = state.fired()
        state.disarm()
        rig.must_live()
        rig.strict()
        rig.must_live()
        status, log = rig.stop()
        if status != 0:
            raise Failure(f"the stop after it ends with {status}: {log[-1000:]}")
        return "not met" if not fired else f"error: {done.first}" if done.n_failed else "survived"

    def run_stop(self, point):
        rig = self.rig
        if rig.lives():
            rig.stop()
            self.baseline = None
        if self.n_stops % POINTS_A_DEVICE == 0:
            rig.take(self.template)
        self.n_stops += 1
        rig.start_clean()
        rig.strict("--keep")
        state = self.arm(point)
        status, log = rig.stop()
        fired = state.fired()
        state.disarm()
        if status not in (0, 1):
            raise Failure(f"the stop ends with {status}: {log[-1000:]}")
        rig.start_clean()
        rig.verify()
        rig.stop()
        return "not met" if not fired else "survived" if status == 0 else "stopped with status 1"

    def run_library(self, point):
        rig = self.rig
        self.serve()
        self.n_points += 1
        rig.states["fail_workload"].fresh()
        state = self.arm(point)
        fds, threads, heap = self.options.library_left
        done = rig.work("--gpu", "--again", "--fds", str(fds), "--threads", str(threads), preloaded=True)
        fired = state.fired()
        if done.status != 0:
            raise Failure(f"the library does not work afterwards: {done.text.strip()}")
        if done.fds > fds or done.threads > threads or done.bytes > heap + HEAP_SLACK:
            raise Failure(f"the library leaves behind: descriptors {fds} -> {done.fds}, threads {threads} -> "
                          f"{done.threads}, heap {heap} -> {done.bytes}: {done.text.strip()}")
        rig.must_live()
        self.check_baseline()
        return "not met" if not fired else f"error: {done.first}" if done.n_failed else "survived"


    def run_upgrade(self, point):
        """Either daemon fails, or the client that goes from the one to the other."""
        rig = self.rig
        if rig.lives():
            rig.stop()
        self.baseline = None
        rig.take(self.template)
        rig.start_clean()
        rig.strict("--keep")
        rig.states["fail_workload"].fresh()
        state = self.arm(point)
        is_taken, done = self.taken(preloaded=PHASES[point.phase].program == "fail_workload")
        fired = state.fired()
        state.disarm()
        outcome = "not met" if not fired else f"error: {done.first}" if done.n_failed else "survived"
        try:
            rig.must_live()
            rig.strict(may_be_degraded=is_expected_degradation(point))
        except Failure: # the first one had gone too far to go back
            if is_taken or not rig.ends():
                raise
            rig.end_of(rig.daemon)
            rig.start_clean()
            outcome = "refused: both ended"
        else:
            outcome = outcome if is_taken else "refused: the first one goes on"
        rig.verify()
        rig.strict()
        status, log = rig.stop()
        if status != 0:
            raise Failure(f"the stop after it ends with {status}: {log[-1000:]}")
        return outcome

    # --- Without descriptors ---

    def check_descriptors(self):
        """
        Fault 10 of the table in docs/reliability.md: 10,000 connections where the daemon has descriptors for a few. Then it is left
        alone with some that it cannot take: how often does it try? It is counted, not timed, so a busy machine changes nothing.
        """
        rig, state = self.rig, self.rig.states["spillwayd"]
        self.serve()
        before = rig.limit_descriptors(8)
        held = [c for c in (rig.connect() for _ in range(HELD_CONNECTIONS)) if c]
        for i in range(CONNECTIONS - HELD_CONNECTIONS):
            if i == CONNECTIONS // 2:
                resource.prlimit(rig.daemon.pid, resource.RLIMIT_NOFILE, (3, before[1])) # not even one to refuse with
            if (c := rig.connect()):
                c.close()
        rig.must_live()
        n_calls = CALLS_LEFT_ALONE + 1
        for _ in range(PATIENCE): # until it is through with those that came
            state.reset_counts()
            time.sleep(LEFT_ALONE_S)
            names = state.names()
            n_calls = sum(n for key, n in state.counts().items() if names[st.call_of(key)] in ("accept4", "epoll_wait"))
            if n_calls <= CALLS_LEFT_ALONE:
                break
        if n_calls > CALLS_LEFT_ALONE:
            raise Failure(f"without descriptors: {n_calls} calls in {LEFT_ALONE_S} s of nothing new")
        resource.prlimit(rig.daemon.pid, resource.RLIMIT_NOFILE, before)
        for c in held:
            c.close()
        rig.strict()
        self.check_baseline()
        print(f"{CONNECTIONS} connections at the limit of descriptors: refused or closed; {n_calls} calls of accept4 and "
              f"epoll_wait in {LEFT_ALONE_S} s after them", flush=True)


# --- All of them ---


class Run:
    def __init__(self, options):
        self.options = options
        self.lock = threading.Lock()
        self.outcomes, self.failures, self.n_run = {}, [], 0
        self.reached = {}
        self.local = threading.local()
        self.runners = []

    def prepare(self):
        """A device with contents, the library's own baseline, and the counts of each phase."""
        options = self.options
        options.folder = tempfile.mkdtemp(prefix="spillway-fail-", dir=options.dir)
        first = Runner(options, 0, None)
        first.rig.format()
        first.rig.start_clean()
        for _ in range(3):
            first.rig.strict("--keep")
        first.rig.verify()
        first.rig.stop()
        self.template = f"{options.folder}/template"
        os.makedirs(self.template)
        for name in ("disk", "ledger"):
            shutil.copyfile(f"{first.rig.dir}/{name}", f"{self.template}/{name}")
        first.template = self.template
        self.counts = first.count()
        self.sites = {}
        for program, binaries in (("spillwayd", {PROGRAM: f"{options.bin}/spillwayd"}),
                                  ("spillway-gpu", {PROGRAM: f"{options.bin}/spillway-gpu"}),
                                  ("fail_workload", {LIBRARY: f"{options.bin}/libspillway.so"})):
            self.sites[program] = Sites(first.rig.states[program].names(),
                                        {m: Binary(os.path.realpath(path)) for m, path in binaries.items()})
        for phase, counts in self.counts.items():
            self.reached.setdefault(PHASES[phase].program, set()).update(counts)
        for program, keys in self.reached.items():
            self.sites[program].resolve(keys)
        if not options.only and not options.point and not options.list:
            first.check_descriptors()
        for program, state in first.rig.states.items():
            self.reached[program] |= state.keys()
            self.sites[program].resolve(self.reached[program])
        first.close()

    def points(self):
        found = []
        for phase, counts in self.counts.items():
            if phase == "first": # what is not done again for the next client
                counts = {key: n for key, n in counts.items() if key not in self.counts["serve"]}
            found += points_of(phase, counts, self.sites[PHASES[phase].program], self.options.calls_a_site)
        return found

    def runner(self):
        if not hasattr(self.local, "runner"):
            with self.lock:
                self.local.runner = Runner(self.options, len(self.runners) + 1, self.template)
                self.runners.append(self.local.runner)
        return self.local.runner

    def run_one(self, point):
        if self.options.end and time.monotonic() > self.options.end and self.n_run >= SAMPLE_AT_LEAST:
            return
        runner = self.runner()
        began = time.monotonic()
        try:
            outcome = runner.run(point)
        except Failure as e:
            with self.lock:
                self.failures.append((point, str(e)))
                print(f"FAILED {point}: {e}", flush=True)
            outcome = "failed"
        took = time.monotonic() - began
        with self.lock:
            self.n_run += 1
            word = outcome.split(":")[0]
            self.outcomes[word] = self.outcomes.get(word, 0) + 1
            point.outcome = outcome
            if self.options.log:
                self.options.log.write(f"{took:.2f} s\t{point}\t{outcome}\n")
                self.options.log.flush()
            if self.n_run % 500 == 0:
                print(f"{self.n_run} points, {len(self.failures)} failed", flush=True)

    def run(self, points):
        with concurrent.futures.ThreadPoolExecutor(self.options.jobs) as pool:
            try:
                for future in [pool.submit(self.run_one, point) for point in points]:
                    future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def collect(self):
        """What was reached on the way, in the paths of errors too."""
        for runner in self.runners:
            for program, state in runner.rig.states.items():
                self.reached[program] |= state.keys()
        for program, keys in self.reached.items():
            self.sites[program].resolve(keys)

    def close(self):
        for runner in self.runners:
            runner.close()
        shutil.rmtree(self.options.folder, ignore_errors=True)

    def report(self, points):
        """What is printed at the end; False: something is not as it must be."""
        self.collect()
        is_fine = not self.failures
        done = [p for p in points if p.outcome]
        print(f"\npoints: {len(done)} run of {len(points)}")
        for program, keys in self.reached.items():
            sites = self.sites[program]
            hit = {p.key for p in done if PHASES[p.phase].program == program and p.outcome != "not met"}
            print(f"{program}: {len(keys)} distinct call sites reached, {len(hit)} of them failed")
            unknown = sites.unknown_imports()
            if unknown:
                is_fine = False
                print(f"  calls that nobody has thought of (interpose.c, or CANNOT_FAIL in sites.py): {unknown}")
            left = sites.never_reached(keys)
            allowed = [(text, is_allowed(program, text)) for _, text in left]
            for text, reason in allowed:
                if reason is None:
                    print(f"  never reached: {text}")
                elif self.options.verbose:
                    print(f"  never reached: {text} ({reason})")
            n_unexplained = sum(reason is None for _, reason in allowed)
            print(f"  never reached: {n_unexplained}, and {len(left) - n_unexplained} of which it is known why")
            if n_unexplained and self.options.all_sites:
                is_fine = False
        print("outcomes: " + ", ".join(f"{n} {word}" for word, n in sorted(self.outcomes.items())))
        for point, text in self.failures:
            print(f"FAILED {point}: {text.splitlines()[0][:200]}")
        print(f"{len(self.failures)} failed")
        return is_fine


def options_of(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    bin_dir = os.environ.get("SPILLWAY_BIN", "build/release")
    parser.add_argument("--bin", default=bin_dir)
    parser.add_argument("--dir", help="for devices, 64 MiB for each job; /dev/shm if they fit in there")
    parser.add_argument("--jobs", type=int, default=2 * (os.cpu_count() or 1), help="at a time: they wait more than they work")
    parser.add_argument("--seconds", type=float, help=f"a sample, so long in all, but at least {SAMPLE_AT_LEAST} points")
    parser.add_argument("--shard", metavar="K/N", help="the Kth of N parts of all points")
    parser.add_argument("--calls-a-site", type=int, default=20, help="of a site, so many calls at most in a phase")
    parser.add_argument("--only", help="points whose name has this regular expression")
    parser.add_argument("--point", help="this one, and show the daemon's log")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--all-sites", action="store_true", help="a site that is never reached is a failure")
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--log", metavar="FILE", help="a line for each point")
    parser.add_argument("--resume", action="store_true", help="go on with what --log lacks, or has as failed")
    options = parser.parse_args(argv)
    if options.resume and not options.log:
        parser.error("--resume: of which --log?")
    shm = "/dev/shm"
    if not options.dir and os.path.isdir(shm) and shutil.disk_usage(shm).free > (options.jobs + 4) * DISK_MIB << 20:
        options.dir = shm
    options.bin = os.path.abspath(options.bin)
    options.test = f"{options.bin}/tests"
    options.preload = f"{options.test}/libfailcalls.so"
    return options


def sample(points):
    """What was wrong once, then each site once; which of its points: by its name, so that all kinds are there."""
    by_site, first = {}, [point for point in points if was_found_once(point)]
    for point in points:
        by_site.setdefault((point.phase, point.key), []).append(point)
    rounds = []
    for site in sorted(by_site, key=lambda s: zlib.crc32(repr(s).encode())):
        at = zlib.crc32(repr(site).encode()) % len(by_site[site])
        rounds.append(by_site[site][at])
    return first + [point for point in rounds if point not in first]


def shard(points, text):
    """The Kth of N parts: each has of everything, as neighbours are alike."""
    k, n = (int(word) for word in text.split("/"))
    if not 1 <= k <= n:
        sys.exit(f"--shard {text}: from 1/N to N/N")
    return points[k - 1 :: n]


def logged(file):
    """What it has that did not fail."""
    file.seek(0)
    rows = [line.rstrip("\n").split("\t") for line in file]
    return {row[1] for row in rows if len(row) == 3 and row[2] != "failed"}


def become_nobody(options):
    """Root may not use a pool that is shared; somebody else who may lock memory can use all there is."""
    if os.geteuid() != 0 or not shutil.which("setpriv"):
        return
    words = list(sys.argv)
    if options.log:  # it may lie where only root comes
        fd = os.open(options.log, os.O_RDWR | os.O_CREAT | (0 if options.resume else os.O_TRUNC), 0o644)
        os.fchown(fd, OTHER_ID, OTHER_ID)
        os.set_inheritable(fd, True)
        words += ["--log", f"/dev/fd/{fd}"]
    os.execvp("setpriv", ["setpriv", f"--reuid={OTHER_ID}", f"--regid={OTHER_ID}", "--clear-groups",
                          "--inh-caps=+ipc_lock", "--ambient-caps=+ipc_lock", sys.executable] + words)


def main():
    options = options_of(sys.argv[1:])
    become_nobody(options)
    options.log = open(options.log, "a+" if options.resume else "w", encoding="utf-8") if options.log else None
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended from outside"))
    options.end = time.monotonic() + options.seconds if options.seconds else None
    run = Run(options)
    try:
        run.prepare()
        points = run.points()
        if options.only:
            points = [p for p in points if re.search(options.only, str(p))]
        if options.point:
            points = [p for p in points if str(p) == options.point]
            if not points:
                sys.exit("there is no such point: --list lists them")
        if options.seconds:
            points = sample(points)
        if options.shard:
            points = shard(points, options.shard)
        if options.resume:
            done = logged(options.log)
            points = [p for p in points if str(p) not in done]
        if options.list:
            print("\n".join(str(p) for p in points))
            return 0
        run.run(points)
        if options.point:
            print(getattr(run.runners[0], "failed_log", None) or run.runners[0].rig.log())
        return 0 if run.report(points) else 1
    finally:
        run.close()


if __name__ == "__main__":
    sys.exit(main())
