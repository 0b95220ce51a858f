"""The command line's options, said once for every command that takes them."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import click

from diffusion.lora_file import Lora
from orchestrator.plan import PREDICTORS, parse_steps
from orchestrator.refresh import REFRESH_POLICIES
from wire.edge_plan import CORRECTIONS
from wire.options import each_parsed


class OutputFile(click.Path):
    """A file to write.

    Args:
        suffixes: What its name must end with, where the content has few formats; none: any.
    """

    def __init__(self, *suffixes: str) -> None:
        super().__init__(path_type=Path, dir_okay=False)
        self._suffixes = suffixes

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path; an empty name, a folder and another suffix are bad usage."""
        if not os.fspath(value):
            self.fail("the name is empty", param, ctx)
        if self._suffixes and not os.fspath(value).lower().endswith(self._suffixes):
            self.fail(f"the name must end with {' or '.join(self._suffixes)}, not {os.fspath(value)!r}", param, ctx)
        return super().convert(value, param, ctx)


class Seconds(click.FloatRange):
    """A duration that ends, of at least a tenth of a second."""

    def __init__(self) -> None:
        super().__init__(min=0.1)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the seconds; what is no such number is bad usage."""
        seconds = super().convert(value, param, ctx)
        if not math.isfinite(seconds):
            self.fail(f"{value} is not a number of seconds", param, ctx)
        return seconds


FILE = OutputFile()
PICTURE_FILE = OutputFile(".png")


TERMINAL = "terminal"


class PreviewPlace(OutputFile):
    """`terminal`, or a PNG to write."""

    name = "preview"

    def __init__(self) -> None:
        super().__init__(".png")

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the word, or the path."""
        return value if value == TERMINAL else super().convert(value, param, ctx)


PICTURE_OR_VIDEO_FILE = OutputFile(".png", ".mp4", ".gif")
INPUT_FILE = click.Path(path_type=Path, dir_okay=False, exists=True, readable=True)

# Options of the plan; None leaves the choice to the mode.
PLAN_OPTIONS = (
    click.option("--num-inference-steps", type=int, help="Denoising steps, cloud and edge together.  [default: 50]"),
    click.option("--steps", metavar="40,10", help="Split as Hybrid SD writes it: cloud steps, edge steps."),
    click.option("--handoff-step", type=int, help="First step of the edge model; the step count means never."),
    click.option("--warmup-steps", type=int, help="Real evaluations at the start (p).  [default: 7 of 50]"),
    click.option(
        "--skip-interval",
        type=int,
        help="Extrapolated steps between two real ones (k), or the most if they vary.  [default: 2 if fixed]",
    ),
    click.option("--smoothing", type=float, help="Predictor ecdiff: weight of the gradient (a).  [default: 0.3]"),
    click.option("--predictor", help=f"How a step is extrapolated: {', '.join(PREDICTORS)}.  [default: ecdiff]"),
    click.option("--refresh", help=f"When the cloud evaluates: {', '.join(REFRESH_POLICIES)}.  [default: fixed]"),
    click.option(
        "--tolerance",
        type=float,
        help="adaptive: error of the final latents to allow.  [default: the plan file's]  "
        "With refresh embedded-error, third-difference or easycache: what their measure may reach; 0: every step real.",
    ),
    click.option(
        "--real-steps",
        type=parse_steps,
        metavar="0,1,4,...",
        help="The cloud's real steps, for refresh listed.",
    ),
    click.option(
        "--max-cloud-calls",
        type=int,
        help="Hard bound on evaluations in the cloud; hands off earlier where it cannot be kept otherwise.",
    ),
    click.option(
        "--corrections",
        type=click.Choice(CORRECTIONS),
        help="adaptive: when the edge asks the cloud after the handoff.  [default: planned with a searched plan, else "
        "none]",
    ),
    click.option(
        "--shadow/--no-shadow",
        default=True,
        help="adaptive: let the idle edge evaluate its model while the cloud leads: handoff by agreement and residual.",
    ),
    click.option(
        "--deadline-ms",
        type=float,
        metavar="MS",
        help="adaptive: choose the best plan that is in time, and hand off when time runs out.",
    ),
)
PICTURE_OPTIONS = (
    click.option(
        "--scheduler",
        help="Update rule of the sampler: ddim, dpmpp-2m, unipc or euler; for CogVideoX ddim or dpm; for a flow (SD3, "
        "FLUX, Wan) euler, unipc or dpmpp-2m.  [default: that of the model's family; ddim for the bundled pair]",
    ),
    click.option(
        "--guidance-scale",
        type=float,
        help="Classifier-free guidance weight; 1 turns it off.  [default: the model's: 2 for the bundled pair, 7.5 for "
        "Stable Diffusion 1, 5 for SDXL, ...]",
    ),
    click.option("--guidance-rescale", type=float, default=0.0, show_default=True, help="0..1, against overexposure."),
    click.option("--negative-prompt", default="", help="What to avoid."),
    click.option(
        "--text-encoder",
        type=click.Choice(["own", "cloud", "edge"]),
        default="own",
        show_default=True,
        help="Who encodes the prompt. own: each model its own. cloud: the cloud for both, so that the edge model needs "
        "none. edge: the edge for both, and the prompt's text never leaves this machine.",
    ),
    click.option(
        "--image",
        type=INPUT_FILE,
        help="Picture to start from (Stable Diffusion and SDXL), scaled to --height and --width; it stays on this "
        "machine.  [default size: the picture's own, rounded down]",
    ),
    click.option("--strength", type=float, help="Above 0, at most 1: the part of the steps that --image passes."),
    click.option(
        "--decode",
        type=click.Choice(["edge", "cloud"]),
        default="edge",
        show_default=True,
        help="Who decodes the final latents. cloud: sent there, and pixels back; if that fails, the edge decodes.",
    ),
    click.option("--seed", type=int, default=0, show_default=True, help="Picture j of a batch uses seed + j."),
    click.option("--height", type=int, help="Picture height in pixels.  [default: the model's]"),
    click.option("--width", type=int, help="Picture width in pixels.  [default: the model's]"),
    click.option("--num-frames", type=int, help="Frames of a video.  [default: the model's]"),
    click.option(
        "--latents-codec",
        type=click.Choice(["raw", "zstd", "int8-block", "int8-delta"]),
        default="zstd",
        show_default=True,
        help="How latents travel; int8-block is lossy, and so is int8-delta, which sends what changed since the last "
        "step: for videos and slow links.",
    ),
)
MODEL_OPTIONS = (
    click.option(
        "--cloud-model",
        metavar="PATH_OR_ID",
        help="Large model, for a cloud service of its own.  [default: the bundled one]",
    ),
    click.option("--edge-model", metavar="PATH_OR_ID", help="Small model.  [default: the bundled one]"),
    click.option(
        "--lora",
        metavar="PATH[:SCALE]",
        multiple=True,
        callback=each_parsed(Lora.parse),
        help="LoRA to fuse into the small model's weights, .safetensors; may be given several times.",
    ),
    click.option(
        "--cloud-lora",
        metavar="PATH[:SCALE]",
        multiple=True,
        callback=each_parsed(Lora.parse),
        help="The same for the large model of a cloud service of its own; one elsewhere has what it was started with.",
    ),
    click.option(
        "--offload",
        type=click.Choice(["none", "model", "sequential"]),
        default="none",
        show_default=True,
        help="Where the small model's weights wait for a GPU with little memory: model: one part there at a time; "
        "sequential: one layer, slowly.",
    ),
    click.option(
        "--vae",
        metavar="PATH_OR_ID",
        help="VAE that decodes instead of the small model's own: a tiny autoencoder (such as madebyollin/taesd) for a "
        "small device.",
    ),
    click.option("--vae-tiling", is_flag=True, help="Decode in tiles: large pictures and videos in little memory."),
    click.option("--vae-slicing", is_flag=True, help="Decode a batch one picture at a time, in little memory."),
    click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True),
    click.option(
        "--dtype", type=click.Choice(["auto", "float32", "float16", "bfloat16"]), default="auto", show_default=True
    ),
)
CREDENTIAL_OPTIONS = (
    click.option(
        "--auth-token-file",
        type=INPUT_FILE,
        help="File with the bearer token that the services ask for: its first line, read again when it changes.",
    ),
    click.option("--allow-plaintext-token", is_flag=True, help="Send the token unencrypted to another host."),
    click.option("--tls-ca", type=INPUT_FILE, help="Certificate authority of the services; turns TLS on."),
    click.option("--tls-cert", type=INPUT_FILE, help="Client certificate, where a service asks for one."),
    click.option("--tls-key", type=INPUT_FILE, help="Key of the client certificate."),
)
CLOUD_OPTIONS = (
    click.option(
        "--cloud",
        metavar="HOST:PORT[,HOST:PORT]",
        help="Running cloud services, in order of preference; dns:///HOST:PORT stands for every address of a name, in "
        "any order. Without it (and without --orchestrator) one is started, "
        "and stopped again.",
    ),
    click.option(
        "--orchestrator",
        metavar="HOST:PORT",
        help="Orchestrator service (orchestrator serve): it names the cloud where --cloud and --cloud-model do not, "
        "chooses the plans of mode adaptive, and is told how long things took, never the prompt.",
    ),
    *CREDENTIAL_OPTIONS,
    click.option(
        "--cloud-timeout",
        type=Seconds(),
        default=3.0,
        show_default=True,
        help="Seconds of silence after which the cloud is lost and the edge goes on alone.",
    ),
    click.option(
        "--cloud-step-timeout",
        type=Seconds(),
        default=120.0,
        show_default=True,
        help="Seconds after which a cloud that lives but makes no step is lost; ten times as long in its queue.",
    ),
)
AGENT_OPTIONS = (
    click.option(
        "--no-agent", is_flag=True, help="Load the models in this process, even if an agent (edge-client serve) runs."
    ),
)
QUEUE_OPTIONS = (
    click.option(
        "--max-queue",
        type=click.IntRange(0),
        default=16,
        show_default=True,
        help="Generations that may wait for their turn.",
    ),
)
PROBE_OPTIONS = (
    click.option(
        "--cloud",
        metavar="HOST:PORT[,HOST:PORT]",
        required=True,
        help="Running cloud services, or dns:///HOST:PORT for those of a name; the first that serves is measured.",
    ),
    *CREDENTIAL_OPTIONS,
)
