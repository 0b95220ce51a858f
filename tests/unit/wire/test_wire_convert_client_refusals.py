"""What the cloud refuses of a client's messages: values out of range, and tensors that nobody waits for."""

import dataclasses
import math

import numpy as np
import pytest
from client_messages import decode, encoded, opening, with_state
from wire_samples import CLIENT_SPECS, EMBEDS, OPEN, gaussian, spec

from protos import ecdiff_v1_pb2 as pb
from wire.convert import ClientSpecs
from wire.errors import InvalidRequest, InvalidTensor, ProtocolError
from wire.messages import Correct, Noise, PromptEmbeds, Scaling


@pytest.mark.parametrize(
    ("real_steps", "text"),
    [
        ([0, 1, 1], "the plan: real_steps must rise from step to step"),
        ([0, 2, 1], "the plan: real_steps must rise from step to step"),
        ([0, 1, 50], r"the plan: real_steps must lie in 0\.\.49, not 50"),
        ([2**32 - 1], "the plan: real_steps must lie in"),
        (range(1001), "the plan: 1001 real_steps are too many"),
    ],
)
def test_listed_steps_of_a_client_are_checked(real_steps, text):
    message = encoded()
    message.open.plan.real_steps[:] = real_steps
    with pytest.raises(InvalidRequest, match=text):
        decode(message)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"request_id": ""}, r"request_id must have 1\.\.128 characters"),
        ({"request_id": "x" * 129}, r"request_id must have 1\.\.128 characters"),
        ({"request_id": "a\nlevel=error forged"}, "request_id must be printable"),
        ({"model": "x" * 257}, "model must have"),
        ({"scheduler": "\x1b[2J"}, "scheduler must be printable"),
        ({"height": 65537}, r"height must be in 0\.\.65536, not 65537"),
        ({"width": 2**32 - 1}, "width must be in"),
        ({"num_images": 0}, "num_images must be in 1"),
        ({"guidance_scale": math.nan}, "guidance_scale must be finite"),
        ({"guidance_scale": math.inf}, "guidance_scale must be finite"),
        ({"guidance_scale": -1.0}, "guidance_scale must be finite in 0"),
        ({"guidance_rescale": 1.5}, r"guidance_rescale must be finite in 0\.\.1, not 1.5"),
        ({"credit": 1025}, r"credit must be in 0\.\.1024"),
        ({"deadline_seconds": -0.5}, "deadline_seconds must be"),
        ({"deadline_seconds": math.nan}, "deadline_seconds must be"),
        ({"deadline_seconds": 1e300}, "deadline_seconds must be"),
        ({"start__seed": 2**64 - 1}, r"seed \+ num_images - 1 must be below 2\*\*64"),
        ({"plan__num_inference_steps": 0}, "num_inference_steps must be at least 1, not 0"),
        ({"plan__handoff_step": 51}, r"the plan: handoff_step must lie in 0\.\.50"),
        ({"plan__warmup_steps": 1}, "the plan: warmup_steps must be at least 2"),
        ({"plan__smoothing": math.nan}, "the plan: smoothing must lie in"),
        ({"plan__smoothing": -0.1}, "the plan: smoothing must lie in"),
        ({"plan__tolerance": math.nan}, "the plan: tolerance must be a number of at least 0, not nan"),
        ({"plan__tolerance": math.inf}, "the plan: tolerance must be a number of at least 0, not inf"),
        ({"plan__tolerance": -1.0}, "the plan: tolerance must be a number of at least 0, not -1.0"),
        ({"plan__refresh": ""}, "refresh must have"),
        ({"plan__predictor": "x" * 257}, "predictor must have"),
    ],
)
def test_values_out_of_range_are_invalid_requests(changes, text):
    with pytest.raises(InvalidRequest, match=text) as caught:
        decode(opening(**changes))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("plan", "Open has no plan"),
        ("text", "neither a prompt nor embeddings"),
        ("start", "nothing of where to start"),
    ],
)
def test_what_open_must_have_is_named(field, text):
    message = opening()
    message.open.ClearField(field)
    with pytest.raises(InvalidRequest, match=text):
        decode(message)


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (pb.ClientMessage(), "no known kind"),
        (pb.ClientMessage(credit=pb.Credit(count=0)), r"credit must be in 1\.\.1024, not 0"),
        (pb.ClientMessage(credit=pb.Credit(count=2**32 - 1)), "credit must be in"),
        (pb.ClientMessage(ping=pb.Ping(t0=math.nan)), "t0 must be finite, not nan"),
        (pb.ClientMessage(ping=pb.Ping(t0=-math.inf)), "t0 must be finite, not -inf"),
        (pb.ClientMessage(correct=pb.Correct(step_index=3)), "Correct has no latents"),
        (encoded(Correct(step_index=1000, latents=gaussian())), r"step_index must be in 0\.\.999, not 1000"),
    ],
)
def test_other_messages_are_checked_too(message, text):
    with pytest.raises(InvalidRequest, match=text):
        decode(message)


def test_a_fragment_is_no_message():
    with pytest.raises(ProtocolError, match="a fragment where a whole message is due"):
        decode(pb.ClientMessage(fragment=pb.Fragment(total_bytes=1, data=b"x")))


def test_the_plan_bounds_the_step_of_a_correction():
    specs = dataclasses.replace(CLIENT_SPECS, num_inference_steps=50)
    assert decode(encoded(Correct(step_index=49, latents=gaussian())), specs).step_index == 49
    with pytest.raises(InvalidRequest, match=r"in 0\.\.49, not 50"):
        decode(encoded(Correct(step_index=50, latents=gaussian())), specs)


def test_a_start_beyond_the_plan_is_refused():
    assert decode(with_state(step_index=49)).start.step_index == 49
    for step_index in (50, 51, 2**32 - 1):
        with pytest.raises(InvalidRequest, match=f"a start at step {step_index} of 50 leaves nothing to run"):
            decode(with_state(step_index=step_index))


def test_a_state_needs_latents():
    message = with_state()
    message.open.start.state.ClearField("latents")
    with pytest.raises(InvalidRequest, match="a state without latents"):
        decode(message)


def test_scheduler_state_is_bounded():
    eight = {f"tensor {number}": gaussian(seed=number) for number in range(8)}
    assert len(decode(with_state(scheduler_state=eight)).start.scheduler_state) == 8
    with pytest.raises(InvalidRequest, match="scheduler_state holds 9 tensors, the cap is 8"):
        decode(with_state(scheduler_state={**eight, "ninth": gaussian()}))
    for key in ("", "x" * 65, "a\x00b"):
        with pytest.raises(InvalidRequest, match="a scheduler_state key must"):
            decode(with_state(scheduler_state={key: gaussian()}))
    with pytest.raises(InvalidTensor, match="scheduler_state history must have the shape"):
        decode(with_state(scheduler_state={"history": gaussian(shape=(1, 4, 4, 16))}))


@pytest.mark.parametrize("name", ["latents", "noise", "embeds"])
def test_tensors_that_are_not_welcome_are_refused(name):
    message = {
        "latents": Correct(step_index=1, latents=gaussian()),
        "noise": dataclasses.replace(OPEN, start=Noise(noise=gaussian())),
        "embeds": dataclasses.replace(OPEN, conditioning=EMBEDS),
    }[name]
    with pytest.raises(InvalidTensor, match="no such tensor is welcome here"):
        decode(encoded(message), dataclasses.replace(CLIENT_SPECS, **{name: None}))


@pytest.mark.parametrize(
    ("shape", "text"), [((1, 4, 8, 9), "noise"), ((2, 4, 8, 8), "noise"), ((4, 8, 8), "noise must have 4 dimensions")]
)
def test_the_negotiated_shape_holds_for_noise(shape, text):
    with pytest.raises(InvalidTensor, match=text):
        decode(encoded(dataclasses.replace(OPEN, start=Noise(noise=gaussian(shape=shape)))))


def test_scalings_are_never_guessed():
    message = encoded(dataclasses.replace(OPEN, start=Noise(noise=gaussian())))
    message.open.start.noise.scaling = pb.SCALING_SCHEDULER
    with pytest.raises(InvalidTensor, match="noise must have scaling unit_noise"):
        decode(message)


def test_both_embeddings_have_one_shape_and_dtype():
    positive = EMBEDS.prompt_embeds
    for negative in (gaussian(shape=(1, 6, 16)), positive.astype(np.float16)):
        embeds = PromptEmbeds(prompt_embeds=positive, negative_prompt_embeds=negative)
        with pytest.raises(InvalidTensor, match="must have the same shape and dtype"):
            decode(encoded(dataclasses.replace(OPEN, conditioning=embeds)))
    message = encoded(dataclasses.replace(OPEN, conditioning=PromptEmbeds(prompt_embeds=positive)))
    assert decode(message).conditioning.negative_prompt_embeds is None
    pooled = gaussian(shape=(1, 8))
    for halves, problem in (
        ({"pooled_prompt_embeds": pooled, "negative_pooled_prompt_embeds": pooled}, "not a whole prompt"),
        ({"negative_prompt_embeds": positive, "pooled_prompt_embeds": pooled}, "not a whole prompt"),
        ({"negative_pooled_prompt_embeds": pooled}, "not a whole prompt"),
    ):
        embeds = PromptEmbeds(prompt_embeds=positive, **halves)
        with pytest.raises(InvalidRequest, match=problem):
            decode(encoded(dataclasses.replace(OPEN, conditioning=embeds)))
    message.open.embeds.ClearField("prompt_embeds")
    with pytest.raises(InvalidRequest, match="embeddings without prompt_embeds"):
        decode(message)


def test_specs_of_the_wrong_scaling_are_a_mistake():
    with pytest.raises(ValueError, match=r"the spec of noise must have Scaling\.UNIT_NOISE"):
        ClientSpecs(noise=spec(Scaling.SCHEDULER))


def test_cheap_checks_come_before_tensors():
    message = with_state()
    message.open.guidance_scale = math.nan
    events = []
    with pytest.raises(InvalidRequest, match="guidance_scale"):
        decode(message, observe=events.append)
    assert events == []
