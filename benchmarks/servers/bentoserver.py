"""BentoML by its documentation: one worker, its own image input, no access log."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import bentoml
import numpy as np
import sharedmodel
from PIL import Image


@bentoml.service(workers=1, traffic={"timeout": 120, "max_concurrency": 1000}, logging={"access": {"enabled": False}})
class Bird:
    def __init__(self) -> None:
        self.predictor = sharedmodel.load()

    @bentoml.api(route="/predict")
    def predict(self, image: Image.Image, /) -> dict[str, Any]:
        pixels = np.array(image.convert("RGB"))
        return sharedmodel.answer(self.predictor, self.predictor.predict([pixels]))


if __name__ == "__main__":
    bind = ["--host", "127.0.0.1", "--port", str(sharedmodel.port())]
    command = [sys.executable, "-m", "bentoml", "serve", "bentoserver:Bird", *bind]
    sys.exit(subprocess.call(command, cwd=Path(__file__).parent, env=dict(os.environ)))
