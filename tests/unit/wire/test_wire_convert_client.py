"""A client's messages as protobuf and back, and what the cloud reads of them first."""

import dataclasses
import math

import numpy as np
import pytest
from client_messages import decode, encoded, opening, with_state
from wire_samples import CLIENT_MESSAGES, EMBEDS, OPEN, PLAN, SHAPE, STATE, gaussian, plain

from protos import ecdiff_v1_pb2 as pb
from wire.codecs import LOSSLESS_CODECS
from wire.convert import decode_open_header, encode_client
from wire.errors import InvalidRequest, InvalidTensor, ModelError, ProtocolError, VersionMismatch
from wire.messages import Codec, Correct, Noise, Open, PromptText, Scaling, Seed, State

NAMES = [type(message).__name__ for message in CLIENT_MESSAGES]


# ------------------------------------------------------------------------------------ round trips


@pytest.mark.parametrize("message", CLIENT_MESSAGES, ids=NAMES)
@pytest.mark.parametrize("codec", sorted(LOSSLESS_CODECS, key=lambda codec: codec.value))
def test_messages_survive_the_journey(message, codec):
    parsed = pb.ClientMessage.FromString(encoded(message, codec).SerializeToString())
    assert plain(decode(parsed)) == plain(message)


def test_the_samples_cover_every_kind_and_every_field():
    kinds = {encoded(message).WhichOneof("message") for message in CLIENT_MESSAGES}
    assert kinds == {field.name for field in pb.ClientMessage.DESCRIPTOR.fields} - {"fragment"}
    told = {field.name for message in CLIENT_MESSAGES[:3] for field, _ in encoded(message).open.ListFields()}
    # OPEN says no to latents and grants no credit, which is what proto3 leaves out.
    assert told == {field.name for field in pb.Open.DESCRIPTOR.fields} - {"stream_latents", "credit"}


def test_the_samples_cover_every_field_of_a_plan():
    told = {field.name for field, _ in encoded().open.plan.ListFields()}
    assert told == {field.name for field in pb.Plan.DESCRIPTOR.fields} == set(vars(PLAN))


def test_a_plan_without_a_budget_has_none_after_the_journey():
    plan = dataclasses.replace(PLAN, max_cloud_calls=None)
    assert decode(encoded(dataclasses.replace(OPEN, plan=plan))).plan.max_cloud_calls is None


def test_defaults_survive_the_journey():
    message = Open(request_id="r", conditioning=PromptText(prompt=""), start=Seed(seed=0), plan=PLAN)
    assert decode(encoded(message)) == message


def test_a_lossy_codec_is_for_latents_only():
    message = dataclasses.replace(OPEN, conditioning=EMBEDS, start=Noise(noise=gaussian()))
    decoded = decode(encoded(message, Codec.INT8_BLOCK))
    assert plain(decoded) == plain(message)
    correct = Correct(step_index=1, latents=gaussian())
    assert encoded(correct, Codec.INT8_BLOCK).correct.latents.codec == pb.CODEC_INT8_BLOCK


def test_every_tensor_is_observed():
    events = []
    message = dataclasses.replace(OPEN, conditioning=EMBEDS, start=STATE)
    sent = encode_client(message, codec=Codec.ZSTD, observe=events.append)
    decode(sent, observe=events.append)
    scalings = [Scaling.EMBEDDING] * 4 + [Scaling.SCHEDULER] * 2
    for operation in ("encode", "decode"):
        seen = [event.scaling for event in events if event.operation == operation]
        assert sorted(seen, key=lambda scaling: -scaling.value) == scalings


def test_latents_that_are_not_finite_are_not_sent():
    with pytest.raises(ModelError, match="NaN or infinity"):
        encoded(Correct(step_index=1, latents=gaussian() * np.float32(math.inf)))


# ------------------------------------------------------------------------------- version and header


def test_the_version_is_checked_before_anything_else():
    message = pb.ClientMessage(open=pb.Open(protocol_version=7))
    text = (
        "the edge speaks protocol version 7, the cloud speaks 1: "
        r"install the same ecdiff release on both ends \(the cloud is older\)"
    )
    for look in (decode_open_header, decode):
        with pytest.raises(VersionMismatch, match=text):
            look(message)


def test_the_header_needs_no_tensor():
    message = opening()
    message.open.embeds.prompt_embeds.data = b"hostile"
    message.open.start.noise.raw_bytes = 2**64 - 1
    header = decode_open_header(message)
    assert header.prompt_chars == 0
    assert (header.height, header.width, header.num_images, header.num_inference_steps) == (64, 128, 3, 50)
    assert header.codecs == (Codec.INT8_BLOCK, Codec.RAW)
    with pytest.raises(InvalidTensor):
        decode(message)


def test_the_header_tells_the_longer_prompt():
    assert decode_open_header(opening()).prompt_chars == len(OPEN.conditioning.prompt)
    assert decode_open_header(opening(text__negative_prompt="x" * 5000)).prompt_chars == 5000


@pytest.mark.parametrize("message", CLIENT_MESSAGES[3:], ids=NAMES[3:])
def test_a_stream_begins_with_open(message):
    with pytest.raises(ProtocolError, match="the first message of a stream must be Open"):
        decode_open_header(encoded(message))


def test_unknown_codecs_in_an_offer_are_passed_over():
    message = opening()
    message.open.ClearField("codecs")
    message.open.codecs.extend([99, pb.CODEC_ZSTD, 0, pb.CODEC_ZSTD, pb.CODEC_RAW])
    assert decode_open_header(message).codecs == (Codec.ZSTD, Codec.RAW)


@pytest.mark.parametrize(
    ("codecs", "text"),
    [([], "lists nothing that is known"), ([0, 99], "lists nothing that is known"), ([1] * 65, "lists 65 items")],
)
def test_an_offer_without_a_codec_is_refused(codecs, text):
    message = opening()
    message.open.ClearField("codecs")
    message.open.codecs.extend(codecs)
    with pytest.raises(InvalidRequest, match=text):
        decode_open_header(message)


def test_states_resume_bit_for_bit():
    state = decode(with_state()).start
    assert isinstance(state, State)
    assert state.latents.shape == SHAPE
    assert plain(state) == plain(STATE)
