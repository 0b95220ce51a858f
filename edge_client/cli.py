"""`edge-client`: generate, compare, probe. Heavy modules are imported by the command that needs them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_client.command_line import (
    bad_usage,
    check_outputs,
    make_client,
    make_request,
    read_addresses,
    read_credentials,
)
from edge_client.options import (
    CLOUD_OPTIONS,
    FILE,
    INPUT_FILE,
    MODEL_OPTIONS,
    PICTURE_FILE,
    PICTURE_OPTIONS,
    PLAN_OPTIONS,
    PROBE_OPTIONS,
)
from edge_client.outcome import Interrupted, InterruptibleGroup, plain_text, run_to_end
from orchestrator.plan import CLOUD_MODES, DEFAULT_MODE, MODES
from wire.options import with_options

if TYPE_CHECKING:
    from edge_client.client import EdgeClient
    from edge_client.generation import GenerationResult
    from edge_client.request import GenerationRequest
    from edge_client.terminal import ProgressDisplay

FAILED, BAD_USAGE, INTERRUPTED = 1, 2, 130


@click.group(cls=InterruptibleGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="ecdiff")
def cli() -> None:
    """Make pictures with a large model in the cloud and a small one here, on one stream.

    \b
    edge-client generate "red apple, fluent style" -o apple.png
    edge-client compare "red apple, fluent style" -o grid.png
    edge-client probe --cloud gpu.example.org:50051
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
@click.option("--initial-latents", type=INPUT_FILE, help=".npy of standard normal noise instead of the seed's.")
@click.option("--save-latents", type=FILE, help=".npy for the final latents, float32, before the VAE's own scaling.")
@with_options(MODEL_OPTIONS, CLOUD_OPTIONS)
@click.option("-o", "--output", type=PICTURE_FILE, default=Path("out.png"), show_default=True, help="PNG to write.")
@click.option("--report", "report_file", type=FILE, help="JSON with what ran where and what it cost.")
@click.option("--metrics-file", type=FILE, help="Prometheus textfile (.prom) with this run's series.")
@click.option("--quiet", "-q", is_flag=True, help="Print errors only.")
def generate(prompt: str, mode: str | None, **options: Any) -> None:
    """Generate a picture from PROMPT.

    Without --cloud it starts a cloud service of its own on this machine, over real gRPC, and stops it again.
    If the cloud dies, stalls or is full on the way, the edge model finishes the picture.

    \b
    edge-client generate "red apple, fluent style"
    edge-client generate "red apple, fluent style" --mode split --steps 30,20 --seed 7
    edge-client generate "a castle" --cloud gpu:50051 --edge-model nota-ai/bk-sdm-tiny --report run.json
    """  # noqa: D301
    from edge_client.terminal import ProgressDisplay, print_results

    mode = mode or ("split" if options["steps"] else DEFAULT_MODE)
    with bad_usage():
        request = make_request(prompt, mode, options)
    check_outputs(options, request.num_images)
    display = ProgressDisplay(quiet=options["quiet"])
    with display.running(f'"{prompt}"'):
        client = make_client(options, mode)
        result, written = run_to_end(_generate(client, request, display, options))
    if not options["quiet"]:
        print_results([result.report], written)


async def _generate(
    client: EdgeClient, request: GenerationRequest, display: ProgressDisplay, options: dict[str, Any]
) -> tuple[GenerationResult, list[str]]:
    async with client:
        result = await _generate_one(client, request, display)
        # Before the client lets go of its cloud: neither that nor a Ctrl-C meanwhile may cost the picture.
        return result, _save(result, client, options)


async def _generate_one(client: EdgeClient, request: GenerationRequest, display: ProgressDisplay) -> GenerationResult:
    """Run a request; what fails in the cloud names it, for it stands so in the cloud's log."""
    from wire.errors import EcdiffError, IncompatibleModels, NotServing, Unauthenticated, VersionMismatch

    display.request_id = request.request_id
    try:
        return await client.run(request, display)
    except EcdiffError as error:
        # These are found before a request is sent.
        if not isinstance(error, IncompatibleModels | NotServing | Unauthenticated | VersionMismatch):
            error.add_note(f"request {request.request_id}")
        raise


def _save(result: GenerationResult, client: EdgeClient, options: dict[str, Any]) -> list[str]:
    """Write what was asked for; return the names of the files."""
    from edge_client.pictures import save_images, save_latents, save_report

    # The picture first: whatever fails after it costs less.
    result.report["images"] = save_images(result.images, options["output"], result.report)
    written = list(result.report["images"])
    savers: dict[str, Callable[[Path], None]] = {
        "save_latents": lambda path: save_latents(path, result.latents),
        "report_file": lambda path: save_report(path, result.report),
        "metrics_file": client.metrics.write,
    }
    for name, save in savers.items():
        if options[name] is not None:
            save(options[name])
            written.append(str(options[name]))
    return written


@cli.command()
@click.argument("prompts", nargs=-1, required=True, metavar="PROMPT...")
@with_options(PLAN_OPTIONS[:1], PICTURE_OPTIONS, MODEL_OPTIONS, CLOUD_OPTIONS)
@click.option("-o", "--output", type=PICTURE_FILE, default=Path("compare.png"), show_default=True, help="PNG to write.")
@click.option("--report", "report_file", type=FILE, help='JSON: {"runs": [report, ...]}.')
@click.option("--quiet", "-q", is_flag=True, help="Print errors only.")
def compare(prompts: tuple[str, ...], **options: Any) -> None:
    """Generate each PROMPT in every mode from the same seed: pictures side by side, and a table."""
    from edge_client.terminal import ProgressDisplay, print_results

    with bad_usage():
        requests = [make_request(prompt, mode, options) for prompt in prompts for mode in MODES]
    check_outputs(options)
    display = ProgressDisplay(quiet=options["quiet"])
    with display.running("edge-client compare"):
        client = make_client(options, CLOUD_MODES[0])
        results = run_to_end(_compare(client, requests, display))

    from edge_client.pictures import comparison_grid, save_report, write_file

    cells = [(result.images[0], result.report) for result in results]
    rows = [(prompt, cells[i * len(MODES) : (i + 1) * len(MODES)]) for i, prompt in enumerate(prompts)]
    grid = comparison_grid(rows)
    write_file(options["output"], lambda file: grid.save(file, "PNG"))
    reports = [result.report for result in results]
    for report in reports:
        report["images"] = [str(options["output"])]
    written = [str(options["output"])]
    if options["report_file"] is not None:
        save_report(options["report_file"], {"runs": reports})
        written.append(str(options["report_file"]))
    if not options["quiet"]:
        print_results(reports, written)


async def _compare(
    client: EdgeClient, requests: list[GenerationRequest], display: ProgressDisplay
) -> list[GenerationResult]:
    results = []
    async with client:
        for request in requests:
            display.title = f'"{request.prompt}", mode {request.mode}'
            results.append(await _generate_one(client, request, display))
    return results


@cli.command()
@with_options(PROBE_OPTIONS)
def probe(**options: Any) -> None:
    """Measure the way to a cloud: round trip, clock offset, bandwidth. Exits 0 only when it is SERVING."""
    with bad_usage():
        addresses, credentials = read_addresses(options), read_credentials(options)

    from edge_client.probe import probe_cloud

    run_to_end(probe_cloud(addresses, credentials))


def run() -> int:
    """Run the command line of `sys.argv`; every error is one plain line.

    Returns:
        The exit code: 0 done, 1 failed, 2 bad usage, 130 interrupted.

    Raises:
        Exception: A mistake of ours, with its traceback.
    """
    try:
        cli.main(prog_name="edge-client", standalone_mode=False)
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
    return 0


def _failed(text: str, code: int) -> int:
    click.echo(f"error: {' '.join(text.split())}", err=True)
    return code
