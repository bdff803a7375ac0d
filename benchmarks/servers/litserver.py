"""LitServe by its documentation: one worker, no access log. It takes an image as a form's file, not as a raw body."""

import os
from typing import Any

import litserve
import sharedmodel
from fastapi import Request


class Api(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.predictor = sharedmodel.load()

    def decode_request(self, request: Request) -> bytes:  # by this annotation it learns that it is not JSON
        blob: bytes = request["image"].file.read()  # type: ignore[index]
        return blob

    def predict(self, x: Any) -> Any:
        # With batches it is a list of images, without a single one.
        return self.predictor.predict(x if isinstance(x, list) else [x])

    def unbatch(self, output: Any) -> Any:
        return [[one] for one in output]

    def encode_response(self, output: Any) -> Any:
        return sharedmodel.answer(self.predictor, output)


if __name__ == "__main__":
    batch = int(os.environ.get("LIT_BATCH", "1"))
    api = Api(max_batch_size=batch, batch_timeout=0.0, api_path="/predict")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=120)
    server.run(
        host="127.0.0.1", port=sharedmodel.port(), access_log=False, log_level="warning", generate_client_file=False
    )
