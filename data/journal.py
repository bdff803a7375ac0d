"""A file of JSON lines that only grows: what is in it survives a kill, and a torn last line is passed over."""

import contextlib
import json
import os
from collections.abc import Iterator
from types import TracebackType
from typing import Any


class Journal:
    """Appends records to a file; `records` reads back those that were written whole."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._handle = -1

    def records(self) -> Iterator[dict[str, Any]]:
        """Every whole record, in the order of writing. None where there is no file yet."""
        with contextlib.suppress(FileNotFoundError), open(self._path, "rb") as lines:
            for line in lines:
                with contextlib.suppress(ValueError):  # torn by a kill in the middle of a write
                    record = json.loads(line)
                    if isinstance(record, dict):
                        yield record

    def __enter__(self) -> "Journal":
        os.makedirs(os.path.dirname(self._path), exist_ok=True)
        self._handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        size = os.fstat(self._handle).st_size
        if size and os.pread(self._handle, 1, size - 1) != b"\n":
            os.write(self._handle, b"\n")  # close a torn line, or the next record would be lost with it
        return self

    def append(self, record: dict[str, Any]) -> None:
        """Write one record. It is on disk as far as the kernel is concerned: killing this process does not lose it."""
        os.write(self._handle, json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._handle)
        self._handle = -1
