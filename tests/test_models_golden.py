"""A bundle still gives the answers that it gave when it was scored; where it does not, the words say what differs."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from data import store
from data.errors import UserError
from data.images import Failure
from models import confidences
from models.bundle import GOLDEN_FILE, BundleInfo, add_scores, read_bundle, read_info
from models.golden import MOST, Answering, Golden, check_golden, choose, make_golden, read_golden
from models.predictor import Image, Prediction, Predictor
from tests.models_bundles import toy_model, write
from tests.models_toys import CLASSES, toy_images


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    """With five golden images."""
    folder = str(tmp_path_factory.mktemp("golden") / "b")
    write(folder, toy_model())
    images, labels = toy_images(5)
    store_golden(folder, make_golden(Predictor.load(folder), images, [CLASSES[label] for label in labels]))
    return folder


def store_golden(folder: str, golden: Golden | None) -> BundleInfo:
    assert golden is not None
    return add_scores(folder, metrics={}, golden=golden.entries(), golden_file=golden.file())


class Bent:
    """A predictor whose answers, and classes, are not what they were."""

    def __init__(
        self, bundle: str, bend: Callable[[Prediction, int], Prediction | Failure], classes: Sequence[str] = CLASSES
    ) -> None:
        self._predictor, self._bend, self._asked = Predictor.load(bundle), bend, 0
        self.info = replace(self._predictor.info, classes=tuple(classes))

    def predict(self, images: Sequence[Image]) -> list[Prediction | Failure]:
        """`bend` gets the image's number; the first call only warms up."""
        assert len(images) == 1
        (answer,) = self._predictor.predict(images)
        assert isinstance(answer, Prediction)
        self._asked += 1
        return [self._bend(answer, self._asked - 1)]


def golden_of(bundle: str) -> Golden:
    golden = read_golden(bundle)
    assert golden is not None
    return golden


def same(answer: Prediction, number: int) -> Prediction:
    return answer


def test_a_bundle_gives_its_own_golden_answers(bundle: str) -> None:
    golden = golden_of(bundle)
    images, labels = toy_images(5)
    assert np.array_equal(golden.images, images)
    assert [answer.label for answer in golden.answers] == [CLASSES[label] for label in labels]
    predictor = Predictor.load(bundle)
    for image, answer in zip(images, golden.answers, strict=True):
        (found,) = predictor.predict([image])
        assert isinstance(found, Prediction)
        assert answer.predicted == found.label
        assert list(answer.probabilities.values()) == pytest.approx(list(found.probabilities), abs=1e-5)
    result = check_golden(predictor, golden)
    assert result.passed
    assert result.problems == ()
    assert (result.images, result.agree) == (5, 5)
    assert result.right == sum(answer.label == answer.predicted for answer in golden.answers)
    assert result.largest_difference < 1e-5
    assert result.seconds > 0


def test_they_change_no_id_and_are_not_needed_to_answer(bundle: str, tmp_path: Path) -> None:
    info = read_info(bundle)
    assert info.id == write(tmp_path / "plain", toy_model()).id
    assert set(os.listdir(bundle)) == {"bundle.json", "golden.safetensors", "model.safetensors"}
    assert read_golden(str(tmp_path / "plain")) is None
    shutil.copytree(bundle, tmp_path / "b")
    (tmp_path / "b" / GOLDEN_FILE).unlink()
    assert read_bundle(str(tmp_path / "b"))[0] == info


def test_scores_that_come_again_take_the_place_of_the_old_golden_images(bundle: str, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "b")
    again = add_scores(str(tmp_path / "b"), metrics={})
    assert (again.golden, "golden" in again.fingerprints) == ([], False)
    assert read_golden(str(tmp_path / "b")) is None


def test_they_live_in_a_bucket(bucket: str, bundle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """bundle.json, which names their checksum, goes last."""
    write(f"{bucket}/b", toy_model())
    written: list[str] = []
    put = store.write

    def spy(path: str, blob: bytes) -> None:
        written.append(path.rpartition("/")[2])
        put(path, blob)

    monkeypatch.setattr(store, "write", spy)
    store_golden(f"{bucket}/b", golden_of(bundle))
    assert written == [GOLDEN_FILE, "bundle.json"]
    golden = read_golden(f"{bucket}/b", cache_dir=str(tmp_path))
    assert golden is not None
    assert check_golden(Predictor.load(f"{bucket}/b", cache_dir=str(tmp_path)), golden).passed


def test_classes_are_compared_by_name(bundle: str) -> None:
    """A model that has the same classes in another order answers as before."""

    def turned(answer: Prediction, number: int) -> Prediction:
        return replace(answer, probabilities=answer.probabilities[::-1])

    assert check_golden(Bent(bundle, turned, CLASSES[::-1]), golden_of(bundle)).passed


def test_weights_whose_classes_are_mixed_up_are_found_out(bundle: str, tmp_path: Path) -> None:
    """The same bundle.json, and another network under its class names."""
    model = toy_model()
    names = [name for name in model.state_dict() if name.startswith("head.")][-2:]
    model.load_state_dict({name: model.state_dict()[name].flip(0) for name in names}, strict=False)
    write(tmp_path / "b", model)
    result = check_golden(Predictor.load(str(tmp_path / "b")), golden_of(bundle))
    assert not result.passed
    assert result.agree < 5
    assert result.largest_difference > 0.01
    (problem,) = result.problems
    assert "of 5 golden images get other probabilities; most of all image" in problem


def shifted(by: float, which: int = 0) -> Callable[[Prediction, int], Prediction]:
    """Moves probability from one class to the next in the answer to image `which` (0: to all)."""

    def bend(answer: Prediction, number: int) -> Prediction:
        first, second, *rest = answer.probabilities
        if which not in (0, number):
            return answer
        return replace(answer, probabilities=(first - by, second + by, *rest))

    return bend


@pytest.mark.parametrize(("by", "fine"), [(0.00009, True), (0.00012, False), (-0.00012, False), (float("nan"), False)])
def test_a_probability_may_be_off_by_a_ten_thousandth(by: float, fine: bool, bundle: str) -> None:
    result = check_golden(Bent(bundle, shifted(by, 3)), golden_of(bundle))
    assert result.passed == fine
    assert result.largest_difference == pytest.approx(abs(by) if by == by else float("inf"), abs=1e-5)


def test_the_words_name_the_worst_image(bundle: str) -> None:
    golden = golden_of(bundle)

    def bend(answer: Prediction, number: int) -> Prediction | Failure:
        if number == 2:
            return Failure("not_a_number", "the network gave no number")
        other = next(name for name in CLASSES if name != answer.label)
        return replace(shifted(0.25)(answer, 4), label=other) if number == 4 else shifted(0.001)(answer, number)

    result = check_golden(Bent(bundle, bend), golden)
    then = golden.answers[3]
    now = then.probabilities["auk"] - 0.25
    assert result.problems[0] == (
        f"1 of 5 golden images get no answer; image 2, {golden.answers[1].label!r}: the network gave no number"
    )
    assert result.problems[1].startswith(
        f"4 of 5 golden images get other probabilities; most of all image 4, {then.label!r}: 'auk' gets {now:.4f}, "
        f"was {then.probabilities['auk']:.4f}, and the answer is "
    )
    assert result.problems[1].endswith(f"instead of {then.predicted!r}")
    assert (result.agree, len(result.problems)) == (3, 2)


def test_a_model_without_numbers_or_with_other_classes_is_told_apart(bundle: str) -> None:
    golden = golden_of(bundle)
    none = check_golden(Bent(bundle, lambda answer, number: Failure("not_a_number", "no number")), golden)
    assert none.problems == (f"5 of 5 golden images get no answer; image 1, {golden.answers[0].label!r}: no number",)
    assert (none.agree, none.right, none.largest_difference) == (0, 0, 0.0)
    other = check_golden(Bent(bundle, same, ("auk", "booby", "dodo")), golden)
    assert other.problems == (
        "the model lacks the class 'crane' of the golden answers",
        "the golden answers lack the class 'dodo' of the model",
    )
    wider = check_golden(Bent(bundle, same, (*CLASSES, "d", "e", "f", "g")), golden)
    assert "lack the classes 'd', 'e', 'f' and others of the model" in wider.problems[0]
    assert "gets nan" not in wider.problems[0]
    short = check_golden(Bent(bundle, lambda a, n: replace(a, probabilities=a.probabilities[:2])), golden)
    assert "'crane' gets nan" in short.problems[0]


def test_an_image_without_an_answer_is_no_golden_image(bundle: str) -> None:
    images, _ = toy_images(3)

    class Picky:
        info = read_info(bundle)

        def predict(self, given: Sequence[Image]) -> list[Prediction | Failure]:
            answers = Predictor.load(bundle).predict(given)
            return [Failure("not_a_number", "") if place < fails else answer for place, answer in enumerate(answers)]

    picky: Answering = Picky()
    fails = 1
    golden = make_golden(picky, images, CLASSES)
    assert golden is not None
    assert np.array_equal(golden.images, images[1:])
    assert [answer.label for answer in golden.answers] == list(CLASSES[1:])
    fails = 3
    assert make_golden(picky, images, CLASSES) is None
    assert make_golden(picky, images[:0], []) is None


def test_images_are_chosen_from_all_classes_and_all_along_each() -> None:
    labels = np.repeat([0, 1, 2], [100, 3, 1])
    chosen = choose(labels)
    assert len(chosen) == MOST
    assert np.bincount(labels[chosen]).tolist() == [12, 3, 1]
    assert np.all(np.diff(chosen) > 0)
    first = chosen[labels[chosen] == 0]
    assert first[0] < 10
    assert first[-1] >= 90
    assert np.diff(first).max() <= 9
    assert np.array_equal(choose(labels), chosen)
    many = choose(np.arange(450).repeat(2))
    assert len(many) == len(set(many // 2)) == MOST
    assert many[0] < 60
    assert many[-1] > 840
    assert choose(np.array([4, 4, 2])).tolist() == [0, 1, 2]
    assert choose(np.zeros(0, np.int64)).tolist() == []


def damaged(blob: bytes) -> Callable[[Path], None]:
    """Other bytes under a checksum that is right."""

    def change(folder: Path) -> None:
        (folder / GOLDEN_FILE).write_bytes(blob)
        path = folder / "bundle.json"
        values = json.loads(path.read_text())
        values["fingerprints"]["golden"] = hashlib.sha256(blob).hexdigest()
        path.write_text(json.dumps(values))

    return change


def images_file(**tensors: Any) -> Callable[[Path], None]:
    return damaged(safetensors.numpy.save(tensors))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / GOLDEN_FILE).unlink(), "golden.safetensors: missing; copy the whole bundle folder"),
        (
            lambda folder: (folder / GOLDEN_FILE).write_bytes(b"x"),
            r"damaged or being replaced \(sha256 .*copy the bund",
        ),
        (damaged(b""), "not a safetensors file of images .*write the bundle again"),
        (damaged(b"garbage" * 20), "not a safetensors file of images"),
        (images_file(pictures=np.zeros((5, 32, 32, 3), np.uint8)), "not a safetensors file of images"),
        (images_file(images=np.zeros((4, 32, 32, 3), np.uint8)), r"uint8 \(4, 32, 32, 3\) does not fit 5 images of 32"),
        (
            images_file(images=np.zeros((5, 16, 16, 3), np.uint8)),
            "does not fit 5 images of 32 pixels; write the bundle",
        ),
        (images_file(images=np.zeros((5, 32, 32, 3), np.float32)), "float32 .* does not fit"),
        (images_file(images=np.zeros(5, np.uint8)), "does not fit"),
    ],
)
def test_what_is_wrong_with_the_file_is_said(
    damage: Callable[[Path], Any], message: str, bundle: str, tmp_path: Path
) -> None:
    shutil.copytree(bundle, tmp_path / "b")
    damage(tmp_path / "b")
    with pytest.raises(UserError, match=message):
        read_golden(str(tmp_path / "b"))


def test_confidences_are_counted_in_twenty_equal_bins() -> None:
    counts = confidences.histogram([0.0, 0.049, 0.05, 0.5, 0.999, 1.0, 1.0])
    assert len(counts) == confidences.BINS == 20
    assert {place: count for place, count in enumerate(counts) if count} == {0: 2, 1: 1, 10: 1, 19: 3}
    assert confidences.histogram([]) == [0] * 20
