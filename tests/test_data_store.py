"""One set of functions over disk and bucket: the same answers, whole files or none, and errors that say what to do."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import boto3
import pytest

from data import localfiles, store
from data.errors import UserError
from data.images import Failure


@pytest.fixture(params=["disk", "bucket"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "base") if request.param == "disk" else f"{request.getfixturevalue('bucket_place')}/some/base"


def test_what_is_written_is_listed_and_read(base: str) -> None:
    for key in ("b.txt", "a/deep/er.txt", "a/x.txt", "Ünï cödé/ä b+c#d.txt"):
        store.write(store.join(base, *key.split("/")), key.encode())
    store.write(store.join(base, ".hidden"), b"no")
    store.write(store.join(base, ".folder", "file"), b"no")
    entries = store.list_files(base)
    assert [entry.key for entry in entries] == sorted(["a/deep/er.txt", "a/x.txt", "b.txt", "Ünï cödé/ä b+c#d.txt"])
    assert [store.read(entry.path).decode() for entry in entries] == [entry.key for entry in entries]
    assert [entry.size for entry in entries] == [len(entry.key.encode()) for entry in entries]
    assert [entry.key for entry in store.list_files(base, recursive=False)] == ["b.txt"]
    assert store.exists(store.join(base, "a"))
    assert store.exists(store.join(base, "b.txt"))
    assert not store.exists(store.join(base, "b"))
    found = store.find(store.join(base, "b.txt"), "b.txt")
    assert found == entries[[e.key for e in entries].index("b.txt")]
    assert store.find(store.join(base, "none")) is None


def test_a_new_version_shows_in_the_listing(base: str) -> None:
    file = store.join(base, "f")
    store.write(file, b"one")
    before = store.list_files(base)
    assert store.list_files(base) == before
    store.write(file, b"two")
    assert store.list_files(base)[0].version != before[0].version


def test_reading_many_keeps_the_order_and_names_what_is_missing(base: str) -> None:
    paths = [store.join(base, f"{n:03}") for n in range(50)]
    for n, path in enumerate(paths):
        if n != 7:
            store.write(path, str(n).encode())
    got = list(store.read_many(paths, workers=4))
    assert [path for path, _ in got] == paths
    missing = got.pop(7)[1]
    assert isinstance(missing, Failure)
    assert missing.code == "unreadable"
    assert [blob for _, blob in got] == [str(n).encode() for n in range(50) if n != 7]


def test_a_missing_file_is_an_error_that_names_it(base: str) -> None:
    store.write(store.join(base, "there"), b"")
    with pytest.raises(UserError, match=r"nothere.*no such"):
        store.read(store.join(base, "nothere"))


def test_folders_go_there_and_back(base: str, tmp_path: Path) -> None:
    here = tmp_path / "here"
    for key in ("bundle.json", "a/weights", "z"):
        store.write(str(here / key), key.encode())
    store.upload_folder(str(here), base, last=("bundle.json",))
    store.download_folder(base, str(tmp_path / "back"))
    assert [e.key for e in store.list_files(str(tmp_path / "back"))] == ["a/weights", "bundle.json", "z"]
    assert (tmp_path / "back" / "a" / "weights").read_bytes() == b"a/weights"


def test_the_folder_that_says_all_is_there_goes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("bundle.json", "a", "z"):
        store.write(str(tmp_path / "here" / key), b"")
    order: list[str] = []
    write = localfiles.write

    def watched(path: str, fill: Callable[[str], object]) -> None:
        order.append(os.path.basename(path))
        write(path, fill)

    monkeypatch.setattr(localfiles, "write", watched)
    store.upload_folder(str(tmp_path / "here"), str(tmp_path / "there"), last=("bundle.json",))
    assert order == ["a", "z", "bundle.json"]


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path: Path) -> None:
    store.write(str(tmp_path / "f"), b"old")

    def fail(temporary: str) -> None:
        Path(temporary).write_bytes(b"ha")
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        localfiles.write(str(tmp_path / "f"), fail)
    assert (tmp_path / "f").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["f"]


def test_local_oddities(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "x").write_bytes(b"x")
    (tmp_path / "real" / "up").symlink_to(tmp_path)  # leads round in a circle
    (tmp_path / "link").symlink_to("nowhere")
    entries = {entry.key: entry for entry in store.list_files(str(tmp_path))}
    assert set(entries) == {"link", "real/x"}
    assert entries["link"].version == ""
    with pytest.raises(UserError, match="is a file"):
        store.list_files(str(tmp_path / "real" / "x"))
    with pytest.raises(UserError, match="no such folder"):
        store.list_files(str(tmp_path / "gone"))
    with pytest.raises(UserError, match="not a file"):
        store.read(str(tmp_path))


def test_a_linked_folder_is_followed(tmp_path: Path) -> None:
    (tmp_path / "disk2").mkdir()
    (tmp_path / "disk2" / "x").write_bytes(b"x")
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "images").symlink_to(tmp_path / "disk2")
    assert [entry.key for entry in store.list_files(str(tmp_path / "base"))] == ["images/x"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission_on_disk(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"")
    (tmp_path / "f").chmod(0)
    with pytest.raises(UserError, match="no permission"):
        store.read(str(tmp_path / "f"))


def test_paths() -> None:
    assert store.absolute("s3://b/p/") == "s3://b/p"
    assert store.absolute("x") == os.path.join(os.getcwd(), "x")
    assert store.absolute("~/x") == os.path.expanduser("~/x")
    assert store.join("s3://b/", "p/", "/q") == "s3://b/p/q"
    assert store.join("s3://b", "") == "s3://b"
    assert store.parent("s3://b/p/q.csv") == "s3://b/p"
    with pytest.raises(UserError, match=r"gs:// is not supported.*s3://"):
        store.absolute("gs://b/p")


def test_more_than_one_page_of_objects(bucket: str) -> None:
    client = boto3.client("s3")
    for n in range(1005):
        client.put_object(Bucket="frames", Key=f"many/{n}", Body=b"")
    client.put_object(Bucket="frames", Key="many/", Body=b"")  # what the console makes for a "folder"
    assert len(store.list_files(f"{bucket}/many")) == 1005
    assert store.list_files(f"{bucket}/man") == []  # a prefix is a folder, not the beginning of a name
    assert not store.exists(f"{bucket}/man")
    assert store.exists(bucket)


def _refuse(code: str, status: int) -> Callable[..., None]:
    def answer(**_: object) -> None:
        import botocore.exceptions

        raise botocore.exceptions.ClientError({"Error": {"Code": code}}, "GetObject")

    return answer


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("AccessDenied", "s3:GetObject"),
        ("InvalidAccessKeyId", "AWS_PROFILE"),
        ("SignatureDoesNotMatch", "secret key"),
        ("ExpiredToken", "log in again"),
        ("PermanentRedirect", "AWS_REGION"),
        ("SlowDown", "try again"),
    ],
)
def test_each_refusal_says_what_to_do(bucket: str, monkeypatch: pytest.MonkeyPatch, code: str, says: str) -> None:
    class Client:
        get_object = staticmethod(_refuse(code, 403))

    monkeypatch.setattr(store, "_client", Client)
    with pytest.raises(UserError, match=f"(?s)s3://frames/x.*{says}"):
        store.read(f"{bucket}/x")
    if code == "AccessDenied":  # one object that may not be read is a failure of one image
        assert isinstance(store.try_read(f"{bucket}/x"), Failure)
    else:  # what is wrong with all is not
        with pytest.raises(UserError):
            store.try_read(f"{bucket}/x")


def test_no_such_bucket(bucket: str) -> None:
    for ask in (store.list_files, store.read, store.exists):
        with pytest.raises(UserError, match="no such bucket"):
            ask("s3://never-made/x")
    with pytest.raises(UserError, match="no bucket in the address"):
        store.list_files("s3://")
    with pytest.raises(UserError, match="s3://"):
        store.list_files("s3://Not_A Bucket/x")


def test_no_credentials(bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"no AWS credentials.*AWS_PROFILE"):
        store.list_files(bucket)
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(UserError, match="AWS_PROFILE"):
        store.list_files(bucket)


def test_nobody_answers(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # the discard port: nothing listens
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(UserError, match=r"cannot reach http://127.0.0.1:9"):
        store.read(f"{bucket}/x")
    with pytest.raises(UserError, match="cannot reach"):
        list(store.read_many([f"{bucket}/x"]))


def looping(folder: Path) -> str:
    (folder / "loop").symlink_to("loop")
    return str(folder / "loop")


def pipe(folder: Path) -> str:
    os.mkfifo(folder / "x.png")
    return str(folder / "x.png")


ODD: list[Callable[[Path], str]] = [
    looping,
    pipe,
    lambda folder: str(folder / ("n" * 300)),
    lambda folder: str(folder / "a\0b.png"),
    lambda folder: str(folder / "\ud800.png"),
    str,  # a folder
    lambda _: "/dev/zero",
]


@pytest.mark.parametrize("make", ODD, ids="loop pipe long nul surrogate folder device".split())  # noqa: SIM905
def test_one_odd_file_is_a_failure_and_not_the_end(tmp_path: Path, make: Callable[[Path], str]) -> None:
    path = make(tmp_path)
    store.write(str(tmp_path / "good"), b"good")
    (_, odd), (_, good) = store.read_many([path, str(tmp_path / "good")])
    assert isinstance(odd, Failure)
    assert odd.code == "unreadable"
    assert "; " in odd.message  # what, and what to do
    assert good == b"good"
    with pytest.raises(UserError):
        store.read(path)


def test_what_is_wrong_with_the_machine_is_no_failure_of_one_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: str) -> bytes:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(localfiles, "read", full)
    with pytest.raises(UserError, match="no space"):
        store.try_read("/x")


def test_where_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write(str(tmp_path / "file"), b"")
    for path in ("file/x", "file/deep/x"):
        with pytest.raises(UserError, match=rf"{path}: cannot be written: a file lies where.*another place"):
            store.write(str(tmp_path / path), b"")
    with pytest.raises(UserError, match="it is a folder"):
        store.write(str(tmp_path), b"")
    with pytest.raises(UserError, match="cannot be written"):
        store.write("/proc/none/x", b"")

    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(UserError, match=r"cannot be written \(Read-only"):
        store.write(str(tmp_path / "f"), b"")
    assert os.listdir(tmp_path) == ["file"]
