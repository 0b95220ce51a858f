"""What a message costs through Ray Serve's proxy, beside plain grpc.aio: `python -m bench.ray` (wants the extra `ray`).

One client on loopback against the tiny model, whose sessions are parked: nothing is computed. A round trip is a Ping
in an open stream until its Pong, or one unary Probe; a transfer is a Probe that is answered with 256 KiB.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import click
import grpc.aio

from bench.machine import RESULTS, write_results
from edge_client.local_cloud import LISTENING
from protos import ecdiff_v1_pb2 as pb
from protos.ecdiff_v1_pb2_grpc import CloudDenoiserStub
from wire.channel import CHANNEL_OPTIONS
from wire.convert import encode_client
from wire.messages import Codec, Open, Plan, PromptText, Seed
from wire.serving.address import Address

TINY = Path(__file__).resolve().parents[1] / "tests" / "data" / "sd-tiny" / "cloud"
START_SECONDS = 120.0
WARM_UP = 20


@click.command(help=__doc__)
@click.option("--repeats", type=click.IntRange(10), default=300, show_default=True, help="Of each measurement.")
@click.option("--port", type=click.IntRange(1, 65535), default=51987, show_default=True, help="For Ray's proxy.")
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), default=RESULTS, help="Folder.")
def main(repeats: int, port: int, output: Path) -> None:
    """Measure both and print the ratios."""
    ray = ("deploy.ray", "serve", "--port", str(port), "--replicas", "1")
    found = {
        "grpc.aio": asyncio.run(_measured(("cloud_service", "serve", "--listen", "127.0.0.1:0"), repeats)),
        "ray": asyncio.run(_measured(ray, repeats)),
    }
    print(f"{'milliseconds, p50 (p95)':28}{'grpc.aio':>18}{'Ray Serve':>18}{'ratio':>8}{'more':>8}")
    for what, plain in found["grpc.aio"].items():
        through_ray = found["ray"][what]
        cells = [f"{each['p50']:.2f} ({each['p95']:.2f})" for each in (plain, through_ray)]
        more = through_ray["p50"] - plain["p50"]
        print(f"{what:28}{cells[0]:>18}{cells[1]:>18}{through_ray['p50'] / plain['p50']:8.1f}{more:+8.1f}")
    write_results("ray", {"repeats": repeats, "milliseconds": found}, output)


async def _measured(command: tuple[str, ...], repeats: int) -> dict[str, dict[str, float]]:
    async with _service(command) as address, grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
        stub = CloudDenoiserStub(channel)
        call = stub.Denoise()
        opening = Open(
            request_id="bench",
            conditioning=PromptText(prompt="a red apple"),
            start=Seed(seed=1),
            plan=Plan(num_inference_steps=2, handoff_step=0),
            codecs=(Codec.RAW,),
            credit=2,
        )
        await call.write(encode_client(opening, codec=Codec.RAW))
        while await _kind_of_next(call) != "handed_off":
            pass

        async def ping() -> None:
            await call.write(pb.ClientMessage(ping=pb.Ping(t0=1.0)))
            while await _kind_of_next(call) != "pong":
                pass

        async def probe(padding: int = 0) -> None:
            await stub.Probe(pb.ProbeRequest(t0=1.0, response_padding=padding))

        results = {
            "ping in the stream": await _timed(ping, repeats),
            "unary probe": await _timed(probe, repeats),
            "unary probe, 256 KiB": await _timed(lambda: probe(2**18), repeats),
        }
        call.cancel()
        return results


async def _kind_of_next(call: Any) -> str:
    message: pb.ServerMessage = await call.read()
    return message.WhichOneof("message") or ""


async def _timed(once: Callable[[], Awaitable[None]], repeats: int) -> dict[str, float]:
    milliseconds = []
    for _ in range(WARM_UP + repeats):
        began = time.perf_counter()
        await once()
        milliseconds.append((time.perf_counter() - began) * 1000)
    percents = statistics.quantiles(milliseconds[WARM_UP:], n=20)
    return {"p50": percents[9], "p95": percents[18]}


@contextlib.asynccontextmanager
async def _service(command: tuple[str, ...]) -> AsyncIterator[str]:
    """Run a service of the tiny model; yields its address once it serves."""
    arguments = (*command, "--model", str(TINY), "--metrics-listen", "127.0.0.1:0", "--log-level", "error")
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        *arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(START_SECONDS):
            while (match := LISTENING.match((await process.stdout.readline()).decode())) is None:
                if process.returncode is not None:
                    raise click.ClickException(f"{' '.join(command)} does not start")
            await process.stdout.readline()  # serving
        yield str(Address.parse(match[1]))
    finally:
        process.send_signal(signal.SIGTERM)
        await process.wait()


if __name__ == "__main__":
    main()
