"""Sizes, times and gRPC options on which both ends must agree.

Client and server options belong together: a client that pings more often than the server's minimum is
thrown out with `too_many_pings`.
"""

from __future__ import annotations

MAX_MESSAGE_BYTES = 4 * 2**20
"""gRPC's limit on one message in either direction; it guards memory before a single field is read."""
FRAGMENT_BYTES = 512 * 1024
"""Messages that serialize to more than this travel in fragments of this size."""

HEARTBEAT_SECONDS = 0.5
"""The server says something at least this often."""
PING_SECONDS = 1.0
"""A client with nothing else to say sends a Ping this often."""
PARKED_SECONDS = 30.0
"""A parked session expires after this much silence from the client."""

_KEEPALIVE_MS = 20_000
_KEEPALIVE_TIMEOUT_MS = 10_000
# Half the client's interval, so that a ping which the network hurries along is no offence.
_MIN_PING_INTERVAL_MS = _KEEPALIVE_MS // 2

ChannelOptions = tuple[tuple[str, int], ...]

_COMMON: ChannelOptions = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)

CHANNEL_OPTIONS: ChannelOptions = (
    *_COMMON,
    # Channels with equal options share one connection otherwise, and a probe "on a channel of its own"
    # would queue behind the latents it is meant to avoid.
    ("grpc.use_local_subchannel_pool", 1),
)

MAX_CONNECTIONS = "grpc.max_allowed_incoming_connections"
"""A server's option: the most connections to a port; one more is closed before its handshake."""

SERVER_OPTIONS: ChannelOptions = (
    *_COMMON,
    ("grpc.http2.min_ping_interval_without_data_ms", _MIN_PING_INTERVAL_MS),
    # A port in use is an error to be told, not a port to be shared.
    ("grpc.so_reuseport", 0),
)
