"""What a replica counts while a candidate is on trial, and the comparing of the two models on the same images."""

import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from data.images import Failure
from serve.promotion.judge import Counts, total

if TYPE_CHECKING:
    from serve.endpoint import Answer, Image, Model

# Images of one request that are compared: neighbours in a request are alike, so more of them teach little.
_SAMPLE: Final = 8
# After a comparison comes a rest of so many times its length: at most a quarter of one core goes into comparing.
_REST: Final = 3.0
# Names in a list of classes that a person is shown.
_NAMED: Final = 10


class Tally:
    """Counts of one stage. They are changed by the event loop and by the thread that compares."""

    def __init__(self) -> None:
        self._counts = Counts()
        self._lock = threading.Lock()

    def snapshot(self) -> Counts:
        with self._lock:
            return total([self._counts])

    def old_answered(self) -> None:
        with self._lock:
            self._counts.old_requests += 1

    def new_answered(self) -> None:
        with self._lock:
            self._counts.runs += 1
            self._counts.new_requests += 1

    def new_failed(self, *, not_a_number: bool) -> None:
        with self._lock:
            self._counts.runs += 1
            self._counts.errors += 1
            self._counts.not_a_number += not_a_number

    def compared(
        self, old: "Sequence[Answer]", new: "Sequence[Answer]", *, old_seconds: float, new_seconds: float
    ) -> None:
        """Both models have labelled these images; seconds are those of an image."""
        pairs = [
            (ours.label, theirs.label)
            for ours, theirs in zip(old, new, strict=True)
            if not isinstance(ours, Failure) and not isinstance(theirs, Failure)
        ]
        with self._lock:
            counts = self._counts
            counts.runs += 1
            counts.compared += len(pairs)
            counts.agreed += sum(ours == theirs for ours, theirs in pairs)
            counts.old_seconds.add(old_seconds)
            counts.new_seconds.add(new_seconds)
            if old_seconds > 0:  # not so by a coarse clock
                counts.ratios.add(new_seconds / old_seconds)


class Comparer:
    """Shows images to both models, one after the other, in a thread beside the one that answers.

    Timing both on the same images, in the same thread and in turns, makes the ratio of their times a fair one whatever
    else the machine does. Nothing waits in a line and one request's images are held at most: while a comparison runs,
    or rests, other requests are not compared.
    """

    def __init__(self) -> None:
        self.busy = False
        self._rest_until = 0.0
        self._old_first = True

    def show(self, old: "Model", new: "Model", images: "Sequence[Image]", tally: Tally) -> None:
        """Compare the models on some of these images, now or not at all. It returns at once."""
        if self.busy or time.monotonic() < self._rest_until:
            return
        good = [image for image in images if not isinstance(image, Failure)]
        if good:
            self.busy = True
            sample = good[:: -(-len(good) // _SAMPLE)]
            # A thread for each: one that a candidate lets hang must not keep the process from ending.
            threading.Thread(target=self._compare, args=(old, new, sample, tally), name="compare", daemon=True).start()

    def _compare(self, old: "Model", new: "Model", images: "Sequence[Image]", tally: Tally) -> None:
        begin = time.monotonic()
        try:
            self._old_first = not self._old_first
            if self._old_first:
                ours, theirs = _timed(old, images), _timed(new, images)
            else:
                theirs, ours = _timed(new, images), _timed(old, images)
            _count(tally, ours, theirs)
        finally:
            end = time.monotonic()
            self._rest_until = end + _REST * (end - begin)
            self.busy = False


def is_number(answers: "Sequence[Answer]") -> bool:
    """False where a model gave no number. All other failures are the image's, and the same with any model."""
    return not any(isinstance(answer, Failure) and answer.code == "not_a_number" for answer in answers)


def class_difference(new: "Sequence[str]", old: "Sequence[str]") -> str:
    """What the classes of two models do not have in common, in words: two whole lists hide it."""
    return "; ".join(
        f"{word}: {_named(sorted(set(these) - set(those)))}"
        for word, these, those in (("new", new, old), ("gone", old, new))
    )


def _named(names: "Sequence[str]") -> str:
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return (", ".join(names[:_NAMED]) or "none") + more


def _timed(model: "Model", images: "Sequence[Image]") -> "tuple[Sequence[Answer] | None, float]":
    """Answers, None where the model raised, and seconds an image."""
    begin = time.perf_counter()
    try:
        answers: Sequence[Answer] | None = model.predict(images)
    except Exception:
        answers = None
    return answers, (time.perf_counter() - begin) / len(images)


def _count(
    tally: Tally, old: "tuple[Sequence[Answer] | None, float]", new: "tuple[Sequence[Answer] | None, float]"
) -> None:
    (ours, old_seconds), (theirs, new_seconds) = old, new
    if ours is None or not is_number(ours):
        return  # where the model in service fails as well there is nothing to compare
    if theirs is None or len(theirs) != len(ours) or not is_number(theirs):
        tally.new_failed(not_a_number=theirs is not None and not is_number(theirs))
    else:
        tally.compared(ours, theirs, old_seconds=old_seconds, new_seconds=new_seconds)
