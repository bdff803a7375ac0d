"""The environment of every process that trains or predicts, set once by the command, before Ray is imported."""

import os

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


# Whatever pool of threads a library brings along: each would take all cores in each process.
_POOLS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def prepare_environment(*, threads: int | None = None) -> None:
    """Set the variables that child processes (Ray's daemons and workers) inherit; what the user has set stays.

    `threads`: what each library may take in each process; None leaves that to Ray and to the libraries.
    """
    pools = dict.fromkeys(_POOLS, str(threads)) if threads else {}
    for name, value in {**_ALLOCATOR, **_RAY, **pools}.items():
        os.environ.setdefault(name, value)
