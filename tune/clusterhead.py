"""What a cluster's head knows and Ray does not say: which workers may still come, and that none is to be had.

A command on a cluster runs on its head (`ray submit`, `ray job submit`), where both are files.
"""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from tune.nodes.fallback import LOGS, NEWS, Tail

AUTOSCALER: Final = Path("~/ray_bootstrap_config.yaml")
"""The configuration that `ray up` leaves for the autoscaler: JSON, whatever its name says."""
_EVERY_S: Final = 5.0


def workers_may_have(file: Path = AUTOSCALER) -> dict[str, int]:
    """The CPUs and GPUs of as many workers as the autoscaler may launch: {"CPU": n, "GPU": n}.

    Of the type that gives most, since any one type may be all that EC2 has. Nothing where there is no such file, or
    none that can be read: then what runs already is all that counts.
    """
    try:
        config = json.loads(file.expanduser().read_text(encoding="utf-8"))
        return _most(config)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {"CPU": 0, "GPU": 0}


def _most(config: dict[str, Any]) -> dict[str, int]:
    most, found = int(config.get("max_workers", 0)), {"CPU": 0, "GPU": 0}
    for name, kind in config["available_node_types"].items():
        if name != config["head_node_type"]:
            count = min(int(kind.get("max_workers", most)), most)
            found = {key: max(value, count * int(kind["resources"].get(key, 0))) for key, value in found.items()}
    return found


class News:
    """Lines that the head's services write for whoever waits: tune/nodes/fallback.py, when no type is to be had."""

    def __init__(self, file: Path = LOGS / NEWS, say: Callable[[str], None] | None = None) -> None:
        """What stands there already is old. `say` takes a line; the default prints it."""
        self._tail, self._say = Tail(file), say or _print
        self._tail.lines()

    def tell(self) -> None:
        """Say what is new. A file that is missing, or that a new session put in its place, is no fault."""
        for line in self._tail.lines():
            self._say(f"cluster     {line}")

    def follow(self) -> None:
        """Tell from now on, for as long as this process lives."""
        threading.Thread(target=self._follow, name="cluster-news", daemon=True).start()

    def _follow(self) -> None:
        while True:
            time.sleep(_EVERY_S)
            self.tell()


def _print(line: str) -> None:
    print(line, flush=True)
