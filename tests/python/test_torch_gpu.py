# SPDX-License-Identifier: Apache-2.0
"""OffloadAdamW on a GPU beside the same arithmetic on plain memory, and tensors through the attachment. Needs a GPU."""
import os
import unittest
import warnings

import support
from test_torch import InMemory

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # the same sums each time

try:
    import torch

    import spillway.torch as spw
    from test_torch_overlap import Layers, wait_for_change
    from torch_rig import model_of
except ImportError:
    torch = None

WHY = "torch is not installed" if torch is None else "torch sees no GPU" if not torch.cuda.is_available() else None
SECTIONS = "[tier.dram]\nsize = 256 MiB\n[pool default]\ngpu = 512 MiB\n"


class OnCpu(InMemory):
    """The same arithmetic on gradients that were copied whole; the parameters are copied back whole."""

    def __init__(self, params, **numbers):
        super().__init__(params, **numbers)
        self.masters = [master.cpu() for master in self.masters]

    def step(self):
        theirs = self.params
        self.params = [p.detach().cpu() for p in theirs]
        for mine, p in zip(self.params, theirs):
            mine.grad = p.grad.cpu()
        super().step()
        for mine, p in zip(self.params, theirs):
            p.data.copy_(mine)
        self.params = theirs


@unittest.skipIf(WHY is not None, WHY)
class GpuTest(unittest.TestCase):
    NUMBERS = {"lr": 3e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.05}

    def setUp(self):
        self.daemon = support.Daemon(SECTIONS, disk_mib=256)
        self.addCleanup(self.daemon.stop)
        self.pool = spw.connect("test", socket=self.daemon.socket, start=False)
        self.addCleanup(self.pool.session.close)
        warnings.simplefilter("error", RuntimeWarning)  # memory that is not pinned
        torch.use_deterministic_algorithms(True, warn_only=True)

    def optimizer(self, params, **options):
        optimizer = spw.OffloadAdamW(params, self.pool, **{**self.NUMBERS, **options})
        self.addCleanup(optimizer.close)
        return optimizer

    def plain(self, params):
        return OnCpu(params, **self.NUMBERS)

    def same(self, mine, other):
        for a, b in zip(mine.parameters(), other.parameters()):
            self.assertTrue(torch.equal(a, b))

    def steps(self, model, optimizer, n, stream=None):
        """Losses of n steps, of which nothing is waited for in between."""
        losses = []
        with torch.cuda.stream(stream):
            for step in range(n):
                optimizer.zero_grad()
                torch.manual_seed(step)
                x = torch.randn(32, 64).cuda().to(next(model.parameters()).dtype)
                loss = ((model(x).float() - x[:, :8].float().sin()) ** 2).mean()
                loss.backward()
                optimizer.step()
                losses.append(loss.detach())
        torch.cuda.synchronize()
        return [loss.item() for loss in losses]

    def test_as_on_the_cpu_bit_for_bit(self):
        for dtype in (torch.float32, torch.bfloat16):
            mine, other = model_of(dtype).cuda(), model_of(dtype).cuda()
            optimizer = self.optimizer(mine.parameters(), name=str(dtype))
            self.assertEqual(self.steps(mine, optimizer, 20), self.steps(other, self.plain(other.parameters()), 20))
            self.same(mine, other)
            self.assertGreater(optimizer._link._gpu.mapped_bytes, 0)

    def test_in_the_backward_pass(self):
        """Gradients come late, and the last layer has been stepped before the first one's are there."""
        for dtype in (torch.float32, torch.bfloat16):
            mine, other = (Layers(dtype=dtype, device="cuda") for _ in range(2))
            optimizer = self.optimizer(mine.parameters(), name=str(dtype), group_bytes=8 << 20)
            theirs = self.optimizer(other.parameters(), name=f"{dtype}, without", group_bytes=8 << 20)
            for _ in range(4):
                last = mine.params[2]
                before = last.detach().clone()
                mine.before[1] = lambda: torch.cuda._sleep(50_000_000)
                mine.before[0] = lambda last=last, before=before: wait_for_change(self, last, before)
                optimizer.zero_grad()
                theirs.zero_grad()
                with optimizer.overlap_backward():
                    mine.loss().backward()
                optimizer.step()
                other.loss().backward()
                theirs.step()
                self.same(mine, other)
            optimizer.close()
            theirs.close()

    def test_on_side_streams(self):
        """What the model's stream has not done yet is waited for, and what it has afterwards waits."""
        mine, other = model_of(torch.float32, width=1024).cuda(), model_of(torch.float32, width=1024).cuda()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        optimizer = self.optimizer(mine.parameters())

        class Slow:
            """Gradients are there long after the call."""

            zero_grad = optimizer.zero_grad

            @staticmethod
            def step():
                grads = [p.grad for p in mine.parameters()]
                late = [g.clone() for g in grads]
                for g in grads:
                    g.fill_(float("nan"))
                torch.cuda._sleep(50_000_000)
                for g, value in zip(grads, late):
                    g.copy_(value)
                optimizer.step()

        self.assertEqual(self.steps(mine, Slow, 10, stream), self.steps(other, self.plain(other.parameters()), 10))
        self.same(mine, other)

    def test_parameters_of_many_groups(self):
        for dtype in (torch.float32, torch.bfloat16):
            torch.manual_seed(3)
            params = [torch.nn.Parameter(torch.randn(n).to(dtype).cuda()) for n in (1, 4097, 3 << 20, 5 << 20)]
            others = [torch.nn.Parameter(p.detach().clone()) for p in params]
            mine = self.optimizer(params, group_bytes=8 << 20, name=str(dtype))
            self.assertGreater(len(mine._groups), 10)
            plain = self.plain(others)
            for _ in range(5):
                for a, b in zip(params, others):
                    a.grad = torch.randn_like(a)
                    b.grad = a.grad.clone()
                mine.step()
                plain.step()
            for a, b in zip(params, others):
                self.assertTrue(torch.equal(a, b))

    def test_some_parameters_on_the_cpu(self):
        torch.manual_seed(3)
        params = [torch.nn.Parameter(torch.randn(100000, device=on)) for on in ("cuda", "cpu", "cuda")]
        others = [torch.nn.Parameter(p.detach().cpu().clone()) for p in params]
        mine, plain = self.optimizer(params), InMemory(others, **self.NUMBERS)
        for _ in range(5):
            for a, b in zip(params, others):
                b.grad = torch.randn(100000)
                a.grad = b.grad.to(a.device)
            mine.step()
            plain.step()
        for a, b in zip(params, others):
            self.assertTrue(torch.equal(a.cpu(), b))

    def test_clipping(self):
        mine, other = model_of(torch.float32).cuda(), model_of(torch.float32).cuda()
        optimizer = self.optimizer(mine.parameters(), max_grad_norm=0.1, skip_nonfinite=True)
        theirs = torch.optim.AdamW(other.parameters(), **self.NUMBERS)

        class Clipped:
            zero_grad = theirs.zero_grad

            @staticmethod
            def step():
                torch.nn.utils.clip_grad_norm_(other.parameters(), 0.1)
                theirs.step()

        for a, b in zip(self.steps(mine, optimizer, 20), self.steps(other, Clipped, 20)):
            self.assertLess(abs(a - b), 1e-5 * b)
        before = [p.detach().clone() for p in mine.parameters()]
        next(mine.parameters()).grad[0, 0] = float("nan")
        optimizer.step()
        self.assertEqual(optimizer.skipped, 1)
        for a, b in zip(mine.parameters(), before):
            self.assertTrue(torch.equal(a, b))

    def test_states_are_saved_and_taken(self):
        mine = model_of(torch.bfloat16).cuda()
        optimizer = self.optimizer(mine.parameters(), name="first")
        self.steps(mine, optimizer, 5)
        saved, other = optimizer.state_dict(), model_of(torch.bfloat16, seed=2).cuda()
        other.load_state_dict(mine.state_dict())
        taken = self.optimizer(other.parameters(), name="second")
        taken.load_state_dict(saved)
        self.assertEqual(self.steps(mine, optimizer, 5), self.steps(other, taken, 5))

    def test_tensors_by_the_gpu_path(self):
        space = self.pool.space(["test", self.id()])
        stream = torch.cuda.current_stream()
        source = torch.randn(1 << 20, device="cuda").to(torch.bfloat16)
        tensor = space.tensor("weights", source.numel() * 2)
        with spw.attach(space, source.device) as gpu:
            job = gpu.put([(tensor, 0, spw.region(source))], stream.cuda_stream)
            job.wait_source_free(20)
            expected = source.clone()
            source.zero_()
            self.assertEqual(job.wait(20), [0])
            target = torch.zeros_like(source)
            job = gpu.get([(tensor, 0, spw.region(target))], stream.cuda_stream)
            job.join(stream.cuda_stream, 20)
            self.assertTrue(torch.equal(target, expected))
            job.wait(20).check()
            with self.assertRaises(ValueError):
                spw.region(source.view(1024, 1024).t())
            with self.assertRaises(ValueError):
                spw.region(source.cpu())


if __name__ == "__main__":
    support.main()
