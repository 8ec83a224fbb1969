# SPDX-License-Identifier: Apache-2.0
"""A device fails in the middle of a step: it is loud, states are whole, and training goes on from a snapshot."""
import errno
import os
import subprocess
import unittest
import unittest.mock

import spillway
import support
from spillway import train

try:
    import torch

    import spillway.torch as spw
    from test_torch import InMemory
    from torch_rig import NUMBERS
except ImportError:
    torch = None

SECTIONS = "[tier.dram]\nsize = 64 MiB\n[pool default]\nprefetch_ahead = 8 MiB\n"
GROUP = 4 * support.MIB
N = 96  # MiB of states, in parameters of one each


@unittest.skipIf(torch is None, "torch is not installed")
class DeviceFails(unittest.TestCase):
    def setUp(self):
        self.daemon = support.Daemon(SECTIONS, keys="inject = yes", disk_mib=512)
        self.addCleanup(self.stop)
        if self.inject("list").returncode != 0:
            self.skipTest("this user may not order faults")
        self.pool = self.connect()

    def connect(self):
        pool = spw.connect("test", socket=self.daemon.socket, start=False)
        self.addCleanup(pool.session.close)
        return pool

    def stop(self):
        self.inject("clear")
        self.daemon.kill()  # a device that has failed is not closed cleanly, and that is said
        self.daemon.remove()

    def inject(self, *order):
        command = [support.BIN / "spillctl", "--socket", str(self.daemon.socket), "inject", *order]
        return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def optimizer(self, params, **options):
        optimizer = spw.OffloadAdamW(params, self.pool, name="faults", group_bytes=GROUP, **NUMBERS, **options)
        self.addCleanup(optimizer.close)
        return optimizer

    def train(self, params, optimizer, first, n):
        for step in range(first, first + n):
            for i, p in enumerate(params):
                p.grad = p.detach() * (step + 1) + i
            optimizer.step()

    def parameters(self):
        torch.manual_seed(1)
        return [torch.nn.Parameter(torch.randn(1 << 17)) for _ in range(N)]

    def reference(self, steps):
        """Of each parameter: it and its moments, in memory."""
        params = self.parameters()
        same = InMemory(params, **NUMBERS)
        self.train(params, same, 0, steps)
        return params, same

    def states_of(self, params, reference):
        return [torch.cat([p.detach(), *moments]) for p, moments in zip(params, reference.states)]

    def whole_states(self, params, optimizer, no_wait):
        """Of each parameter whose states can be read: it and its moments. Notes the limits that others met."""
        found, self.limits = {}, set()
        number = {p: i for i, p in enumerate(params)}
        for group in optimizer._groups:
            views = optimizer._space.acquire(optimizer._keys(group), no_wait=no_wait)
            if all(view.status == 0 for view in views):
                for p, name, extent, here in optimizer._named(group, views):
                    if name == "exp_avg":
                        found[number[p]] = [p.detach().clone()]
                    found[number[p]].append(here.clone())
                here = None
            self.limits |= {view.limit.name for view in views if view.status == -errno.ENOSPC}
            views.release()
        return {i: torch.cat(parts) for i, parts in found.items()}

    def drill(self, tier, *order, groups):
        """Faults begin when so many groups have been stepped."""
        params = self.parameters()
        optimizer = self.optimizer(params, tier=tier)
        self.train(params, optimizer, 0, 2)
        optimizer.save("after two")
        self.train(params, optimizer, 2, 1)
        step, n = train.adam, [0]

        def adam(*arguments):
            n[0] += 1
            if n[0] == groups:
                self.inject("device", "disk", "eio", *order)
            return step(*arguments)

        with unittest.mock.patch.object(train, "adam", adam):
            with self.assertRaises(spillway.SpillwayError) as caught:
                self.train(params, optimizer, 3, 1)
        error = caught.exception
        if error.errno == errno.ENOSPC:  # what the device does not take any more fills the memory
            self.assertEqual(error.limit.name, "DEVICE_FAILED")
        else:
            self.assertEqual(error.errno, errno.EIO)
            self.assertIsNone(error.limit)
        self.assertIn(os.strerror(error.errno), str(error))
        self.assertNotIn("full", str(error))
        with self.assertRaisesRegex(RuntimeError, "failed in its middle"):
            optimizer.step()
        return params, optimizer

    def check(self, params, optimizer):
        before = self.states_of(*self.reference(3))
        after = self.states_of(*self.reference(4))
        in_memory = self.whole_states(params, optimizer, no_wait=True)  # the device fails still
        if optimizer.tier == "auto":
            self.assertGreater(len(in_memory), 0)
        self.inject("clear")
        all_of_them = self.whole_states(params, optimizer, no_wait=False)
        is_full = self.limits == {"DEVICE_FAILED"}  # of what it does not take any more: there is no room to read others
        self.assertTrue(is_full or len(all_of_them) == N)  # nothing is lost
        for found in (in_memory, all_of_them):
            made = {i for i, states in found.items() if torch.equal(states, after[i])}
            not_made = {i for i, states in found.items() if torch.equal(states, before[i])}
            self.assertEqual(made | not_made, set(found))
        self.assertTrue(made and (not_made or is_full))

    def goes_on(self, params, optimizer):
        """With this daemon, or, where a write has failed that must not, with the next one."""
        [device] = self.pool.session.admin({"get": "devices"})["devices"]
        if any(partition["failed"] for partition in device["partitions"]):
            optimizer.close()
            self.pool.session.close()
            self.daemon.kill()
            self.daemon.start()
            self.pool = self.connect()
            params = self.parameters()
            optimizer = self.optimizer(params)
        optimizer.load("after two")
        self.train(params, optimizer, 2, 3)
        expected, _ = self.reference(5)
        for a, b in zip(params, expected):
            self.assertTrue(torch.equal(a, b))
        optimizer.save("after five")

    def test_all_requests_fail(self):
        params, optimizer = self.drill("auto", groups=3)
        self.check(params, optimizer)
        self.goes_on(params, optimizer)

    def test_all_requests_fail_of_states_on_devices(self):
        params, optimizer = self.drill("nvme", groups=3)
        self.check(params, optimizer)
        self.goes_on(params, optimizer)

    def test_some_requests_fail(self):
        params, optimizer = self.drill("nvme", "--probability", "0.3", groups=6)
        self.check(params, optimizer)
        self.goes_on(params, optimizer)


if __name__ == "__main__":
    support.main()
