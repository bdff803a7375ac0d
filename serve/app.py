"""Serve a trained model over HTTP: python serve/app.py --bundle runs/NAME/bundle

On a cluster the same application runs under Ray Serve's own commands, with the same names as arguments:

    serve run serve.app:app bundle=s3://bucket/NAME/bundle max_replicas=4
"""

import sys
from typing import TYPE_CHECKING

from data.commandline import run_command
from models.processes import prepare_environment
from serve.settings import ServeConfig

if TYPE_CHECKING:
    from ray.serve import Application


def app(args: dict[str, str]) -> "Application":
    """The application, for `serve run` and `serve deploy`: `args` holds the fields of ServeConfig by name."""
    from serve.deployment import build

    return build(args)


def main() -> int:
    return run_command(ServeConfig, _serve, description=__doc__)


def _serve(config: ServeConfig) -> int:
    # Before Ray is imported, which reads this environment once; hence no import of Ray above.
    prepare_environment()
    from serve.local import serve_until_stopped

    return serve_until_stopped(config)


if __name__ == "__main__":
    sys.exit(main())
