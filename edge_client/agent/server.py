"""The agent's process: ports, health, loading, draining."""

from __future__ import annotations

import asyncio
import gc
import logging

import grpc.aio

from edge_client import interrupts
from edge_client.agent.agent import Agent
from edge_client.agent.config import AGENT_SERVER_OPTIONS, LOGGER_NAME, AgentConfig
from edge_client.agent.servicer import EdgeAgentServicer
from edge_client.client import EdgeClient
from edge_client.outcome import Interrupted
from protos import edge_agent_v1_pb2, edge_agent_v1_pb2_grpc
from wire.serving.logs import configure_logging
from wire.serving.ports import Ports
from wire.serving.stop import Stop

_log = logging.getLogger(LOGGER_NAME)
_SERVICE_NAME = edge_agent_v1_pb2.DESCRIPTOR.services_by_name["EdgeAgent"].full_name
# For the last updates to be taken, once the generations have ended.
_LAST_WORDS_SECONDS = 5.0


async def run(client: EdgeClient, config: AgentConfig) -> int:
    """Serve until a signal, or the end of standard input if so configured.

    Args:
        client: Not loaded yet; it is closed in the end.
        config: Where to serve, and how much.

    Returns:
        The process's exit code: 0 after SIGTERM or the end of standard input, 130 after SIGINT.

    Raises:
        OSError: A port or a model cannot be had.
        ValueError: A model cannot be used here.
        EcdiffError: The cloud service of the agent's own says why it cannot run.
    """
    stop = Stop()
    agent = Agent(client, config.settings, max_queue=config.max_queue, log_prompts=config.log_prompts)

    def register(server: grpc.aio.Server) -> None:
        edge_agent_v1_pb2_grpc.add_EdgeAgentServicer_to_server(EdgeAgentServicer(agent), server)

    ports = Ports(
        _SERVICE_NAME,
        listen=config.listen,
        metrics_listen=config.metrics_listen,
        registry=client.metrics.registry,
        options=AGENT_SERVER_OPTIONS,
    )
    address, metrics_address = await ports.open(register)
    agent.address = str(address)
    _say(f"edge-agent listening on {address} metrics on {metrics_address}")
    if config.exit_with_stdin:
        stop.when_stdin_ends()
    loading = asyncio.create_task(agent.load())
    stopping = asyncio.create_task(stop.requested.wait())
    try:
        await asyncio.wait({loading, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            name = loading.result()
            await ports.set_serving(True)
            _say(f"edge-agent serving {name}")
            # The imports left a few hundred thousand objects that never die; no collection has to walk them again.
            gc.freeze()
            await stopping
        await ports.refuse()
        await agent.drain(config.grace_seconds)
        await ports.close(_LAST_WORDS_SECONDS)
    finally:
        stopping.cancel()
        loading.cancel()
        await asyncio.gather(loading, stopping, return_exceptions=True)
        await agent.close()
    return stop.exit_code


def serve(client: EdgeClient, config: AgentConfig, log_level: str) -> int:
    """As `run`, in a loop of its own, with its log on standard error.

    Raises:
        Interrupted: A signal came before it could be listened for.
    """
    if interrupts.noted():
        raise Interrupted
    configure_logging(LOGGER_NAME, log_level)
    return asyncio.run(run(client, config))


def _say(line: str) -> None:
    print(line, flush=True)
