"""What the user is told of a generation that did not go as planned, and why it went as it did."""

from __future__ import annotations

from diffusion.schedulers import Stepper
from edge_client.lead import Lead
from edge_client.recorder import Recorder
from orchestrator.handoff import AgreementHandoff, HandoffReason


def note_handoff(recorder: Recorder, lead: Lead, agreement: AgreementHandoff | None, stepper: Stepper | None) -> None:
    """Note where the edge takes over and why; what nobody asked for is a fallback.

    Args:
        recorder: Of the generation.
        lead: What the cloud left.
        agreement: What measured whether the models agree, if anything did.
        stepper: With what it holds of the solver's history; None where no cloud agreed to one.
    """
    num_steps = recorder.plan.num_inference_steps
    step = lead.state.step_index if lead.state is not None else recorder.start_step
    if agreement is not None:
        recorder.agreement_scale = agreement.scale
    if lead.reason is None or step == num_steps:
        recorder.handoff_why = "" if agreement is None else agreement.why_not()
        return
    recorder.hand_off(lead.reason, step)
    restarts = step > recorder.start_step and stepper is not None and stepper.is_multistep and not stepper.state()
    line = ""
    if lead.lost is not None:
        line = f"{lead.reason.value.replace('_', ' ')} ({lead.lost}): the edge goes on from step {step} of {num_steps}"
    elif lead.reason is HandoffReason.DEADLINE:
        line = f"the deadline leaves the cloud no more time: the edge goes on from step {step} of {num_steps}"
    elif restarts:
        line = f"the cloud handed over at step {step} without the solver's history"
    if line:
        recorder.fall_back(f"{line}; {recorder.request.scheduler} restarts there at order 1" if restarts else line)
    if recorder.shadow_skipped:
        total = recorder.shadow_skipped + len(recorder.disagreements)
        recorder.fall_back(
            f"the edge or its link is too slow to shadow: {recorder.shadow_skipped} of {total} steps were skipped"
        )
    if agreement is not None:
        recorder.expected_error = agreement.expected_error(step)
        recorder.handoff_why = agreement.why(step)


def note_deadline(recorder: Recorder, seconds_left: float) -> None:
    """Note by how much a deadline was missed, if it was."""
    if seconds_left < 0.0:
        recorder.fall_back(f"the deadline was missed by {-seconds_left * 1000:.0f} ms")
