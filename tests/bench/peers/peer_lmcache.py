# SPDX-License-Identifier: Apache-2.0
"""LMCache's L2 adapters, as `lmcache bench l2` drives them: made from the same JSON, submits and event descriptors, but
with a new submit whenever one has ended. The variant is fs, posix or uring (the last two: raw_block)."""

import argparse
import dataclasses
import importlib.metadata
import json
import os
import select

import harness

MIB = 1 << 20
LOADERS, STORERS = 4, 4


class LmCache(harness.BatchPeer):
    name = "lmcache"
    adapter = None
    batches = 2

    def open(self):
        from lmcache.cli.commands.bench.l2_adapter_bench import data
        from lmcache.v1.distributed.l2_adapters import create_l2_adapter
        from lmcache.v1.distributed.l2_adapters.config import parse_args_to_l2_adapters_config

        spec = self.spec()
        buffer = data.make_aligned_tensor(self.size * self.depth, 4096)
        config = parse_args_to_l2_adapters_config(argparse.Namespace(l2_adapter=[json.dumps(spec)])).adapters[0]
        memory = data.create_l1_memory_desc(buffer, align_bytes=4096)
        # As its server's allocator says of its arena, and the benchmark does not: it may be registered with io_uring.
        memory = dataclasses.replace(memory, stable_registration_size=memory.size)
        self.adapter = create_l2_adapter(config, l1_memory_desc=memory)
        self.objects = data.make_memory_objects(buffer, self.depth, self.size, 0)
        bytes_of = memoryview(buffer.numpy())
        self.slots = [bytes_of[i * self.size : (i + 1) * self.size] for i in range(self.depth)]
        self.make_keys = data.make_object_keys
        self.stores, self.loads = {}, {}
        self.poll = select.poll()
        for fd in (self.adapter.get_store_event_fd(), self.adapter.get_load_event_fd()):
            self.poll.register(fd, select.POLLIN)
        self.version = importlib.metadata.version("lmcache")
        shown = {name: value for name, value in spec.items() if "path" not in name}
        self.tuning = (
            f"{json.dumps(shown)}, {self.batches} submits with {self.depth} objects in flight, buffers aligned to 4096"
        )

    def spec(self):
        if self.options.variant == "fs":
            return {"type": "fs", "base_path": os.path.join(self.folder, "fs"), "use_odirect": True}
        path = os.path.join(self.folder, "raw.data")
        slot = self.size + 4096  # and a header
        capacity = 16 * MIB + (self.n_objects * 2 + 64) * slot
        with open(path, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, capacity)
        return {
            "type": "raw_block",
            "device_path": path,
            "slot_bytes": slot,
            "meta_total_bytes": 16 * MIB,
            "use_odirect": True,
            "io_engine": {"posix": "posix", "uring": "io_uring"}[self.options.variant],
            "meta_enable_periodic": False,
            "load_checkpoint_on_init": False,
            "num_store_workers": STORERS,
            "num_load_workers": LOADERS,
        }

    def key(self, key):
        return self.make_keys(1, key_offset=key & 0xFFFFFFFF, model_name=f"bench-{key >> 32}")

    def start(self, kind, batch):
        submit, running = (
            (self.adapter.submit_store_task, self.stores)
            if kind == "spill"
            else (self.adapter.submit_load_task, self.loads)
        )
        slots = [slot for _, _, slot in batch]
        running[submit([self.key(key)[0] for key, _, _ in batch], [self.objects[slot] for slot in slots])] = slots

    def reap(self):
        from lmcache.v1.platform import consume_fd

        ended = []
        while not ended:
            for fd, _ in self.poll.poll(30000) or self.late():
                consume_fd(fd)
            for task, result in self.adapter.pop_completed_store_tasks().items():
                if not result.is_successful():
                    raise RuntimeError(f"store failed: {result}")
                ended += self.stores.pop(task)
            for task in list(self.loads):
                bitmap = self.adapter.query_load_result(task)
                if bitmap is not None:
                    slots = self.loads.pop(task)
                    if bitmap.popcount() != len(slots):
                        raise RuntimeError(f"{bitmap.popcount()} of {len(slots)} were loaded")
                    ended += slots
        return ended

    def late(self):
        raise TimeoutError("no task has ended")

    def forget(self, keys):
        self.adapter.delete([self.key(key)[0] for key in keys])

    def close(self):
        if self.adapter:
            self.adapter.close()


if __name__ == "__main__":
    harness.main(LmCache)
