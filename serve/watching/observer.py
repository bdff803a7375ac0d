"""The counting behind the endpoint: told what happens, it hands sums on about every second and writes the log."""

import contextlib
import logging
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Final

from data.images import Failure
from models.bundle import BundleInfo
from models.confidences import BINS, bin_of
from models.predictor import Prediction
from serve.watching import meters
from serve.watching.drift import Drift
from serve.watching.logs import Log, log_request
from serve.watching.meters import Meter, Sink, Tally

logger = logging.getLogger("eagleray.serve")

# The drift is worked out again every so many times that the counts are handed on: it takes milliseconds.
_READ_EVERY: Final = 10
# Models come and go with promotions; the last ones are watched for drift.
_WATCHED: Final = 4


class Observer:
    """Counts what it is told, and hands it on to `sink` about every second from a thread of its own.

    Every method takes about a microsecond, may be called from any thread, and never raises: whoever answers requests
    must not fail for its statistics. The thread starts with the first thing told; it keeps no process alive, and ends
    with the observer.
    """

    def __init__(self, sink: Sink, *, every_s: float = 1.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.log: Log = "errors"
        """Which requests have a line in the log."""
        self._sink = sink
        self._every_s = every_s
        self._clock = clock
        self._lock = threading.Lock()
        self._handing_on = threading.Lock()
        self._tally = Tally()
        self._drifts: dict[str, Drift] = {}
        self._readings: dict[tuple[Meter, str], float] = {}
        self._waiting: int | None = None
        self._waiting_since = 0.0
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()
        self._failed = False

    def request(
        self,
        *,
        route: str,
        method: str,
        status: int,
        seconds: float,
        model: str,
        key: str,
        request_id: str,
        received: int,
        images: int | None = None,
    ) -> None:
        """A request is over. `route`: its template. `received`: bytes of its body. `images`: how many, if known."""
        code = str(status)
        with self._lock:
            tally = self._tally
            tally.add(meters.REQUESTS, (model, route, code, method))
            tally.add(meters.CALLERS, (key, code))
            tally.observe(meters.LATENCY, seconds, (route, model, f"{code[0]}xx"))
            if received:
                tally.add(meters.RECEIVED, (route,), received)
        self._start()
        log_request(
            self.log,
            status=status,
            seconds=seconds,
            request_id=request_id,
            method=method,
            route=route,
            model=model,
            key=key,
            bytes=received,
            images=images,
        )

    def batch(self, size: int, seconds: float) -> None:
        """The network ran once, on `size` images."""
        with self._lock:
            self._tally.observe(meters.BATCH, size)
            self._tally.add(meters.NETWORK, (), seconds)
        self._start()

    def waiting(self, images: int) -> None:
        """So many images wait for the network now."""
        with self._lock:
            self._count_waiting()
            self._waiting = images
        self._start()

    def predicted(self, info: BundleInfo, answers: Sequence[Prediction | Failure]) -> None:
        """A model has answered the images of a request."""
        model = info.id
        with self._lock:
            tally, drift = self._tally, self._drifts.get(model) or self._watch(info)
            for answer in answers:
                if isinstance(answer, Failure):
                    tally.add(meters.FAILURES, (model, answer.code))
                    continue
                tally.add(meters.IMAGES, (model, answer.label))
                if 0 <= answer.probability <= 1:  # and not NaN
                    place = bin_of(answer.probability)
                    tally.observe(meters.CONFIDENCE, (place + 1) / BINS, (model,))
                    drift.add(place)
        self._start()

    def flush(self) -> None:
        """Hand everything on now."""
        self._hand_on(read_drift=True)

    def close(self) -> None:
        """Hand on what is left, and end the thread. What is told afterwards waits for a `flush`."""
        self._closed.set()
        if self._thread is not None and self._thread.is_alive():
            self._thread.join(timeout=5)
        self.flush()

    def _watch(self, info: BundleInfo) -> Drift:
        while len(self._drifts) >= _WATCHED:
            del self._drifts[next(iter(self._drifts))]
        drift = self._drifts[info.id] = Drift(info.confidences)
        return drift

    def _count_waiting(self) -> None:
        """Add up the waiting of the time since the last look."""
        now = self._clock()
        if self._waiting:
            self._tally.add(meters.WAITED, (), self._waiting * (now - self._waiting_since))
        self._waiting_since = now

    def _read_drift(self) -> None:
        # In two steps: what takes long must not hold up who tells of a request.
        with self._lock:
            samples = {model: drift.sample() for model, drift in self._drifts.items()}
        self._readings = {
            (meter, model): value
            for model, sample in samples.items()
            if sample is not None
            for meter, value in ((meters.DRIFT, sample.distance()), (meters.DRIFT_BY_CHANCE, sample.by_chance()))
        }

    def _hand_on(self, *, read_drift: bool) -> None:
        with self._handing_on:
            try:
                if read_drift:
                    self._read_drift()
                self._hand_on_tally()
                # All of them each time: Ray forgets a gauge that is not set again.
                for (meter, model), value in self._readings.items():
                    self._sink.set(meter.name, {"model": model}, value)
            except Exception:  # numbers are lost, requests are not
                if not self._failed:
                    logger.exception("the metrics could not be handed on; this is said once")
                self._failed = True

    def _hand_on_tally(self) -> None:
        with self._lock:
            self._count_waiting()
            tally, self._tally = self._tally, Tally()
            waiting = self._waiting
        tally.hand_on(self._sink)
        if waiting is not None:
            self._sink.set(meters.WAITING.name, {}, waiting)

    def _start(self) -> None:
        if self._thread is None and not self._closed.is_set():
            with self._lock:
                if self._thread is None:
                    known = weakref.ref(self), self._closed, self._every_s
                    thread = threading.Thread(target=_keep_handing_on, args=known, daemon=True, name="observe")
                    with contextlib.suppress(RuntimeError):  # no more threads to be had: there is still `flush`
                        thread.start()
                    self._thread = thread


def _keep_handing_on(observer: "weakref.ref[Observer]", closed: threading.Event, every_s: float) -> None:
    turn = 0
    while not closed.wait(every_s):
        known = observer()
        if known is None:
            return
        known._hand_on(read_drift=turn % _READ_EVERY == 0)
        del known
        turn += 1
