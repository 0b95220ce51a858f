"""An emulated network between an edge and a cloud: a TCP proxy that is slow, narrow, silent or cut on demand.

In a test, in its event loop:

    async with EmulatedNetwork(cloud.address, LINKS["dsl"]) as network:
        ...  # connect to network.address
        network.blackhole()

For figures, in a process of its own, so that it shares no interpreter with what is measured:

    with network_process(cloud.address, "dsl") as network:
        ...  # the same address, blackhole(), restore() and reset()

By hand: `python -m bench.network --help`.
"""

from bench.network.emulation import EmulatedNetwork
from bench.network.link import LINKS, Link
from bench.network.process import NetworkProcess, network_process

__all__ = ["LINKS", "EmulatedNetwork", "Link", "NetworkProcess", "network_process"]
