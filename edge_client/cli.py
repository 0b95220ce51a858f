"""`edge-client`: generate, compare, probe. Heavy modules are imported by the command that needs them."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_client.options import (
    CLOUD_OPTIONS,
    FILE,
    INPUT_FILE,
    MODEL_OPTIONS,
    PICTURE_OPTIONS,
    PLAN_OPTIONS,
    with_options,
)
from orchestrator.plan import CLOUD_MODES, MODES

if TYPE_CHECKING:
    from edge_client.client import EdgeClient
    from edge_client.request import GenerationRequest

COMPARE_MODES = ("cloud", "edge", "split", "ecdiff")
INTERRUPTED = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
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
    "ecdiff: as split, but most cloud steps are extrapolated.  [default: ecdiff; split with --steps]",
)
@with_options(PLAN_OPTIONS, PICTURE_OPTIONS)
@click.option("--num-images", type=int, default=1, show_default=True, help="Pictures, in one batch.")
@click.option("--initial-latents", type=INPUT_FILE, help=".npy of standard normal noise instead of the seed's.")
@click.option("--save-latents", type=FILE, help=".npy for the final latents, float32, before the VAE's own scaling.")
@with_options(MODEL_OPTIONS, CLOUD_OPTIONS)
@click.option("-o", "--output", type=FILE, default=Path("out.png"), show_default=True, help="PNG to write.")
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
    from edge_client.pictures import check_writable

    for path in (options["output"], options["report_file"], options["save_latents"], options["metrics_file"]):
        if path is not None:
            check_writable(path)
    mode = mode or ("split" if options["steps"] else "ecdiff")
    _run(_generate(prompt, mode, options))


async def _generate(prompt: str, mode: str, options: dict[str, Any]) -> None:
    from edge_client.terminal import ProgressDisplay, print_results

    display = ProgressDisplay(quiet=options["quiet"])
    with display.running(f'"{prompt}"'):
        from edge_client.pictures import save_images, save_latents, save_report

        async with _client(options, mode) as client:
            result = await client.run(_request(client, prompt, mode, options), display)
    # The picture first: whatever fails after it costs less.
    result.report["images"] = save_images(result.images, options["output"], result.report)
    written = list(result.report["images"])
    if options["save_latents"] is not None:
        save_latents(options["save_latents"], result.latents)
        written.append(str(options["save_latents"]))
    if options["report_file"] is not None:
        save_report(options["report_file"], result.report)
        written.append(str(options["report_file"]))
    if options["metrics_file"] is not None:
        client.metrics.write(options["metrics_file"])
        written.append(str(options["metrics_file"]))
    if not options["quiet"]:
        print_results([result.report], written)


@cli.command()
@click.argument("prompts", nargs=-1, required=True, metavar="PROMPT...")
@with_options(PLAN_OPTIONS[:1], PICTURE_OPTIONS, MODEL_OPTIONS, CLOUD_OPTIONS)
@click.option("-o", "--output", type=FILE, default=Path("compare.png"), show_default=True, help="PNG of the grid.")
@click.option("--report", "report_file", type=FILE, help='JSON: {"runs": [report, ...]}.')
@click.option("--quiet", "-q", is_flag=True, help="Print errors only.")
def compare(prompts: tuple[str, ...], **options: Any) -> None:
    """Generate each PROMPT in every mode from the same seed: pictures side by side, and a table."""
    from edge_client.pictures import check_writable

    for path in (options["output"], options["report_file"]):
        if path is not None:
            check_writable(path)
    _run(_compare(prompts, options))


async def _compare(prompts: tuple[str, ...], options: dict[str, Any]) -> None:
    from edge_client.terminal import ProgressDisplay, print_results

    display = ProgressDisplay(quiet=options["quiet"])
    rows = []
    with display.running("edge-client compare"):
        from edge_client.pictures import comparison_grid, save_report, write_file

        async with _client(options, CLOUD_MODES[0]) as client:
            for prompt in prompts:
                cells = []
                for mode in COMPARE_MODES:
                    display.title = f'"{prompt}", mode {mode}'
                    result = await client.run(_request(client, prompt, mode, options), display)
                    result.report["images"] = [str(options["output"])]
                    cells.append((result.images[0], result.report))
                rows.append((prompt, cells))
    grid = comparison_grid(rows)
    write_file(options["output"], lambda file: grid.save(file, "PNG"))
    reports = [report for _, cells in rows for _, report in cells]
    written = [str(options["output"])]
    if options["report_file"] is not None:
        save_report(options["report_file"], {"runs": reports})
        written.append(str(options["report_file"]))
    if not options["quiet"]:
        print_results(reports, written)


@cli.command()
@with_options(CLOUD_OPTIONS)
def probe(**options: Any) -> None:
    """Measure the way to a cloud: round trip, clock offset, bandwidth. Exits 0 only when it is SERVING."""
    if options["cloud"] is None:
        raise click.UsageError("probe needs --cloud HOST:PORT")
    from edge_client.probe import probe_cloud

    _run(probe_cloud(options["cloud"], _credentials(options)))


def _client(options: dict[str, Any], mode: str) -> EdgeClient:
    from edge_client.client import EdgeClient

    if mode not in CLOUD_MODES and (options["cloud"] or options["cloud_model"]):
        raise click.UsageError(f"mode {mode} uses no cloud: leave --cloud and --cloud-model out")
    return EdgeClient(
        cloud=options["cloud"],
        cloud_model=options["cloud_model"],
        edge_model=options["edge_model"],
        device=options["device"],
        dtype=options["dtype"],
        credentials=_credentials(options),
        silence_seconds=options["cloud_timeout"],
    )


def _credentials(options: dict[str, Any]) -> Any:
    from edge_client.cloud_link import Credentials

    return Credentials(
        token_file=options["auth_token_file"],
        tls_ca=options["tls_ca"],
        tls_cert=options["tls_cert"],
        tls_key=options["tls_key"],
        allow_plaintext_token=options["allow_plaintext_token"],
    )


def _request(client: EdgeClient, prompt: str, mode: str, options: dict[str, Any]) -> GenerationRequest:
    """Turn the command line's options into a request; what was not given keeps its default."""
    from edge_client.request import GenerationRequest
    from orchestrator.plan import PlanOptions, parse_split

    plan_fields, request_fields = PlanOptions.__dataclass_fields__, GenerationRequest.__dataclass_fields__
    plan = {name: value for name, value in options.items() if name in plan_fields and value is not None}
    if options.get("steps") is not None:
        if mode != "split" or "handoff_step" in plan or "num_inference_steps" in plan:
            raise click.UsageError("--steps is mode split's way to say both --num-inference-steps and --handoff-step")
        cloud_steps, edge_steps = parse_split(options["steps"])
        plan.update(num_inference_steps=cloud_steps + edge_steps, handoff_step=cloud_steps)
    fields = {name: value for name, value in options.items() if name in request_fields and value is not None}
    fields.setdefault("guidance_scale", client.default_guidance_scale)
    return GenerationRequest(prompt=prompt, mode=mode, plan_options=PlanOptions(**plan), **fields)


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Run to the end; Ctrl-C and SIGTERM cancel, so that sessions and processes are let go."""

    async def main() -> None:
        task = asyncio.ensure_future(work)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, task.cancel)
        await task

    # A call that is cancelled because we are leaving is no news.
    logging.getLogger("grpc").setLevel(logging.CRITICAL)
    asyncio.run(main())


def main() -> None:
    """Run the command line: exit code 0 done, 1 failed, 2 bad usage, 130 interrupted; errors are one plain line."""
    try:
        cli.main(prog_name="edge-client", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        sys.exit(2)
    except click.ClickException as error:
        _fail(error.format_message(), 2)
    except ValueError as error:
        _fail(str(error), 2)
    except (asyncio.CancelledError, click.Abort, KeyboardInterrupt):
        _fail("interrupted", INTERRUPTED)
    except OSError as error:
        _fail(str(error), 1)
    except Exception as error:
        from wire.errors import EcdiffError

        if not isinstance(error, EcdiffError):
            raise
        _fail(str(error), 1)


def _fail(text: str, code: int) -> None:
    click.echo(f"error: {' '.join(text.split())}", err=True)
    sys.exit(code)
