"""Which models and which cloud a client has: what `serve` was told, against what a command names."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from edge_client.agent.convert import copy_fields, set_fields
from models import bundled_pair
from protos import edge_agent_v1_pb2 as pb
from wire.serving.address import Address
from wire.targets import parse_targets


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The options of that name, each in one way to write it; None: not given."""

    cloud: str | None = None
    orchestrator: str | None = None
    cloud_model: str | None = None
    edge_model: str | None = None
    lora: tuple[str, ...] | None = None
    cloud_lora: tuple[str, ...] | None = None
    offload: str | None = None
    vae: str | None = None
    vae_tiling: bool | None = None
    vae_slicing: bool | None = None
    device: str | None = None
    dtype: str | None = None
    auth_token_file: str | None = None
    allow_plaintext_token: bool | None = None
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    cloud_timeout: float | None = None
    cloud_step_timeout: float | None = None

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Settings:
        """Return what a command line says.

        Raises:
            ValueError: An address that is none.
        """
        values = {field.name: options[field.name] for field in fields(cls) if options.get(field.name) not in (None, ())}
        if "cloud" in values:
            values["cloud"] = ",".join(parse_targets(values["cloud"]))
        if "orchestrator" in values:
            values["orchestrator"] = str(Address.parse(values["orchestrator"]))
        if "cloud" not in values and "orchestrator" not in values:
            values.setdefault("cloud_model", bundled_pair().cloud)
        values.setdefault("edge_model", bundled_pair().edge)
        for name in ("cloud_model", "edge_model", "vae"):
            if name in values:
                values[name] = _one_name(values[name])
        for name in ("lora", "cloud_lora"):
            if name in values:
                values[name] = tuple(str(replace(lora, path=lora.path.resolve())) for lora in values[name])
        for name in ("auth_token_file", "tls_ca", "tls_cert", "tls_key"):
            if name in values:
                values[name] = str(Path(values[name]).resolve())
        return cls(**values)

    @classmethod
    def decode(cls, message: pb.AgentSettings) -> Settings:
        """Return what an agent was told."""
        return cls(**set_fields(message, cls))

    def encode(self) -> pb.AgentSettings:
        """Return the message."""
        return copy_fields(self, pb.AgentSettings())


def _one_name(model: str | Path) -> str:
    """Return a folder's own path; the id of a hub as it is."""
    folder = Path(model)
    return str(folder.resolve()) if folder.is_dir() else str(model)


def difference(status: pb.AgentStatus, named: Collection[str], options: Mapping[str, Any]) -> str | None:
    """Return the first option by which a command asks for something else than the agent has; None: it fits.

    Args:
        status: Of the agent.
        named: The options that the user gave.
        options: All of them with their values.
    """
    theirs, ours = Settings.decode(status.settings), Settings.of(options)
    # What `auto` came to fits too.
    loaded = {"device": status.edge_model.device, "dtype": status.edge_model.dtype}
    for field in fields(Settings):
        name = field.name
        if name not in named:
            continue
        wanted, has = getattr(ours, name), getattr(theirs, name)
        if wanted not in (has, loaded.get(name)):
            option = f"--{name.replace('_', '-')}"
            if isinstance(has, tuple):
                has = " ".join(has)
            return (
                f"the agent was started without {option}" if not has else f"the agent was started with {option} {has}"
            )
    return None
