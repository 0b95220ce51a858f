"""What `edge-client serve` is told. Built once, on the command line, and never half valid."""

from __future__ import annotations

from dataclasses import dataclass

from edge_client.agent.settings import Settings
from wire.channel import CHANNEL_OPTIONS, SERVER_OPTIONS, ChannelOptions
from wire.serving.address import Address

LOGGER_NAME = "edge_agent"

# A picture of 2048 pixels a side, or the latents of eight of them, in one message: nobody cuts what stays on a machine.
_MAX_MESSAGE_BYTES = 64 * 2**20
_SIZES: ChannelOptions = (
    ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
)
AGENT_SERVER_OPTIONS = tuple({**dict(SERVER_OPTIONS), **dict(_SIZES)}.items())
AGENT_CHANNEL_OPTIONS = tuple({**dict(CHANNEL_OPTIONS), **dict(_SIZES), "grpc.enable_http_proxy": 0}.items())


@dataclass(frozen=True, kw_only=True)
class AgentConfig:
    """Where an agent serves, and how much.

    Attributes:
        listen: Where gRPC listens.
        metrics_listen: Where Prometheus scrapes.
        settings: Its models and its cloud, for those who ask.
        max_queue: Most generations that wait.
        grace_seconds: How long the running and the waiting ones may go on after SIGTERM.
        exit_with_stdin: Whether the end of standard input ends the agent.
        log_prompts: Whether prompts are in the log.

    Raises:
        ValueError: Another machine could reach it, or a number is negative.
    """

    listen: Address
    metrics_listen: Address
    settings: Settings
    max_queue: int = 16
    grace_seconds: float = 30.0
    exit_with_stdin: bool = False
    log_prompts: bool = False

    def __post_init__(self) -> None:
        if not self.listen.loopback:
            raise ValueError(
                f"the agent listens on this machine only, since whoever reaches it makes pictures with your token: "
                f"--listen 127.0.0.1:{self.listen.port}, not {self.listen}"
            )
        if self.max_queue < 0 or self.grace_seconds < 0:
            raise ValueError(
                f"max_queue ({self.max_queue}) and grace_seconds ({self.grace_seconds}) must be at least 0"
            )
