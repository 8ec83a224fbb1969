# SPDX-License-Identifier: Apache-2.0
"""Groups that are stepped while the backward pass goes on."""
import time
import unittest

import support

try:
    import torch

    import spillway.torch as spw
    from torch_rig import NUMBERS, bits_of, loss_of, model_of, run
except ImportError:
    torch = None

SECTIONS = "[tier.dram]\nsize = 96 MiB\n"
GROUP = 8 << 20
N = 1 << 20  # elements of a parameter, whose states are a group
DEADLINE_S = 60


if torch is not None:

    class Meanwhile(torch.autograd.Function):
        """Calls a function in the backward pass."""

        @staticmethod
        def forward(ctx, x, call):
            """x."""
            ctx.call = call
            return x.view_as(x)

        @staticmethod
        def backward(ctx, grad):
            """The gradient."""
            ctx.call()
            return grad, None


class Layers:
    """Parameters, each of which is used once, in order. before[i]: is called when backward comes to layer i."""

    def __init__(self, n=3, dtype=None, device="cpu"):
        torch.manual_seed(3)
        self.params = [torch.nn.Parameter(torch.randn(N).to(device, dtype or torch.float32)) for _ in range(n)]
        self.before = {}

    def parameters(self):
        """As a module has them."""
        return iter(self.params)

    def loss(self, scale=1.0):
        """A number that all of them make."""
        y = torch.full((N,), 0.5, requires_grad=True, device=self.params[0].device)
        for i, p in enumerate(self.params):
            y = torch.tanh(y * p.float() * scale)
            if i in self.before:
                y = Meanwhile.apply(y, self.before[i])
        return y.sum()


def wait_for_change(case, p, before):
    """Until a step has been made with p."""
    end = time.monotonic() + DEADLINE_S
    while torch.equal(p.detach(), before):
        case.assertLess(time.monotonic(), end, "no group was stepped in the backward pass")
        time.sleep(0.01)


@unittest.skipIf(torch is None, "torch is not installed")
class OverlapTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.daemon = support.Daemon(SECTIONS, disk_mib=128)
        cls.addClassCleanup(cls.daemon.stop)

    def setUp(self):
        self.pool = spw.connect("test", socket=self.daemon.socket, start=False)
        self.addCleanup(self.pool.session.close)

    def optimizer(self, model, **options):
        optimizer = spw.OffloadAdamW(model.parameters(), self.pool, group_bytes=GROUP, **{**NUMBERS, **options})
        self.addCleanup(optimizer.close)
        return optimizer

    def test_as_without(self):
        for dtype in (torch.float32, torch.bfloat16):
            mine, other = model_of(dtype), model_of(dtype)
            optimizer, theirs = self.optimizer(mine, name="a"), self.optimizer(other, name="b")
            losses = []
            for step in range(8):
                optimizer.zero_grad()
                loss = loss_of(mine, step)
                with optimizer.overlap_backward():
                    loss.backward()
                optimizer.step()
                losses.append(loss.item())
            self.assertEqual(losses, run(other, theirs, 8))
            self.assertEqual(bits_of(optimizer, mine), bits_of(theirs, other))
            optimizer.close()
            theirs.close()

    def test_groups_are_stepped_in_the_backward_pass(self):
        for dtype in (torch.float32, torch.bfloat16):
            mine, other = Layers(dtype=dtype), Layers(dtype=dtype)
            optimizer, theirs = self.optimizer(mine, name="a"), self.optimizer(other, name="b")
            self.assertGreaterEqual(len(optimizer._groups), 3)
            for _ in range(3):
                last, first = mine.params[2], mine.params[0].detach().clone()
                before = last.detach().clone()
                mine.before[0] = lambda last=last, before=before: wait_for_change(self, last, before)
                optimizer.zero_grad()
                theirs.zero_grad()
                with optimizer.overlap_backward():
                    mine.loss().backward()
                    self.assertFalse(torch.equal(last.detach(), before))
                optimizer.step()
                self.assertFalse(torch.equal(mine.params[0].detach(), first))
                other.loss().backward()
                theirs.step()
            self.assertEqual(bits_of(optimizer, mine), bits_of(theirs, other))
            optimizer.close()
            theirs.close()

    def test_gradients_of_several_passes(self):
        mine, other = Layers(), Layers()
        optimizer, theirs = self.optimizer(mine, name="a"), self.optimizer(other, name="b")
        mine.loss(0.5).backward()
        with optimizer.overlap_backward():
            mine.loss().backward()
        optimizer.step()
        other.loss(0.5).backward()
        other.loss().backward()
        theirs.step()
        self.assertEqual(bits_of(optimizer, mine), bits_of(theirs, other))

    def test_parameters_without_gradients(self):
        mine, other = Layers(4), Layers(4)
        optimizer, theirs = self.optimizer(mine, name="a"), self.optimizer(other, name="b")
        for layers in (mine, other):
            layers.params[1].requires_grad_(False)
            layers.spare = layers.params.pop()  # gets none, and comes first: it holds up all others
        with optimizer.overlap_backward():
            mine.loss().backward()
        optimizer.step()
        other.loss().backward()
        theirs.step()
        for layers in (mine, other):
            layers.params.append(layers.spare)
        self.assertEqual(bits_of(optimizer, mine), bits_of(theirs, other))
        self.assertEqual(len(optimizer.state_dict()["state"]), 2)

    def test_a_pass_that_fails(self):
        mine = Layers()
        optimizer = self.optimizer(mine)

        def fail():
            raise ArithmeticError("in backward")

        mine.before[2] = fail  # before any gradient is there
        start = bits_of(optimizer, mine)
        with self.assertRaisesRegex(Exception, "in backward"):
            with optimizer.overlap_backward():
                mine.loss().backward()
        self.assertEqual(bits_of(optimizer, mine), start)
        del mine.before[2]
        optimizer.zero_grad()
        with optimizer.overlap_backward():
            mine.loss().backward()
        optimizer.step()
        saved = optimizer.state_dict()

        before = mine.params[2].detach().clone()

        def fail_late():
            wait_for_change(self, mine.params[2], before)
            fail()

        mine.before[0] = fail_late
        with self.assertRaisesRegex(Exception, "in backward"):
            with optimizer.overlap_backward():
                mine.loss().backward()
        for call in (optimizer.step, optimizer.overlap_backward):
            with self.assertRaisesRegex(RuntimeError, "failed in its middle"):
                call()
        optimizer.load_state_dict(saved)
        optimizer.step()

    def test_a_graph_that_needs_what_is_stepped(self):
        mine = Layers(1)
        optimizer = self.optimizer(mine)
        p = mine.params[0]
        before = p.detach().clone()
        x = torch.ones(N, requires_grad=True)
        y = Meanwhile.apply(x * p.detach(), lambda: wait_for_change(self, p, before)) * 2  # its backward needs p
        with self.assertRaisesRegex(RuntimeError, "modified by an inplace operation"):
            with optimizer.overlap_backward():
                (y.sum() + (p * 3).sum()).backward()

    def test_what_cannot_be(self):
        mine = Layers(2)
        for options in ({"max_grad_norm": 1.0}, {"skip_nonfinite": True}):
            optimizer = self.optimizer(mine, **options)
            with self.assertRaisesRegex(ValueError, "all gradients"):
                optimizer.overlap_backward()
            optimizer.close()
        optimizer = self.optimizer(mine)
        with optimizer.overlap_backward():
            with self.assertRaisesRegex(RuntimeError, "not over"):
                optimizer.step()
        optimizer = self.optimizer(mine, name="other")
        with optimizer.overlap_backward() as overlap:
            mine.loss().backward()
        for call in (optimizer.overlap_backward, optimizer.state_dict, lambda: optimizer.save("a"),
                     lambda: optimizer.load("a"), overlap.__enter__):
            with self.assertRaises(RuntimeError):
                call()
        with self.assertRaisesRegex(ValueError, "closure"):
            optimizer.step(lambda: None)
        optimizer.step()

    def test_closed_in_between(self):
        mine = Layers()
        optimizer = self.optimizer(mine)
        with optimizer.overlap_backward():
            mine.loss().backward()
        optimizer.close()


if __name__ == "__main__":
    unittest.main()
