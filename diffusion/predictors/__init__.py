"""Predict the prediction: what the network would have said at a step where it is not asked.

    predictor = make_predictor("linear", stepper.schedule, prediction_type=stepper.prediction_type)

| name | rule | exact on |
| --- | --- | --- |
| `reuse` | the last real prediction | constants |
| `ecdiff` | EC-Diff's noise gradient, as its authors compute it | constants |
| `linear`, `quadratic` | polynomial in the timestep through the last 2, 3 real ones | lines, parabolas in it |
| `epsilon-linear` | `linear` on epsilon, said again at the current latents | epsilon linear in the timestep |
| `x0-linear` | line in x0 over lambda = log(alpha / sigma), said again at the current latents | x0 linear in lambda |
| `chebyshev` | ridge fit of T0..T4 over all real predictions, blended with `linear` | constants |
| `etc` | averaged slope of all real predictions | lines in the timestep |

Each keeps to this interface; a name is one line in `registry.py`.
"""

from diffusion.predictors.interface import Predictor
from diffusion.predictors.registry import COMPANIONS, PREDICTORS, make_predictor

__all__ = ["COMPANIONS", "PREDICTORS", "Predictor", "make_predictor"]
