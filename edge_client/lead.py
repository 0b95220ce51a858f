"""What a cloud leaves the edge with when its part is over, and what its loss is called."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.handoff import HandoffReason
from wire.errors import (
    Busy,
    Cancelled,
    EcdiffError,
    IncompatibleModels,
    InvalidRequest,
    LimitExceeded,
    NotServing,
    Unauthenticated,
    UnknownModel,
    VersionMismatch,
)
from wire.messages import Opened, State

# Before the session exists these say that the request itself is wrong: the user must hear of it.
WRONG_REQUEST = (InvalidRequest, LimitExceeded, VersionMismatch, UnknownModel, Unauthenticated, IncompatibleModels)


@dataclass(frozen=True, kw_only=True)
class Lead:
    """What the cloud left us with.

    Attributes:
        opened: What was agreed; None if the cloud went before that, or it cannot be used.
        state: The newest latents that may be used, and the step they are for; None if there are none.
        reason: Why the edge takes over there; None where the cloud ran every step.
        lost: Why the cloud did not come to the handoff; None if it did.
        decided_at: When that was known and decoded, on `time.perf_counter`'s clock.
    """

    opened: Opened | None
    state: State | None
    reason: HandoffReason | None
    decided_at: float
    lost: EcdiffError | None = None


def lost_reason(lost: EcdiffError) -> HandoffReason:
    """Return the report's word for how the cloud was lost."""
    if isinstance(lost, NotServing | Cancelled):
        return HandoffReason.CLOUD_LOST
    return HandoffReason.CLOUD_FULL if isinstance(lost, Busy) else HandoffReason.CLOUD_ERROR
