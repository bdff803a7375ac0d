"""What a process does with memory that it has freed."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data.images import encode_png
from models import processes
from models.predictor import Predictor
from models.processes import LARGE, prepare_environment
from serve.endpoint import load_predictor
from serve.settings import EndpointConfig

_DECODE = """
import sys
from pathlib import Path

from data.images import decode_resized
from data.resizing import Resize
from models.processes import give_back_large_blocks


def private() -> int:
    text = Path("/proc/self/smaps_rollup").read_text()
    return 1024 * int(text.partition("Private_Dirty:")[2].split()[0])


if "give-back" in sys.argv:
    give_back_large_blocks()
small, large = (Path(name).read_bytes() for name in ("small.png", "large.png"))
decode_resized(small, Resize(64))
before = private()
decode_resized(large, Resize(64))
print(private() - before)
"""


def _kept(folder: Path, *arguments: str, **environ: str) -> int:
    """Bytes that a process with a training process' environment still has after it decoded a large picture."""
    done = subprocess.run(
        [sys.executable, "-c", _DECODE, *arguments],
        env={**os.environ, **environ}, cwd=folder, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the allocator is not glibc's")
def test_an_endpoint_gives_the_memory_of_a_large_picture_back_and_training_keeps_it(tmp_path: Path) -> None:
    prepare_environment()
    (tmp_path / "small.png").write_bytes(encode_png(np.zeros((600, 800, 3), np.uint8)))
    (tmp_path / "large.png").write_bytes(encode_png(np.zeros((4000, 6000, 3), np.uint8)))  # 96 MB in Pillow
    kept = _kept(tmp_path)
    assert kept > 48e6
    assert _kept(tmp_path, "give-back") < kept / 4
    assert _kept(tmp_path, "give-back", MALLOC_MMAP_THRESHOLD_=str(1 << 30)) > kept / 2  # what the user has set stays


class _Allocator:
    """Takes the place of the C library; remembers what was set."""

    def __init__(self) -> None:
        self.set: dict[int, int] = {}

    def mallopt(self, name: int, value: int) -> int:
        self.set[name] = value
        return 1


@pytest.fixture
def allocator(monkeypatch: pytest.MonkeyPatch) -> _Allocator:
    made = _Allocator()
    monkeypatch.setattr(ctypes, "CDLL", lambda _: made)
    monkeypatch.setattr(sys, "platform", "linux")
    return made


def test_where_nothing_was_set_before_freed_memory_is_not_trimmed_at_once(
    allocator: _Allocator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a cluster's nodes: setting one of glibc's thresholds ends its own adjusting of the other."""
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)
    processes.give_back_large_blocks()
    trim, mmap = -1, -3
    assert allocator.set[mmap] == LARGE
    assert LARGE < allocator.set[trim] < 2**31
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", str(1 << 26))
    processes.give_back_large_blocks()
    assert allocator.set[trim] == 1 << 26
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", str(16 << 30))  # more than mallopt's int holds
    processes.give_back_large_blocks()
    assert allocator.set[trim] == 2**31 - 1


def test_where_there_is_no_such_allocator_nothing_happens(
    allocator: _Allocator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    processes.give_back_large_blocks()
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    processes.give_back_large_blocks()
    assert allocator.set == {}


@pytest.mark.parametrize(("engine", "given"), [("onnxruntime", True), ("torch", False)])
def test_a_replica_does_so_unless_torch_runs_the_network_on_its_cpu(
    engine: str, given: bool, tiny_bundle: str, allocator: _Allocator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    monkeypatch.setattr(Predictor, "engine", engine)
    load_predictor(EndpointConfig(tiny_bundle))
    assert bool(allocator.set) is given
