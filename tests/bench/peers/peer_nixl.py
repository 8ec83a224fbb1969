# SPDX-License-Identifier: Apache-2.0
"""nixl's POSIX plugin: prepared descriptors of a registered file and registered memory, a transfer an object. The
variant names its queue: aio (Linux AIO) or uring. The plugin makes progress only when it is asked for a transfer's
state."""

import importlib.metadata
import os

import harness


class Nixl(harness.Peer):
    name = "nixl"

    def open(self):
        from nixl._api import nixl_agent, nixl_agent_config

        path = os.path.join(self.folder, "nixl.data")
        set_bytes = self.n_objects * self.size
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o600)
        os.posix_fallocate(self.fd, 0, set_bytes)
        self.agent = nixl_agent("peer", nixl_agent_config(backends=[]))
        queue = {"aio": "use_aio", "uring": "use_uring"}[self.options.variant]
        parameters = {name: "false" for name in ("use_aio", "use_uring", "use_posix_aio")} | {queue: "true"}
        self.agent.create_backend("POSIX", parameters)
        addresses = [harness.address_of(slot) for slot in self.slots]
        memory = [(address, self.size, 0) for address in addresses]
        blocks = [(i * self.size, self.size, self.fd) for i in range(self.n_objects)]
        self.agent.register_memory([(address, self.size, 0, "") for address in addresses], "DRAM", backends=["POSIX"])
        self.agent.register_memory([(0, set_bytes, self.fd, "")], "FILE", backends=["POSIX"])
        self.memory = self.agent.prep_xfer_dlist("NIXL_INIT_AGENT", memory, "DRAM", backends=["POSIX"])
        self.file = self.agent.prep_xfer_dlist("peer", blocks, "FILE", backends=["POSIX"])
        self.pending, self.ended = {}, []
        self.version = importlib.metadata.version("nixl")
        self.tuning = (
            f"{queue}, prepared descriptors, O_DIRECT on a file written before, {self.depth} transfers in flight"
        )

    def start(self, operation, index, slot):
        handle = self.agent.make_prepped_xfer(operation, self.memory, [slot], self.file, [index], backends=["POSIX"])
        state = self.agent.transfer(handle)
        if state == "DONE":
            handle.release()
            self.ended.append(slot)
        elif state == "PROC":
            self.pending[slot] = handle
        else:
            raise RuntimeError(f"nixl: transfer is {state}")

    def spill(self, key, index, slot):
        self.start("WRITE", index, slot)

    def fetch(self, key, index, slot):
        self.start("READ", index, slot)

    def wait(self):
        ended, self.ended = self.ended, []
        while not ended:
            for slot, handle in list(self.pending.items()):
                state = self.agent.check_xfer_state(handle)
                if state == "DONE":
                    handle.release()
                    del self.pending[slot]
                    ended.append(slot)
                elif state != "PROC":
                    raise RuntimeError(f"nixl: transfer is {state}")
        return ended


if __name__ == "__main__":
    harness.main(Nixl)
