"""A run's folder: never written over, one command at a time, and its half in a bucket."""

from pathlib import Path

import pytest

from data import store
from data.errors import UserError
from tune import runs
from tune.outputs import RunFolder, begin, find_run, working_on
from tune.settings import SearchConfig

pytestmark = pytest.mark.ray


def test_two_commands_never_work_on_one_run(config: SearchConfig) -> None:
    run = RunFolder(config.out, config.out)
    with working_on(run), pytest.raises(UserError, match="another command is working on"), working_on(run):
        pass
    with working_on(run):
        pass


def test_a_new_run_in_a_bucket_takes_nothing_from_a_deleted_one(config: SearchConfig, tmp_path: Path) -> None:
    """Its local half would otherwise hand the old study's trials to the new search."""
    run = RunFolder("s3://frames/deleted", str(tmp_path / "half"))
    (tmp_path / "half" / "bundle").mkdir(parents=True)
    (tmp_path / "half" / "study.db").write_text("old")
    with working_on(run):
        begin(run, config, "search")
    assert {path.name for path in (tmp_path / "half").iterdir()} - {".lock"} == {"settings.json"}


def test_a_resume_takes_the_newer_half_of_a_run_in_a_bucket(config: SearchConfig, bucket: str, tmp_path: Path) -> None:
    """Begun on machine A, gone on with on B, and then on A again, whose own files are the older ones by now."""

    def find(machine: str, *, resume: bool) -> RunFolder:
        cache = str(tmp_path / machine)
        return find_run(f"{bucket}/halves", name="", resume=resume, cache_dir=cache, kind="search")

    first = find("a", resume=False)
    with working_on(first):
        begin(first, config, "search")
        first.write_json("trials.json", "of A")
        first.publish()
    first.write_json("trials.json", "of A, killed before it could publish")
    assert find("a", resume=True).read_json("trials.json") == "of A, killed before it could publish"
    other = find("b", resume=True)
    assert other.read_json("trials.json") == "of A"
    other.write_json("trials.json", "of B")
    other.publish()
    assert find("a", resume=True).read_json("trials.json") == "of B"


def test_a_file_is_no_folder_for_results(config: SearchConfig) -> None:
    Path(config.out).write_text("mine")
    with pytest.raises(UserError, match="is a file; give --out a folder"):
        runs.search(config)


def test_a_half_that_could_not_be_published_passes_for_no_newer_one(
    config: SearchConfig, bucket_place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise UserError("the bucket is out of reach")

    run = RunFolder(f"{bucket_place}/run", str(tmp_path / "half"))
    with working_on(run):
        begin(run, config, "search")
        run.publish()
        with monkeypatch.context() as patched:
            patched.setattr(store, "upload_folder", unreachable)
            for _ in range(3):
                with pytest.raises(UserError, match="out of reach"):
                    run.publish()
    assert run.serial(run.local) == run.serial(run.out) == 1
