"""On the lab's laptop: ask an endpoint from several threads until there is a file `stop`; prints what came of it."""

import argparse
import json
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np

from serve.client import Answer, Client, ClientError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--threads", type=int, default=8)
    given = parser.parse_args()
    key, stop = Path("key.txt").read_text().strip(), Path("stop")
    seen, slowest, models, errors = Counter[str](), [0.0], set[str](), list[str]()
    lock = threading.Lock()

    def tried(_: object) -> None:
        with lock:
            seen["tried again"] += 1

    def ask(number: int) -> None:
        pixels = np.random.default_rng(number).integers(0, 256, (48, 48, 3), np.uint8)
        while not stop.exists():
            begun = time.monotonic()
            try:
                answer = client.predict(pixels)
                good, error = isinstance(answer, Answer), "" if isinstance(answer, Answer) else answer.message
            except ClientError as problem:
                good, error, answer = False, str(problem), None
            with lock:
                seen["answered" if good else "failed"] += 1
                slowest[0] = max(slowest[0], time.monotonic() - begun)
                models.update([answer.model] if isinstance(answer, Answer) else [])
                errors.extend([error] if error else [])

    with Client(given.url, key, on_retry=tried) as client:
        threads = [threading.Thread(target=ask, args=(number,)) for number in range(given.threads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    counts = {name: seen[name] for name in ("answered", "failed", "tried again")}
    print(json.dumps({**counts, "slowest_s": round(slowest[0], 2), "models": sorted(models), "errors": errors[:3]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
