# SPDX-License-Identifier: Apache-2.0
"""DeepSpeed's aio_handle (DeepNVMe): libaio with O_DIRECT from pages that it has pinned. Its wait() waits for all
that is in flight, so it is driven a batch of `depth` objects at a time."""

import importlib.metadata
import os

import harness

THREADS = 2


class DeepSpeed(harness.BatchPeer):
    name = "deepspeed"

    def open(self):
        import torch
        from deepspeed.ops.op_builder import AsyncIOBuilder

        block = min(self.size, 1 << 20)
        self.handle = AsyncIOBuilder().load().aio_handle(block, 32, False, True, THREADS)
        example = torch.empty(0, dtype=torch.uint8)
        # Its own pinned memory: from anything else it copies through a bounce buffer.
        self.tensors = [self.handle.new_cpu_locked_tensor(self.size, example) for _ in range(self.depth)]
        self.slots = [memoryview(tensor.numpy()).cast("B") for tensor in self.tensors]
        self.path = os.path.join(self.folder, "deepspeed.data")
        with open(self.path, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, self.n_objects * self.size)
        self.running = []
        self.version = importlib.metadata.version("deepspeed")
        self.tuning = (
            f"block_size {block}, queue_depth 32, overlap_events, intra_op_parallelism {THREADS}, locked "
            f"tensors, O_DIRECT on a file written before, batches of {self.depth}"
        )

    def start(self, kind, batch):
        call = self.handle.async_pwrite if kind == "spill" else self.handle.async_pread
        for _, index, slot in batch:
            if (result := call(self.tensors[slot], self.path, index * self.size)) != 0:
                raise RuntimeError(f"aio_handle: {result}")
        self.running = [slot for _, _, slot in batch]

    def reap(self):
        if (count := self.handle.wait()) < len(self.running):
            raise RuntimeError(f"aio_handle: {count} of {len(self.running)} ended")
        return self.running


if __name__ == "__main__":
    harness.main(DeepSpeed)
