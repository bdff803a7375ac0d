"""The environment of every process that trains or predicts, set once by the command, before Ray is imported."""

import ctypes
import os
import sys
from typing import Final

# glibc gives a large freed tensor back to the kernel and faults its pages in again at the next batch: about half of the
# CPU time of a small CNN's training. These keep freed memory in the process, at the price of a higher resident size.
# One arena, because the thresholds hold in the main arena only and Ray Train calls the loop from another thread.
_ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(8 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
    "MALLOC_ARENA_MAX": "1",
}

_RAY = {
    # `uv run` would make Ray ship the repository and start each worker through uv again; the workers inherit this
    # environment as it is instead.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    # Ray asks for a token by default where it starts a cluster itself; said here, so that it holds for every start.
    "RAY_AUTH_MODE": "token",
    # Ray's usage statistics would be a network call that nobody asked for.
    "RAY_USAGE_STATS_ENABLED": "0",
}


LARGE: Final = 8 * 2**20
"""Bytes from which a block of memory is large. A frame of 1920x1080 pixels takes less in Pillow (four bytes a pixel),
and a picture of 64 million pixels is decoded into blocks of 16 MiB."""

# malloc.h of glibc
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_KEPT: Final = 128 * 2**20
_INT_MAX: Final = 2**31 - 1

# Whatever pool of threads a library brings along: each would take all cores in each process.
_POOLS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def prepare_environment(*, threads: int | None = None) -> None:
    """Set the variables that child processes (Ray's daemons and workers) inherit; what the user has set stays.

    `threads`: what each library may take in each process; None leaves that to Ray and to the libraries.
    """
    pools = dict.fromkeys(_POOLS, str(threads)) if threads else {}
    for name, value in {**_ALLOCATOR, **_RAY, **pools}.items():
        os.environ.setdefault(name, value)


def give_back_large_blocks() -> None:
    """Blocks of LARGE bytes and more that this process takes from now on go back to the system once they are freed.

    For a process that answers strangers: under the settings above it would keep what the largest picture ever sent to
    it took, which is half a gigabyte. The price is that such a block's pages come in anew each time, a few milliseconds
    for a picture of ten million pixels; it is not for a network that torch runs on a CPU, whose layers take as much.
    What the user has set stays, and where the allocator is not glibc's nothing happens.
    """
    name = "MALLOC_MMAP_THRESHOLD_"
    if not sys.platform.startswith("linux") or os.environ.get(name, _ALLOCATOR[name]) != _ALLOCATOR[name]:
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    # A threshold that is set ends glibc's own adjusting of both, and the other would be 128 KiB from then on, unless
    # the process was started with a value; the environment does not tell, since it may have been changed after that.
    trim = os.environ.get("MALLOC_TRIM_THRESHOLD_", "")
    mallopt(_M_MMAP_THRESHOLD, LARGE)
    mallopt(_M_TRIM_THRESHOLD, min(int(trim), _INT_MAX) if trim.isdigit() else _KEPT)
