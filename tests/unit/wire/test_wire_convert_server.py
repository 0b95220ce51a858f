import dataclasses
import math

import numpy as np
import pytest
from wire_samples import (
    DESCRIPTION,
    EMBEDS,
    MODEL,
    OPENED,
    SERVER_MESSAGES,
    SERVER_SPECS,
    STATE,
    TOTALS,
    gaussian,
    plain,
    spec,
)

from protos import ecdiff_v1_pb2 as pb
from wire.clock import stamp_seconds
from wire.codecs import LOSSLESS_CODECS
from wire.convert import decode_description, decode_server, encode_description, encode_server
from wire.errors import CorruptTensor, InvalidTensor, ModelError, ProtocolError, VersionMismatch
from wire.messages import Codec, Correction, Description, DType, Finished, HandedOff, Source, Step

NAMES = [type(message).__name__ for message in SERVER_MESSAGES]
STEP = SERVER_MESSAGES[2]


def encoded(message, codec=Codec.RAW):
    return encode_server(message, codec=codec)


def decode(message, specs=SERVER_SPECS):
    return decode_server(message, specs=specs)


def without_stamps(message):
    if isinstance(message, Step | HandedOff | Finished):
        return dataclasses.replace(message, encode_seconds=0.0, sent_at=0.0)
    return message


# ------------------------------------------------------------------------------------ round trips


@pytest.mark.parametrize("message", SERVER_MESSAGES, ids=NAMES)
@pytest.mark.parametrize("codec", sorted(LOSSLESS_CODECS, key=lambda codec: codec.value))
def test_messages_survive_the_journey(message, codec):
    parsed = pb.ServerMessage.FromString(encoded(message, codec).SerializeToString())
    assert plain(without_stamps(decode(parsed))) == plain(message)


def test_the_samples_cover_every_kind():
    kinds = {encoded(message).WhichOneof("message") for message in SERVER_MESSAGES}
    assert kinds == {field.name for field in pb.ServerMessage.DESCRIPTOR.fields} - {"fragment"}


@pytest.mark.parametrize(
    "message",
    [STEP, HandedOff(state=STATE, totals=TOTALS), Finished(state=STATE, totals=TOTALS)],
    ids=lambda m: type(m),
)
def test_encoding_is_timed_and_stamped(message):
    before = stamp_seconds()
    decoded = decode(encoded(dataclasses.replace(message, encode_seconds=99.0, sent_at=-1.0), Codec.ZSTD))
    assert before <= decoded.sent_at <= stamp_seconds()
    assert 0 < decoded.encode_seconds < 5


def test_no_extrapolation_error_is_none_and_zero_is_zero():
    for error in (None, 0.0, 1.5):
        step = Step(step_index=0, source=Source.CLOUD, extrapolation_error=error)
        assert decode(encoded(step)).extrapolation_error == error


def test_a_lossy_codec_spares_the_embeddings():
    assert plain(decode(encoded(OPENED, Codec.INT8_BLOCK)).prompt_embeds) == plain(EMBEDS)
    step = encoded(STEP, Codec.INT8_BLOCK).step
    codecs = {step.latents.codec, step.latents_before.codec, step.prediction.codec}
    assert codecs == {pb.CODEC_INT8_BLOCK}


def test_every_tensor_of_a_step_is_observed():
    events = []
    decode_server(
        encode_server(STEP, codec=Codec.ZSTD, observe=events.append), specs=SERVER_SPECS, observe=events.append
    )
    assert [event.operation for event in events] == ["encode"] * 3 + ["decode"] * 3


def test_predictions_that_are_not_finite_are_not_sent():
    with pytest.raises(ModelError, match="the prediction tensor to be sent holds NaN or infinity"):
        encoded(Correction(step_index=0, prediction=np.full_like(gaussian(), np.nan)))


# ------------------------------------------------------------------------------- a hostile cloud


def test_opened_of_another_version_is_named_first():
    with pytest.raises(VersionMismatch, match="the cloud speaks protocol version 0, the edge speaks 1"):
        decode(pb.ServerMessage(opened=pb.Opened()))


def spoilt(message, **changes):
    spoiled = encoded(message)
    body = getattr(spoiled, spoiled.WhichOneof("message"))
    for name, value in changes.items():
        *path, last = name.split("__")
        target = body
        for part in path:
            target = getattr(target, part)
        if isinstance(value, list):
            target.ClearField(last)
            getattr(target, last).extend(value)
        else:
            setattr(target, last, value)
    return spoiled


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"session_id": ""}, "session_id must have"),
        ({"session_id": "x" * 129}, "session_id must have"),
        ({"scheduler_class": ""}, "scheduler_class must have"),
        ({"scheduler_class": "x" * 300}, "scheduler_class must have"),
        ({"scheduler_config": ""}, "scheduler_config must be JSON"),
        ({"scheduler_config": "[1]"}, "scheduler_config must be a JSON object"),
        ({"scheduler_config": '"text"'}, "scheduler_config must be a JSON object"),
        ({"scheduler_config": "[" * 60_000}, "scheduler_config must be JSON"),
        ({"scheduler_config": '{"a": ' + "9" * 5000 + "}"}, "scheduler_config must be JSON"),
        ({"scheduler_config": '{"a": "' + "x" * 65536 + '"}'}, "scheduler_config has 65545 characters, the cap"),
        ({"timesteps": [], "sigmas": [0.0]}, r"the number of timesteps must be in 1\.\.1000, not 0"),
        ({"timesteps": [1.0] * 1001, "sigmas": [0.0] * 1002}, "the number of timesteps must be in"),
        ({"sigmas": [1.0, 0.5, 0.0]}, "3 timesteps need 4 sigmas, not 3"),
        ({"timesteps": [801.0, math.nan, 1.0]}, "a timestep must be finite, not nan"),
        ({"sigmas": [math.inf, 1.5, 0.25, 0.0]}, "a sigma must be finite"),
        ({"sigmas": [9.5, 1.5, -0.25, 0.0]}, "a sigma must be finite at least 0, not -0.25"),
        ({"latents_shape": [4, 8, 8]}, "latents_shape has 3 dimensions, not 4"),
        ({"latents_shape": [1] * 5}, "latents_shape has 5 dimensions, not 4"),
        ({"latents_shape": [1, 4, 0, 8]}, "a dimension of latents_shape must be in 1"),
        ({"latents_shape": [1, 4, 8, 70000]}, "a dimension of latents_shape must be in 1"),
        ({"latents_dtype": 0}, "latents_dtype has no meaning for number 0"),
        ({"codec": 44}, "codec has no meaning for number 44"),
        ({"encode_prompt_seconds": -1.0}, "encode_prompt_seconds must be"),
        ({"model__latent_channels": 0}, "latent_channels must be in 1"),
        ({"model__vae_scaling_factor": math.nan}, "vae_scaling_factor must be finite"),
        ({"model__vae_shift_factor": math.inf}, "vae_shift_factor must be finite"),
        ({"model__vae_scale_factor": 0}, "vae_scale_factor must be in 1"),
        ({"model__name": "x\x1b]0;owned\x07"}, "the model's name must be printable"),
        ({"model__scheduler_config": "null"}, "the model's scheduler_config must be a JSON object"),
        ({"model__default_height": 0}, "default_height must be in 1"),
    ],
)
def test_opened_is_checked_on_the_edge(changes, text):
    with pytest.raises(ProtocolError, match=f"the cloud sent nonsense: {text}") as caught:
        decode(spoilt(OPENED, **changes))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("message", "changes", "text"),
    [
        (STEP, {"source": 0}, "source has no meaning for number 0"),
        (STEP, {"source": 9}, "source has no meaning for number 9"),
        (STEP, {"step_index": 1000}, r"step_index must be in 0\.\.999"),
        (STEP, {"extrapolation_error": -0.5}, "extrapolation_error must be"),
        (STEP, {"extrapolation_error": math.nan}, "extrapolation_error must be"),
        (STEP, {"compute_seconds": math.inf}, "compute_seconds must be"),
        (STEP, {"compute_seconds": 1e308}, "compute_seconds must be"),
        (STEP, {"sent_at": 1e300}, "sent_at must be"),
        (STEP, {"source": 3}, "the cloud's step has the edge for its source"),
        (STEP, {"queue_seconds": -1.0}, "queue_seconds must be"),
        (STEP, {"encode_seconds": math.nan}, "encode_seconds must be"),
        (STEP, {"sent_at": math.nan}, "sent_at must be finite"),
        (SERVER_MESSAGES[3], {"wait_seconds": math.nan}, "wait_seconds must be"),
        (SERVER_MESSAGES[3], {"totals__compute_seconds": -1.0}, "the total of compute_seconds must be"),
        (SERVER_MESSAGES[3], {"state__step_index": 1001}, "the state's step_index must be"),
        (SERVER_MESSAGES[4], {"step_index": 1000}, "the correction's step_index must be"),
        (SERVER_MESSAGES[5], {"sent_at": math.inf}, "sent_at must be finite"),
        (SERVER_MESSAGES[6], {"step_index": 1001}, "step_index must be"),
        (SERVER_MESSAGES[7], {"t1": math.nan}, "t1 must be finite"),
    ],
)
def test_other_messages_are_checked_on_the_edge(message, changes, text):
    with pytest.raises(ProtocolError, match=text):
        decode(spoilt(message, **changes))


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (pb.ServerMessage(), "no known kind"),
        (pb.ServerMessage(fragment=pb.Fragment()), "a fragment where a whole message is due"),
        (pb.ServerMessage(opened=pb.Opened(protocol_version=1)), "Opened has no model"),
        (pb.ServerMessage(handed_off=pb.HandedOff()), "has no state"),
        (pb.ServerMessage(finished=pb.Finished(state=pb.State())), "has no totals"),
        (pb.ServerMessage(finished=pb.Finished(state=pb.State(), totals=pb.Totals())), "a state without latents"),
        (pb.ServerMessage(correction=pb.Correction()), "Correction has no prediction"),
    ],
)
def test_missing_parts_are_named(message, text):
    with pytest.raises(ProtocolError, match=text):
        decode(message)


def test_bad_tensors_keep_their_own_errors():
    with pytest.raises(InvalidTensor, match="latents_before must have the shape"):
        decode(encoded(dataclasses.replace(STEP, latents_before=gaussian(shape=(1, 4, 4, 4)))))
    with pytest.raises(CorruptTensor, match="the checksum of prediction is wrong"):
        decode(spoilt(STEP, prediction__crc32=1))
    with pytest.raises(InvalidTensor, match="prediction: no such tensor is welcome here"):
        decode(encoded(STEP), dataclasses.replace(SERVER_SPECS, prediction=None))


def test_the_plan_bounds_the_steps_of_the_cloud():
    specs = dataclasses.replace(SERVER_SPECS, num_inference_steps=37)
    assert decode(encoded(dataclasses.replace(STEP, step_index=36)), specs).step_index == 36
    assert decode(encoded(SERVER_MESSAGES[3]), specs).state.step_index == 37
    with pytest.raises(ProtocolError, match=r"step_index must be in 0\.\.36, not 37"):
        decode(encoded(dataclasses.replace(STEP, step_index=37)), specs)


# -------------------------------------------------------------------------------------- Describe


def test_a_description_survives_the_journey():
    sent = encode_description(DESCRIPTION)
    assert decode_description(pb.DescribeResponse.FromString(sent.SerializeToString())) == DESCRIPTION


def test_every_field_of_a_description_is_sent():
    model = dataclasses.replace(MODEL, vae_shift_factor=0.5)
    message = encode_description(dataclasses.replace(DESCRIPTION, model=model))
    for part in (message, message.model, message.limits, message.load):
        assert {field.name for field, _ in part.ListFields()} == {field.name for field in part.DESCRIPTOR.fields}


def test_a_description_of_another_version_is_named_first():
    with pytest.raises(
        VersionMismatch, match=r"the cloud speaks protocol version 2, the edge speaks 1.*the edge is older"
    ):
        decode_description(pb.DescribeResponse(protocol_version=2))


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda message: message.ClearField("model"), "it serves no model"),
        (lambda message: message.ClearField("limits"), "it names no limits"),
        (lambda message: setattr(message.load, "step_seconds", math.nan), "step_seconds must be"),
        (lambda message: setattr(message.load, "step_seconds", 1e300), "step_seconds must be"),
        (lambda message: message.schedulers.extend(["x"] * 64), "schedulers lists 65 items, the cap is 64"),
        (lambda message: message.predictors.append(""), "one of predictors must have"),
        (lambda message: message.ClearField("codecs"), "codecs lists nothing"),
        (lambda message: setattr(message, "version", "x" * 300), "version must have"),
    ],
)
def test_a_description_is_checked(spoil, text):
    message = encode_description(DESCRIPTION)
    spoil(message)
    with pytest.raises(ProtocolError, match=f"describes itself in nonsense: {text}"):
        decode_description(message)


def test_newer_codecs_in_a_description_are_passed_over():
    message = encode_description(DESCRIPTION)
    message.codecs.append(99)
    decoded = decode_description(message)
    assert isinstance(decoded, Description)
    assert decoded.codecs == DESCRIPTION.codecs


# ------------------------------------------------------------------------------------ solver history


def handed_off(dtype, history_dtype):
    history = {"denoised_1": gaussian(history_dtype, seed=1), "last_latents": gaussian(history_dtype, seed=2)}
    state = dataclasses.replace(STATE, latents=gaussian(dtype), scheduler_state=history)
    return HandedOff(state=state, totals=TOTALS)


@pytest.mark.parametrize("dtype", [DType.FLOAT16, DType.BFLOAT16])
def test_history_stays_float32_beside_latents_in_half_precision(dtype):
    specs = dataclasses.replace(SERVER_SPECS, latents=spec(dtypes=frozenset({dtype})))
    message = handed_off(dtype, DType.FLOAT32)
    assert plain(without_stamps(decode(encoded(message), specs))) == plain(message)
    with pytest.raises(InvalidTensor, match=r"scheduler_state .* must be one of float32"):
        decode(encoded(handed_off(dtype, dtype)), specs)


@pytest.mark.parametrize("codec", Codec)
def test_history_is_counted_and_written_with_the_codec_of_the_session(codec):
    events = []
    message = handed_off(DType.FLOAT32, DType.FLOAT32)
    encode_server(message, codec=codec, observe=events.append)
    assert [(event.codec, event.raw_bytes) for event in events] == [(codec, message.state.latents.nbytes)] * 3
