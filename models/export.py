"""Write the trained parts as two stock diffusers folders that share what is shared."""

import json
import shutil
import time
from pathlib import Path
from statistics import median

import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from models.sheets import make_pipeline

SHARED_PARTS = ("scheduler", "text_encoder", "tokenizer", "vae")


def export_pair(out_dir: Path, pair_dir: Path) -> None:
    """Replace `pair_dir/cloud` and `pair_dir/edge` by the averaged weights in `out_dir`, in half precision.

    The edge folder holds its UNet and links to the cloud folder's other parts, which are the same.
    """
    for name in ("cloud", "edge"):
        pipeline = make_pipeline(
            AutoencoderTiny.from_pretrained(out_dir / "vae"),
            CLIPTextModel.from_pretrained(out_dir / "text_encoder"),
            CLIPTokenizer.from_pretrained(out_dir / "tokenizer"),
            UNet2DConditionModel.from_pretrained(out_dir / f"{name}_unet"),
        )
        folder = pair_dir / name
        if folder.is_dir():
            shutil.rmtree(folder)
        pipeline.to(dtype=torch.float16).save_pretrained(folder)
        pipeline.tokenizer.backend_tokenizer.model.save(str(folder / "tokenizer"))  # older transformers read these
        for part in ("text_encoder", "unet", "vae"):
            _tidy_config(folder / part / "config.json")
        for weights in folder.rglob("*.safetensors"):
            weights.chmod(0o644)  # written for the owner alone, which a container's user is not
    for part in SHARED_PARTS:
        shutil.rmtree(pair_dir / "edge" / part)
        (pair_dir / "edge" / part).symlink_to(Path("..") / "cloud" / part, target_is_directory=True)


def measure_pair(pair_dir: Path, *, num_threads: int = 2, num_rounds: int = 30) -> str:
    """Describe both UNets: parameters, and the median milliseconds of a guided step (two rows) on the CPU."""
    unets = {
        name: StableDiffusionPipeline.from_pretrained(pair_dir / name).unet.float().eval() for name in ("cloud", "edge")
    }
    torch.set_num_threads(num_threads)
    seconds: dict[str, list[float]] = {name: [] for name in unets}
    for _ in range(num_rounds):  # in turns, so that a busy moment of the machine hits both
        for name, unet in unets.items():
            seconds[name].append(_step_seconds(unet))
    num_parameters = {name: unet.num_parameters() for name, unet in unets.items()}
    step_ms = {name: 1000 * median(times[num_rounds // 10 :]) for name, times in seconds.items()}
    lines = [f"{name}: {num_parameters[name]:,} parameters, {step_ms[name]:.1f} ms a step" for name in unets]
    lines.append(
        f"cloud / edge: {num_parameters['cloud'] / num_parameters['edge']:.1f} times the parameters, "
        f"{step_ms['cloud'] / step_ms['edge']:.1f} times the time (2 rows, {num_threads} threads)"
    )
    return "\n".join(lines)


@torch.no_grad()
def _step_seconds(unet: UNet2DConditionModel) -> float:
    size = unet.config.sample_size
    latents = torch.randn(2, unet.config.in_channels, size, size)
    embeds = torch.randn(2, 24, unet.config.cross_attention_dim)
    started = time.perf_counter()
    unet(latents, torch.tensor(500), embeds)
    return time.perf_counter() - started


def _tidy_config(config_path: Path) -> None:
    """Drop the training folder and a key that diffusers' own loader warns about; ask for float32 by default.

    transformers would load the text encoder in the precision it is stored in, unlike diffusers the rest.
    """
    config = json.loads(config_path.read_text())
    config.pop("_name_or_path", None)
    if config.get("_class_name") == "AutoencoderTiny":
        config.pop("block_out_channels", None)
    if "dtype" in config:
        config["dtype"] = "float32"
    config_path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
