"""Conversations that no client should hold with a cloud, drawn from a seeded generator, and how each may end."""

from __future__ import annotations

import enum
import random
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from harness.hostile import damage_bytes, damage_tensor, fragment_lies
from harness.reference import LATENTS_SHAPE
from protos import ecdiff_v1_pb2 as pb
from wire.convert import encode_client
from wire.framing import fragments
from wire.messages import (
    Array,
    ClientMessage,
    Close,
    Codec,
    Correct,
    Credit,
    HandOff,
    Noise,
    Open,
    Ping,
    Plan,
    PromptText,
    Seed,
    State,
)

OK = "OK"
REFUSALS = frozenset({"InvalidRequest", "InvalidTensor", "CorruptTensor", "ProtocolError", "LimitExceeded"})
ANYTHING = REFUSALS | {OK, "VersionMismatch", "UnknownModel", "DeadlineExceeded", "ModelError"}
"""What a stream may end with that is neither the service's fault nor another client's."""

_PROTOCOL = frozenset({"ProtocolError"})
_TENSOR = frozenset({"InvalidTensor", "CorruptTensor"})
_LATER = frozenset({"ModelError", "DeadlineExceeded"})
_MAX_PENDING_CORRECTIONS = 4


class Kind(enum.Enum):
    """What something that a client says does to the conversation."""

    OPEN = enum.auto()
    HARMLESS = enum.auto()
    HAND_OFF = enum.auto()
    CORRECT = enum.auto()
    CLOSE = enum.auto()
    WRONG = enum.auto()  # a whole message that is wrong once the session is open
    UNREADABLE = enum.auto()  # wrong before anybody asks which message it is
    UNFINISHED = enum.auto()  # the beginning of a message in fragments
    UNCLEAR = enum.auto()


@dataclass(frozen=True, kw_only=True)
class Said:
    """One thing that a client says.

    Attributes:
        kind: What it does.
        pieces: What goes on the wire, serialized.
        endings: How it may end the stream; a WRONG or UNREADABLE one does.
        pause_seconds: Before it is said.
    """

    kind: Kind
    pieces: tuple[bytes, ...]
    endings: frozenset[str] = frozenset()
    pause_seconds: float = 0.0


class Leaving(enum.Enum):
    """How a client leaves that has said everything."""

    CLOSE = enum.auto()
    HALF_CLOSE = enum.auto()
    CANCEL = enum.auto()


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """What one client says, and how it leaves."""

    said: tuple[Said, ...]
    leaving: Leaving

    @property
    def endings(self) -> frozenset[str]:
        """How the stream may end."""
        return _endings(self.said) | ({"Cancelled"} if self.leaving is Leaving.CANCEL else set())


def _endings(said: Iterable[Said]) -> frozenset[str]:
    """The conversation's rules once more, as far as they are clear without knowing how far the cloud is."""
    may: frozenset[str] = frozenset()
    is_open = unfinished = False
    num_corrections = 0
    for each in said:
        if each.kind is Kind.UNCLEAR or (unfinished and each.kind in (Kind.UNFINISHED, Kind.UNREADABLE)):
            return ANYTHING
        if unfinished:
            return may | _PROTOCOL
        if each.kind is Kind.UNREADABLE:
            return may | each.endings
        if each.kind is Kind.UNFINISHED:
            unfinished = True
        elif not is_open:
            if each.kind is not Kind.OPEN:
                return may | _PROTOCOL
            if each.endings - _LATER:
                return may | each.endings
            may, is_open = may | each.endings, True
        elif each.kind is Kind.OPEN:
            # It is looked at as a message of the session that is open, before its place in the conversation.
            return may | REFUSALS | each.endings
        elif each.kind is Kind.WRONG:
            return may | each.endings
        elif each.kind is Kind.CLOSE:
            return may | {OK}
        elif each.kind is Kind.CORRECT:
            num_corrections += 1
            may |= each.endings
            if num_corrections > _MAX_PENDING_CORRECTIONS:
                may |= {"LimitExceeded"}
    return may | ({OK} if is_open else _PROTOCOL)


# ------------------------------------------------------------------------------ what is said


def _bytes(message: ClientMessage | pb.ClientMessage, codec: Codec = Codec.RAW) -> bytes:
    encoded = message if isinstance(message, pb.ClientMessage) else encode_client(message, codec=codec)
    return encoded.SerializeToString()


class Speaker:
    """Draws conversations.

    Args:
        chance: Where everything comes from.
    """

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance

    def conversation(self) -> Conversation:
        """Return the next one."""
        chance = self._chance
        said = [] if chance.random() < 0.03 else [self._opening()]
        for _ in range(chance.choice((0, 1, 3, 10, 30, 60))):
            said.append(self._something())
            if chance.random() < 0.1:
                said.append(said[-1])
        if chance.random() < 0.1:
            chance.shuffle(said)
        leaving = chance.choice(list(Leaving))
        if leaving is Leaving.CLOSE:
            said.append(Said(kind=Kind.CLOSE, pieces=(_bytes(Close()),)))
        if chance.random() < 0.3:
            at = chance.randrange(len(said) + 1)
            said[at:at] = [replace(self._something(), pause_seconds=chance.random() * 0.03)]
        return Conversation(said=tuple(said), leaving=leaving)

    def _array(self) -> tuple[Array, frozenset[str]]:
        """Return latents, and what a model may make of them."""
        chance = self._chance
        if chance.random() < 0.7:
            seed = chance.randrange(2**32)
            return np.random.default_rng(seed).standard_normal(LATENTS_SHAPE).astype(np.float32), frozenset()
        value = chance.choice((0.0, 1e-44, -1e-30, 1e4, 1e20, 3e38, -3.4e38))
        return np.full(LATENTS_SHAPE, value, np.float32), frozenset({"ModelError"})

    def _plan(self) -> Plan:
        chance = self._chance
        steps = 900 if chance.random() < 0.03 else chance.randint(1, 5)
        refresh = chance.choice(("always", "fixed", "growing", "embedded-error", "third-difference", "easycache"))
        bounds: dict[str, object] = {}
        if refresh != "always":
            bounds = {"skip_interval": chance.choice((0, 1, 8, 2**32 - 1)), "final_steps": chance.choice((0, 1, 2000))}
            bounds["warmup_steps"] = chance.choice((2, 3, 2**32 - 1))
        if refresh not in ("always", "fixed", "growing"):
            bounds["tolerance"] = chance.choice((0.0, 0.01, 1e300))
        return Plan(
            num_inference_steps=steps,
            handoff_step=chance.randint(0, steps),
            refresh=refresh,
            predictor=chance.choice(("reuse", "linear", "quadratic", "ecdiff")),
            **bounds,
        )

    def _good_open(self) -> tuple[Open, frozenset[str]]:
        chance = self._chance
        plan, endings = self._plan(), frozenset[str]()
        start: Seed | Noise | State = Seed(seed=chance.choice((0, 3, 2**63, 2**64 - 16)))
        if chance.random() < 0.4:
            array, endings = self._array()
            step_index = chance.randint(0, min(plan.handoff_step, plan.num_inference_steps - 1))
            start = Noise(noise=array) if chance.random() < 0.5 else State(step_index=step_index, latents=array)
        deadline_seconds = chance.choice((0.0, 0.0, 0.0, 60.0, 86_400.0, 1e-300, 0.005))
        if 0 < deadline_seconds < 1:
            endings |= {"DeadlineExceeded"}
        stream_latents, stream_predictions = chance.choice(((True, False), (False, True), (True, True), (False, False)))
        opening = Open(
            request_id="fuzz",
            conditioning=PromptText(
                prompt=chance.choice(("", "a cat", "\x00\n\u202e", "x " * 999)), negative_prompt=""
            ),
            start=start,
            plan=plan,
            guidance_scale=chance.choice((0.0, 1.0, 7.5, 1000.0)),
            guidance_rescale=chance.choice((0.0, 0.7, 1.0)),
            scheduler=chance.choice(("ddim", "dpmpp-2m", "unipc", "euler")),
            stream_latents=stream_latents,
            stream_predictions=stream_predictions,
            want_prompt_embeds=chance.random() < 0.2,
            codecs=tuple(chance.sample(list(Codec), chance.randint(1, 3))),
            credit=chance.choice((0, 1, 2, 1024)),
            deadline_seconds=deadline_seconds,
        )
        return opening, endings

    def _opening(self) -> Said:
        chance = self._chance
        opening, endings = self._good_open()
        encoded = encode_client(opening, codec=Codec.RAW)
        if chance.random() < 0.2:
            name, value, endings = chance.choice(BAD_FIELDS)
            target = encoded.open.plan if name in pb.Plan.DESCRIPTOR.fields_by_name else encoded.open
            setattr(target, name, value)
        elif opening.start.__class__ is not Seed and chance.random() < 0.3:
            start = encoded.open.start
            damage_tensor(start.noise if start.WhichOneof("from") == "noise" else start.state.latents, chance)
            endings = _TENSOR
        elif chance.random() < 0.05:
            return Said(kind=Kind.UNCLEAR, pieces=(damage_bytes(_bytes(encoded), chance),))
        pieces = (encoded,) if chance.random() < 0.8 else fragments(encoded, chance.choice((1000, 5000)))
        return Said(kind=Kind.OPEN, pieces=tuple(_bytes(piece) for piece in pieces), endings=endings)

    def _something(self) -> Said:
        chance = self._chance
        draw = chance.choices(
            (self._small, self._correct, self._wrong, self._unreadable, self._lies, self._damaged, self._opening),
            (60, 8, 1.5, 0.7, 0.7, 0.7, 0.5),
        )[0]
        return draw()

    def _small(self) -> Said:
        chance = self._chance
        match chance.randrange(6):
            case 0:
                return _said(Kind.HAND_OFF, HandOff(step_index=chance.choice((0, 1, 3, 999, 1000))))
            case 1 | 2:
                return _said(Kind.HARMLESS, Ping(t0=chance.choice((0.0, -1e300, 1e308, 1.7e9, chance.random()))))
            case 3 if chance.random() < 0.02:
                return _said(Kind.CLOSE, Close())
            case _:
                return _said(Kind.HARMLESS, Credit(count=chance.choice((1, 2, 1024))))

    def _correct(self) -> Said:
        """A good one; that it comes too early ends the stream, where it does."""
        array, endings = self._array()
        message = _bytes(Correct(step_index=0, latents=array))
        return Said(kind=Kind.CORRECT, pieces=(message,), endings=endings | _PROTOCOL)

    def _wrong(self) -> Said:
        chance = self._chance
        correct = encode_client(
            Correct(step_index=0, latents=self._array()[0]), codec=chance.choice((Codec.RAW, Codec.ZSTD))
        )
        match chance.randrange(6):
            case 0:
                message, endings = pb.ClientMessage(), frozenset({"InvalidRequest"})
            case 1:
                count = chance.choice((0, 1025, 2**32 - 1))
                message, endings = pb.ClientMessage(credit=pb.Credit(count=count)), frozenset({"InvalidRequest"})
            case 2:
                t0 = chance.choice((float("nan"), float("inf")))
                message, endings = pb.ClientMessage(ping=pb.Ping(t0=t0)), frozenset({"InvalidRequest"})
            case 3:
                message, endings = (
                    pb.ClientMessage(hand_off=pb.HandOff(step_index=2**31)),
                    frozenset({"InvalidRequest"}),
                )
            case 4:
                correct.correct.step_index = chance.choice((1000, 2**32 - 1))
                message, endings = correct, frozenset({"InvalidRequest"})
            case _:
                damage_tensor(correct.correct.latents, chance)
                message, endings = correct, _TENSOR
        return Said(kind=Kind.WRONG, pieces=(_bytes(message),), endings=endings)

    def _unreadable(self) -> Said:
        chance = self._chance
        match chance.randrange(5):
            case 0:
                return Said(kind=Kind.UNREADABLE, pieces=(b"\xff" * chance.randint(1, 50),), endings=_PROTOCOL)
            case 1:
                empty = pb.ClientMessage(fragment=pb.Fragment(total_bytes=10))
                return Said(kind=Kind.UNREADABLE, pieces=(_bytes(empty),), endings=_PROTOCOL)
            case 2:
                vast = pb.ClientMessage(fragment=pb.Fragment(total_bytes=chance.choice((2**31, 2**64 - 1)), data=b"x"))
                return Said(kind=Kind.UNREADABLE, pieces=(_bytes(vast),), endings=frozenset({"LimitExceeded"}))
            case 3:
                long = pb.ClientMessage(fragment=pb.Fragment(total_bytes=10, data=bytes(11)))
                return Said(kind=Kind.UNREADABLE, pieces=(_bytes(long),), endings=_PROTOCOL)
            case _:
                begun = pb.ClientMessage(fragment=pb.Fragment(total_bytes=1000, data=bytes(chance.randint(1, 999))))
                return Said(kind=Kind.UNFINISHED, pieces=(_bytes(begun),))

    def _lies(self) -> Said:
        message = encode_client(Correct(step_index=0, latents=self._array()[0]), codec=Codec.RAW)
        pieces = [pb.ClientMessage(fragment=piece) for piece in fragment_lies(message, self._chance)]
        if self._chance.random() < 0.3:  # another message comes in between
            at = self._chance.randrange(len(pieces) + 1)
            pieces[at:at] = [pb.ClientMessage(credit=pb.Credit(count=1))]
        return Said(kind=Kind.UNCLEAR, pieces=tuple(_bytes(piece) for piece in pieces))

    def _damaged(self) -> Said:
        said = self._chance.choice((self._small, self._correct, self._opening))()
        pieces = tuple(damage_bytes(piece, self._chance) for piece in said.pieces)
        return Said(kind=Kind.UNCLEAR, pieces=pieces)


def _said(kind: Kind, message: ClientMessage) -> Said:
    return Said(kind=kind, pieces=(_bytes(message),))


_INVALID, _LIMIT = frozenset({"InvalidRequest"}), frozenset({"LimitExceeded"})
BAD_FIELDS: tuple[tuple[str, object, frozenset[str]], ...] = (
    ("protocol_version", 2, frozenset({"VersionMismatch"})),
    ("model", "deadbeef", frozenset({"UnknownModel"})),
    ("request_id", "", _INVALID),
    ("request_id", "a\nb", _INVALID),
    ("guidance_scale", float("nan"), _INVALID),
    ("guidance_rescale", 1.5, _INVALID),
    ("height", 2**31, _INVALID),
    ("height", 4096, _LIMIT),
    ("width", 100, _INVALID),
    ("num_images", 0, _INVALID),
    ("num_images", 9, _LIMIT),
    ("scheduler", "heun", _INVALID),
    ("credit", 2**31, _INVALID),
    ("deadline_seconds", -1.0, _INVALID),
    ("num_inference_steps", 0, _INVALID),
    ("num_inference_steps", 2**31, _LIMIT),
    ("handoff_step", 2**31, _INVALID),
    ("refresh", "whim", _INVALID),
    ("predictor", "", _INVALID),
    ("warmup_steps", 0, _INVALID),
    ("smoothing", float("inf"), _INVALID),
    ("tolerance", float("nan"), _INVALID),
)
"""Fields of Open and of its plan, a value that is wrong, and how the stream ends."""
