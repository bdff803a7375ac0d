"""The counting: what is counted as what, and how it is handed on without a loss."""

import gc
import threading
from collections.abc import Mapping
from dataclasses import replace

import pytest

from data.images import Failure
from models.bundle import BundleInfo, read_info
from models.confidences import BINS
from models.predictor import Prediction
from serve.watching.drift import ENOUGH
from serve.watching.meters import LATENCY, METERS, MemorySink
from serve.watching.observe import Observer
from tests.observing import counted, observer, sink, told

__all__ = ["observer", "sink"]


@pytest.fixture
def info(tiny_bundle: str) -> BundleInfo:
    return replace(read_info(tiny_bundle), confidences=[0] * (BINS - 1) + [500])


def prediction(label: str, probability: float) -> Prediction:
    return Prediction(label, probability, (probability,), None)


def test_latency_is_a_histogram_as_prometheus_reads_one(observer: Observer, sink: MemorySink) -> None:
    for seconds in (0.001, 0.0011, 0.25, 500.0):
        told(observer, seconds=seconds)
    buckets = {labels[-1]: number for labels, number in counted(observer, sink, "latency_seconds_bucket").items()}
    assert list(buckets) == [*map(repr, LATENCY.bounds), "+Inf"]
    assert list(buckets.values()) == sorted(buckets.values())
    assert (buckets["0.001"], buckets["0.0015"], buckets["0.2"], buckets["0.3"]) == (1, 2, 2, 3)
    assert (buckets["120.0"], buckets["+Inf"]) == (3, 4)
    assert sum(counted(observer, sink, "latency_seconds_sum").values()) == pytest.approx(500.2521)
    told(observer, seconds=0.25)
    assert counted(observer, sink, "latency_seconds_bucket")["/predict", "m1", "2xx", "0.2"] == 2
    # The buckets that are empty are there too, at as good as 0.
    assert 0 < counted(observer, sink, "latency_seconds_bucket")["/predict", "m1", "2xx", "0.001"] == 1


def test_predictions_and_failures_are_counted_by_model(observer: Observer, sink: MemorySink, info: BundleInfo) -> None:
    crab, sure = prediction("crab", 0.52), prediction("eagle ray", 1.0)
    observer.predicted(info, [crab, Failure("truncated", "cut off"), sure, crab])
    observer.predicted(replace(info, id="another"), [prediction("crab", float("nan"))])
    labels = {(info.id, "crab"): 2, (info.id, "eagle ray"): 1, ("another", "crab"): 1}
    assert counted(observer, sink, "images") == labels
    assert counted(observer, sink, "failures") == {(info.id, "truncated"): 1}
    confidence = counted(observer, sink, "confidence_bucket")
    assert (confidence[info.id, "0.55"], confidence[info.id, "0.95"], confidence[info.id, "1.0"]) == (2, 2, 3)


def test_drift_is_told_once_there_are_enough_predictions(
    observer: Observer, sink: MemorySink, info: BundleInfo
) -> None:
    observer.predicted(info, [prediction("crab", 0.4)] * (ENOUGH - 1))
    assert counted(observer, sink, "confidence_drift") == {}
    observer.predicted(info, [prediction("crab", 0.4)])
    assert counted(observer, sink, "confidence_drift") == {(info.id,): 1.0}
    assert 0 < counted(observer, sink, "confidence_drift_by_chance")[(info.id,)] < 1
    observer.predicted(info, [prediction("crab", 0.99)] * ENOUGH)
    assert counted(observer, sink, "confidence_drift") == {(info.id,): 0.5}


def test_a_bundle_without_validation_confidences_has_no_drift(
    observer: Observer, sink: MemorySink, info: BundleInfo
) -> None:
    observer.predicted(replace(info, confidences=[]), [prediction("crab", 0.4)] * ENOUGH)
    assert counted(observer, sink, "confidence_drift") == {}


def test_the_drift_of_the_last_models_only_is_kept(observer: Observer, sink: MemorySink, info: BundleInfo) -> None:
    for number in range(9):
        observer.predicted(replace(info, id=f"m{number}"), [prediction("crab", 0.4)] * ENOUGH)
    assert set(counted(observer, sink, "confidence_drift")) == {(f"m{number}",) for number in range(5, 9)}


def test_batches_and_waiting_images(sink: MemorySink) -> None:
    now = [100.0]
    observer = Observer(sink, clock=lambda: now[0])
    assert counted(observer, sink, "waiting_images") == {}
    observer.waiting(3)
    now[0] += 2
    observer.waiting(1)
    now[0] += 10
    observer.waiting(0)
    now[0] += 1000
    observer.batch(16, 0.25)
    observer.batch(2, 0.5)
    assert counted(observer, sink, "waited_seconds") == {(): 16}
    assert counted(observer, sink, "waiting_images") == {(): 0}
    assert counted(observer, sink, "network_seconds") == {(): 0.75}
    assert counted(observer, sink, "batch_images_sum") == {(): 18}
    assert counted(observer, sink, "batch_images_bucket")[("2.0",)] == 1
    observer.close()


def test_no_count_is_lost_between_threads(info: BundleInfo) -> None:
    """Counted by eight threads, handed on all the while by a ninth."""
    sink = MemorySink()
    observer = Observer(sink, every_s=0.001)

    def work(number: int) -> None:
        for turn in range(500):
            told(observer, status=(200, 429)[turn % 2], key=f"key{number}")
            observer.predicted(info, [prediction("crab", turn / 500)])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    requests = counted(observer, sink, "requests")
    assert {code: number for (_, _, code, _), number in requests.items()} == {"200": 2000, "429": 2000}
    assert counted(observer, sink, "key_requests") == {
        (f"key{number}", code): 250 for number in range(8) for code in ("200", "429")
    }
    assert sum(counted(observer, sink, "latency_seconds_count").values()) == 4000
    assert counted(observer, sink, "confidence_bucket")[info.id, "+Inf"] == 4000
    observer.close()


def test_counts_are_handed_on_by_themselves_and_the_rest_at_the_end() -> None:
    handed_on = threading.Event()

    class Told(MemorySink):
        def add(self, name: str, labels: Mapping[str, str], amount: float) -> None:
            super().add(name, labels, amount)
            handed_on.set()

    sink = Told()
    observer = Observer(sink, every_s=0.001)
    told(observer)
    assert handed_on.wait(60)
    observer.close()
    told(observer)
    observer.close()
    assert sink.numbers["eagleray_serve_requests", "m1", "/predict", "200", "POST"] == 2


def of_observers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "observe"]


def test_the_thread_starts_when_it_is_needed_and_ends_with_its_observer() -> None:
    before = set(of_observers())
    observer = Observer(MemorySink(), every_s=0.001)
    assert set(of_observers()) == before
    told(observer)
    (thread,) = set(of_observers()) - before
    assert thread.daemon
    del observer
    gc.collect()
    thread.join(60)
    assert not thread.is_alive()


def test_a_sink_that_fails_disturbs_nobody_and_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    class Full(MemorySink):
        def add(self, name: str, labels: Mapping[str, str], amount: float) -> None:
            raise ValueError("full")

    observer = Observer(Full(), every_s=3600)
    for _ in range(3):
        told(observer)
        observer.flush()
    observer.close()
    assert caplog.text.count("could not be handed on") == 1


def test_meters_have_names_and_labels_of_their_own() -> None:
    names = [name for meter in METERS for name in meter.series()]
    assert len(set(names)) == len(names)
    assert all(name.startswith("eagleray_serve_") for name in names)
    assert all(list(meter.bounds) == sorted(set(meter.bounds)) for meter in METERS)
