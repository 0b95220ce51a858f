"""A program whose clock is wrong: `python -m harness.wrong_clock SECONDS STEP_SECONDS STEP_EVERY MODULE ARGUMENTS`.

The wall clock of the process is SECONDS ahead (or, negative, behind), and its keeper steps it by STEP_SECONDS every
STEP_EVERY seconds. The monotonic clock is right, as it is on a machine with a wrong wall clock.
"""

from __future__ import annotations

import runpy
import sys
import time

if __name__ == "__main__":
    _, ahead, step, every, module, *arguments = sys.argv
    right, started = time.time, time.monotonic()

    def wrong() -> float:
        num_steps = (time.monotonic() - started) // float(every)
        return right() + float(ahead) + num_steps * float(step)

    time.time = wrong
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
