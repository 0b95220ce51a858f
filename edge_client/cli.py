"""`edge-client`: generate, compare, probe, serve, status. Heavy modules are imported by the command that needs them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_client.agent.address import DEFAULT_ADDRESS, DEFAULT_METRICS_ADDRESS
from edge_client.command_line import (
    bad_usage,
    check_cloud,
    check_outputs,
    make_client,
    make_request,
    options_for,
    preview_file,
    read_credentials,
    read_targets,
)
from edge_client.command_line import run as run_requests
from edge_client.options import (
    AGENT_OPTIONS,
    CLOUD_OPTIONS,
    FILE,
    INPUT_FILE,
    MODEL_OPTIONS,
    PICTURE_FILE,
    PICTURE_OPTIONS,
    PICTURE_OR_VIDEO_FILE,
    PLAN_OPTIONS,
    PROBE_OPTIONS,
    QUEUE_OPTIONS,
    PreviewPlace,
)
from edge_client.outcome import Interrupted, InterruptibleGroup, plain_text, run_to_end
from orchestrator.plan import CLOUD_MODES, DEFAULT_MODE, MODES
from wire.options import with_options
from wire.serving.command_line import PROCESS_OPTIONS, listen_options

if TYPE_CHECKING:
    from edge_client.report import Report
    from edge_client.request import GenerationRequest
    from edge_client.runs import Made
    from wire.serving.address import Address

FAILED, BAD_USAGE, INTERRUPTED = 1, 2, 130


@click.group(cls=InterruptibleGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="ecdiff")
def cli() -> None:
    """Make pictures with a large model in the cloud and a small one here, on one stream.

    \b
    edge-client generate "red apple, fluent style" -o apple.png
    edge-client compare "red apple, fluent style" -o grid.png
    edge-client probe --cloud gpu.example.org:50051
    edge-client serve
    """  # noqa: D301


@cli.command()
@click.argument("prompt")
@click.option(
    "--mode",
    type=click.Choice(MODES),
    help="cloud: every step on the large model. edge: every step on the small one, no network. split: hand off once. "
    "ecdiff: as split, but most cloud steps are extrapolated. adaptive: ecdiff that decides from what it measures.  "
    "[default: adaptive; split with --steps]",
)
@with_options(PLAN_OPTIONS, PICTURE_OPTIONS)
@click.option(
    "--plan", "plan_file", type=INPUT_FILE, help="adaptive: plan file of orchestrator search.  [default: the bundled]"
)
@click.option("--num-images", type=int, default=1, show_default=True, help="Pictures, in one batch.")
@click.option("--fps", type=int, help="Frames a second of a video.  [default: the model's]")
@click.option("--initial-latents", type=INPUT_FILE, help=".npy of standard normal noise instead of the seed's.")
@click.option("--save-latents", type=FILE, help=".npy for the final latents, float32, before the VAE's own scaling.")
@with_options(MODEL_OPTIONS, CLOUD_OPTIONS, AGENT_OPTIONS)
@click.option(
    "-o",
    "--output",
    type=PICTURE_OR_VIDEO_FILE,
    default=Path("out.png"),
    show_default=True,
    help="PNG to write; of a video an .mp4, a .gif or an animated .png.",
)
@click.option(
    "--preview",
    "preview_to",
    type=PreviewPlace(),
    metavar="FILE.png|terminal",
    help="Show what it will come to while it is made: in a PNG that is written anew, or beside the progress.",
)
@click.option("--report", "report_file", type=FILE, help="JSON with what ran where and what it cost.")
@click.option("--metrics-file", type=FILE, help="Prometheus textfile (.prom) with this run's series.")
@click.option("--quiet", "-q", is_flag=True, help="Print errors only.")
def generate(prompt: str, mode: str | None, **options: Any) -> None:
    """Generate a picture from PROMPT.

    Without --cloud it starts a cloud service of its own on this machine, over real gRPC, and stops it again.
    If the cloud dies, stalls or is full on the way, the edge model finishes the picture.
    Where an agent runs on this machine (edge-client serve), it makes the picture with the models that it keeps loaded,
    unless another model, cloud or credential is named here.

    \b
    edge-client generate "red apple, fluent style"
    edge-client generate "red apple, fluent style" --mode split --steps 30,20 --seed 7
    edge-client generate "a castle" --cloud gpu:50051 --edge-model nota-ai/bk-sdm-tiny --report run.json
    edge-client generate "red apple, fluent style" --orchestrator 127.0.0.1:50061
    """  # noqa: D301
    mode = mode or ("split" if options["steps"] else DEFAULT_MODE)
    with bad_usage():
        request = make_request(prompt, mode, options | {"preview": options["preview_to"] is not None})
    check_outputs(options, request.num_images)
    check_cloud(options, mode)

    from edge_client.runs import Runs
    from edge_client.terminal import ProgressDisplay, print_results

    preview = preview_file(options)
    display = ProgressDisplay(quiet=options["quiet"], on_preview=preview)
    reports: list[Report] = []
    written: list[str] = []

    def keep(made: Made) -> None:
        written.extend(_save(made, options))
        if preview is not None:
            preview.finish(made.pngs[0])
        reports.append(made.report)

    title = f'"{prompt}"'
    runs = Runs([request], display, title=lambda _: title, keep=keep, want_latents=bool(options["save_latents"]))
    with display.running(title):
        run_requests(runs, options)
    if not options["quiet"]:
        print_results(reports, written)


def _save(made: Made, options: dict[str, Any]) -> list[str]:
    """Write what was asked for; return the names of the files."""
    from edge_client.pictures import save_latents, save_report
    from edge_client.videos import save_outputs

    def save_final_latents(path: Path) -> None:
        assert made.latents is not None  # they were asked for
        save_latents(path, made.latents)

    def save_metrics(path: Path) -> None:
        from edge_client.metrics import write_metrics

        write_metrics(path, made.observations)

    # The picture first: whatever fails after it costs less.
    made.report["images"] = save_outputs(made.pngs, options["output"], made.report)
    written = list(made.report["images"])
    savers: dict[str, Callable[[Path], None]] = {
        "save_latents": save_final_latents,
        "report_file": lambda path: save_report(path, made.report),
        "metrics_file": save_metrics,
    }
    for name, save in savers.items():
        if options[name] is not None:
            save(options[name])
            written.append(str(options[name]))
    return written


@cli.command()
@click.argument("prompts", nargs=-1, required=True, metavar="PROMPT...")
@with_options(PLAN_OPTIONS[:1], PICTURE_OPTIONS, MODEL_OPTIONS, CLOUD_OPTIONS, AGENT_OPTIONS)
@click.option("-o", "--output", type=PICTURE_FILE, default=Path("compare.png"), show_default=True, help="PNG to write.")
@click.option("--report", "report_file", type=FILE, help='JSON: {"runs": [report, ...]}.')
@click.option("--quiet", "-q", is_flag=True, help="Print errors only.")
def compare(prompts: tuple[str, ...], **options: Any) -> None:
    """Generate each PROMPT in every mode from the same seed: pictures side by side, and a table."""
    with bad_usage():
        requests = [make_request(prompt, mode, options_for(mode, options)) for prompt in prompts for mode in MODES]
    check_outputs(options)
    check_cloud(options, CLOUD_MODES[0])

    from edge_client.pictures import comparison_grid, save_report, write_file
    from edge_client.runs import Runs
    from edge_client.terminal import ProgressDisplay, print_results

    display = ProgressDisplay(quiet=options["quiet"])
    results: list[Made] = []

    def title(request: GenerationRequest) -> str:
        return f'"{request.prompt}", mode {request.mode}'

    with display.running("edge-client compare"):
        run_requests(Runs(requests, display, title=title, keep=results.append), options)

    cells = [(made.pngs[0], made.report) for made in results]
    rows = [(prompt, cells[i * len(MODES) : (i + 1) * len(MODES)]) for i, prompt in enumerate(prompts)]
    grid = comparison_grid(rows)
    write_file(options["output"], lambda file: grid.save(file, "PNG"))
    reports = [made.report for made in results]
    for report in reports:
        report["images"] = [str(options["output"])]
    written = [str(options["output"])]
    if options["report_file"] is not None:
        save_report(options["report_file"], {"runs": reports})
        written.append(str(options["report_file"]))
    if not options["quiet"]:
        print_results(reports, written)


@cli.command()
@with_options(PROBE_OPTIONS)
def probe(**options: Any) -> None:
    """Measure the way to a cloud: round trip, clock offset, bandwidth. Exits 0 only when it is SERVING."""
    with bad_usage():
        targets, credentials = read_targets(options), read_credentials(options)

    from edge_client.probe import probe_cloud

    run_to_end(probe_cloud(targets, credentials))


@cli.command()
@with_options(
    listen_options(DEFAULT_ADDRESS, DEFAULT_METRICS_ADDRESS),
    QUEUE_OPTIONS,
    MODEL_OPTIONS,
    CLOUD_OPTIONS,
    PROCESS_OPTIONS,
)
@click.option(
    "--log-prompts", is_flag=True, help="Log each prompt when its generation ends, too; nothing else ever does."
)
def serve(listen: Address, metrics_listen: Address, log_level: str, **options: Any) -> int:
    """Run the agent of this machine: models stay loaded, and generate and compare use it by themselves.

    A picture then starts at once, several commands wait their turn, and Prometheus scrapes what all of them measured.
    It listens on this machine only; where that is not the default, tell the commands by ECDIFF_AGENT=127.0.0.1:PORT.
    SIGTERM lets what runs and waits finish; a second signal ends it at once.

    \b
    edge-client serve
    edge-client serve --cloud gpu:50051 --edge-model nota-ai/bk-sdm-tiny
    edge-client status
    """  # noqa: D301
    from edge_client.agent.config import AgentConfig
    from edge_client.agent.settings import Settings

    check_cloud(options, CLOUD_MODES[0])
    with bad_usage():
        config = AgentConfig(
            listen=listen,
            metrics_listen=metrics_listen,
            settings=Settings.of(options),
            max_queue=options["max_queue"],
            grace_seconds=options["grace_seconds"],
            exit_with_stdin=options["exit_with_stdin"],
            log_prompts=options["log_prompts"],
        )
    client = make_client(options)

    from edge_client.agent.server import serve as serve_agent

    return serve_agent(client, config, log_level)


@cli.command()
@click.option("--prompts", is_flag=True, help="Show what is drawn, too.")
def status(prompts: bool) -> None:
    """Show the agent of this machine: its models, its cloud and the way there, and who waits."""
    from edge_client.agent.show import show_status

    run_to_end(show_status(want_prompts=prompts))


def run() -> int:
    """Run the command line of `sys.argv`; every error is one plain line.

    Returns:
        The exit code: 0 done, 1 failed, 2 bad usage, 130 interrupted.

    Raises:
        Exception: A mistake of ours, with its traceback.
    """
    try:
        exit_code = cli.main(prog_name="edge-client", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return BAD_USAGE
    except click.ClickException as error:
        return _failed(error.format_message(), BAD_USAGE)
    except (Interrupted, click.Abort, KeyboardInterrupt):
        return _failed("interrupted", INTERRUPTED)
    except Exception as error:
        text = plain_text(error)
        if text is None:
            raise
        return _failed(text, FAILED)
    return exit_code or 0  # serve says how it ended


def _failed(text: str, code: int) -> int:
    click.echo(f"error: {' '.join(text.split())}", err=True)
    return code
