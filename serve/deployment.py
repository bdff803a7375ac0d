"""Ray Serve around the endpoint: replicas, batches, limits. `build` makes the application that Ray Serve runs."""

from collections.abc import Mapping
from typing import Any

import ray.serve
from fastapi import FastAPI
from ray.serve.config import AutoscalingConfig, BackpressureConfig
from ray.serve.schema import LoggingConfig

from serve.endpoint import Endpoint
from serve.routes import build_api
from serve.settings import ServeConfig


@ray.serve.ingress()
class _Replica:
    """One copy of the model. The model comes by `user_config`, so a new one comes in without a restart."""

    def __init__(self) -> None:
        self._endpoint = Endpoint()

    def __serve_build_asgi_app__(self) -> FastAPI:
        return build_api(self._endpoint)

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        await self._endpoint.reconfigure(user_config)

    def check_health(self) -> None:
        self._endpoint.check_health()


def build_application(config: ServeConfig) -> ray.serve.Application:
    """The application for `ray.serve.run`."""
    config = config.resolved()
    deployment = ray.serve.deployment(
        name="endpoint",
        user_config=config.endpoint.as_user_config(),
        # There from the first day: adding this block to a running deployment would restart its replicas.
        autoscaling_config=AutoscalingConfig(
            min_replicas=config.min_replicas,
            max_replicas=config.max_replicas,
            # Half of what a replica admits, so that a second one starts before the first is full.
            target_ongoing_requests=max(1, config.max_ongoing_requests // 2),
            upscale_delay_s=config.upscale_s,
            look_back_period_s=15,  # Ray wants it longer than the 10 s between two reports
            downscale_delay_s=config.idle_s,
        ),
        max_ongoing_requests=config.max_ongoing_requests,
        max_queued_requests=config.max_queued_requests,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
        ray_actor_options={
            "num_cpus": config.cpus_per_replica,
            "num_gpus": config.gpus_per_replica if config.endpoint.device == "cuda" else 0,
        },
        health_check_period_s=5,
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


def build(args: Mapping[str, Any]) -> ray.serve.Application:
    """The application from flat arguments, as `serve run serve.app:app bundle=runs/NAME/bundle` gives them."""
    return build_application(ServeConfig.from_arguments(args))
