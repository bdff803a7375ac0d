"""BentoML by its documentation: one worker, its own image input, no access log."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import bentoml
import sharedmodel
from PIL import Image


@bentoml.service(workers=1, traffic={"timeout": 120, "max_concurrency": 1000}, logging={"access": {"enabled": False}})
class Bird:
    def __init__(self) -> None:
        self.predictor = sharedmodel.load()

    @bentoml.api(route="/predict")
    def predict(self, image: Image.Image, /) -> dict[str, Any]:
        # It has read the header only: the predictor gets the file, and decodes it as everybody else's does.
        file = image.fp  # type: ignore[attr-defined]
        file.seek(0)
        return sharedmodel.answer(self.predictor, self.predictor.predict([file.read()]))


if __name__ == "__main__":
    bind = ["--host", "127.0.0.1", "--port", str(sharedmodel.port())]
    command = [sys.executable, "-m", "bentoml", "serve", "bentoserver:Bird", *bind]
    sys.exit(subprocess.call(command, cwd=Path(__file__).parent, env=dict(os.environ)))
