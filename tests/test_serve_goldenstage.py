"""The golden stage, and the command around it: bundles that must not come into service are refused before anything."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import serve.promote
from data.errors import UserError
from data.resizing import Resize
from models.bundle import add_scores, write_bundle
from models.catalog import ModelConfig, build
from models.predictor import Predictor
from models.preprocess import Preprocess
from serve.promote import PromoteConfig
from serve.promotion.compare import class_difference
from serve.promotion.goldenstage import check_bundles
from serve.promotion.judge import Limits
from serve.promotion.modelchange import ModelChange, Outcome
from serve.promotion.stages import Promotion
from serve.running.note import Running
from tests.changedbundles import add_golden, last_bias, make_nan, permute, rewrite
from tests.serving import CLASSES, SIZE, write_tiny_bundle

LIMITS = Limits(max_latency_ratio=5.0)  # tiny networks on a busy machine: only what is far off counts


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A bundle in service and a later one that is nearly the same: other weights in the last layer, a little."""
    folder = tmp_path_factory.mktemp("bundles")
    old, new = str(folder / "old"), str(folder / "new")
    write_tiny_bundle(old)
    rewrite(old, new, lambda tensors: tensors[last_bias(tensors)].add_(1e-4))
    for bundle in (old, new):
        add_golden(bundle)
    return old, new


def test_a_good_bundle_is_described(bundles: tuple[str, str]) -> None:
    old, new = bundles
    found = check_bundles(new, old, LIMITS, threads=1)
    assert found.problems == ()
    assert found.seen[0].startswith("16 golden images: all as recorded")
    assert found.seen[1] == (
        "32 of 32 golden images (16 of the new bundle, 16 of the one in service) get the label that the model in "
        "service gives"
    )
    assert "times the time of the model in service" in found.seen[2]
    assert len(found.images) == 32
    assert found.new.id != Predictor.load(old).info.id


def test_files_that_were_replaced_under_the_model_in_service_are_told_of(bundles: tuple[str, str]) -> None:
    old, new = bundles
    found = check_bundles(new, old, LIMITS, old_model="abc")
    assert "but abc was put in service from there: put its files back first" in found.problems[0]
    assert check_bundles(new, old, LIMITS, old_model=Predictor.load(old).info.id).problems == ()


def test_a_bundle_without_golden_images_is_tried_as_far_as_can_be(bundles: tuple[str, str], tmp_path: Path) -> None:
    old = rewrite(bundles[0], str(tmp_path / "old"), lambda tensors: None)
    new = rewrite(bundles[0], str(tmp_path / "new"), lambda tensors: tensors[last_bias(tensors)].add_(1e-4))
    found = check_bundles(new, old, LIMITS)
    assert found.problems == ()
    assert "its answers were not checked" in found.seen[0]
    assert found.images == ()


def test_a_bundle_without_numbers_is_refused(bundles: tuple[str, str], tmp_path: Path) -> None:
    new = rewrite(bundles[0], str(tmp_path / "new"), make_nan)
    (problem,) = check_bundles(new, bundles[0], LIMITS).problems
    assert "warm-up image" in problem


def test_permuted_classes_are_refused_by_the_golden_images(bundles: tuple[str, str], tmp_path: Path) -> None:
    """Its own, which were recorded before they were permuted; and the other bundle's, by what they are called now."""
    old, good = bundles
    new = rewrite(old, str(tmp_path / "new"), permute)
    recorded = json.loads(Path(good, "bundle.json").read_text())["golden"]
    add_scores(new, metrics={}, golden=recorded, golden_file=Path(good, "golden.safetensors").read_bytes())
    problems = check_bundles(new, old, LIMITS).problems
    assert any("clearly below 80%" in problem for problem in problems)
    assert len(problems) >= 2


def test_permuted_classes_are_refused_though_all_was_recorded_anew(bundles: tuple[str, str], tmp_path: Path) -> None:
    new = rewrite(bundles[0], str(tmp_path / "new"), permute)
    add_golden(new)
    (problem,) = check_bundles(new, bundles[0], LIMITS).problems
    assert problem == (
        "0 of 32 golden images (16 of the new bundle, 16 of the one in service) get the label that the model in "
        "service gives: clearly below 80% (--min-agreement: lower it if the new model is meant to differ)"
    )


def test_a_model_that_is_meant_to_differ_passes_as_the_refusal_says(bundles: tuple[str, str], tmp_path: Path) -> None:
    new = rewrite(bundles[0], str(tmp_path / "new"), permute)
    assert check_bundles(new, bundles[0], replace(LIMITS, min_agreement=0)).problems == ()
    (problem,) = check_bundles(new, bundles[0], LIMITS).problems
    assert problem.startswith("0 of 16 golden images (16 of the one in service) get")


def test_classes_in_another_order_are_refused(bundles: tuple[str, str], tmp_path: Path) -> None:
    new = tmp_path / "new"
    shutil.copytree(bundles[1], new)
    values = json.loads((new / "bundle.json").read_text())
    values["classes"] = values["classes"][::-1]
    (new / "bundle.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="classes must be 2 or more, sorted"):
        check_bundles(str(new), bundles[0], LIMITS)


def test_a_worse_model_than_its_report_says_is_refused(bundles: tuple[str, str], tmp_path: Path) -> None:
    new = rewrite(bundles[0], str(tmp_path / "new"), lambda tensors: None, balanced_accuracy=0.99)
    rewrite(new, new, lambda tensors: tensors[last_bias(tensors)].add_(1e-4), balanced_accuracy=0.99)
    add_golden(new)
    (problem,) = check_bundles(new, bundles[0], LIMITS).problems
    assert "of its 16 golden images; its report says 99%" in problem


def test_a_bundle_that_takes_ten_times_as_long_is_refused(bundles: tuple[str, str], tmp_path: Path) -> None:
    new = str(tmp_path / "new")
    torch.manual_seed(0)
    model = build(ModelConfig(model="cnn", dense_units=8), classes=3, image_size=10 * SIZE)
    write_bundle(new, model, classes=CLASSES, preprocess=Preprocess.for_model("cnn", Resize(10 * SIZE)))
    problems = check_bundles(new, bundles[0], LIMITS).problems
    said = "times the time of the model in service: above 5 (--max-latency-ratio: raise it if the new model may take"
    assert any(said in problem for problem in problems)


def test_other_classes_are_refused(bundles: tuple[str, str], tmp_path: Path) -> None:
    new = str(tmp_path / "new")
    model = build(ModelConfig(model="cnn", dense_units=8), classes=2, image_size=SIZE)
    write_bundle(new, model, classes=["crab", "sponge"], preprocess=Preprocess.for_model("cnn", Resize(SIZE)))
    assert check_bundles(new, bundles[0], LIMITS).problems == (
        "its classes are not those in service (new: sponge; gone: anemone, eagle ray), and a model with other classes "
        "cannot be promoted in place: end the endpoint and start it with the new bundle (on this machine "
        f"`serve/app.py --down`, then `serve/app.py --bundle {new}`)",
    )


def test_many_other_classes_are_not_all_named() -> None:
    assert class_difference(["a", "b"], ["a"]) == "new: b; gone: none"
    many = [f"bird {number:02}" for number in range(450)]
    assert class_difference(["bird 00"], many).endswith("bird 09, bird 10 and 439 more")


def test_the_model_in_service_is_not_promoted_again(bundles: tuple[str, str], tmp_path: Path) -> None:
    copy = str(tmp_path / "copy")
    shutil.copytree(bundles[0], copy)
    (problem,) = check_bundles(copy, bundles[0], LIMITS).problems
    assert problem.endswith("is in service already")


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({}, "give either the bundle"),
        ({"bundle": "b", "rollback": True}, "give either the bundle"),
        ({"abort": True, "rollback": True}, "give either the bundle"),
        ({"bundle": "b", "endpoint": "http://e"}, "endpoint and dashboard must be given together"),
        ({"bundle": "b", "canary": 1.0}, "canary must be between 0 and 1"),
        ({"bundle": "b", "shadow": 0.0}, "shadow must be above 0"),
        ({"bundle": "b", "stage_timeout_s": 0.0}, "stage_timeout_s must be > 0"),
    ],
)
def test_the_command_checks_what_it_is_given(values: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        PromoteConfig(**values)


def test_without_an_endpoint_the_command_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["promote.py", "--abort"])
    assert serve.promote.main() == 2
    assert "no endpoint of yours runs" in capsys.readouterr().err


@pytest.mark.parametrize("asked", ["new", "--rollback"])
@pytest.mark.parametrize("elsewhere", [False, True])
def test_the_last_line_says_with_which_bundle_to_start_from_now_on(
    asked: str, elsewhere: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An endpoint that is started as it was before would bring the old model back."""
    done = Outcome("promoted", "model m is in service", "m", bundle="/runs/my birds/bundle")
    monkeypatch.setattr(Promotion, "run", lambda self, bundle: done)
    monkeypatch.setattr(ModelChange, "rollback", lambda self, say: done)
    here = SimpleNamespace(state="running", url="http://127.0.0.1:1", dashboard="http://127.0.0.1:2")
    monkeypatch.setattr(Running, "find", lambda port: here)
    where = ["--endpoint", "http://e", "--dashboard", "http://d"] if elsewhere else []
    monkeypatch.setattr("sys.argv", ["promote.py", asked, *where])
    assert serve.promote.main() == 0
    more = " (bundle='/runs/my birds/bundle' with Ray Serve's own commands)" if elsewhere else ""
    assert capsys.readouterr().out.splitlines() == [
        "promoted: model m is in service",
        f"from now on start the endpoint with --bundle '/runs/my birds/bundle'{more}: a new start knows nothing of "
        "this change",
    ]


def test_the_help_says_what_a_second_rollback_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["promote.py", "--help"])
    with pytest.raises(SystemExit):
        serve.promote.main()
    told = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "a second --rollback undoes the first" in told
