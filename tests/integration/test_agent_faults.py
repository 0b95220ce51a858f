"""An agent's queue, and everything that can go away while it works."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from edge_client import EdgeClient
from edge_client.request import GenerationRequest
from edge_client.runs import Made, Runs
from edge_client.terminal import ProgressDisplay
from harness.agent import Agent, StartAgent, StartCommand
from harness.cloud import Cloud, StartCloud
from harness.processes import children, is_gone
from harness.programs import Program, Programs
from harness.reference import CLOUD_MODEL, EDGE_MODEL
from harness.waiting import wait_until
from orchestrator.plan import PlanOptions

FAILED, INTERRUPTED = 1, 130
EDGE = ("--mode", "edge", "--num-inference-steps", "6")


def report_of(folder: Path, name: str = "r.json") -> dict[str, object]:
    return dict(json.loads((folder / name).read_text()))


def start_three(agent: Agent, start_command: StartCommand) -> list[Program]:
    """Hold the agent at its first step, and start three commands in order."""
    agent.unet.hold_after(0)
    commands = []
    for number in range(3):
        files = ("-o", f"{number}.png", "--report", f"{number}.json")
        commands.append(start_command(agent, "generate", f"cat {number}", *EDGE, *files))
        wait_until(lambda: len(agent.queue()) == len(commands), "the agent to have taken it")
    return commands


def test_three_commands_take_turns_and_each_shows_its_place(
    start_agent: StartAgent, cloud: Cloud, start_command: StartCommand, tmp_path: Path
) -> None:
    agent = start_agent("--cloud", cloud.address)
    commands = start_three(agent, start_command)
    for number, command in enumerate(commands[1:], 1):
        place = f"note: {number} ahead in the agent's queue"
        wait_until(lambda place=place, command=command: command.stderr.startswith(place), place)
    status = agent.status()
    assert [each.phase for each in status.generations] == ["edge", "waiting", "waiting"]
    assert {each.prompt for each in status.generations} == {""}
    assert [each.prompt for each in agent.status(want_prompts=True).generations] == ["cat 0", "cat 1", "cat 2"]
    assert agent.scrape().value("ecdiff_agent_queue") == 2
    shown = start_command(agent, "status", "--prompts").wait().stdout
    for piece in (agent.address, "serving", cloud.address, "2 of 16 waiting", "cat 2"):
        assert piece in shown
    agent.unet.open()
    assert [command.wait().returncode for command in commands] == [0, 0, 0]
    assert {report_of(tmp_path, f"{number}.json")["agent"] for number in range(3)} == {agent.address}
    scrape = agent.scrape()
    assert scrape.value("ecdiff_agent_queue") == 0
    assert scrape.value("ecdiff_agent_queue_seconds_count") == 3
    assert scrape.value("ecdiff_agent_start_seconds_count") == 3


def test_interrupt_ends_one_generation_and_no_other(
    start_agent: StartAgent, cloud: Cloud, start_command: StartCommand, tmp_path: Path
) -> None:
    agent = start_agent("--cloud", cloud.address)
    running, waiting, last = start_three(agent, start_command)
    waiting.signal(signal.SIGINT)
    assert waiting.wait().returncode == INTERRUPTED
    assert waiting.stderr.splitlines()[-1] == "error: interrupted"
    wait_until(lambda: len(agent.queue()) == 2, "the one that waited to leave the queue")
    running.signal(signal.SIGKILL)  # says no goodbye
    running.wait()
    wait_until(lambda: len(agent.queue()) == 1, "the one that ran to leave the queue")
    agent.unet.open()
    assert last.wait().returncode == 0, last.stderr
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["2.png"]
    assert agent.num_done(mode="edge", outcome="interrupted") == 1
    assert agent.num_done(mode="edge", outcome="done") == 1


@pytest.mark.parametrize("words", [("generate", "a dog", *EDGE), ("compare", "a dog")], ids=lambda words: words[0])
def test_full_queue_is_said_plainly(
    start_agent: StartAgent, cloud: Cloud, start_command: StartCommand, words: tuple[str, ...]
) -> None:
    agent = start_agent("--cloud", cloud.address, "--max-queue", "0")
    agent.unet.hold_after(0)
    first = start_command(agent, "generate", "a cat", *EDGE)
    wait_until(agent.queue, "the first to run")
    second = start_command(agent, *words).wait()
    assert second.returncode == FAILED
    (line,) = second.stderr.splitlines()
    assert line.startswith("error: the agent's queue is full (0 wait): try again later, or say --no-agent")
    agent.unet.open()
    assert first.wait().returncode == 0


def test_queue_that_is_full_after_the_first_picture_leaves_the_rest_to_the_command(
    start_agent: StartAgent, cloud: Cloud, start_command: StartCommand
) -> None:
    agent = start_agent("--cloud", cloud.address, "--max-queue", "0")
    made, others = list[Made](), list[Program]()

    def keep(picture: Made) -> None:
        made.append(picture)
        if not others:
            agent.unet.hold_after(0)
            others.append(start_command(agent, "generate", "a dog", *EDGE))
            wait_until(agent.queue, "another to have the only place")

    options = PlanOptions(num_inference_steps=6)
    requests = [GenerationRequest(prompt="a cat", mode="edge", seed=seed, plan_options=options) for seed in range(2)]
    runs = Runs(requests, ProgressDisplay(quiet=True), title=lambda request: request.prompt, keep=keep)
    runs.with_agent(agent.address, frozenset(), {})
    assert not runs.are_done
    runs.here(EdgeClient(edge_model=str(EDGE_MODEL)))
    agent.unet.open()
    assert others[0].wait().returncode == 0
    assert [picture.report["agent"] for picture in made] == [agent.address, None]
    assert "the agent's queue is full: this command runs by itself" in made[1].report["warnings"]


def test_terminated_agent_finishes_what_it_has_and_takes_no_more(
    start_agent: StartAgent, cloud: Cloud, start_command: StartCommand, tmp_path: Path
) -> None:
    agent = start_agent("--cloud", cloud.address)
    commands = start_three(agent, start_command)
    agent.program.signal(signal.SIGTERM)
    wait_until(lambda: agent.status().state == "draining", "the agent to drain")
    own = ("--edge-model", EDGE_MODEL, "--report", "own.json", "-o", "own.png")
    late = start_command(agent, "generate", "a dog", *EDGE, *own).wait()
    assert late.returncode == 0, late.stderr
    assert "is draining: this command runs by itself" in late.stderr
    assert report_of(tmp_path, "own.json")["agent"] is None
    agent.unet.open()
    assert [command.wait().returncode for command in commands] == [0, 0, 0]
    assert agent.program.wait().returncode == 0


def test_grace_that_is_over_leaves_the_picture_to_the_command(
    start_agent: StartAgent, cloud: Cloud, start_command: StartCommand, tmp_path: Path
) -> None:
    agent = start_agent("--cloud", cloud.address, "--grace-seconds", "0.2")
    agent.unet.hold_after(2)
    own = ("--edge-model", EDGE_MODEL, "--report", "r.json")
    command = start_command(agent, "generate", "a cat", *EDGE, *own)
    wait_until(lambda: agent.unet.holding, "the agent to be at the third step")
    agent.program.signal(signal.SIGTERM)
    done = command.wait()
    assert done.returncode == 0, done.stderr
    assert "went down): this command runs by itself" in done.stderr
    agent.unet.open()
    assert agent.program.wait().returncode == 0


def test_killed_agent_costs_no_picture(
    start_agent: StartAgent, cloud: Cloud, start_command: StartCommand, tmp_path: Path
) -> None:
    agent = start_agent("--cloud", cloud.address)
    agent.unet.hold_after(2)
    own = ("--edge-model", EDGE_MODEL, "--report", "r.json")
    command = start_command(agent, "generate", "a cat", *EDGE, *own)
    wait_until(lambda: agent.unet.holding, "the agent to be at the third step")
    agent.program.kill()
    done = command.wait()
    assert done.returncode == 0, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"note: the agent at {agent.address} is gone (")
    report = report_of(tmp_path)
    assert report["agent"] is None
    assert line.removeprefix("note: ") in report["warnings"]
    assert (tmp_path / "out.png").is_file()


def test_frozen_agent_costs_a_command_no_picture(
    start_agent: StartAgent, cloud: Cloud, start_command: StartCommand, tmp_path: Path
) -> None:
    agent = start_agent("--cloud", cloud.address)
    agent.program.signal(signal.SIGSTOP)
    done = start_command(agent, "generate", "a cat", *EDGE, "--edge-model", EDGE_MODEL, "--report", "r.json").wait()
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith(f"note: what listens at {agent.address} is no agent that answers")
    assert report_of(tmp_path)["agent"] is None


@pytest.mark.slow
def test_agent_that_freezes_on_the_way_costs_no_picture(
    start_agent: StartAgent, cloud: Cloud, start_command: StartCommand, tmp_path: Path
) -> None:
    agent = start_agent("--cloud", cloud.address)
    agent.unet.hold_after(2)
    command = start_command(agent, "generate", "a cat", *EDGE, "--edge-model", EDGE_MODEL, "--report", "r.json")
    wait_until(lambda: agent.unet.holding, "the agent to be at the third step")
    agent.program.signal(signal.SIGSTOP)
    done = command.wait(120)  # ten seconds of silence
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith(f"note: the agent at {agent.address} has said nothing for 10 s")
    assert report_of(tmp_path)["agent"] is None


def test_cloud_that_dies_on_the_way_is_finished_by_the_agents_edge_model(
    start_agent: StartAgent, start_cloud: StartCloud, start_command: StartCommand, tmp_path: Path
) -> None:
    cloud = start_cloud()
    agent = start_agent("--cloud", cloud.address)
    cloud.unet.hold_after(3)
    options = ("--mode", "cloud", "--num-inference-steps", "8", "--report", "r.json")
    command = start_command(agent, "generate", "a cat", *options)
    wait_until(lambda: cloud.unet.holding, "the cloud to be at the fourth step")
    cloud.program.kill()
    done = command.wait()
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("note: cloud lost")
    report = report_of(tmp_path)
    assert report["agent"] == agent.address
    assert report["handoff"] == {"reason": "cloud_lost", "step": 3}
    # The next one makes its own first contact, which fails as it does without an agent.
    failed = start_command(agent, "generate", "a cat", *options).wait()
    assert failed.returncode == FAILED
    assert failed.stderr.startswith(f"error: no cloud service answers at {cloud.address}")


def test_cloud_may_be_away_when_the_agent_starts_and_come_and_go_later(
    start_agent: StartAgent, start_cloud: StartCloud, start_command: StartCommand, tmp_path: Path
) -> None:
    former = start_cloud()
    former.program.kill()
    agent = start_agent("--cloud", former.address)
    assert "no cloud service answers" in wait_until(lambda: agent.status().cloud.problem, "the agent to miss it")
    assert start_command(agent, "generate", "a cat", *EDGE).wait().returncode == 0

    cloud = start_cloud("--listen", former.address)
    wait_until(lambda: agent.status().cloud.address, "the cloud to be reached")
    # Between generations too the network is measured.
    wait_until(lambda: agent.scrape().value("ecdiff_network_rtt_seconds_count", probe="channel"), "a probe")
    options = ("--mode", "cloud", "--num-inference-steps", "4", "--report", "r.json")
    assert start_command(agent, "generate", "a cat", *options).wait().returncode == 0
    assert report_of(tmp_path)["nfe"] == {
        "cloud": 4,
        "cloud_discarded": 0,
        "extrapolated": 0,
        "edge": 0,
        "corrections": 0,
    }

    cloud.program.kill()
    wait_until(lambda: agent.status().cloud.problem, "the agent to notice")


def test_agent_without_a_cloud_keeps_one_of_its_own(programs: Programs, start_command: StartCommand) -> None:
    models = ("--cloud-model", str(CLOUD_MODEL), "--edge-model", str(EDGE_MODEL))
    ports = ("--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0")
    agent = Agent(programs.forked("edge_client", "serve", *models, *ports))
    (own,) = children(agent.program.pid)
    assert start_command(agent, "generate", "a cat", "--num-inference-steps", "4").wait().returncode == 0
    agent.program.signal(signal.SIGTERM)
    assert agent.program.wait().returncode == 0
    assert is_gone(own)


def test_agent_that_still_loads_ends_at_the_first_signal(programs: Programs) -> None:
    models = ("--cloud-model", str(CLOUD_MODEL), "--edge-model", str(EDGE_MODEL))
    ports = ("--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0")
    program = programs.forked("edge_client", "serve", *models, *ports)
    wait_until(lambda: "listening" in program.stdout, "the ports")
    (own,) = wait_until(lambda: children(program.pid), "its own cloud to be started")
    program.signal(signal.SIGTERM)
    assert program.wait().returncode == 0
    assert is_gone(own)


def test_port_in_use_is_said_plainly(start_agent: StartAgent, programs: Programs, cloud: Cloud) -> None:
    agent = start_agent("--cloud", cloud.address)
    ports = ("--listen", agent.address, "--metrics-listen", "127.0.0.1:0")
    second = programs.forked("edge_client", "serve", "--edge-model", str(EDGE_MODEL), *ports).wait()
    assert second.returncode == FAILED
    assert second.stderr.splitlines()[-1].startswith(f"error: cannot listen on {agent.address}")


def test_second_signal_ends_the_agent_at_once(
    start_agent: StartAgent, cloud: Cloud, start_command: StartCommand
) -> None:
    agent = start_agent("--cloud", cloud.address)
    agent.unet.hold_after(0)
    command = start_command(agent, "generate", "a cat", *EDGE)
    wait_until(agent.queue, "it to run")
    agent.program.signal(signal.SIGTERM)
    wait_until(lambda: agent.status().state == "draining", "the agent to drain")
    agent.program.signal(signal.SIGTERM)
    assert agent.program.wait().returncode == 1
    command.signal(signal.SIGKILL)


def test_agent_that_cannot_load_its_models_says_why(programs: Programs, tmp_path: Path) -> None:
    ports = ("--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0")
    for models, piece in (
        (("--edge-model", str(tmp_path / "missing")), "there is no model folder"),
        (("--edge-model", str(EDGE_MODEL), "--cloud-model", str(tmp_path / "missing")), "there is no model folder"),
    ):
        done = programs.forked("edge_client", "serve", *models, *ports).wait()
        assert done.returncode == FAILED
        assert done.stderr.splitlines()[-1].startswith("error: ")
        assert piece in done.stderr
