"""Random numbers derive from (seed, purpose, epoch, step, rank): nothing need be saved to resume exactly."""

import numpy as np

# One number for each thing that is drawn, so that two purposes never share a stream.
INITIAL, ORDER, DROPOUT, AUGMENT, VIEW = range(5)


def derive(seed: int, purpose: int, *where: int) -> int:
    """A 63-bit seed from `seed` (>= 0), a purpose of this module and a place (epoch, step, rank)."""
    state = np.random.SeedSequence([seed, purpose, *where]).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))
