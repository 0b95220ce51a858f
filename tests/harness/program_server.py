"""Forks the project's programs from a process that has imported torch once: `python -m harness.program_server FD`.

A fresh interpreter pays four seconds of imports, which dozens of fault tests cannot afford. The forked child is a
process of its own all the same: own session, own threads, own gRPC. gRPC itself is imported by the child only.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import runpy
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

from harness import gate
from harness.tied import die_with_parent

_MAX_REQUEST_BYTES = 2**16


def main() -> None:
    """Serve until the other end closes the socket, which is the end of every child; return in each child, and run."""
    import_heavy_modules()
    program = serve(socket.socket(fileno=int(sys.argv[1])))
    if program is not None:
        run(program)


def import_heavy_modules() -> None:
    """Import what both services import, and no gRPC."""
    import transformers
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

    # diffusers and transformers import lazily: naming the classes is what loads them.
    _ = (transformers.CLIPTextModel, transformers.CLIPTokenizer, AutoencoderKL, DDIMScheduler, UNet2DConditionModel)
    import diffusion.loading

    _ = diffusion.loading
    # No collection in a child has to walk these objects, and so copy their pages.
    gc.collect()
    gc.freeze()


def serve(connection: socket.socket) -> dict[str, Any] | None:
    """Answer requests; return a program to run in each child, None when the other end is gone."""
    connection.send(b"ready")
    while True:
        message, descriptors, _, _ = socket.recv_fds(connection, _MAX_REQUEST_BYTES, 3)
        if not message:
            return None
        request = json.loads(message)
        if "collect" in request:
            _, status = os.waitpid(request["collect"], 0)
            answer = os.waitstatus_to_exitcode(status)
        else:
            answer = os.fork()
            if not answer:
                connection.close()
                _become(request, descriptors)
                return dict(request)
            for descriptor in descriptors:
                os.close(descriptor)
        connection.send(json.dumps(answer).encode())


def _become(request: dict[str, Any], descriptors: list[int]) -> None:
    die_with_parent()
    os.setsid()
    # A test run in the background ignores Ctrl-C, and so would its children.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for target, descriptor in enumerate(descriptors):
        os.dup2(descriptor, target)
        os.close(descriptor)
    os.chdir(request["folder"])
    os.environ.update(request["environment"])


def run(program: dict[str, Any]) -> None:
    """Run a module as `python -m` would."""
    if program["gate"]:
        gate.install(Path(program["gate"]))
    if program["file_limit_bytes"]:
        limit = (program["file_limit_bytes"],) * 2
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    sys.argv = [program["module"], *program["arguments"]]
    returncode = 0
    try:
        runpy.run_module(program["module"], run_name="__main__", alter_sys=True)
    except SystemExit as leaving:
        returncode = int(leaving.code or 0)
    except BaseException:
        traceback.print_exc()
        returncode = 1
    sys.stdout.flush()
    sys.stderr.flush()
    # An orderly end would first take apart everything that the server had imported: seconds.
    os._exit(returncode)


if __name__ == "__main__":
    main()
