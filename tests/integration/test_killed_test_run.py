"""Services that tests start do not outlive a test run that was killed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from harness.processes import is_gone
from harness.programs import ENVIRONMENT
from harness.reference import CLOUD_MODEL
from harness.waiting import wait_until

# A test run that holds one service of each kind, and says which.
TEST_RUN = """
import sys, time
from pathlib import Path
from harness.programs import Programs

with Programs(Path(sys.argv[1])) as programs:
    ports = ("--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0")
    serve = ("cloud_service", "serve", "--model", sys.argv[2], *ports)
    started = [programs.cold(*serve), programs.forked(*serve)]
    while not all("listening on" in program.stdout for program in started):
        time.sleep(0.05)
    print(*(program.pid for program in started), flush=True)
    time.sleep(60)
"""


def test_a_killed_test_run_takes_its_services_with_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TEST_RUN, str(tmp_path), str(CLOUD_MODEL)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | ENVIRONMENT) as test_run:
        assert test_run.stdout is not None
        services = [int(word) for word in test_run.stdout.readline().split()]
        assert len(services) == 2
        assert not any(is_gone(pid) for pid in services)
        test_run.kill()
    wait_until(lambda: all(is_gone(pid) for pid in services), "the end of the services")
