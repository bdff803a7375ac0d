"""On the lab's laptop: ask an endpoint from several threads until there is a file `stop`; prints what came of it.

What came of it so far is in `asking.json` each second.
"""

import argparse
import json
import os
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from serve.client import Answer, Client


class Asked:
    """What the threads met with."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen, self._models, self._errors = Counter[str](), set[str](), list[str]()
        self._slowest = 0.0

    def tried(self, _: object) -> None:
        """A try that failed and is made again."""
        with self._lock:
            self._seen["tried again"] += 1

    def note(self, seconds: float, model: str, error: str) -> None:
        """One request; `error` is "" where it was answered."""
        with self._lock:
            self._seen["failed" if error else "answered"] += 1
            self._slowest = max(self._slowest, seconds)
            self._models.update([model] if model else [])
            self._errors.extend([error] if error else [])

    def told(self) -> dict[str, Any]:
        with self._lock:
            counts = {name: self._seen[name] for name in ("answered", "failed", "tried again")}
            rest = {"slowest_s": round(self._slowest, 2), "models": sorted(self._models), "errors": self._errors[:3]}
            return {**counts, **rest}


def ask(client: Client, asked: Asked, number: int, stop: Path) -> None:
    """One thread's requests. Whatever is raised is a request that failed: a thread that ends would look like peace."""
    pixels = np.random.default_rng(number).integers(0, 256, (48, 48, 3), np.uint8)
    while not stop.exists():
        begun, model, error = time.monotonic(), "", ""
        try:
            answer = client.predict(pixels)
            model, error = (answer.model, "") if isinstance(answer, Answer) else ("", answer.message)
        except Exception as problem:
            error = f"{type(problem).__name__}: {problem}"
            time.sleep(0.1)  # one that cannot ask at all must not do so all the time
        asked.note(time.monotonic() - begun, model, error)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--threads", type=int, default=8)
    given = parser.parse_args()
    key, asked, draft = Path("key.txt").read_text().strip(), Asked(), Path("asking.new")
    with Client(given.url, key, on_retry=asked.tried) as client:
        parts = [(client, asked, number, Path("stop")) for number in range(given.threads)]
        threads = [threading.Thread(target=ask, args=part) for part in parts]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            time.sleep(1.0)
            draft.write_text(json.dumps(asked.told()))
            os.replace(draft, "asking.json")  # read meanwhile: whole or not at all
    print(json.dumps(asked.told()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
