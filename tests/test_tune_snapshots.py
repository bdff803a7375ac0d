"""The copy of a search's state: what another machine needs to go on, and what this one must not lose to it."""

import io
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from data import store
from data.errors import UserError
from tune.outputs import RunFolder
from tune.snapshots import KeepState, bring_study, put_back


@pytest.fixture
def staging(tmp_path: Path) -> Path:
    """Where Tune writes its state."""
    folder = tmp_path / "staging"
    folder.mkdir()
    (folder / "experiment_state-1.json").write_text("{}")
    return folder


def machine(place: str, folder: Path, **files: str) -> RunFolder:
    """The run as one machine has it, with these files in its own folder."""
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text)
    return RunFolder(place, str(folder))


def copy_state(run: RunFolder, staging: Path) -> None:
    trial: Any = SimpleNamespace(storage=SimpleNamespace(experiment_driver_staging_path=str(staging)))
    KeepState(run).on_step_begin(0, [trial])


def test_another_machine_takes_the_study_and_the_bill_of_the_last_state(
    bucket_place: str, tmp_path: Path, staging: Path
) -> None:
    first = machine(bucket_place, tmp_path / "a", study_db="three trials", spending_json="2 USD")
    copy_state(first, staging)
    second = machine(bucket_place, tmp_path / "b", study_db="of long ago")
    bring_study(second)
    assert (tmp_path / "b" / "study.db").read_text() == "three trials"
    assert (tmp_path / "b" / "spending.json").read_text() == "2 USD"
    assert put_back(second)
    assert [entry.key for entry in store.list_files(f"{bucket_place}/ray/tune")] == ["experiment_state-1.json"]


def test_the_machine_that_wrote_the_state_keeps_what_has_happened_since(
    bucket_place: str, tmp_path: Path, staging: Path
) -> None:
    run = machine(bucket_place, tmp_path / "a", study_db="three trials")
    copy_state(run, staging)
    machine(bucket_place, tmp_path / "a", study_db="four trials")
    bring_study(run)
    assert (tmp_path / "a" / "study.db").read_text() == "four trials"
    # Somebody else has gone on meanwhile: what happened here is of a past that the state no longer has.
    copy_state(machine(bucket_place, tmp_path / "b", study_db="nine trials"), staging)
    bring_study(run)
    assert (tmp_path / "a" / "study.db").read_text() == "nine trials"


def test_a_run_on_disk_keeps_its_study_where_it_is(tmp_path: Path, staging: Path) -> None:
    run = machine(str(tmp_path / "a"), tmp_path / "a", study_db="three trials")
    copy_state(run, staging)
    with zipfile.ZipFile(io.BytesIO(store.read(f"{run.ray_storage}/state.zip"))) as archive:
        assert archive.namelist() == ["experiment_state-1.json"]
    machine(run.out, tmp_path / "a", study_db="four trials")
    bring_study(run)
    assert (tmp_path / "a" / "study.db").read_text() == "four trials"


def test_a_damaged_state_is_named(bucket_place: str, tmp_path: Path) -> None:
    run = machine(bucket_place, tmp_path / "a")
    store.write(f"{bucket_place}/ray/state.zip", b"PK")
    with pytest.raises(UserError, match=r"state\.zip is damaged .* begin a new search in another --out"):
        bring_study(run)


def test_nothing_to_bring_is_no_fault(bucket_place: str, tmp_path: Path) -> None:
    run = machine(bucket_place, tmp_path / "a")
    bring_study(run)
    assert not put_back(run)
    assert list((tmp_path / "a").iterdir()) == []
