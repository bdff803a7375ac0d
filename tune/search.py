"""`python tune/search.py`: labelled images in, the best classifier that the trials found out."""

import sys

from data.commandline import run_command
from models.processes import prepare_environment

if __name__ == "__main__":
    prepare_environment()  # before Ray is imported, and with it everything else
    from tune.runs import search
    from tune.settings import SearchConfig

    sys.exit(run_command(SearchConfig, search, description=SearchConfig.__doc__ or ""))
