"""A diffusers pipeline folder on disk: what is in it, is it whole, and what identifies it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from diffusion.offload import Offload
from diffusion.weight_files import check_safetensors, first_line, load_failure, no_weights

_SAMPLE_BYTES = 2**20
_LOADING = threading.Lock()
# Written by the libraries that saved the folder; says nothing about what the part computes.
_NOISE_KEYS = frozenset({"transformers_version", "torch_dtype", "dtype", "architectures"})


class ModelFolder:
    """A folder of parts, each in a subfolder of its own; the subfolder `""` is the folder itself.

    Args:
        path: The folder.
        offload: Says where its parts go.
    """

    def __init__(self, path: Path, offload: Offload) -> None:
        self.path = path
        self.offload = offload

    def config(self, part: str, file_name: str = "config.json") -> dict[str, Any]:
        """Return a part's configuration.

        Raises:
            ValueError: If it is not a JSON object.
            OSError: If it cannot be read.
        """
        return _read_json(self.path / part / file_name)

    def weight_files(self, part: str, stem: str) -> tuple[str | None, list[Path]]:
        """Find a part's safetensors files; each header is checked against the file's size.

        Args:
            part: Subfolder.
            stem: `diffusion_pytorch_model` (diffusers) or `model` (transformers).

        Returns:
            The variant (None or `fp16`) and the files, more than one where they are sharded.

        Raises:
            ValueError: If there are none, one is damaged, or their numbers are of a type that is not run here.
        """
        quantised = self.config(part).get("quantization_config")
        if quantised is not None:
            raise ValueError(
                f"{self.path / part} is quantised, which is not supported; fetch the model with float32, float16 or "
                "bfloat16 weights"
            )
        for variant in (None, "fp16"):
            suffix = "" if variant is None else f".{variant}"
            whole = self.path / part / f"{stem}{suffix}.safetensors"
            index = self.path / part / f"{stem}.safetensors.index{suffix}.json"
            if whole.is_file():
                files = [whole]
            elif index.is_file():
                files = [self.path / part / name for name in sorted(set(_read_json(index)["weight_map"].values()))]
            else:
                continue
            for file in files:
                check_safetensors(file)
            return variant, files
        raise ValueError(no_weights(self.path / part, stem))

    def fingerprint(self, part: str, stem: str, *, extra: bytes = b"") -> str:
        """Return 16 hex characters that identify a part.

        Hashed are the configuration (canonical JSON, without the keys that only say who saved it),
        `extra`, and of each weight file its size and 1 MiB from its start, middle and end: files of several
        gigabytes are not read whole, so a change that spares all three places of a file goes unnoticed.
        """
        digest = hashlib.sha256(canonical_json(self.config(part)).encode())
        digest.update(extra)
        for file in self.weight_files(part, stem)[1]:
            size = file.stat().st_size
            digest.update(size.to_bytes(8, "little"))
            with file.open("rb") as stream:
                for start in sorted({0, max(0, (size - _SAMPLE_BYTES) // 2), max(0, size - _SAMPLE_BYTES)}):
                    stream.seek(start)
                    digest.update(stream.read(_SAMPLE_BYTES))
        return digest.hexdigest()[:16]

    def load_part(self, part: str, part_class: Any, dtype: torch.dtype, device: torch.device) -> Any:
        """Load a network, frozen, in evaluation mode.

        Args:
            part: Subfolder.
            part_class: Class of diffusers or transformers with `from_pretrained`.
            dtype: Of its weights.
            device: Where it goes; on `meta` it has shapes, and no weights are read.

        Raises:
            ValueError: If weights are missing, damaged, or do not fit the configuration.
        """
        from_diffusers = part_class.__module__.startswith("diffusers")
        if device.type == "meta":
            with torch.device(device), quiet_libraries():
                return _outline(part_class, self.config(part), from_diffusers=from_diffusers).to(dtype).eval()
        variant, _ = self.weight_files(part, "diffusion_pytorch_model" if from_diffusers else "model")
        # Converted while it is read, a large network never stands in memory twice. transformers has
        # renamed the argument between versions, and its parts are small.
        # What has another shape than its configuration says: diffusers raises, transformers can be made to report.
        arguments: dict[str, Any] = {"torch_dtype": dtype} if from_diffusers else {"ignore_mismatched_sizes": True}
        try:
            with quiet_libraries():
                network, report = part_class.from_pretrained(
                    str(self.path),
                    subfolder=part or None,
                    variant=variant,
                    use_safetensors=True,
                    local_files_only=True,
                    output_loading_info=True,
                    **arguments,
                )
        except Exception as error:  # the libraries raise whatever a foreign file makes them stumble over
            raise ValueError(f"{self.path / part} cannot be loaded: {load_failure(error)}") from error
        missing = sorted(map(str, report["missing_keys"])) + sorted(each[0] for each in report["mismatched_keys"])
        if missing:
            raise ValueError(
                f"{self.path / part} lacks {len(missing)} weights of its configuration, such as {missing[0]}; "
                "they do not belong together: fetch the model again"
            )
        try:
            with quiet_libraries():  # diffusers warns of a cast even where there is nothing to cast
                network = self.offload.place(network.to(dtype=dtype))
        except RuntimeError as error:
            raise ValueError(f"{self.path / part} does not go to {device}: {first_line(error)}") from error
        return network.eval().requires_grad_(False)

    def load_tokenizer(self, tokenizer_class: Any, part: str = "tokenizer") -> Any:
        """Load a tokenizer.

        Raises:
            ValueError: If its files are missing or damaged.
        """
        try:
            with quiet_libraries():
                return tokenizer_class.from_pretrained(str(self.path), subfolder=part, local_files_only=True)
        except Exception as error:  # as in load_part
            raise ValueError(f"{self.path / part} cannot be loaded: {first_line(error)}") from error


class PipelineFolder(ModelFolder):
    """A folder with `model_index.json` and one subfolder a part.

    Args:
        path: The folder.
        offload: Says where its parts go.

    Raises:
        ValueError: If `path` is not a pipeline folder.
    """

    def __init__(self, path: Path, offload: Offload) -> None:
        super().__init__(path, offload)
        if not (path / "model_index.json").is_file():
            raise ValueError(f"{path} has no model_index.json: it is not a diffusers pipeline folder")
        self._index = _read_json(path / "model_index.json")

    @property
    def pipeline_class(self) -> str:
        """Class name of the pipeline."""
        return str(self._index.get("_class_name", ""))

    @property
    def options(self) -> dict[str, Any]:
        """What model_index.json says beside the parts, such as `force_zeros_for_empty_prompt`."""
        return {key: value for key, value in self._index.items() if not isinstance(value, list)}

    @property
    def guidance_scale(self) -> float | None:
        """The guidance scale that the model's makers recommend; None where model_index.json has no `_guidance_scale`.

        A key of this project's own, in the form that diffusers keeps and passes over.

        Raises:
            ValueError: If it is no number of 0..100.
        """
        given = self._index.get("_guidance_scale")
        if given is None:
            return None
        if not isinstance(given, int | float) or not 0 <= given <= 100:
            raise ValueError(f"{self.path}: _guidance_scale in model_index.json is {given!r}, not a number of 0..100")
        return float(given)

    def recommended(self, name: str, default: int) -> int:
        """Return the `height`, `width` or `num_frames` that the model's makers recommend, as `_height` and so on.

        Raises:
            ValueError: It is no whole number above 0.
        """
        given = self._index.get(f"_{name}")
        if given is None:
            return default
        if not isinstance(given, int) or given < 1:
            raise ValueError(f"{self.path}: _{name} in model_index.json is {given!r}, not a whole number above 0")
        return given

    def has_part(self, part: str) -> bool:
        """Whether the pipeline has such a part: one that was left out on purpose stands as nulls in its index."""
        return self._index.get(part) != [None, None]

    def names(self, part: str) -> bool:
        """Whether the index gives a class for a part; one that it does not mention it does not have."""
        return bool(self._index.get(part, [None, None]) != [None, None])

    def lacks(self, part: str) -> bool:
        """Whether a part was left out on purpose: in the index, or as a folder."""
        return not self.has_part(part) or not (self.path / part).is_dir()

    def part_class(self, part: str, allowed: tuple[str, ...]) -> str:
        """Return the class name of a part.

        Raises:
            ValueError: If the pipeline has no such part, or its class is not in `allowed`.
        """
        entry = self._index.get(part)
        class_name = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
        if class_name not in allowed:
            raise ValueError(f"{self.path}: {part} is a {class_name}, supported: {', '.join(allowed)}")
        return str(class_name)


def _outline(part_class: Any, config: dict[str, Any], *, from_diffusers: bool) -> Any:
    return part_class.from_config(config) if from_diffusers else part_class(part_class.config_class.from_dict(config))


def canonical_json(config: dict[str, Any]) -> str:
    """Return `config` as sorted JSON without the keys that only say who saved it."""
    kept = {key: value for key, value in config.items() if not key.startswith("_") and key not in _NOISE_KEYS}
    return json.dumps(kept, sort_keys=True, separators=(",", ":"))


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep the progress bars and warnings of diffusers and transformers off stderr while loading, in one thread a time.

    What they switch while they load (the device of new tensors, too) is switched for the whole process.
    """
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    libraries = (diffusers_logging, transformers_logging)
    with _LOADING:
        before = [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
        for library in libraries:
            library.set_verbosity_error()
            library.disable_progress_bar()
        try:
            yield
        finally:
            for library, (verbosity, progress) in zip(libraries, before, strict=True):
                library.set_verbosity(verbosity)
                if progress:
                    library.enable_progress_bar()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing: the model folder is not whole; fetch the model again") from error
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a JSON object")
    return content
