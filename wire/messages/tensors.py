"""What a tensor is on the wire: element type, codec and scaling; and where a step's prediction came from."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any, TypeAlias

# The command lines take names from here before they know whether there is work: numpy is for the types only.
if TYPE_CHECKING:
    from numpy.typing import NDArray

Array: TypeAlias = "NDArray[Any]"


class DType(enum.Enum):
    """Element type on the wire; the value is the number in the schema."""

    FLOAT32 = 1
    FLOAT16 = 2
    BFLOAT16 = 3


class Codec(enum.Enum):
    """How a tensor's bytes are written; the value is the number in the schema."""

    RAW = 1
    ZSTD = 2
    INT8_BLOCK = 3
    INT8_DELTA = 4

    @property
    def label(self) -> str:
        """The name on command lines and in metrics: raw, zstd, int8-block, int8-delta."""
        return self.name.lower().replace("_", "-")


class Scaling(enum.Enum):
    """What a tensor's numbers are; the value is the number in the schema."""

    SCHEDULER = 1
    UNIT_NOISE = 2
    PREDICTION = 3
    EMBEDDING = 4


class Source(enum.Enum):
    """Where a step's prediction came from; the value is the number in the schema."""

    CLOUD = 1
    EXTRAPOLATED = 2
    EDGE = 3

    @property
    def letter(self) -> str:
        """The letter in a report's `step_sources`."""
        return {Source.CLOUD: "C", Source.EXTRAPOLATED: "x", Source.EDGE: "e"}[self]
