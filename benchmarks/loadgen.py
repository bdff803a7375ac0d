"""Load on a server on this machine: closed (so many clients, each asks again once it is answered) or open (requests
come when they come, whatever the server does).

wrk makes the closed load where it is installed, and a plain asyncio client elsewhere, which costs more of the machine.
The open load is always asyncio's; its latencies count from the moment at which a request was due, so a server that
stalls is charged for those that had to wait.
"""

import asyncio
import json
import random
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from PIL import Image

# wrk counts answers by the microsecond that they took, so its percentiles are exact.
_LUA = """
local requests, at = {}, 0
init = function(args)
   for i = 3, #args do wrk.headers[args[i]:match("^(.-)=")] = args[i]:match("=(.*)$") end
   for i = 0, tonumber(args[2]) - 1 do
      local file = io.open(args[1] .. "/" .. i, "rb")
      requests[i] = wrk.format("POST", nil, nil, file:read("*a"))
      file:close()
   end
   at = math.random(0, #requests)
end
request = function()
   at = (at + 1) % (#requests + 1)
   return requests[at]
end
done = function(summary, latency, _)
   local e = summary.errors
   io.write(string.format('\\n{"requests": %d, "seconds": %f, "p50": %f, "p99": %f, "max": %f',
      summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
      latency.max / 1e3))
   io.write(string.format(', "refused": %d, "broken": %d}\\n', e.status, e.connect + e.read + e.write + e.timeout))
end
"""


@dataclass(frozen=True)
class Load:
    """What came of it."""

    seconds: float
    answered: int
    """With a 2xx."""
    refused: int
    """With another status."""
    broken: int
    """Without an answer."""
    p50_ms: float
    p99_ms: float
    """Of all answers, refusals among them."""
    longest_ms: float
    statuses: Mapping[str, int] = field(default_factory=dict)
    """Answers by status, where the generator counts them."""

    @property
    def rate(self) -> float:
        """Good answers a second."""
        return self.answered / self.seconds


@dataclass(frozen=True)
class Post:
    """What is posted where."""

    url: str
    bodies: Sequence[bytes]
    """In turn."""
    headers: Mapping[str, str] = field(default_factory=dict)


def jpegs(count: int = 50, size: int = 224, seed: int = 0) -> list[bytes]:
    """JPEGs of quality 85, about 13 KB each at 224 pixels: smooth colours and grain."""
    import io

    import numpy as np

    draw, made = np.random.default_rng(seed), list[bytes]()
    for _ in range(count):
        coarse = draw.integers(20, 236, (14, 14, 3)).astype(np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC), np.float32)
        pixels = (smooth + draw.normal(0, 7.5, (size, size, 1))).clip(0, 255).astype(np.uint8)
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, "JPEG", quality=85)
        made.append(out.getvalue())
    return made


def closed_loop(post: Post, *, connections: int, seconds: float, own: bool = False) -> Load:
    """`connections` clients for so long. `own`: our own client even where wrk is installed."""
    if shutil.which("wrk") and not own:
        return _wrk(post, connections, seconds)
    return asyncio.run(_closed(post, connections, seconds))


def open_loop(post: Post, *, rate: float, seconds: float, connections: int = 256, seed: int = 0) -> Load:
    """Requests at random moments (a Poisson process), `rate` a second on average."""
    return asyncio.run(_open(post, rate, seconds, connections, seed))


def _wrk(post: Post, connections: int, seconds: float) -> Load:
    with tempfile.TemporaryDirectory() as folder:
        for number, body in enumerate(post.bodies):
            (Path(folder) / str(number)).write_bytes(body)
        script = Path(folder) / "post.lua"
        script.write_text(_LUA)
        command = [
            "wrk",
            "-t1",
            f"-c{connections}",
            f"-d{seconds:.0f}s",
            "--timeout",
            "60s",
            "-s",
            str(script),
            post.url,
        ]
        command += ["--", folder, str(len(post.bodies)), *(f"{name}={value}" for name, value in post.headers.items())]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds + 120)
    found = json.loads(done.stdout.splitlines()[-1])
    good = found["requests"] - found["refused"]
    times = (found["p50"], found["p99"], found["max"])
    return Load(found["seconds"], good, found["refused"], found["broken"], *times)


class Connection:
    """HTTP/1.1 over one socket, as little as a load needs: it is opened when needed, and again once it broke."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port, self._path = parts.hostname or "127.0.0.1", parts.port or 80, parts.path or "/"
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, body: bytes, headers: Mapping[str, str]) -> tuple[int, bytes]:
        """Status and body of the answer. OSError, EOFError or ValueError where there is none."""
        if self._streams is not None and self._streams[0].at_eof():
            self.close()  # the server has closed a connection that was idle for long, as it may
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, self._port)
        reader, writer = self._streams
        lines = [f"POST {self._path} HTTP/1.1", f"host: {self._host}:{self._port}", f"content-length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        try:
            writer.write("\r\n".join([*lines, "", ""]).encode() + body)
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            found = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
            answer = await self._body(reader, found)
        except BaseException:
            self.close()
            raise
        if found.get("connection", "").lower() == "close":
            self.close()
        return int(head[0].split()[1]), answer

    async def _body(self, reader: asyncio.StreamReader, headers: Mapping[str, str]) -> bytes:
        if headers.get("transfer-encoding", "").lower() != "chunked":
            return await reader.readexactly(int(headers.get("content-length", "0")))
        parts = []
        while size := int((await reader.readline()).split(b";")[0], 16):
            parts.append(await reader.readexactly(size))
            await reader.readline()
        await reader.readline()
        return b"".join(parts)

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


class _Tally:
    """Adds up what comes back."""

    def __init__(self, post: Post) -> None:
        self._post = post
        self._times: list[float] = []
        self._statuses: Counter[str] = Counter()
        self._broken = 0
        self._turn = 0

    async def ask(self, connection: Connection, due: float) -> None:
        self._turn += 1
        body = self._post.bodies[self._turn % len(self._post.bodies)]
        try:
            status, _ = await connection.post(body, self._post.headers)
        except (OSError, EOFError, ValueError):
            self._broken += 1
            await asyncio.sleep(0.01)  # where nobody listens, a loop without a pause would only burn
        else:
            self._times.append(time.monotonic() - due)
            self._statuses[str(status)] += 1

    def load(self, seconds: float) -> Load:
        times = sorted(self._times) or [0.0]
        p50, p99 = (1000 * times[min(len(times) - 1, int(len(times) * share))] for share in (0.5, 0.99))
        good = sum(count for status, count in self._statuses.items() if status.startswith("2"))
        refused = sum(self._statuses.values()) - good
        return Load(seconds, good, refused, self._broken, p50, p99, 1000 * times[-1], dict(self._statuses))


async def _closed(post: Post, connections: int, seconds: float) -> Load:
    tally, start = _Tally(post), time.monotonic()

    async def client() -> None:
        connection = Connection(post.url)
        while (now := time.monotonic()) < start + seconds:
            await tally.ask(connection, now)
        connection.close()

    await asyncio.gather(*(client() for _ in range(connections)))
    return tally.load(time.monotonic() - start)


async def _open(post: Post, rate: float, seconds: float, connections: int, seed: int) -> Load:
    tally, draw, start = _Tally(post), random.Random(seed), time.monotonic()
    free, under_way = [Connection(post.url) for _ in range(connections)], set[asyncio.Task[None]]()
    room = asyncio.Semaphore(connections)

    async def one(due: float) -> None:
        async with room:
            connection = free.pop()
            try:
                await tally.ask(connection, due)
            finally:
                free.append(connection)

    due = start
    while (due := due + draw.expovariate(rate)) < start + seconds:
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        task = asyncio.create_task(one(due))
        under_way.add(task)
        task.add_done_callback(under_way.discard)
    await asyncio.gather(*under_way)
    took = time.monotonic() - start
    for connection in free:
        connection.close()
    return tally.load(took)


def until(condition: Callable[[], bool], *, seconds: float, every: float = 0.5) -> float:
    """Wait for it; the seconds that it took. TimeoutError."""
    start = time.monotonic()
    while not condition():
        if time.monotonic() - start > seconds:
            raise TimeoutError(f"not within {seconds:.0f} s")
        time.sleep(every)
    return time.monotonic() - start
