"""How a search ends before its time: the running epochs are finished and kept, then Tune stops."""

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import ray.tune

from tune.optunasearch import KillProofSearch
from tune.trials import TuneTrial

CTRL_C = "Ctrl-C"
_LOOK_EVERY_S = 0.5


class EndGently(ray.tune.Callback):
    """Once `limit` gives a reason, or somebody asked with Ctrl-C, no trial starts any more; when each running one has
    finished its epoch and its checkpoint is written, Tune is told to stop. Trials that had not finished can be resumed.

    `of_workers` says that trials train on several workers: those write their checkpoint before they report.
    """

    def __init__(self, *, of_workers: bool) -> None:
        self._of_workers = of_workers
        self.search: KillProofSearch | None = None
        self.limit: Callable[[], str] = _no_limit
        self.reason = ""
        self._asked = False
        self._waiting: set[str] | None = None
        self._looked = 0.0

    def __getstate__(self) -> dict[str, Any]:
        return {"_of_workers": self._of_workers}  # the rest belongs to one process

    def __setstate__(self, state: dict[str, Any]) -> None:
        EndGently.__init__(self, of_workers=state["_of_workers"])

    @contextmanager
    def on_ctrl_c(self) -> Iterator[None]:
        """While this is open, the first SIGINT ends the search gently and the second raises KeyboardInterrupt."""
        if threading.current_thread() is not threading.main_thread():
            yield  # signals reach the main thread only
            return

        def asked(_number: int, _frame: FrameType | None) -> None:
            if self._asked:
                raise KeyboardInterrupt
            self._asked = True
            self.reason = self.reason or CTRL_C

        before = signal.signal(signal.SIGINT, asked)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def on_step_end(self, iteration: int, trials: list[TuneTrial], **_: Any) -> None:
        if not self.reason and time.monotonic() - self._looked >= _LOOK_EVERY_S:
            self._look()
        if not self.reason:
            return
        if self._waiting is None:
            self._waiting = {trial.trial_id for trial in trials if trial.status == TuneTrial.RUNNING}
            if self.search is not None:
                self.search.closed = True
            again = "; once more stops at once" if self.reason == CTRL_C else ""
            print(f"ending: {self.reason}; the running epochs are finished first{again}", file=sys.stderr, flush=True)
        if not self._waiting:
            # Tune listens for this signal in order to stop and keep its state. Its handler for SIGINT is ours here.
            signal.raise_signal(signal.SIGUSR1)

    def _look(self) -> None:
        self._looked = time.monotonic()
        found = self.limit()
        self.reason = self.reason or found  # Ctrl-C may have come meanwhile

    def on_trial_result(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: Any, **_: Any) -> None:
        if not self.reason:
            self._look()  # the next epoch begins only if it may
        if self._of_workers:
            self._ended(trial)

    def on_checkpoint(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, checkpoint: Any, **_: Any
    ) -> None:
        self._ended(trial)

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **_: Any) -> None:
        self._ended(trial)

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **_: Any) -> None:
        self._ended(trial)

    def _ended(self, trial: TuneTrial) -> None:
        if self._waiting is not None:
            self._waiting.discard(trial.trial_id)


def _no_limit() -> str:
    return ""
