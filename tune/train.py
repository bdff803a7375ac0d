"""`python tune/train.py`: one model with given hyperparameters, on one worker or several."""

import sys

from data.commandline import run_command
from models.processes import prepare_environment

if __name__ == "__main__":
    prepare_environment()  # before Ray is imported, and with it everything else
    from tune.runs import train
    from tune.settings import TrainJobConfig

    sys.exit(run_command(TrainJobConfig, train, description=TrainJobConfig.__doc__ or ""))
