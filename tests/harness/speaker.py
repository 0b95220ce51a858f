"""Draws conversations that no client should hold with a cloud from a seeded generator."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np

from harness.conversations import PROTOCOL, Conversation, Kind, Leaving, Said
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

_TENSOR = frozenset({"InvalidTensor", "CorruptTensor"})


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
        return Said(kind=Kind.CORRECT, pieces=(message,), endings=endings | PROTOCOL)

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
                return Said(kind=Kind.UNREADABLE, pieces=(b"\xff" * chance.randint(1, 50),), endings=PROTOCOL)
            case 1:
                empty = pb.ClientMessage(fragment=pb.Fragment(total_bytes=10))
                return Said(kind=Kind.UNREADABLE, pieces=(_bytes(empty),), endings=PROTOCOL)
            case 2:
                vast = pb.ClientMessage(fragment=pb.Fragment(total_bytes=chance.choice((2**31, 2**64 - 1)), data=b"x"))
                return Said(kind=Kind.UNREADABLE, pieces=(_bytes(vast),), endings=frozenset({"LimitExceeded"}))
            case 3:
                long = pb.ClientMessage(fragment=pb.Fragment(total_bytes=10, data=bytes(11)))
                return Said(kind=Kind.UNREADABLE, pieces=(_bytes(long),), endings=PROTOCOL)
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
