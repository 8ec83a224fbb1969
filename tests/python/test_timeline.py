# SPDX-License-Identifier: Apache-2.0
"""The timeline of an optimizer: what is recorded, as a trace and as a picture; and that nothing is, without one."""
import json
import pathlib
import struct
import sys
import tempfile
import time
import unittest
import unittest.mock

import support

try:
    import torch

    import spillway.torch as spw
    from spillway.torch import picture, timeline
except ImportError:
    torch = None
try:
    import matplotlib
except ImportError:
    matplotlib = None

PARAMETERS = 9 << 20  # states of 72 MiB, in a pool that has memory for 64
GROUP_MIB = 8


@unittest.skipIf(torch is None, "torch is not installed")
class TimelineTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        daemon = support.Daemon("[tier.dram]\nsize = 64 MiB\n", disk_mib=512)
        cls.addClassCleanup(daemon.stop)
        cls.pool = spw.connect("test", socket=daemon.socket, start=False)
        cls.addClassCleanup(cls.pool.session.close)
        cls.param = torch.nn.Parameter(torch.ones(PARAMETERS))
        cls.param.grad = torch.ones(PARAMETERS)
        cls.optimizer = spw.OffloadAdamW([cls.param], cls.pool, group_bytes=GROUP_MIB << 20, threads=1)
        cls.addClassCleanup(cls.optimizer.close)
        cls.folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.folder.cleanup)

    def recorded(self, work=None):
        with spw.Timeline(self.optimizer, interval=0.001) as found:
            (work or self.optimizer.step)()
        return found

    def trace(self, found):
        """Of its file: the events of one kind."""
        path = pathlib.Path(self.folder.name, "trace.json")
        found.save(path)
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
        return {kind: [event for event in events if event["ph"] == kind] for kind in "XMC"}

    def test_what_a_step_does(self):
        found = self.recorded()
        groups = list(range(-(-8 * PARAMETERS // (GROUP_MIB << 20))))
        for name in ("read", "step", "release"):
            events = [event for event in found.events if event.name == name]
            self.assertEqual([event.group for event in events], groups, name)
            self.assertEqual(sum(event.nbytes for event in events), 8 * PARAMETERS, name)
        wholes = [event for event in found.events if event.name == timeline.WHOLE]
        self.assertEqual(len(wholes), 1)
        self.assertEqual(found.threads[0], wholes[0].thread)
        self.assertEqual(len(found.threads), 2)  # the reader's, too

    def test_events_of_a_thread_lie_within_each_other_or_follow(self):
        for thread in (found := self.recorded()).threads:
            open_ = []
            for event in (event for event in found.events if event.thread == thread):
                self.assertGreaterEqual(event.begin, 0)
                self.assertGreaterEqual(event.seconds, 0)
                while open_ and open_[-1].end <= event.begin:
                    open_.pop()
                if open_:
                    self.assertLessEqual(event.end, open_[-1].end)
                open_.append(event)

    def test_events_cover_the_step(self):
        found = self.recorded()
        whole = next(event for event in found.events if event.name == timeline.WHOLE)
        covered, until = 0.0, whole.begin
        for event in found.events:
            if event.thread == whole.thread and event is not whole:
                covered += max(event.end - max(event.begin, until), 0)
                until = max(until, event.end)
        self.assertLessEqual(covered, whole.seconds)
        self.assertGreater(covered, 0.8 * whole.seconds)

    def test_order_of_a_group(self):
        at = {(event.name, event.group): event for event in self.recorded().events}
        for group in range(9):
            self.assertLessEqual(at["read", group].end, at["step", group].begin)
            self.assertLessEqual(at["step", group].end, at["release", group].begin)

    def test_the_trace(self):
        found = self.recorded()
        kinds = self.trace(found)
        tracks = {event["tid"]: event["args"]["name"] for event in kinds["M"] if event["name"] == "thread_name"}
        self.assertEqual(list(tracks.values()), found.threads)
        self.assertEqual(len(kinds["X"]), len(found.events))
        self.assertEqual(kinds["X"], sorted(kinds["X"], key=lambda event: event["ts"]))
        for event, known in zip(kinds["X"], found.events):
            self.assertEqual(tracks[event["tid"]], known.thread)
            self.assertAlmostEqual(event["dur"], 1e6 * known.seconds)
            self.assertEqual(event["args"]["bytes"], known.nbytes)
        self.assertEqual({event["name"] for event in kinds["C"]},
                         {"bytes by tier", "bytes in memory", "devices, MB/s"})

    def test_samples_are_of_the_pool(self):
        found = self.recorded(lambda: [self.optimizer.step() for _ in range(3)])
        times = [sample.time for sample in found.samples]
        self.assertEqual(times, sorted(times))
        self.assertGreaterEqual(len(times), 3)
        last = found.samples[-1].stat
        self.assertGreater(last.dram_used, 0)
        self.assertGreater(last.nvme_used, 0)
        self.assertGreater(max(sample.stat.leased for sample in found.samples), 0)
        read = sum((rate.end - rate.begin) * rate.read for rate in found.rates())
        self.assertAlmostEqual(read, last.bytes_read - found.samples[0].stat.bytes_read, delta=1)
        self.assertGreater(read, 0)

    def test_a_step_that_begins_in_the_backward_pass(self):
        def work():
            with self.optimizer.overlap_backward():
                (self.param * self.param.grad.detach().clone()).sum().backward()
            self.optimizer.step()

        found = self.recorded(work)
        steps = [event for event in found.events if event.name == "step"]
        self.assertEqual([event.group for event in steps], list(range(9))[::-1])
        self.assertEqual({event.thread for event in steps}, {"spillway-overlap"})
        self.assertIn("wait for overlap", {event.name for event in found.events if event.thread == found.threads[0]})
        self.assertIn("wait for backward", {event.name for event in found.events})

    def test_snapshots_too(self):
        def work():
            self.optimizer.save("last")
            self.optimizer._saver.committer.submit(int).result()  # who commits has something to do after that

        names = {event.name for event in self.recorded(work).events}
        self.assertEqual(names, {"snapshot copy", "snapshot commit"})

    def test_copies_that_a_gpu_makes(self):
        """A copy ends when it is there, not when the step comes for it; and begins when the one before has ended."""

        def copy():
            time.sleep(0.02)

        def work():
            waits = [timeline.watched("gradients", copy, group, 4096) for group in range(2)]
            time.sleep(0.3)
            waits[0]()

        first, second, waited = self.recorded(work).events
        for group, event in enumerate((first, second)):
            self.assertEqual(event[:2] + event[4:], ("gradients", timeline.LINK, group, 4096))
        self.assertLess(first.seconds, 0.2)
        self.assertLessEqual(first.end, second.begin)
        self.assertEqual((waited.name, waited.thread, waited.group), ("wait for gradients", "MainThread", 0))

    def test_nothing_is_recorded_outside(self):
        found = self.recorded()
        n, samples = len(found.events), len(found.samples)
        with unittest.mock.patch.object(timeline.Timeline, "add") as add:
            self.optimizer.step()
        add.assert_not_called()
        self.assertEqual((len(found.events), len(found.samples)), (n, samples))
        self.assertIs(timeline.span("step"), timeline.span("read"))
        wait = object()
        self.assertIs(timeline.watched("gradients", wait, 0, 0), wait)

    def test_an_exception_ends_it(self):
        with self.assertRaises(KeyError):
            self.recorded(lambda: {}["nothing"])
        self.assertTrue(self.recorded().events)

    def test_one_at_a_time_and_once(self):
        with spw.Timeline(self.optimizer) as first:
            with self.assertRaisesRegex(RuntimeError, "another timeline records"):
                self.recorded()
        with self.assertRaisesRegex(RuntimeError, "records once"):
            first.__enter__()
        self.assertTrue(self.recorded().events)

    def test_without_matplotlib(self):
        found = self.recorded()
        with unittest.mock.patch.dict(sys.modules, {"matplotlib.figure": None}):
            with self.assertRaisesRegex(ImportError, "python3-matplotlib"):
                found.picture(pathlib.Path(self.folder.name, "none.png"))

    @unittest.skipIf(matplotlib is None, "matplotlib (python3-matplotlib) is not installed: no picture is drawn")
    def test_the_picture(self):
        path = pathlib.Path(self.folder.name, "step.png")
        self.recorded().picture(path)
        data = path.read_bytes()
        self.assertEqual(data[:8], b"\x89PNG\r\n\x1a\n")
        width, height = struct.unpack(">II", data[16:24])
        self.assertGreater(width, 800)
        self.assertGreater(height, 400)
        pixels = matplotlib.image.imread(path)[..., :3].reshape(-1, 3)
        for name in ("read", "step"):  # a lane has it
            colour = matplotlib.colors.to_rgb(picture.COLOURS[name])
            self.assertGreater(int((abs(pixels - colour).max(axis=1) < 0.01).sum()), 500, name)


if __name__ == "__main__":
    support.main()
