"""A client that is going to be killed: `python -m harness.doomed_client HOST:PORT SESSIONS`.

It opens so many sessions at once, says `under way` when each of them has had a step, and reads on for ever.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import grpc.aio

from protos.ecdiff_v1_pb2_grpc import CloudDenoiserStub
from wire.channel import CHANNEL_OPTIONS
from wire.convert import encode_client
from wire.messages import Codec, Open, Plan, PromptText, Seed

# Long enough to be in the middle of it when the end comes.
_STEPS = 200


async def _follow(stub: CloudDenoiserStub, seed: int, stepped: asyncio.Semaphore) -> None:
    call: Any = stub.Denoise()
    opening = Open(
        request_id="doomed",
        conditioning=PromptText(prompt="a red apple"),
        start=Seed(seed=seed),
        plan=Plan(num_inference_steps=_STEPS, handoff_step=_STEPS),
        codecs=(Codec.RAW,),
        credit=1000,
    )
    await call.write(encode_client(opening, codec=Codec.RAW))
    while (await call.read()).WhichOneof("message") != "step":
        pass
    stepped.release()
    while await call.read() is not grpc.aio.EOF:
        pass


async def _main(address: str, num_sessions: int) -> None:
    stepped = asyncio.Semaphore(0)
    async with grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) as channel, asyncio.TaskGroup() as group:
        for seed in range(num_sessions):
            group.create_task(_follow(CloudDenoiserStub(channel), seed, stepped))
        for _ in range(num_sessions):
            await stepped.acquire()
        print("under way", flush=True)


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], int(sys.argv[2])))
