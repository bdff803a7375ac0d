"""Which checkpoints of a search stay on disk."""

import contextlib
import time
from collections import defaultdict
from typing import Any

import ray.tune

from tune.trials import TuneTrial, trial_number

# Ray writes the search's own state every few seconds, and with it which checkpoint a trial would go on from. What that
# state may name must still be there after a kill, so nothing younger than this is deleted.
_YOUNG_S = 30.0
_LEAST = 2


class KeepRecent(ray.tune.Callback):
    """Deletes a trial's checkpoints but for the last two and those of the last 30 s; at the end, all but the last.

    Ray's own `num_to_keep` deletes before it writes its state down: a kill in between leaves a trial that names a
    checkpoint which is gone, and cannot be resumed.
    """

    def __init__(self) -> None:
        self._saved: dict[int, list[tuple[float, Any]]] = defaultdict(list)

    def __getstate__(self) -> dict[str, Any]:
        return {"_saved": defaultdict(list)}  # checkpoints from before a resume stay until the run's folder goes

    def on_checkpoint(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, checkpoint: Any, **_: Any
    ) -> None:
        saved = self._saved[trial_number(trial)]
        saved.append((time.monotonic(), checkpoint))
        while len(saved) > _LEAST and saved[0][0] < time.monotonic() - _YOUNG_S:
            _delete(saved.pop(0)[1])

    def on_experiment_end(self, trials: list[TuneTrial], **_: Any) -> None:
        """The state has been written for the last time."""
        for saved in self._saved.values():
            for _when, checkpoint in saved[:-1]:
                _delete(checkpoint)
            del saved[:-1]


def _delete(checkpoint: Any) -> None:
    with contextlib.suppress(OSError):  # cleaned up by hand, or a bucket out of reach: it then stays
        checkpoint.filesystem.delete_dir(checkpoint.path)
