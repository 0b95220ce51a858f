"""`python -m edge_client` and the console script `edge-client`."""

from __future__ import annotations

import os


def main() -> None:
    """Run the command line."""
    # Forking beside gRPC's threads is unsafe; and its own log lines are not for users.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # Two services on one machine: a thread that spins while it waits takes the core that the other one needs.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from edge_client.cli import main as run

    run()


if __name__ == "__main__":
    main()
