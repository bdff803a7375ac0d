"""What a process does with memory that it has freed."""

import ctypes
import os
import subprocess
import sys

import pytest

from models.processes import LARGE, prepare_environment

_DECODE = """
import io
import sys
from pathlib import Path

from PIL import Image

from data.images import decode_resized
from data.resizing import Resize
from models.processes import give_back_large_blocks


def private() -> int:
    text = Path("/proc/self/smaps_rollup").read_text()
    return 1024 * int(text.partition("Private_Dirty:")[2].split()[0])


def picture(width: int, height: int) -> bytes:
    out = io.BytesIO()
    Image.new("1", (width, height)).save(out, "PNG")
    return out.getvalue()


if "give-back" in sys.argv:
    give_back_large_blocks()
large = picture(6000, 4000)  # 96 MB in Pillow, and as much as its RGB copy
decode_resized(picture(800, 600), Resize(64))
before = private()
decode_resized(large, Resize(64))
print(private() - before)
"""


def _kept(*arguments: str) -> int:
    """Bytes that a process with a training process' environment still has after it decoded a large picture."""
    done = subprocess.run(
        [sys.executable, "-c", _DECODE, *arguments], env=dict(os.environ), capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the allocator is not glibc's")
def test_an_endpoint_gives_the_memory_of_a_large_picture_back_and_training_keeps_it() -> None:
    prepare_environment()
    assert _kept() > 90e6
    assert _kept("give-back") < LARGE


def test_where_there_is_no_such_allocator_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    from models import processes

    class Other:
        """A C library without it."""

    monkeypatch.setattr(ctypes, "CDLL", lambda _: Other())
    processes.give_back_large_blocks()
    monkeypatch.setattr(sys, "platform", "win32")
    processes.give_back_large_blocks()
