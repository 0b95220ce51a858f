"""`python -m edge_client` and the console script `edge-client`."""

from __future__ import annotations

import os
import sys
import traceback

from edge_client import interrupts


def main() -> None:
    """Run the command line and end the process: 0 done, 1 failed, 2 bad usage, 130 interrupted."""
    # gRPC's own log lines are not for users.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        # SIGTERM leaves as Ctrl-C does: with the terminal, sessions and processes put in order.
        interrupts.install()
        from edge_client.cli import run

        exit_code = run()
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        exit_code = 130
    except Exception:
        traceback.print_exc()
        exit_code = 1
    sys.stderr.flush()
    # A model that is still loading on its thread would hold up the interpreter's orderly end.
    os._exit(exit_code)


if __name__ == "__main__":
    main()
