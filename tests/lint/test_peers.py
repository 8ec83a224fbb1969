#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What `./dev bench peers` computes: statistics, verdicts, goals, the harness's check of bytes, and what it parses."""

import json
import pathlib
import sys
import types
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "bench" / "peers"))

import harness
import install
import peer_fio
import report
import stats

GB = 10**9


class StatsTest(unittest.TestCase):
    def test_rank_is_the_sign_tests(self):
        # Tables of the sign test, two-sided, 5 %.
        self.assertEqual([stats.rank(n) for n in (5, 6, 8, 9, 11, 12, 20)], [0, 1, 1, 2, 2, 3, 6])

    def test_estimate_does_not_care_for_order(self):
        self.assertEqual(stats.estimate([3, 1, 2, 9, 5, 4, 8, 7, 6]), stats.Estimate(5, 2, 8, 9))

    def test_pairs_are_compared_before_medians(self):
        # Twice as fast in every pair, though the machine's speed changed tenfold between pairs.
        ours = [2, 20, 2, 20, 2, 20]
        self.assertEqual(stats.paired(ours, [x / 2 for x in ours]), stats.Estimate(2, 2, 2, 6))

    def test_verdict_needs_the_whole_interval(self):
        self.assertIs(stats.verdict(stats.Estimate(1.6, 1.5, 1.7, 6), "at least", 1.5), True)
        self.assertIs(stats.verdict(stats.Estimate(1.4, 1.3, 1.49, 6), "at least", 1.5), False)
        self.assertEqual(stats.verdict(stats.Estimate(1.6, 1.4, 1.7, 6), "at least", 1.5), "noisy")
        self.assertEqual(stats.verdict(stats.Estimate(9, 9, 9, 5), "at least", 1.5), "noisy", "five are too few")
        self.assertIs(stats.verdict(stats.Estimate(0.6, 0.5, 0.7, 6), "at most", 0.7), True)

    def test_percentile(self):
        self.assertEqual(harness.percentile(list(range(1, 101)), 99), 99)
        self.assertEqual(harness.percentile([7], 50), 7)
        self.assertEqual(harness.percentile([1, 2], 50), 1)


def round_of(gb_per_second, cpu=1.0, **more):
    return {"bytes": GB, "seconds": 1 / gb_per_second, "cpu_seconds": cpu, "p50_us": 1.0, "p99_us": 2.0} | more


def contest(peer, theirs, ours, tier="disk", size=65536, cpu=1.0, our_cpu=1.0):
    pairs = [{"peer": round_of(theirs, cpu), "spillway": round_of(ours, our_cpu)} for _ in range(6)]
    about = {"version": "1", "tuning": "none"}
    return {
        "peer": peer,
        "size": size,
        "tier": tier,
        "beside": about,
        "rounds": {"spill": pairs, "fetch": pairs},
    } | about


def by_name(contests, checksum=0.0):
    return {figure["name"]: figure for figure in report.figures(contests, checksum)}


class ReportTest(unittest.TestCase):
    def test_goal_is_the_best_peer_where_it_is_far_from_fio(self):
        found = by_name([contest("fio", 2, 1.9), contest("slow", 1, 1.9), contest("slower", 0.5, 1.9)])
        self.assertIs(found["peer/slow/fetch/64KiB"]["holds"], True)
        self.assertAlmostEqual(found["peer/slow/fetch/64KiB"]["ratio"], 1 / 1.9)
        self.assertEqual(found["peer/slow/fetch/64KiB"]["beside_value"], 1.9)
        self.assertIsNone(found["peer/fio/fetch/64KiB"]["goal"])

    def test_goal_is_fio_where_a_peer_is_near_it(self):
        found = by_name([contest("fio", 2, 1.9), contest("fast", 1.5, 1.9)])
        self.assertIsNone(found["peer/fast/fetch/64KiB"]["goal"])
        self.assertIs(found["peer/fio/fetch/64KiB"]["holds"], False, "0.95 of fio is less than 0.97")
        self.assertIs(
            by_name([contest("fio", 2, 1.96), contest("fast", 1.5, 1.9)])["peer/fio/fetch/64KiB"]["holds"], True
        )

    def test_memory_does_not_set_the_goal_of_disks(self):
        found = by_name(
            [contest("fio", 2, 1), contest("ram", 9, 10, tier="memory"), contest("memcpy", 20, 10, tier="memory")]
        )
        self.assertIsNone(found["peer/fio/spill/64KiB"]["goal"])
        self.assertIs(found["peer/ram/spill/64KiB"]["holds"], False)
        self.assertEqual(found["peer/ram/spill/64KiB"]["beside"], "spillway, in memory")
        self.assertIsNone(found["peer/memcpy/spill/64KiB"]["goal"])

    def test_checksums_are_taken_off_ours_on_disks_only(self):
        contests = [contest("d", 1, 2, cpu=1.0, our_cpu=1.1), contest("m", 1, 2, tier="memory", cpu=1.0, our_cpu=1.1)]
        found = by_name(contests, checksum=0.2)
        self.assertAlmostEqual(found["peer/d/spill/64KiB/cpu"]["beside_value"], 0.9)
        self.assertIs(found["peer/d/spill/64KiB/cpu"]["holds"], True)
        self.assertIs(found["peer/m/spill/64KiB/cpu"]["holds"], False)

    def test_what_was_still_in_memory_does_not_count(self):
        self.assertEqual(report.gb_per_second(round_of(4, device_bytes=GB // 4)), 1.0)
        self.assertEqual(report.gb_per_second(round_of(4, device_bytes=2 * GB)), 4.0)

    def test_what_cannot_run_is_told(self):
        broken = {"peer": "x", "size": 65536, "tier": "disk", "error": "no such thing"}
        self.assertEqual(report.figures([broken], 0), [])
        self.assertIn("x, 64KiB: cannot run: no such thing", report.tables([broken], 0))

    def test_figures_are_json_and_tables_have_a_row_each(self):
        contests = [contest("fio", 2, 1.9), contest("slow", 1, 1.9, size=2 << 20)]
        json.dumps(report.figures(contests, 0.1))
        rows = [line for line in report.tables(contests, 0.1).splitlines() if line.startswith(("| fio", "| slow"))]
        self.assertEqual(len(rows), 4)


class Echo(harness.Peer):
    """Keeps the last object of each index; `breaks` spoils what it gives back."""

    def __init__(self, breaks):
        options = types.SimpleNamespace(size=131072, depth=3, set_bytes=8 * 131072, round_bytes=4 * 131072, folder="")
        super().__init__(options)
        self.slots = [memoryview(bytearray(self.size)) for _ in range(self.depth)]
        self.kept, self.ended, self.breaks, self.forgotten = {}, [], breaks, []

    def spill(self, key, index, slot):
        self.kept.setdefault(index, bytes(self.slots[slot]))
        if self.breaks != "stale":
            self.kept[index] = bytes(self.slots[slot])
        self.ended.append(slot)

    def fetch(self, key, index, slot):
        if self.breaks != "nothing":
            self.slots[slot][:] = self.kept[index if self.breaks != "other" else (index + 1) % self.n_objects]
        if self.breaks == "bit":
            self.slots[slot][self.size - 1] ^= 1
        self.ended.append(slot)

    def wait(self):
        ended, self.ended = self.ended[:1], self.ended[1:]
        return ended

    def forget(self, keys):
        self.forgotten += keys


class Lists(harness.BatchPeer):
    """Notes how long its lists are; each ends whole."""

    batches = 2

    def __init__(self):
        super().__init__(
            types.SimpleNamespace(size=65536, depth=4, set_bytes=7 * 65536, round_bytes=7 * 65536, folder="")
        )
        self.slots = [memoryview(bytearray(self.size)) for _ in range(self.depth)]
        self.lengths, self.running, self.kept = [], [], {}

    def start(self, kind, batch):
        self.lengths.append(len(batch))
        for _, index, slot in batch:
            if kind == "spill":
                self.kept[index] = bytes(self.slots[slot])
            else:
                self.slots[slot][:] = self.kept[index]
        self.running.append([slot for _, _, slot in batch])

    def reap(self):
        return self.running.pop(0)


class HarnessTest(unittest.TestCase):
    def test_lists_share_what_is_in_flight(self):
        peer = Lists()
        rounds = harness.Rounds(peer, peer.options)
        rounds.run("spill")
        self.assertEqual(peer.lengths, [2, 2, 2, 1])
        self.assertEqual(rounds.run("fetch")["bytes"], 7 * 65536)

    def rounds(self, breaks=""):
        peer = Echo(breaks)
        rounds = harness.Rounds(peer, peer.options)
        for _ in range(4):  # the whole set twice
            result = rounds.run("spill")
        self.assertEqual(result["bytes"], 4 * peer.size)
        return rounds

    def test_right_bytes_pass_and_every_object_has_its_turn(self):
        rounds = self.rounds()
        self.assertEqual(rounds.generation, [2] * 8)
        self.assertEqual(len(rounds.peer.forgotten), 8)
        self.assertEqual(sorted(rounds.indices("fetch") + rounds.indices("fetch")), list(range(8)))
        self.assertEqual(rounds.run("fetch")["compared"], 3)

    def test_wrong_bytes_show(self):
        for breaks in ("stale", "nothing", "other", "bit"):
            with self.subTest(breaks), self.assertRaisesRegex(ValueError, "wrong bytes"):
                self.rounds(breaks).run("fetch")

    def test_cpu_of_a_process(self):
        before = harness.process_cpu_ns("self")
        sum(range(1_000_000))
        self.assertGreater(harness.process_cpu_ns("self"), before)


class FioTest(unittest.TestCase):
    OUTPUT = {
        "jobs": [
            {
                "error": 0,
                "job_runtime": 500,
                "usr_cpu": 10.0,
                "sys_cpu": 30.0,
                "read": {
                    "io_bytes": 1000000,
                    "runtime": 250,
                    "lat_ns": {"percentile": {"50.000000": 80000, "99.000000": 900000}},
                },
                "write": {"io_bytes": 0, "runtime": 0, "lat_ns": {}},
            }
        ]
    }

    def test_parse(self):
        found = peer_fio.parse("fio: a warning\n" + json.dumps(self.OUTPUT))
        self.assertEqual((found["bytes"], found["seconds"], found["p50_us"], found["p99_us"]), (1000000, 0.25, 80, 900))
        self.assertAlmostEqual(found["cpu_seconds"], 0.2)

    def test_error(self):
        failed = {"jobs": [self.OUTPUT["jobs"][0] | {"error": 28}]}
        with self.assertRaisesRegex(RuntimeError, "No space left"):
            peer_fio.parse(json.dumps(failed))


class PeersTest(unittest.TestCase):
    def test_each_has_its_file(self):
        folder = pathlib.Path(harness.__file__).parent
        modules = {peer.module for peer in install.PEERS} | {"spillway"}
        self.assertEqual({path.stem.removeprefix("peer_") for path in folder.glob("peer_*.py")}, modules)


if __name__ == "__main__":
    unittest.main()
