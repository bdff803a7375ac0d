"""Log lines for machines: one JSON object a line, on the replica's standard error.

Nothing that a client sends gets into a line as it is. A request's line has its id, which is checked, the route's
template in the place of the path, and numbers; never an image, a file's name or a key. JSON in ASCII has no line break
and no escape sequence inside a text, so that nobody can write a line of their own.
"""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Final, Literal, TextIO

Log = Literal["errors", "all", "off"]
"""Which requests have a line. errors: those answered 5xx, and slow ones."""

SLOW_S: Final = 5.0
"""Seconds from which a request is slow."""
_LONGEST: Final = 8000
logger = logging.getLogger("eagleray.serve")


class JsonLines(logging.Formatter):
    """Each record as an object: time (UTC), level, message, what the record holds as `fields`, and the exception."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {"time": time, "level": record.levelname.lower()}
        line["message"] = record.getMessage()[:_LONGEST]
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)[-_LONGEST:]
        return json.dumps(line, default=str)


def write_json_lines(stream: TextIO | None = None) -> None:
    """From now on the endpoint's log goes to `stream` (None is the standard error) as JSON, and nowhere else."""
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines())
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


def log_request(log: Log, *, status: int, seconds: float, **fields: str | int | None) -> None:
    """The line of one request, where `log` asks for one. `fields` with nothing in them are left out."""
    if log == "off" or (log == "errors" and status < 500 and seconds < SLOW_S):
        return
    level = logging.ERROR if status >= 500 else logging.WARNING if seconds >= SLOW_S else logging.INFO
    known = {name: value for name, value in fields.items() if value not in ("", None)}
    told = {**known, "status": status, "ms": round(seconds * 1000, 1)}
    logger.log(level, "request", extra={"fields": told})
