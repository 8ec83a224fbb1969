# SPDX-License-Identifier: Apache-2.0
"""A step as ZeRO-Infinity makes it: DeepSpeed's own optimizer swapper and DeepSpeedCPUAdam, driven as stage3.py drives
them. That is all of its package that takes part: no model, no engine, one rank.

Its states are files of a group each, read and written by libaio with O_DIRECT from and to buffers that are locked. The
pipelined swapper waits for group i, begins to read i + 1, steps i, and begins to write i once i − 1 has been written.
Gradients stay bf16 in memory, as ours do: they are marked as DeepSpeed marks what it must not swap. In ZeRO-3 they
would be fp32 in files too.
"""

import logging
import os
from types import SimpleNamespace

import torch

STATES = 4  # buffers of a group in flight: master, gradient, two moments


def load(folder, numbers):
    """What is used of the package, for Adam's numbers. ImportError: it, or what builds its operators, is missing."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed
    from deepspeed.ops.adam import DeepSpeedCPUAdam
    from deepspeed.ops.op_builder import AsyncIOBuilder, CPUAdamBuilder
    from deepspeed.runtime.swap_tensor.aio_config import get_aio_config
    from deepspeed.runtime.swap_tensor.partitioned_optimizer_swapper import PartitionedOptimizerSwapper
    from deepspeed.runtime.swap_tensor.pipelined_optimizer_swapper import PipelinedOptimizerSwapper
    from deepspeed.runtime.zero.offload_config import DeepSpeedZeroOffloadOptimizerConfig

    deepspeed.utils.logger.setLevel(logging.ERROR)
    try:
        AsyncIOBuilder().load()
        CPUAdamBuilder().load()
    except (RuntimeError, OSError) as error:
        raise ImportError(f"DeepSpeed's operators: {error}") from error
    meet = f"file://{folder}/meet"
    deepspeed.comm.init_distributed("gloo", auto_mpi_discovery=False, init_method=meet, rank=0, world_size=1)
    return SimpleNamespace(
        adam=DeepSpeedCPUAdam([torch.zeros(1)], **numbers),
        aio_config=get_aio_config,
        config=DeepSpeedZeroOffloadOptimizerConfig,
        swappers={False: PartitionedOptimizerSwapper, True: PipelinedOptimizerSwapper},
    )


class Swapper:
    """aio: what differs from the package's defaults. A pipeline needs buffers for three groups."""

    def __init__(self, package, folder, grads, params, is_pipelined, aio):
        self.grads, self.params = grads, params
        self.masters = [torch.empty(0) for _ in params]  # have their data while they are swapped in
        for i, (master, grad) in enumerate(zip(self.masters, grads, strict=True)):
            master.ds_id, grad.swappable = str(i), False
        self.adam = package.adam
        pipeline = {"pipeline_read": True, "pipeline_write": True, "buffer_count": 3 * STATES} if is_pipelined else {}
        self.swapper = package.swappers[is_pipelined](
            package.config(device="nvme", nvme_path=folder, **pipeline),
            package.aio_config({"aio": aio}),
            folder,
            self.adam,
            max(param.numel() for param in params),
            torch.device("cpu"),
            torch.float32,
            None,
        )
        self.swapper.initialize_parameters(self.masters, params)

    def step(self, _):
        for master, grad in zip(self.masters, self.grads, strict=True):
            self.swapper.swap_out_gradients(master, [0], [grad])
        for i, (master, param) in enumerate(zip(self.masters, self.params, strict=True)):
            following = self.masters[i + 1] if i + 1 < len(self.masters) else None
            self.swapper.swap_in_optimizer_state(master, following)
            self.adam.param_groups[0]["params"] = [master]
            self.adam.step()
            self.adam.param_groups[0]["params"] = []
            param.copy_(master)
            self.swapper.swap_out_optimizer_state(master, following is not None)
            master.grad = None
