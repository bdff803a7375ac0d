"""Hostile input for ten minutes each way: nothing may be answered 5xx, nothing may hang, the memory stays flat.

    python benchmarks/fuzz.py --schemathesis OTHER/bin/schemathesis
    python benchmarks/fuzz.py --minutes 0.5

`requests`: schemathesis makes requests of the endpoint's own OpenAPI document, fitting and unfitting ones, for every
route. `images`: our own; files of every kind, whole and nasty (tests/images_zoo.py), with bytes turned, cut, doubled
and exchanged, and JSON that is deep, huge or absurd, to every route that takes images.

The last line is one JSON object: answers by route and status, `server_errors`, `hangs` (no answer within 30 s),
`broken` (connections that ended without one), `replica_growth` of the memory after warm-up, and schemathesis' exit code
with the last of what it said. What caused an error is kept in the folder `--keep`.
"""

import asyncio
import base64
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro
from loadgen import Connection, jpegs
from soak import Scales, growth, megabytes
from underload import ROOT, Endpoint, say, write_bundle

_PATIENCE_S = 30.0
_NUMBERS = (
    "0",
    "-1",
    "255",
    "256",
    "1e400",
    "1e-400",
    "NaN",
    "Infinity",
    "-Infinity",
    "9" * 400,
    "0.5",
    "true",
    "null",
)


@dataclass(frozen=True)
class FuzzConfig:
    """How long, and with what."""

    minutes: float = 10
    """Of each of the two."""
    schemathesis: str = ""
    """The program; empty leaves that part out."""
    checks: str = "not_a_server_error"
    """What schemathesis looks for; "all" finds deviations from the document as well."""
    clients: int = 4
    """Connections of the image fuzzer."""
    seed: int = 0
    keep: str = ""
    """Folder for requests that caused an error."""


@dataclass
class Found:
    """What came back."""

    statuses: Counter[str] = field(default_factory=Counter)
    server_errors: int = 0
    hangs: int = 0
    broken: int = 0
    examples: list[str] = field(default_factory=list)


class Mutant:
    """Makes bad files out of good ones."""

    def __init__(self, seed: int) -> None:
        sys.path.append(str(ROOT))
        from tests.images_zoo import zoo

        self.draw = random.Random(seed)
        self._files = [one.blob for one in zoo() if 0 < len(one.blob) < 2**20] + jpegs(10)

    def blob(self) -> bytes:
        blob = bytearray(self.draw.choice(self._files))
        for _ in range(self.draw.choice((0, 1, 1, 2, 5))):
            if blob:
                self._change(blob)
        return bytes(blob)

    def _change(self, blob: bytearray) -> None:
        draw, at = self.draw, self.draw.randrange(len(blob))
        way = draw.randrange(6)
        if way == 0:  # turn bits, most often in the head, where the lengths and sizes stand
            for _ in range(draw.choice((1, 1, 4, 64))):
                blob[draw.randrange(min(len(blob), draw.choice((64, 1024, len(blob)))))] ^= 1 << draw.randrange(8)
        elif way == 1:
            del blob[at:]
        elif way == 2:
            del blob[at : at + draw.choice((1, 2, 4, 100))]
        elif way == 3:
            blob[at:at] = blob[at : at + draw.choice((1, 2, 4, 1000))]
        elif way == 4:
            blob[at : at + 4] = draw.choice((b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80\0\0\0"))
        else:
            blob[at:] = draw.choice(self._files)[at:]

    def json(self) -> bytes:
        """Texts that are JSON, nearly JSON, or an absurd shape of it."""
        draw = self.draw
        number, depth = draw.choice(_NUMBERS), draw.choice((1, 3, 50, 1000, 100_000))
        image = json.dumps({"b64": base64.b64encode(self.blob()).decode()})
        inner = draw.choice((number, '"text"', "{}", "[]", image, f"[{','.join([number] * draw.choice((3, 3000)))}]"))
        inner = draw.choice((inner, "[" * depth + inner + "]" * draw.choice((depth, depth, depth - 1))))
        key = draw.choice(("instances", "instances", "inputs", "image", "\\u0000", "a" * 10_000))
        text = draw.choice((f'{{"{key}": {inner}}}', f'{{"{key}": [{inner}, {inner}]}}', inner, f'{{"{key}": {inner}'))
        return text.encode()

    def tensor(self) -> bytes:
        """A request of the Open Inference Protocol, wrong in a place or two."""
        draw = self.draw
        shape: list[Any] = draw.choice(
            ([1, 8, 8, 3], [2, 8, 8, 3], [1, 8, 8], [0], [-1, 8, 8, 3], [2**40, 1, 1, 3], ["1"])
        )
        kind = draw.choice(("UINT8", "FP32", "BYTES", "FP16", "int8", 7))
        data: Any = draw.choice(
            ([1] * 192, [0.5] * 192, [base64.b64encode(self.blob()).decode()], [], None, "text", [[1] * 192])
        )
        given = {"name": draw.choice(("image", "", 5)), "shape": shape, "datatype": kind, "data": data}
        return json.dumps({"inputs": draw.choice(([given], [], given, [given, given]))}).encode()


Request = tuple[str, str, bytes]
"""Path, content type, body."""


def requests(mutant: Mutant, name: str) -> list[Callable[[], Request]]:
    """Each makes one request."""
    edge = "fuzz"

    def form() -> Request:
        parts = [
            f'--{edge}\r\nContent-Disposition: form-data; name="image"; filename="{number}.jpg"\r\n\r\n'.encode()
            + mutant.blob()
            + b"\r\n"
            for number in range(mutant.draw.choice((1, 2, 70)))
        ]
        body = bytearray(b"".join(parts) + f"--{edge}--\r\n".encode())
        if mutant.draw.random() < 0.3:
            body[mutant.draw.randrange(len(body))] ^= 0xFF
        return "/predict", f"multipart/form-data; boundary={edge}", bytes(body)

    def correction() -> bytes:
        """With a label as a rule, else no image of it would be looked at."""
        said = b"" if mutant.draw.random() < 0.1 else mutant.draw.choice((b"class-1", b"nobody", b"=1+1", b"\xff"))
        head = f'--{edge}\r\nContent-Disposition: form-data; name="label"\r\n\r\n'.encode()
        return (head + said + b"\r\n" if said else b"") + form()[2]

    def encoded() -> bytes:
        blob = base64.b64encode(mutant.blob()).decode()
        return json.dumps({"instances": [{"b64": blob}] * mutant.draw.choice((1, 3))}).encode()

    return [
        lambda: ("/predict", "application/octet-stream", mutant.blob()),
        form,
        lambda: ("/invocations", "image/jpeg", mutant.blob()),
        lambda: (f"/v1/models/{name}:predict", "application/json", encoded()),
        lambda: (f"/v1/models/{name}:predict", "application/json", mutant.json()),
        lambda: (f"/endpoints/{name}/invocations", "application/json", mutant.json()),
        lambda: (f"/v2/models/{name}/infer", "application/json", mutant.tensor()),
        lambda: (f"/v2/models/{name}/infer", "application/json", mutant.json()),
        lambda: ("/corrections", f"multipart/form-data; boundary={edge}", correction()),
    ]


async def bombard(endpoint: Endpoint, config: FuzzConfig, mutant: Mutant, found: Found) -> None:
    end, makers = time.monotonic() + 60 * config.minutes, requests(mutant, "eagleray")

    async def client() -> None:
        connections: dict[str, Connection] = {}
        while time.monotonic() < end:
            path, kind, body = mutant.draw.choice(makers)()
            connection = connections.setdefault(path, Connection(endpoint.url + path))
            headers = {**endpoint.headers, "content-type": kind}
            try:
                status, answer = await asyncio.wait_for(connection.post(body, headers), _PATIENCE_S)
            except TimeoutError:
                found.hangs += 1
                _keep(config, found, path, "hang", body)
            except (OSError, EOFError, ValueError) as error:
                found.broken += 1
                _keep(config, found, path, repr(error), body)
            else:
                found.statuses[f"{path} {status}"] += 1
                if status >= 500:
                    found.server_errors += 1
                    _keep(config, found, path, f"{status} {answer[:300]!r}", body)

    await asyncio.gather(*(client() for _ in range(config.clients)))


def _keep(config: FuzzConfig, found: Found, path: str, what: str, body: bytes) -> None:
    if len(found.examples) < 20:
        found.examples.append(f"{path}: {what}")
        if config.keep:
            folder = Path(config.keep)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{len(found.examples)}-{path.strip('/').replace('/', '-')}").write_bytes(body)


def schemathesis(config: FuzzConfig, endpoint: Endpoint, folder: Path) -> dict[str, Any]:
    """Its exit code and last words. 0 is no failure found."""
    command = [config.schemathesis, "run", f"{endpoint.url}/openapi.json", "--checks", config.checks]
    command += ["--header", f"authorization: {endpoint.headers['authorization']}", "--continue-on-failure"]
    command += ["--max-time", str(max(1, round(60 * config.minutes))), "--request-timeout", str(_PATIENCE_S)]
    command += ["--seed", str(config.seed), "--suppress-health-check", "all", "--phases", "examples,coverage,fuzzing"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    print(done.stdout[-6000:], done.stderr[-2000:], flush=True)
    return {"exit": done.returncode, "said": done.stdout.splitlines()[-25:]}


def main() -> int:
    config = tyro.cli(FuzzConfig, description=__doc__)
    found, said = Found(), dict[str, Any]()
    with tempfile.TemporaryDirectory() as folder:
        write_bundle(Path(folder) / "tiny", "tiny")
        with Endpoint(
            Path(folder) / "tiny", "--max-replicas", "1", "--corrections", f"{folder}/corrections"
        ) as endpoint:
            before = endpoint.tree.replicas()
            with Scales(endpoint, every_s=min(10.0, 3 * config.minutes)) as scales:
                asyncio.run(bombard(endpoint, config, Mutant(config.seed), found))
                if config.schemathesis:
                    said = schemathesis(config, endpoint, Path(folder))
            alive = endpoint.client(timeout_s=30).ready() and endpoint.tree.replicas() == before
            tail = endpoint.log()[-2000:]
    say(
        statuses=dict(sorted(found.statuses.items())),
        server_errors=found.server_errors,
        hangs=found.hangs,
        broken=found.broken,
        same_replica_alive=alive,
        replica_growth=growth(scales.replica, 0.2),
        replica_mb=megabytes(scales.replica),
        schemathesis=said,
        examples=found.examples,
        log=tail,
    )
    failed = found.server_errors or found.hangs or found.broken or not alive or said.get("exit")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
