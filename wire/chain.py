"""What int8-delta takes its differences to: the last tensor of a kind that crossed a stream, as the receiver has it."""

from __future__ import annotations

from wire.messages import Array

KEY_FRAME_INTERVAL = 16
"""Every so often a tensor is written whole. The loop is closed, so that no error adds up: this bounds what a reader of
a recorded stream must go back."""


class Chain:
    """One end of a stream: for each kind of tensor the last one that was sent, or came.

    Both ends hold the same bits, because both hold what the codec decodes and never what was encoded. One call at a
    time: messages are encoded in the order in which they are sent, and decoded in the order in which they come.
    """

    def __init__(self) -> None:
        self._last: dict[str, Array] = {}
        self._num_deltas: dict[str, int] = {}

    def base(self, kind: str) -> Array | None:
        """Return the last tensor of a kind, flat; None where there is none yet."""
        return self._last.get(kind)

    def base_to_send(self, kind: str) -> Array | None:
        """Return what the next tensor may be written as a difference to; None where a key frame is due."""
        return None if self._num_deltas.get(kind, 0) + 1 >= KEY_FRAME_INTERVAL else self.base(kind)

    def advance(self, kind: str, elements: Array, *, is_delta: bool) -> None:
        """Take in a tensor that is sent, or came.

        Args:
            kind: Such as `latents`.
            elements: As the receiver has it, flat. Nobody may change it afterwards.
            is_delta: Whether it was written as a difference.
        """
        self._last[kind] = elements
        self._num_deltas[kind] = self._num_deltas.get(kind, 0) + 1 if is_delta else 0
