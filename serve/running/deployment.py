"""Ray Serve around the endpoint: replicas, limits, growth. `build` makes the application that Ray Serve runs.

Ray builds the application in a process of its own, which needs neither torch nor the model: what a replica alone needs
is imported in the replica.
"""

import logging
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import ray.serve
from ray.serve.config import AutoscalingConfig, BackpressureConfig
from ray.serve.schema import LoggingConfig

from serve.running.clusternode import refuse_too_late
from serve.settings import EndpointConfig, ServeConfig

if TYPE_CHECKING:
    from starlette.types import ASGIApp

logger = logging.getLogger("eagleray.serve")


@ray.serve.ingress()
class _Replica:
    """One copy of the model. The model comes by `user_config`, so a new one comes in without a restart."""

    def __init__(self) -> None:
        from serve.door.keystore import Keys
        from serve.endpoint import Endpoint
        from serve.promotion.board import RayBoard
        from serve.running.directport import tell
        from serve.running.raysown import leave_out_latencies
        from serve.watching.logs import write_json_lines
        from serve.watching.observer import Observer
        from serve.watching.raymeters import RaySink

        leave_out_latencies()
        write_json_lines()
        self._observer = Observer(RaySink())
        tell(self._observer)
        self._keys = Keys()
        replica = ray.serve.get_replica_context().replica_id.unique_id
        self._endpoint = Endpoint(watcher=self._observer, board=RayBoard(), replica=replica)

    def __serve_build_asgi_app__(self) -> "ASGIApp":
        from serve.application import build_asgi

        return build_asgi(self._endpoint, self._observer, self._keys, echoed=True)

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        try:
            config = EndpointConfig.from_user_config(user_config)
            if config.auth == "keys":
                self._keys.follow(config.keys)
            self._observer.log = config.log
            await self._endpoint.reconfigure(user_config)
        except Exception:
            # Ray ends a replica whose reconfigure raises, and the one in its place cannot take the settings either.
            if self._endpoint.active is None:
                raise
            logger.exception("the settings cannot be taken; the model in service stays")

    async def check_health(self) -> None:  # Ray runs one that is not async in a new thread, each second
        self._endpoint.check_health()

    def __del__(self) -> None:
        # Ray Serve calls it before it ends a replica: the last counts go out.
        self._observer.close()


def build_application(config: ServeConfig) -> ray.serve.Application:
    """The application for `ray.serve.run`."""
    config = config.resolved()
    deployment = ray.serve.deployment(
        name="endpoint",
        user_config=config.endpoint.as_user_config(),
        autoscaling_config=_growth(config),
        max_ongoing_requests=config.max_ongoing_requests,
        max_queued_requests=config.max_queued_requests,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
        ray_actor_options={
            "num_cpus": config.cpus_per_replica,
            "num_gpus": config.gpus_per_replica if config.endpoint.device == "cuda" else 0,
        },
        # A replica that died is found by this, and its place taken by a new one.
        health_check_period_s=1,
        health_check_timeout_s=30,
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=config.shutdown_s,
        # With few replicas a roll must start the new one before it stops the old one.
        max_surge_percent=100,
        # A bundle that does not load will not load the tenth time either.
        max_constructor_retry_count=2,
        logging_config=LoggingConfig(log_level="WARNING", enable_access_log=False),
    )
    return deployment(_Replica).bind()


def _growth(config: ServeConfig) -> AutoscalingConfig:
    """When a replica is added, and when one goes. There from the first day: adding this block to a running deployment
    would restart its replicas."""
    return AutoscalingConfig(
        min_replicas=config.min_replicas,
        # An endpoint that may go to sleep starts awake: a bundle that does not load shows at once.
        initial_replicas=1 if config.min_replicas == 0 else None,
        max_replicas=config.max_replicas,
        # A quarter of what a replica admits: a full one asks for three more at once. What waits is not counted.
        target_ongoing_requests=max(1, config.max_ongoing_requests // 4),
        # Replicas report each second (Ray's default is 10 s), and the mean of three reports decides.
        metrics_interval_s=1,
        look_back_period_s=3,
        upscale_delay_s=config.upscale_s,
        downscale_delay_s=config.idle_s,
    )


def build(args: Mapping[str, Any]) -> ray.serve.Application:
    """The application from flat arguments, as `serve run serve.app:app bundle=runs/NAME/bundle` gives them."""
    config = ServeConfig.from_arguments(args)
    refuse_too_late(config, os.environ)
    return build_application(config)
