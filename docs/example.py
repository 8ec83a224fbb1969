# SPDX-License-Identifier: Apache-2.0
import array
import asyncio
import errno

import spillway


def scale(view, factor):
    numbers = view.data.cast("f")  # the bytes themselves, not a copy
    for i, number in enumerate(numbers):
        numbers[i] = number * factor


async def read(space, keys):
    buffers = [bytearray(5) for _ in keys]
    async with space.queue() as queue:
        (await queue.get(keys, buffers)).check()
    return buffers


with spillway.connect("example") as session:
    pool = session.pool("default")
    states = pool.space({"what": "momentum", "dtype": "float32"}, class_="optimizer")
    tensor = states.tensor("layer.0", 4 * 1024)
    tensor.put(0, array.array("f", range(1024)))
    with tensor.acquire(write=True) as views:  # a view for each 8 MiB
        for view in views:
            scale(view, 0.9)

    blocks = pool.space({"what": "greetings"}, class_="kv", durability="cache")
    blocks.put([b"one", b"two"], [b"hello", b"world"]).check(errno.EEXIST)  # a block is stored once
    print(b" ".join(asyncio.run(read(blocks, [b"one", b"two"]))).decode())
    try:
        blocks.acquire([b"three"]).check()
    except spillway.NotFound as error:
        print(error.strerror)
