"""Label this folder: python serve/classify.py --bundle runs/NAME/bundle --images FOLDER --out predictions.csv"""

import sys

from data.commandline import run_command
from serve.labelling import LabelConfig, label_images


def main() -> int:
    return run_command(LabelConfig, _label, description=__doc__)


def _label(config: LabelConfig) -> int:
    print(label_images(config, progress=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
