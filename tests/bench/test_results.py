#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The guard tells worse from noise, whichever way is better, and the tables go where their markers are."""
import json
import pathlib
import tempfile
import unittest

import results


def figure(name="f", ratio=1.0, interval=(0.99, 1.01), goal_of="ratio ≤", **more):
    return {
        "name": name, "value": 100.0, "unit": "ns", "beside": "raw", "beside_value": 90.0, "ratio": ratio,
        "goal": 1.5, "holds": True, "goal_of": goal_of, "interval": list(interval) if interval else None,
        "samples": 9, **more,
    }  # fmt: skip


class GuardTest(unittest.TestCase):
    def verdict(self, before, now, tolerance=0.1):
        return results.compare(before, now, tolerance)[0]

    def test_less_is_better(self):
        self.assertEqual(self.verdict(figure(), figure(ratio=1.3, interval=(1.2, 1.4))), "worse")
        self.assertEqual(self.verdict(figure(), figure(ratio=1.3, interval=(1.0, 1.4))), "maybe")
        self.assertEqual(self.verdict(figure(), figure(ratio=1.05, interval=(1.0, 1.4))), "same")
        self.assertEqual(self.verdict(figure(), figure(ratio=0.7, interval=(0.6, 0.8))), "better")

    def test_more_is_better(self):
        of = {"goal_of": "ratio ≥"}
        self.assertEqual(self.verdict(figure(**of), figure(ratio=0.7, interval=(0.6, 0.8), **of)), "worse")
        self.assertEqual(self.verdict(figure(**of), figure(ratio=0.7, interval=(0.6, 0.95), **of)), "maybe")
        self.assertEqual(self.verdict(figure(**of), figure(ratio=1.3, interval=(1.2, 1.4), **of)), "better")

    def test_interval_of_a_value_is_scaled(self):
        of = {"goal_of": "value ≤"}
        self.assertEqual(self.verdict(figure(**of), figure(ratio=1.3, interval=(95, 105), **of)), "worse")
        self.assertEqual(self.verdict(figure(**of), figure(ratio=1.3, interval=(60, 140), **of)), "maybe")

    def test_times_alone_are_not_compared(self):
        alone = {"beside": None, "beside_value": None, "ratio": None, "goal_of": "value ≤"}
        self.assertIsNone(self.verdict(figure(**alone), figure(**{**alone, "value": 1000.0})))

    def test_what_was_counted(self):
        counted = {"samples": 0, "ratio": None, "goal_of": "value ≤", "interval": None}
        self.assertEqual(self.verdict(figure(**counted), figure(**{**counted, "holds": False})), "worse")
        self.assertEqual(self.verdict(figure(**counted), figure(**counted)), "same")

    def test_the_whole(self):
        reference = {"ring": [figure("nop"), figure("gone")], "other": [figure("x")]}
        lines, worse = results.guard(reference, {"ring": [figure("nop", 2.0, (1.9, 2.1))]}, 0.1)
        self.assertTrue(worse)
        self.assertTrue(lines[0].startswith("WORSE   ring: nop: 1× → 2×"))
        self.assertIn("1 worse, 0 too noisy to say, 0 better, 0 the same, 1 not measured", lines[-1])
        self.assertFalse(results.guard(reference, {"ring": [figure("nop")]}, 0.1)[1])


class TablesTest(unittest.TestCase):
    def test_markers(self):
        text = "# Results\n\nWords.\n<!-- ring -->\nstale\n<!-- /ring -->\nMore words.\n"
        found = {"ring": [figure("nop")], "hit": [figure("one", holds="noisy")]}
        text = results.tables_write(text, found, {"cpus": 2})
        self.assertNotIn("stale", text)
        self.assertIn("More words.", text)
        self.assertIn("| nop | 100 ns | raw: 90 | 1.00× | 0.99 to 1.01 | 9 | ≤ 1.5× | holds |", text)
        self.assertIn("## hit\n\n<!-- hit -->", text)
        self.assertEqual(results.tables_write(text, found, {"cpus": 2}), text)

    def test_a_gpu_is_named_where_it_matters(self):
        machine = {"cpus": 2, "gpu": "a GPU"}
        self.assertTrue(results.section("gpu", [figure()], machine).startswith("a GPU, "))
        self.assertNotIn("a GPU", results.section("ring", [figure()], machine))


class JoinTest(unittest.TestCase):
    def test_rows_become_one_run(self):
        with tempfile.TemporaryDirectory() as folder:
            files = [pathlib.Path(folder) / name for name in ("b.json", "a.json")]
            for file in files:
                file.write_text(json.dumps([figure(file.stem)]), encoding="utf-8")
            self.assertEqual([f["name"] for f in results.join(files)], ["b", "a"])


if __name__ == "__main__":
    unittest.main()
