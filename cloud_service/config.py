"""What a service is told at its start. Built once, in `__main__`, and never half valid."""

from __future__ import annotations

import math
from dataclasses import dataclass

from diffusion.lora_file import Lora
from wire.channel import HEARTBEAT_SECONDS, PARKED_SECONDS
from wire.serving.address import Address
from wire.serving.tls import TlsFiles
from wire.tokens import TokenFile

LOGGER_NAME = "cloud_service"


@dataclass(frozen=True, kw_only=True)
class Timings:
    """How long the service waits, and for what. All in seconds but `stuck_steps`.

    Attributes:
        open_seconds: For the Open of a new stream; without one the stream is ended.
        heartbeat_seconds: A Heartbeat is sent when nothing else was for so long. A little under what was promised, so
            that the promise holds when a timer is late.
        write_seconds: A client that takes no message for so long is as good as gone.
        parked_seconds: A parked session expires after so long without a word from its client.
        watch_seconds: From one look at whether the device hangs to the next.
        stuck_seconds: One forward pass that takes longer than this, and than `stuck_steps`, hangs.
        stuck_steps: In evaluations, as long as they take at present.
        last_words_seconds: The end of the grace period: for the last messages and statuses to be taken, once the
            sessions have ended, and for the device thread to end.

    Raises:
        ValueError: Unless every one is positive and finite.
    """

    open_seconds: float = 10.0
    heartbeat_seconds: float = 0.8 * HEARTBEAT_SECONDS
    write_seconds: float = PARKED_SECONDS
    parked_seconds: float = PARKED_SECONDS
    watch_seconds: float = 1.0
    stuck_seconds: float = 60.0
    stuck_steps: int = 50
    last_words_seconds: float = 2.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive and finite, not {value}")


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Everything that `cloud-service serve` is told.

    Attributes:
        model: Folder or hub id.
        loras: Fused into its weights.
        listen: Where gRPC listens.
        metrics_listen: Where Prometheus scrapes.
        device: auto, cpu or cuda.
        dtype: auto, float32, float16 or bfloat16.
        max_batch: Most sessions in one forward pass.
        compile_steps: Whether to compile the model for batches of up to `max_batch` sessions before serving.
        max_sessions: Most sessions that run at a time.
        max_sessions_per_client: Most of these that are one client's; None: all of them.
        max_client_mbit_s: How fast one client's messages are read, over all its sessions; None: as they come.
        max_connections: Most connections to `listen` at a time.
        tls: None for plaintext.
        tokens: None lets everyone in.
        allow_plaintext_token: Whether tokens may cross a network in the clear.
        grace_seconds: From SIGTERM to the end of the process; running sessions have most of it.
        exit_with_stdin: Whether the end of standard input ends the service.
        log_prompts: Whether prompts are in the log.
        timings: How long it waits, and for what; not on the command line.
    """

    model: str
    listen: Address
    metrics_listen: Address
    loras: tuple[Lora, ...] = ()
    device: str = "auto"
    dtype: str = "auto"
    max_batch: int = 4
    compile_steps: bool = False
    max_sessions: int = 16
    max_sessions_per_client: int | None = None
    max_client_mbit_s: float | None = None
    max_connections: int = 512
    tls: TlsFiles | None = None
    tokens: TokenFile | None = None
    allow_plaintext_token: bool = False
    grace_seconds: float = 30.0
    exit_with_stdin: bool = False
    log_prompts: bool = False
    timings: Timings = Timings()

    def __post_init__(self) -> None:
        if self.max_batch < 1 or self.max_sessions < 1:
            raise ValueError(f"max_batch ({self.max_batch}) and max_sessions ({self.max_sessions}) must be at least 1")
        for name in ("max_sessions_per_client", "max_client_mbit_s"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be above 0, not {value}")
        if self.grace_seconds < 0:
            raise ValueError(f"grace_seconds must not be negative, not {self.grace_seconds}")
        in_the_clear = self.tokens is not None and self.tls is None and not self.listen.loopback
        if in_the_clear and not self.allow_plaintext_token:
            raise ValueError(
                f"the token would cross the network in the clear on {self.listen}: "
                "give --tls-cert and --tls-key, or say --allow-plaintext-token"
            )
