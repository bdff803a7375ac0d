"""FastAPI and uvicorn as one would write them: the key checked, the predictor in a thread, no batches."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from sharedmodel import answer, is_key, key_hash, load, port


def build() -> FastAPI:
    api, predictor, expected = FastAPI(), load(), key_hash()
    worker = ThreadPoolExecutor(1)

    @api.post("/predict", response_model=None)
    async def predict(request: Request) -> JSONResponse:
        if not is_key(request.headers.get("authorization", ""), expected):
            return JSONResponse({"error": {"code": "wrong_key", "message": "wrong key"}}, 403)
        body = await request.body()
        answers = await asyncio.get_running_loop().run_in_executor(worker, predictor.predict, [body])
        return JSONResponse(answer(predictor, answers))

    return api


if __name__ == "__main__":
    uvicorn.run(build(), host="127.0.0.1", port=port(), access_log=False, log_level="warning")
