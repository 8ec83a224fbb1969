# SPDX-License-Identifier: Apache-2.0
"""docs/train_gpt.py, small: it learns, with the losses of the same training in memory, and goes on where it was."""
import contextlib
import importlib.util
import io
import json
import os
import pathlib
import tempfile
import unittest
from unittest import mock

import support

try:
    import torch

    import spillway.torch as spw
except ImportError:
    torch = None

SMALL = ["--parameters", "2e5", "--batch", "4", "--context", "16"]
# states of 80 MiB, in a pool that has memory for 64
LARGE = ["--parameters", "1e7", "--batch", "1", "--context", "8", "--group-mib", "8", "--steps", "3"]


def example():
    """The program as a module."""
    spec = importlib.util.spec_from_file_location("train_gpt", support.SOURCE / "docs/train_gpt.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@unittest.skipIf(torch is None, "torch is not installed")
class TrainGpt(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        torch.set_num_threads(1)  # beside other tests, threads wait for each other

    def setUp(self):
        self.program = example()
        text = tempfile.NamedTemporaryFile(suffix=".txt")
        self.addCleanup(text.close)
        # What every Debian machine has; elsewhere a licence of this project's.
        licence = pathlib.Path(self.program.TEXT)
        text.write((licence if licence.exists() else support.SOURCE / "LICENSE").read_bytes())
        text.flush()
        self.text = ["--text", text.name]

    def daemon(self):
        daemon = support.Daemon("[tier.dram]\nsize = 64 MiB\n", disk_mib=256)
        self.addCleanup(daemon.stop)
        environment = mock.patch.dict(os.environ, {"SPILLWAY_SOCKET": str(daemon.socket)})
        environment.start()
        self.addCleanup(environment.stop)
        return daemon

    def train(self, *arguments):
        """Its losses, and what it printed."""
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            losses = self.program.main(self.program.settings([*self.text, *arguments]))
        return losses, printed.getvalue()

    def test_learns_as_in_memory_and_goes_on(self):
        self.daemon()
        whole, _ = self.train(*SMALL, "--steps", "30", "--in-memory")
        self.assertLess(sum(whole[-5:]), 0.7 * sum(whole[:5]))
        first, printed = self.train(*SMALL, "--steps", "20", "--save")
        self.assertEqual(first, whole[:20])
        self.assertRegex(printed, r"(?m)^median: .* tokens/s$")
        rest, _ = self.train(*SMALL, "--steps", "10", "--resume", "20")
        self.assertEqual(rest, whole[20:])

    def test_activations_too(self):
        self.daemon()
        arguments = [*SMALL, "--batch", "16", "--steps", "3"]
        moved = []
        offload = spw.offload_activations

        def watched(*args, **options):
            moved.append(offload(*args, **options))
            return moved[-1]

        with mock.patch.object(spw, "offload_activations", watched):
            mine, _ = self.train(*arguments, "--offload-activations")
        self.assertEqual(mine, self.train(*arguments, "--in-memory")[0])
        self.assertGreater(sum(offload.stats.offloaded for offload in moved), 0)

    def test_steps_during_the_backward_pass(self):
        self.daemon()
        arguments = [*SMALL, "--steps", "4"]
        mine, _ = self.train(*arguments, "--overlap-backward")
        self.assertEqual(mine, self.train(*arguments, "--in-memory")[0])

    def test_states_on_a_device(self):
        self.daemon()
        with tempfile.TemporaryDirectory() as folder:
            with mock.patch.object(spw.Timeline, "picture"):  # test_timeline.py has pictures
                mine, printed = self.train(*LARGE, "--timeline", f"{folder}/step")
            with open(f"{folder}/step.json", encoding="utf-8") as file:
                names = {event["name"] for event in json.load(file)["traceEvents"]}
        self.assertEqual(mine, self.train(*LARGE, "--in-memory")[0])
        self.assertTrue({"read", "step", "release"} <= names)
        self.assertRegex(printed, r"nvme: [1-9]\d* of 256 MiB used, [1-9]\d*\.\d hits a step")


if __name__ == "__main__":
    support.main()
