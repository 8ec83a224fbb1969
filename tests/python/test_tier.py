# SPDX-License-Identifier: Apache-2.0
"""OffloadAdamW(tier=…): where the states are kept."""
import errno
import threading
import time
import unittest
import unittest.mock

import spillway
import support
from support import MIB

try:
    import torch

    import spillway.torch as spw
    from torch_rig import NUMBERS
except ImportError:
    torch = None

SECTIONS = "[tier.dram]\nsize = 64 MiB\n[pool default]\nprefetch_ahead = 4 MiB\n"
GROUP = 4 * MIB
WINDOW = 4 * GROUP  # two groups are leased, one is on its way out, and what is read ahead is no more than one


class TierCase(unittest.TestCase):
    def serve(self, **options):
        self.daemon = support.Daemon(SECTIONS, **options)
        self.addCleanup(self.daemon.stop)
        self.pool = spw.connect("test", socket=self.daemon.socket, start=False)
        self.addCleanup(self.pool.session.close)

    def optimizer(self, mib, **options):
        """With so many MiB of states, in groups of 4."""
        torch.manual_seed(1)
        params = [torch.nn.Parameter(torch.randn(1 << 17)) for _ in range(mib)]
        optimizer = spw.OffloadAdamW(params, self.pool, group_bytes=GROUP, **{**NUMBERS, **options})
        self.addCleanup(optimizer.close)
        return params, optimizer

    def step(self, params, optimizer, n):
        for step in range(n):
            torch.manual_seed(step)
            for p in params:
                p.grad = torch.randn(p.shape)
            optimizer.step()

    def bytes_in_memory(self, optimizer):
        hits = optimizer._space.lookup([key for group in optimizer._groups for key in optimizer._keys(group)])
        self.assertTrue(all(hit.status == 0 for hit in hits))
        return sum(hit.size for hit in hits if hit.tier == "dram")

    def loads(self):
        return self.pool.session.admin({"get": "pools"})["pools"][0]["loads"]


@unittest.skipIf(torch is None, "torch is not installed")
class TierTest(TierCase):
    def test_on_devices_but_for_what_a_step_uses(self):
        self.serve(disk_mib=256)
        found = []
        for tier in ("auto", "nvme"):
            params, optimizer = self.optimizer(48, name=tier, tier=tier)
            most = 0
            for _ in range(3):
                self.step(params, optimizer, 1)
                end = time.monotonic() + 5
                while tier == "nvme" and self.bytes_in_memory(optimizer) > WINDOW and time.monotonic() < end:
                    time.sleep(0.01)  # what was stepped last is being written
                most = max(most, self.bytes_in_memory(optimizer))
            if tier == "auto":
                self.assertEqual(most, 48 * MIB)  # they fit
            else:
                self.assertLessEqual(most, WINDOW)
            found.append((params, optimizer.state_dict()["state"]))
            optimizer.close()
        (params, states), (other_params, other_states) = found
        for a, b in zip(params, other_params):
            self.assertTrue(torch.equal(a, b))
        for i, state in states.items():
            for name, values in state.items():
                self.assertTrue(torch.equal(values, other_states[i][name]))

    def test_on_devices_also_after_what_else_leases_them(self):
        self.serve(disk_mib=256)
        params, optimizer = self.optimizer(48, tier="nvme")
        self.step(params, optimizer, 1)
        for use in (optimizer.state_dict, lambda: optimizer.save("it"), lambda: optimizer.load("it")):
            use()
            end = time.monotonic() + 10
            while self.bytes_in_memory(optimizer) > WINDOW and time.monotonic() < end:
                time.sleep(0.01)
            self.assertLessEqual(self.bytes_in_memory(optimizer), WINDOW)
        self.step(params, optimizer, 1)

    def test_a_device_is_needed(self):
        self.serve()
        with self.assertRaises(spillway.SpillwayError) as caught:
            self.optimizer(4, tier="nvme")
        self.assertEqual(caught.exception.errno, errno.ENODEV)
        self.assertIn("add a [device] and `nvme` of [pool default]", str(caught.exception))
        self.optimizer(4, tier="dram")

    def test_in_memory_alone(self):
        self.serve(disk_mib=256)
        params, optimizer = self.optimizer(57, tier="dram")
        before = self.loads()
        self.step(params, optimizer, 3)
        self.assertEqual(self.loads(), before)
        self.assertEqual(self.bytes_in_memory(optimizer), 57 * MIB)
        optimizer.close()
        with self.assertRaises(spillway.NoSpace) as caught:
            self.optimizer(60, tier="dram")
        self.assertIn("60 MiB", str(caught.exception))
        self.assertIn("67 MiB", str(caught.exception))
        self.assertIn("has 64 MiB: raise `dram` of [pool default]", str(caught.exception))

    def test_more_than_a_pool_has(self):
        """It is said at once, with both numbers and the knob."""
        self.serve()
        began = time.monotonic()
        for mib in (64, 300):
            with self.assertRaises(spillway.NoSpace) as caught:
                self.optimizer(mib)
            self.assertIn(f"the states take {mib} MiB, and pool 'default' has 64 MiB of memory and no device: raise "
                          "`dram` of [pool default], or add a [device]", str(caught.exception))
        self.assertLess(time.monotonic() - began, 30)
        params, optimizer = self.optimizer(63)  # nothing is left of those
        self.step(params, optimizer, 1)
        optimizer.close()
        self.assertEqual(optimizer._space.stat().objects, 0)

    def test_more_than_its_devices_have(self):
        self.serve(disk_mib=128)
        with self.assertRaises(spillway.NoSpace) as caught:
            self.optimizer(200)
        self.assertIn("the states take 200 MiB, and pool 'default' has 64 MiB of memory and 128 MiB on devices: raise "
                      "`nvme`", str(caught.exception))

    def test_what_a_constructor_made_goes_when_it_fails(self):
        self.serve(disk_mib=128)
        threads = threading.active_count()
        for what in ("acquire", "tensor", "plan"):
            with self.subTest(what), unittest.mock.patch.object(
                spillway.Space, what, side_effect=spillway.NoSpaceInTime(errno.ETIMEDOUT, "no room")
            ):
                with self.assertRaises(spillway.NoSpaceInTime) as caught:
                    self.optimizer(8)
            self.failed = caught.exception  # and its traceback: nothing is left to the garbage collector
            self.assertEqual(threading.active_count(), threads)
            with self.daemon.connect() as session:
                self.assertEqual(session.pool().space("count").stat().objects, 0)
        params, optimizer = self.optimizer(8)  # the name is free
        self.step(params, optimizer, 1)

    def test_no_such_tier(self):
        self.serve()
        with self.assertRaisesRegex(ValueError, "auto, dram, nvme; not 'ssd'"):
            self.optimizer(4, tier="ssd")


if __name__ == "__main__":
    support.main()
