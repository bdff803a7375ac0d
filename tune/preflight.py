"""`python tune/preflight.py cluster.yaml`: what `ray up` would meet, and what it can cost, beforehand."""

import sys

from data.commandline import run_command
from models.processes import prepare_environment

if __name__ == "__main__":
    prepare_environment()  # before torch is imported
    from tune.cloud.checking import preflight
    from tune.cloud.preflightsettings import PreflightConfig

    sys.exit(run_command(PreflightConfig, preflight, description=PreflightConfig.__doc__ or ""))
