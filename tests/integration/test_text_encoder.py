"""Who encodes the prompt: each model its own, the cloud for both, or the edge, and then the text stays there."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from liar_harness import LATENTS, STEPS, Liar

from diffusion.loading import load_model
from edge_client import EdgeClient
from harness.cloud import Cloud, RunEdge
from harness.reference import EDGE_MODEL, TOLERANCE, distance, read_cases
from harness.scripted_cloud import Send, honest_opened, scripted_cloud
from models.tiny.build import build
from wire.errors import IncompatibleModels, ModelError, NotServing
from wire.messages import Description, Open, PromptEmbeds, Source, Step

CASES = read_cases()
NAMES = ["ecdiff", "split-40-10", "ecdiff-negative-prompt", "ecdiff-guidance-1"]
OWN_ENCODER = "the cloud encoded no prompt: the edge encoded it with its own text encoder"


def without_encoder(folder: Path, copy: Path) -> Path:
    """Copy a model without its text encoders and tokenizers."""
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("text_encoder*", "tokenizer*"))
    return copy


@pytest.fixture(scope="module")
def bare_edge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recorded edge model without its text encoder."""
    return without_encoder(EDGE_MODEL, tmp_path_factory.mktemp("bare") / "edge")


# ------------------------------------------------------------------------------ the recorded numbers


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize("name", NAMES)
async def test_an_edge_without_encoder_reproduces_the_recorded_numbers(
    cloud: Cloud, bare_edge: Path, name: str
) -> None:
    case = CASES[name]
    async with EdgeClient(cloud=cloud.address, edge_model=str(bare_edge), device="cpu") as client:
        result = await client.generate(case.prompt, text_encoder="cloud", latents_codec="raw", **case.options)
    assert result.report["step_sources"] == case.step_sources
    assert (result.report["fallbacks"], result.report["text_encoder"]) == ([], "cloud")
    assert result.report["seconds"]["encode_prompt"] == 0
    assert distance(result.latents, case.final_latents) < TOLERANCE


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize("name", NAMES)
async def test_the_edges_embeddings_reproduce_the_recorded_numbers(client: EdgeClient, name: str) -> None:
    case = CASES[name]
    result = await client.generate(case.prompt, text_encoder="edge", latents_codec="raw", **case.options)
    assert (result.report["fallbacks"], result.report["text_encoder"]) == ([], "edge")
    assert distance(result.latents, case.final_latents) < TOLERANCE


@pytest.mark.asyncio(loop_scope="session")
async def test_adaptive_shadows_with_the_clouds_embeddings(cloud: Cloud, bare_edge: Path) -> None:
    async with EdgeClient(cloud=cloud.address, edge_model=str(bare_edge), device="cpu") as client:
        result = await client.generate("a cat", text_encoder="cloud", num_inference_steps=12)
    assert result.report["fallbacks"] == []
    assert result.report["shadow"]["disagreement"]


# ------------------------------------------------------------------------------ what crosses the network


@contextlib.asynccontextmanager
async def overheard(target: str) -> AsyncIterator[tuple[str, bytearray]]:
    """Yield an address in front of `target`, and every byte that is sent there."""
    heard = bytearray()
    host, port = target.split(":")

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, listen: bool) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(2**16):
                if listen:
                    heard.extend(data)
                writer.write(data)
                await writer.drain()
        writer.close()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        await asyncio.gather(pump(reader, far_writer, listen=True), pump(far_reader, writer, listen=False))

    server = await asyncio.start_server(connect, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", heard
    finally:
        server.close()


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize(("choice", "is_told"), [("own", True), ("cloud", True), ("edge", False)])
async def test_the_text_leaves_the_edge_only_where_the_cloud_encodes_it(
    cloud: Cloud, choice: str, is_told: bool
) -> None:
    options = {"mode": "split", "num_inference_steps": 4, "negative_prompt": "mango-9c1d", "text_encoder": choice}
    async with (
        overheard(cloud.address) as (address, heard),
        EdgeClient(cloud=address, edge_model=str(EDGE_MODEL), device="cpu") as client,
    ):
        result = await client.generate("zebra-7f3a", **options)
    assert result.report["fallbacks"] == []
    assert result.report["nfe"]["cloud"] > 0
    assert [mark in heard for mark in (b"zebra", b"7f3a", b"mango", b"9c1d")] == [is_told] * 4


# ------------------------------------------------------------------------------ what does not fit


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize("choice", ["own", "edge"])
async def test_an_edge_without_encoder_is_told_who_could_encode(cloud: Cloud, bare_edge: Path, choice: str) -> None:
    before = cloud.nfe()
    async with EdgeClient(cloud=cloud.address, edge_model=str(bare_edge), device="cpu") as client:
        with pytest.raises(IncompatibleModels, match=r"edge has no text encoder: .*\(--text-encoder cloud\)"):
            await client.generate("a cat", mode="split", num_inference_steps=4, text_encoder=choice)
    assert cloud.nfe() == before


def test_alone_an_edge_without_encoder_says_what_it_lacks(run_edge: RunEdge, bare_edge: Path) -> None:
    done = run_edge("generate", "a cat", "--mode", "edge", "--edge-model", bare_edge, "-q")
    assert done.returncode == 1
    assert "has no text encoder: add its text_encoder and tokenizers" in done.stderr
    assert done.stderr.count("\n") == 1


def test_mode_edge_has_no_cloud_that_could_encode(run_edge: RunEdge) -> None:
    done = run_edge("generate", "a cat", "--mode", "edge", "--text-encoder", "cloud", "-q")
    assert (done.returncode, done.stderr) == (
        2,
        "error: mode edge uses no cloud that could encode the prompt: leave --text-encoder out\n",
    )


def test_a_cloud_service_needs_a_text_encoder(run_edge: RunEdge, bare_edge: Path) -> None:
    done = run_edge("generate", "a cat", "--cloud-model", bare_edge, "--edge-model", EDGE_MODEL, "-q")
    assert done.returncode == 1
    assert "has no text encoder" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize("choice", ["cloud", "edge"])
async def test_embeddings_of_another_width_are_refused_before_a_step(description: Description, choice: str) -> None:
    wide = dataclasses.replace(description, model=dataclasses.replace(description.model, prompt_embeds_width=2048))

    async def script(opening: Open, send: Send) -> None:
        raise AssertionError("nothing should be opened")

    async with scripted_cloud(wide, script) as address, EdgeClient(cloud=address, edge_model=str(EDGE_MODEL)) as client:
        with pytest.raises(IncompatibleModels, match=r"are \(2048, 0\) in the cloud, \(\d+, 0\) on the edge: let each"):
            await client.generate("a cat", text_encoder=choice)


@pytest.mark.asyncio(loop_scope="session")
async def test_other_encoders_of_one_width_earn_a_warning_that_names_both(description: Description, liar: Liar) -> None:
    other = dataclasses.replace(
        description, model=dataclasses.replace(description.model, text_encoder_fingerprint="f" * 16)
    )
    own = load_model(EDGE_MODEL, device="cpu").info.text_encoder_fingerprint

    async def script(opening: Open, send: Send) -> None:
        raise NotServing("gone")

    async with (
        scripted_cloud(other, script) as address,
        EdgeClient(cloud=address, edge_model=str(EDGE_MODEL)) as client,
    ):
        result = await client.generate("a cat", text_encoder="edge", mode="split", num_inference_steps=4)
    (line,) = result.report["warnings"]
    differs = f"text encoder (fingerprint) differs: cloud {'f' * 16}, edge {own}"
    assert line == f"{differs}; the cloud model is fed the edge's embeddings"


# ------------------------------------------------------------------------------ a cloud that lies, or goes


def embeds(width: int = 32, *, negative: bool = True, value: float = 0.0) -> PromptEmbeds:
    made = np.full((1, 77, width), value, np.float32)
    return PromptEmbeds(prompt_embeds=made, negative_prompt_embeds=made if negative else None)


WIDTH = load_model(EDGE_MODEL, device="cpu").info.prompt_embeds_width
LIES = {
    "none": None,
    "too-wide": embeds(WIDTH + 1),
    "no-negative": embeds(WIDTH, negative=False),
    "two-prompts": PromptEmbeds(
        prompt_embeds=np.zeros((2, 77, WIDTH), np.float32), negative_prompt_embeds=np.zeros((2, 77, WIDTH), np.float32)
    ),
    "pooled": dataclasses.replace(
        embeds(WIDTH),
        pooled_prompt_embeds=np.zeros((1, 8), np.float32),
        negative_pooled_prompt_embeds=np.zeros((1, 8), np.float32),
    ),
}


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize("given", LIES.values(), ids=LIES)
async def test_embeddings_that_cannot_be_used_cost_no_picture(liar: Liar, given: PromptEmbeds | None) -> None:
    async def script(opening: Open, send: Send) -> None:
        assert opening.want_prompt_embeds
        await send(
            dataclasses.replace(
                honest_opened(liar.description, opening, latents_shape=LATENTS[0].shape), prompt_embeds=given
            )
        )
        for index in range(STEPS):
            await send(Step(step_index=index, source=Source.CLOUD, latents=LATENTS[index]))

    result = await liar.generate(script, text_encoder="cloud")
    assert result.report["handoff"] == {"reason": "cloud_error", "step": 0}
    assert result.report["step_sources"] == "e" * STEPS
    assert result.report["fallbacks"][1:] == [OWN_ENCODER]
    assert np.isfinite(result.latents).all()


@pytest.mark.asyncio(loop_scope="session")
async def test_a_cloud_lost_before_the_embeddings_costs_the_picture_only_where_nobody_can_encode(
    description: Description, bare_edge: Path
) -> None:
    async def script(opening: Open, send: Send) -> None:
        raise NotServing("gone")

    options = {"mode": "split", "num_inference_steps": 4, "text_encoder": "cloud"}
    async with scripted_cloud(description, script) as address:
        async with EdgeClient(cloud=address, edge_model=str(EDGE_MODEL)) as client:
            result = await client.generate("a cat", **options)
            assert result.report["step_sources"] == "eeee"
            assert OWN_ENCODER in result.report["fallbacks"]
        async with EdgeClient(cloud=address, edge_model=str(bare_edge)) as client:
            with pytest.raises(ModelError, match="lost before it had encoded the prompt, and the edge model has no"):
                await client.generate("a cat", **options)


# ------------------------------------------------------------------------------ every family


@pytest.mark.parametrize("name", ["sdxl", "sd3", "flux", "cogvideox", "wan"])
def test_every_family_runs_without_an_encoder_on_the_edge_and_without_text_in_the_cloud(
    run_edge: RunEdge, tmp_path: Path, name: str
) -> None:
    build(name, tmp_path / "large", size="large")
    build(name, tmp_path / "small", size="small")
    bare = without_encoder(tmp_path / "small", tmp_path / "bare")
    size = ("--height", 64, "--width", 64, *(("--num-frames", 9) if name in ("cogvideox", "wan") else ()))
    latents = []
    for choice, edge in (("edge", "small"), ("cloud", bare)):
        models = ("--cloud-model", tmp_path / "large", "--edge-model", tmp_path / edge)
        plan = ("--mode", "ecdiff", "--num-inference-steps", 8, "--handoff-step", 6, "--text-encoder", choice)
        outputs = ("--save-latents", f"{choice}.npy", "--report", "r.json", "-q")
        done = run_edge("generate", "a cat", *models, *plan, *size, *outputs)
        assert (done.returncode, done.stderr) == (0, "")
        assert json.loads((tmp_path / "r.json").read_text())["fallbacks"] == []
        latents.append(np.load(tmp_path / f"{choice}.npy"))
    # The tiny pair's encoders are the same, so it cannot matter who encodes.
    assert distance(latents[1], latents[0]) < TOLERANCE
