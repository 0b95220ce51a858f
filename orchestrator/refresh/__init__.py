"""Refresh: at which steps the cloud evaluates its model, and at which it extrapolates.

    refresh = make_refresh(plan)
    source = refresh.decide(step_index, measured)

| name | a step is real |
| --- | --- |
| `always` | always |
| `fixed` | p warm-up steps, then one in k + 1 (EC-Diff) |
| `growing` | at distances that grow from 2 by 0.75 a call (Spectrum) |
| `listed` | where the plan lists it |
| `embedded-error` | when the summed distance of two predictors, in terms of the latents, reaches the tolerance |
| `third-difference` | when the latents' third difference reaches the tolerance (AdaptiveDiffusion) |
| `easycache` | when the summed change that the prediction must have made reaches the tolerance (EasyCache) |

The last three adapt: they decide from one number a step, their `measure`, which `diffusion.measures` takes. Whatever
that says, the warm-up and the plan's final steps are real, no more than `skip_interval` steps in a row are
extrapolated, and `max_cloud_calls` is kept: one that never triggers is `fixed`.

Policies are pure: numbers in, `Source` out. Each is made fresh for every generation and runs in the cloud's loop, so
that a decision costs no round trip.
"""

from orchestrator.refresh.adaptive import AdaptiveRefresh
from orchestrator.refresh.interface import RefreshPolicy
from orchestrator.refresh.registry import REFRESH_POLICIES, least_real_steps, make_refresh
from orchestrator.refresh.scheduled import ScheduledRefresh

__all__ = [
    "REFRESH_POLICIES",
    "AdaptiveRefresh",
    "RefreshPolicy",
    "ScheduledRefresh",
    "least_real_steps",
    "make_refresh",
]
