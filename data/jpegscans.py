"""How many scans a JPEG has: each goes over the whole picture, however few of the file's bytes it takes."""

import re
from typing import Final

_BEGINNING: Final = b"\xff\xd8\xff"
# Those that a length follows, and the end. Not what stands inside a scan: a stuffed FF 00, restarts (FF D0 to D7).
_MARKER: Final = rb"\xff([\xc0-\xcf\xd9-\xfe])"
_END: Final = 0xD9
_SCAN: Final = 0xDA
_MOST_SEGMENTS: Final = 10_000  # Pillow goes through those before the first scan in Python; a camera writes dozens


def count(blob: bytes, most: int) -> int:
    """The scans of a JPEG, of several pictures (MPO) those of the first; 0 for any other file.

    It reads markers as libjpeg does, and passes the bytes of a scan in C. It stops at `most` + 1, which is also the
    answer for a file of next to nothing but segments, so a hostile file takes no longer than a search through it.
    """
    if bytes(blob[:3]) != _BEGINNING:  # whatever holds bytes, a memoryview too
        return 0
    scans = place = 0
    marker = re.compile(_MARKER)
    for _ in range(_MOST_SEGMENTS):
        found = marker.search(blob, place)
        if found is None or found[1][0] == _END:
            return scans
        scans += found[1][0] == _SCAN
        if scans > most:
            return scans
        place = found.end() + max(2, int.from_bytes(blob[found.end() : found.end() + 2]))
    return most + 1
