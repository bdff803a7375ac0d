"""Serve a trained model over HTTP: python serve/app.py --bundle runs/NAME/bundle

It prints a line that works, with a key. `python serve/app.py --down` ends it from another terminal.

On a cluster the same application runs under Ray Serve's own commands, with the same names as arguments:

    serve run serve.app:app bundle=s3://bucket/NAME/bundle max_replicas=4
"""

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from data.commandline import run_command
from models.processes import prepare_environment
from serve.settings import ServeConfig

if TYPE_CHECKING:
    from ray.serve import Application


@dataclass(frozen=True)
class Start(ServeConfig):
    """The settings of an endpoint as this command shows them."""

    down: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """End an endpoint of yours that runs on this machine, with all its processes, instead of starting one. It takes
    --port alone, where more than one runs."""

    def settings(self) -> ServeConfig:
        """Without what is of this command alone: what runs as a script is another class to whoever imports it."""
        arguments = self.as_arguments()
        del arguments["down"]
        return ServeConfig.from_arguments(arguments)


@dataclass(frozen=True)
class Down:
    """End an endpoint that runs on this machine."""

    down: bool = False
    """End it."""
    port: int | None = None
    """Its port, where more than one runs."""


def app(args: dict[str, Any]) -> "Application":
    """The application, for `serve run` and `serve deploy`: `args` holds the fields of ServeConfig by name."""
    from serve.running.deployment import build

    return build(args)


def main() -> int:
    if "--down" in sys.argv[1:]:
        return run_command(Down, _down, description="End an endpoint of yours, with all its processes.")
    return run_command(Start, _serve, description=__doc__)


def _serve(given: Start) -> int:
    # All before Ray is imported, which reads this environment once; hence no import of Ray above.
    from serve.running.ingress import prepare

    config = given.settings().resolved()
    prepare_environment(threads=config.endpoint.threads)
    ingress = prepare(config)
    if ingress.note:
        print(ingress.note, file=sys.stderr)
    try:
        from serve.running.local import serve_until_stopped

        return serve_until_stopped(config, ingress)
    finally:
        ingress.remove()


def _down(config: Down) -> int:
    from serve.running.note import Running, end

    print("\n".join(end(Running.find(config.port))))
    others = Running.all()
    print(
        "\n".join(f"still running: the endpoint at {one.url}" for one in others) or "no endpoint of yours runs here now"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
