"""Labels for the next search: a run's manifest with what people corrected since.

python serve/gather.py --manifest runs/NAME/manifest.csv --corrections FOLDER --out labels.csv
"""

import sys

from data.commandline import run_command
from serve.corrections.gathering import GatherConfig, gather


def main() -> int:
    return run_command(GatherConfig, _gather, description=__doc__)


def _gather(config: GatherConfig) -> int:
    print(gather(config))
    return 0


if __name__ == "__main__":
    sys.exit(main())
