"""What Ray Serve is told: how many replicas, when more, what each one takes, and which gRPC methods there are."""

from __future__ import annotations

import math
import os

import ray
from ray import serve

from cloud_service.config import ServerConfig
from cloud_service.registry import PARKED_PER_RUNNING
from cloud_service.server import CALLS_BESIDE_SESSIONS
from deploy.ray.config import RayConfig
from deploy.ray.replica import Replica

NAME = "ecdiff"
SERVICER_FUNCTIONS = [
    "protos.ecdiff_v1_pb2_grpc.add_CloudDenoiserServicer_to_server",
    "grpc_health.v1.health_pb2_grpc.add_HealthServicer_to_server",
]
# Of the sessions that a replica takes: with so many on each, one more replica is started.
_TARGET_SHARE = 0.75
# From one look at a replica to the next; three that fail, and another takes its place.
_HEALTH_CHECK_SECONDS = 5.0
# Ray keeps here what is larger than 100 KiB while it is on its way: fragments of messages.
_OBJECT_STORE_BYTES = 100 * 2**20


def start_ray(config: RayConfig) -> None:
    """Join the cluster, or start a Ray of our own, and Serve's gRPC proxy there.

    Raises:
        ConnectionError: There is no cluster at that address.
    """
    if config.cluster is not None:
        ray.init(address=config.cluster, log_to_driver=True)
    else:
        ray.init(
            num_cpus=_num_cpus(config),
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            _node_ip_address="127.0.0.1",
        )
    serve.start(
        # Nothing is served over HTTP, but Ray wants the port.
        http_options={"host": "127.0.0.1", "port": 0},
        grpc_options={"port": config.port, "grpc_servicer_functions": SERVICER_FUNCTIONS, "enable_reflection": False},
        logging_config={"log_level": "WARNING", "enable_access_log": False},
    )


def application(
    server: ServerConfig,
    config: RayConfig,
    *,
    log_level: str = "info",
    replica: type[Replica] = Replica,
) -> serve.Application:
    """Return the replicas, as Serve starts and counts them.

    Args:
        server: What each replica serves.
        config: How many there are, and what each one takes.
        log_level: Of their logs.
        replica: What each one is.
    """
    deployment = serve.deployment(
        name="cloud",
        # Admission is the replica's: who is refused is told when to come again. Ray's own limit only guards it.
        max_ongoing_requests=(1 + PARKED_PER_RUNNING) * server.max_sessions + CALLS_BESIDE_SESSIONS,
        autoscaling_config={
            "min_replicas": config.min_replicas,
            "max_replicas": config.max_replicas,
            # A stream is one ongoing request for as long as its session lasts.
            "target_ongoing_requests": _TARGET_SHARE * server.max_sessions,
            "upscale_delay_s": config.upscale_seconds,
            "downscale_delay_s": config.downscale_seconds,
            "look_back_period_s": min(config.upscale_seconds, 10.0),
            "metrics_interval_s": min(config.upscale_seconds, 10.0) / 2,
        },
        health_check_period_s=_HEALTH_CHECK_SECONDS,
        graceful_shutdown_timeout_s=server.grace_seconds,
        graceful_shutdown_wait_loop_s=0.1,
        max_constructor_retry_count=2,
        ray_actor_options={"num_cpus": config.cpus_per_replica, "num_gpus": config.gpus_per_replica},
        logging_config={"log_level": "WARNING", "enable_access_log": False},
    )(replica)
    return deployment.bind(server, log_level)


def _num_cpus(config: RayConfig) -> int:
    """Return what Ray may hand out on this machine: enough for every replica, however few cores there are."""
    return max(os.cpu_count() or 1, math.ceil(config.max_replicas * config.cpus_per_replica))
