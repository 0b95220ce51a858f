"""What an edge and a cloud say to each other, as frozen dataclasses; all names are here, whatever module has them.

- `client`: what the edge says on a stream; `server`: what the cloud says there.
- `plan`: what the cloud does with each step.
- `trajectory`: prompts, and where a trajectory starts and stands, in both directions.
- `tensors`: the enums of a tensor and of a step's source.
- `description`: a model, a service's caps and its load.

`wire.fleet_messages` has what an edge and the orchestrator service say, `wire.edge_plan` what the edge does.
`wire.convert` turns them into protobuf and back; nothing else in the project touches protobuf
fields. Arrays are numpy: float32, float16 or `ml_dtypes.bfloat16`. Latents and predictions are
`[B, C, H, W]` in latent pixels; embeddings are `[1, L, D]`. Times are seconds; wall clocks
(`sent_at`, `t0`...) are Unix seconds of the end that wrote them.
"""

from wire.messages.client import ClientMessage, Close, Correct, Credit, Decode, HandOff, Open, Ping
from wire.messages.description import PROTOCOL_VERSION, Description, Limits, Load, ModelDescription
from wire.messages.plan import MIN_WARMUP_STEPS, Plan
from wire.messages.server import (
    Correction,
    Decoded,
    Finished,
    HandedOff,
    Heartbeat,
    Opened,
    Pong,
    ServerMessage,
    Step,
    Totals,
)
from wire.messages.tensors import Array, Codec, DType, Scaling, Source
from wire.messages.trajectory import Noise, PromptEmbeds, PromptText, Seed, Start, State

__all__ = [
    "MIN_WARMUP_STEPS",
    "PROTOCOL_VERSION",
    "Array",
    "ClientMessage",
    "Close",
    "Codec",
    "Correct",
    "Correction",
    "Credit",
    "DType",
    "Decode",
    "Decoded",
    "Description",
    "Finished",
    "HandOff",
    "HandedOff",
    "Heartbeat",
    "Limits",
    "Load",
    "ModelDescription",
    "Noise",
    "Open",
    "Opened",
    "Ping",
    "Plan",
    "Pong",
    "PromptEmbeds",
    "PromptText",
    "Scaling",
    "Seed",
    "ServerMessage",
    "Source",
    "Start",
    "State",
    "Step",
    "Totals",
]
