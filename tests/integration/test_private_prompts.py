"""What is asked for stands in no log, metric, session report or process list, unless somebody wants it there."""

from __future__ import annotations

import dataclasses
import json
import signal
from pathlib import Path

import grpc.aio
import pytest
from cloud_harness import Stream, always, opening

from harness.agent import Agent, StartAgent, StartCommand
from harness.cloud import Cloud, StartCloud
from harness.orchestrator import Orchestrator, StartOrchestrator
from harness.processes import children
from harness.programs import Program
from harness.reference import CLOUD_MODEL
from harness.waiting import wait_until
from protos import ecdiff_v1_pb2_grpc
from wire.channel import CHANNEL_OPTIONS
from wire.errors import EcdiffError
from wire.messages import Limits, Open, PromptText

pytestmark = pytest.mark.asyncio(loop_scope="session")

PROMPT, NEGATIVE = "zebra-7f3a in the rain", "mango-9c1d everywhere"
MARKS = ("zebra", "7f3a", "mango", "9c1d")
DEBUG = ("--log-level", "debug")
ASKED = (PROMPT, "--negative-prompt", NEGATIVE, "--num-inference-steps", "6", "-q", "-o", "out.png")


def logged(program: Program) -> str:
    return program.stdout + program.stderr


def events(program: Program, event: str) -> list[dict[str, str]]:
    """Return the lines of a program's log that tell of an event."""
    lines = [json.loads(line) for line in program.stderr.splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == event]


def marks_in(text: str) -> list[str]:
    return [mark for mark in MARKS if mark in text]


async def refusal(cloud: Cloud, message: Open) -> EcdiffError:
    """Open a session that is refused; return why."""
    async with grpc.aio.insecure_channel(cloud.address, options=CHANNEL_OPTIONS) as channel:
        stream = Stream(ecdiff_v1_pb2_grpc.CloudDenoiserStub(channel))
        await stream.send(message)
        error = await stream.error()
        assert isinstance(error, EcdiffError)
        return error


async def use_everything(
    cloud: Cloud, agent: Agent, orchestrator: Orchestrator, start_command: StartCommand
) -> list[str]:
    """Make pictures, be refused for several reasons, and lose the cloud; return what the orchestrator then says."""
    for mode in ("adaptive", "cloud"):
        done = start_command(agent, "generate", *ASKED, "--mode", mode).wait()
        assert done.returncode == 0, done.stderr
    prompt = PromptText(prompt=PROMPT, negative_prompt=NEGATIVE)
    for wrong in (
        {"scheduler": "magic"},
        {"height": 8 * Limits().max_height},
        {"conditioning": PromptText(prompt=PROMPT * 10_000)},
        {"codecs": ()},
    ):
        await refusal(cloud, opening(always(4), **({"conditioning": prompt} | wrong)))
    told = [repr(dataclasses.asdict(await orchestrator.status()))]
    cloud.unet.hold_after(2)
    losing = start_command(agent, "generate", *ASKED, "--mode", "cloud")
    wait_until(lambda: cloud.unet.holding, "the cloud at work")
    told.append(cloud.scrape().text)
    told.append(str(agent.status()))
    cloud.program.signal(signal.SIGKILL)
    assert losing.wait().returncode == 0
    wait_until(lambda: not orchestrator.is_up(cloud.address), "the orchestrator to miss the cloud")
    return [*told, repr(dataclasses.asdict(await orchestrator.status()))]


async def test_a_prompt_is_nowhere_that_an_operator_looks(
    start_cloud: StartCloud,
    start_agent: StartAgent,
    start_orchestrator: StartOrchestrator,
    start_command: StartCommand,
) -> None:
    cloud = start_cloud(*DEBUG)
    orchestrator = start_orchestrator("--cloud", cloud.address, *DEBUG)
    agent = start_agent("--cloud", cloud.address, "--orchestrator", orchestrator.address, *DEBUG)
    told = await use_everything(cloud, agent, orchestrator, start_command)
    for program, words in (
        (cloud.program, "session refused"),
        (cloud.program, "session closed"),
        (agent.program, "generation ended"),
        (orchestrator.program, "a replica is down"),
    ):
        assert words in logged(program)
    for text in (
        *(logged(each.program) for each in (cloud, agent, orchestrator)),
        *told,
        agent.scrape().text,
        orchestrator.scrape().text,
    ):
        assert marks_in(text) == []
    ids = [line["request_id"] for line in events(agent.program, "generation ended")]
    assert len(ids) == 3
    for text in (agent.scrape().text, orchestrator.scrape().text, *told[:2], told[3]):
        assert [each for each in ids if each in text] == []


async def test_a_cloud_that_an_edge_starts_does_not_have_the_prompt_among_its_arguments(
    start_agent: StartAgent, start_command: StartCommand
) -> None:
    agent = start_agent("--cloud-model", str(CLOUD_MODEL))
    agent.unet.hold_after(0)
    command = start_command(agent, "generate", *ASKED, "--mode", "split", "--handoff-step", "4")
    wait_until(lambda: agent.unet.holding, "the edge's first step")
    own = children(agent.program.pid)
    assert own, "the agent has a cloud of its own"
    for pid in (agent.program.pid, *own):
        for what in ("cmdline", "comm", "environ"):
            assert marks_in(Path(f"/proc/{pid}/{what}").read_bytes().decode(errors="replace")) == [], what
    agent.unet.open()
    assert command.wait().returncode == 0


async def test_prompts_are_logged_where_that_is_asked_for(
    start_cloud: StartCloud, start_agent: StartAgent, start_command: StartCommand
) -> None:
    cloud = start_cloud("--log-prompts")
    agent = start_agent("--cloud", cloud.address, "--log-prompts")
    done = start_command(agent, "generate", *ASKED, "--mode", "cloud").wait()
    assert done.returncode == 0, done.stderr

    def told(program: Program, event: str) -> list[tuple[str, str]]:
        return [(each["prompt"], each["negative_prompt"]) for each in events(program, event)]

    wait_until(lambda: told(cloud.program, "session closed"), "the session's last line")
    assert told(cloud.program, "session closed") == [(PROMPT, NEGATIVE)]
    assert told(agent.program, "generation ended") == [(PROMPT, NEGATIVE)]
    assert marks_in(cloud.scrape().text + agent.scrape().text) == []
