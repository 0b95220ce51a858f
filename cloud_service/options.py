"""Options of every command that serves the large model: what it runs, on what, for how many."""

from __future__ import annotations

import click

from diffusion.lora_file import Lora
from wire.options import each_parsed

MODEL_OPTION = click.option(
    "--model", metavar="PATH_OR_ID", help="Diffusers folder or hub id.  [default: the bundled cloud model]"
)
DEVICE_OPTIONS = (
    click.option(
        "--lora",
        "loras",
        metavar="PATH[:SCALE]",
        multiple=True,
        callback=each_parsed(Lora.parse),
        help="LoRA to fuse into the model's weights, .safetensors; may be given several times.",
    ),
    click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True),
    click.option(
        "--dtype",
        type=click.Choice(["auto", "float32", "float16", "bfloat16"]),
        default="auto",
        show_default=True,
        help="auto: float16 on cuda, float32 on a cpu.",
    ),
    click.option(
        "--max-batch", type=click.IntRange(1), default=4, show_default=True, help="Sessions in one forward pass."
    ),
    click.option(
        "--compile",
        "compile_steps",
        is_flag=True,
        help="Compile the model before serving, on cuda into captured graphs: takes minutes and a C++ compiler. "
        "Pictures of another size than the model's default run uncompiled.",
    ),
    click.option(
        "--max-sessions", type=click.IntRange(1), default=16, show_default=True, help="Sessions that run at once."
    ),
    click.option(
        "--max-sessions-per-client", type=click.IntRange(1), help="Of these, one client's most.  [default: all of them]"
    ),
    click.option(
        "--max-client-mbit-s",
        type=click.FloatRange(0, min_open=True),
        metavar="MBIT",
        help="How fast one client's messages are read, over all its sessions.  [default: as they come]",
    ),
    click.option(
        "--log-prompts", is_flag=True, help="Log each session's prompt when it ends, too; nothing else ever does."
    ),
)


def bundled_model() -> str:
    """Return the folder of the cloud model that comes with the package."""
    from models import bundled_pair

    return str(bundled_pair().cloud)
