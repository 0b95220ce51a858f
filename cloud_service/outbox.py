"""What waits to be sent to one client, and when it may be: credits gate tensors and nothing else."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable

from wire.clock import stamp_seconds
from wire.messages import Correction, Decoded, Finished, HandedOff, Opened, Pong, PromptEmbeds, ServerMessage, Step


class Outbox:
    """Messages in order, with tensors of steps under credits.

    A step's header is always sent. Its tensors cost one credit; while there is none the newest step waits with
    its tensors and the older ones go as headers. With fewer credits than waiting steps the newest get them, so that
    latents do not age in a queue. The end of the trajectory brings the newest latents itself: what still waits then
    goes as headers, save predictions under credit, so that no link carries stale latents before those of the handoff.

    Args:
        credit: What the client granted in Open.
        max_waiting_bytes: Cap on tensors that wait here, whatever the client grants.
    """

    def __init__(self, *, credit: int, max_waiting_bytes: int) -> None:
        self._credit = credit
        self._max_waiting_bytes = max_waiting_bytes
        self._messages: deque[ServerMessage] = deque()
        self._pong: Pong | None = None

    def grant(self, count: int) -> None:
        """The client is ready for `count` more latents."""
        self._credit += count

    def push(self, message: ServerMessage) -> None:
        """Queue `message`; a Pong replaces one that waits, since only the newest measures anything."""
        if isinstance(message, Pong):
            self._pong = message
            return
        if isinstance(message, HandedOff | Finished):
            self._allot(self._credit, lambda step: step.prediction is not None)
        self._messages.append(message)
        if isinstance(message, Step):
            self._allot(max(1, self._credit), lambda step: True)

    def pop(self) -> ServerMessage | None:
        """Return the next message that may be sent now, or None."""
        if self._pong is not None:
            pong, self._pong = self._pong, None
            return dataclasses.replace(pong, t2=stamp_seconds())
        if not self._messages:
            return None
        head = self._messages[0]
        if isinstance(head, Step) and tensor_bytes(head):
            if not self._credit:
                return None
            self._credit -= 1
        return self._messages.popleft()

    def strip(self) -> None:
        """Turn every waiting step into its header."""
        self._allot(0, lambda step: False)

    def _allot(self, places: int, deserves: Callable[[Step], bool]) -> None:
        """Leave their tensors to at most `places` steps that deserve it, the newest first, within the cap on bytes."""
        kept_bytes = 0
        for index in reversed(range(len(self._messages))):
            step = self._messages[index]
            if not isinstance(step, Step) or not (size_bytes := tensor_bytes(step)):
                continue
            fits = not kept_bytes or kept_bytes + size_bytes <= self._max_waiting_bytes
            if places and fits and deserves(step):
                places, kept_bytes = places - 1, kept_bytes + size_bytes
            else:
                self._messages[index] = _header(step)


def _header(step: Step) -> Step:
    return dataclasses.replace(step, latents=None, latents_before=None, prediction=None)


def tensor_bytes(message: ServerMessage) -> int:
    """Return the size of the tensors that `message` carries."""
    match message:
        case Step():
            tensors = [message.latents, message.latents_before, message.prediction]
        case HandedOff() | Finished():
            tensors = [message.state.latents, *message.state.scheduler_state.values()]
        case Decoded():
            return message.pixels.nbytes
        case Correction():
            tensors = [message.prediction]
        case Opened(prompt_embeds=PromptEmbeds() as embeds):
            tensors = list(embeds)
        case _:
            tensors = []
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)
