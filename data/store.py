"""Files on disk and objects in S3, by one set of functions. The only way to a bucket for images and results.

A path is a local file or an `s3://bucket/key` address. AWS_ENDPOINT_URL and the other AWS settings are honoured.
"""

import contextlib
import functools
import hashlib
import os
import re
import shutil
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import boto3
import botocore.exceptions as aws
from botocore.config import Config

from data import cachefolder, localfiles
from data.errors import UserError
from data.images import Failure
from data.localfiles import Entry as Entry
from data.localfiles import NotAllowedError as NotAllowedError
from data.localfiles import NotReadableError as NotReadableError
from data.localfiles import NotThereError as NotThereError
from data.parallel import ordered_map

_S3: Final = "s3://"


def is_remote(path: str) -> bool:
    """Whether the path is an `s3://` address."""
    return path.startswith(_S3)


def absolute(path: str) -> str:
    """A local path made absolute (with ~ expanded); an s3:// address without its trailing slash."""
    if is_remote(path):
        return path.rstrip("/")
    if scheme := re.match(r"([A-Za-z][A-Za-z0-9+.-]+)://", path):
        raise UserError(f"{path}: {scheme[1]}:// is not supported; use a local path or s3://bucket/prefix")
    return os.path.abspath(os.path.expanduser(path))


def join(base: str, *parts: str) -> str:
    """`base` and `parts` as one path: slashes for s3://, the system's separator for local paths."""
    if is_remote(base):
        return "/".join([base.rstrip("/"), *(part.strip("/") for part in parts if part.strip("/"))])
    return os.path.join(base, *parts)


def parent(path: str) -> str:
    """The folder that the file lies in."""
    return path.rpartition("/")[0] if is_remote(path) else os.path.dirname(path)


def list_files(base: str, *, recursive: bool = True) -> list[Entry]:
    """All files below a folder, sorted by key. Hidden files and folders are skipped; links are followed.

    Raises UserError where the folder does not exist, is a file, or may not be listed. An empty S3 prefix has no files.
    """
    if is_remote(base):
        with explained(base):
            found = list(_list_remote(base, recursive))
    else:
        if not os.path.isdir(base):
            what = "is a file, not a folder" if os.path.exists(base) else "no such folder"
            raise NotThereError(f"{base}: {what}; give the folder that holds the images")
        with explained(base):
            found = list(localfiles.walk(base, recursive))
    return sorted(found, key=lambda entry: entry.key)


def find(path: str, key: str = "") -> Entry | None:
    """The entry of one file, or None where there is no such file."""
    if not is_remote(path):
        return localfiles.entry(path, key) if os.path.isfile(path) else None
    bucket, name = _split(path)
    try:
        with explained(path):
            head = _client().head_object(Bucket=bucket, Key=name)
    except NotThereError:
        return None
    return Entry(path, key, int(head["ContentLength"]), str(head["ETag"]).strip('"'))


def exists(path: str) -> bool:
    """Whether there is a file or a folder (in S3: an object or any object below it) at this path."""
    if not is_remote(path):
        return os.path.exists(path)
    bucket, key = _split(path)
    if key and find(path) is not None:
        return True
    with explained(path):
        answer = _client().list_objects_v2(Bucket=bucket, Prefix=f"{key}/" if key else "", MaxKeys=1)
    return int(answer["KeyCount"]) > 0


def read(path: str | Entry, *, cache_dir: str | None = None) -> bytes:
    """The bytes of one file.

    With `cache_dir`, an S3 object is kept there under its ETag: read again, it costs no request when given as an Entry,
    and one without content when given as a path (S3 is asked for its ETag).
    """
    entry = path if isinstance(path, Entry) else Entry(path, "", 0, "")
    with explained(entry.path):
        if not is_remote(entry.path):
            return localfiles.read(entry.path)
        return _get(entry.path) if cache_dir is None else _get_cached(entry, cache_dir)


def try_read(path: str | Entry, *, cache_dir: str | None = None) -> bytes | Failure:
    """Like `read`, but what is wrong with this one file is a Failure. What is wrong with all files still raises."""
    try:
        return read(path, cache_dir=cache_dir)
    except (NotThereError, NotAllowedError, NotReadableError) as error:
        return Failure("unreadable", str(error))


def read_many(
    files: Iterable[str | Entry], *, cache_dir: str | None = None, workers: int = 16
) -> Iterator[tuple[str, bytes | Failure]]:
    """(path, bytes or Failure) for each file, in order, read by `workers` threads, few held in memory at once."""

    def one(file: str | Entry) -> tuple[str, bytes | Failure]:
        return (file.path if isinstance(file, Entry) else file), try_read(file, cache_dir=cache_dir)

    return ordered_map(one, files, workers)


def write(path: str, blob: bytes) -> None:
    """Write a file whole or not at all. Folders are made where they are missing."""
    with explained(path):
        if is_remote(path):
            bucket, key = _split(path)
            _client().put_object(Bucket=bucket, Key=key, Body=blob)
        else:
            localfiles.write_bytes(path, blob)


def delete(path: str) -> None:
    """Delete a file; one that is not there is no error."""
    with explained(path):
        if is_remote(path):
            bucket, key = _split(path)
            _client().delete_object(Bucket=bucket, Key=key)
        else:
            Path(path).unlink(missing_ok=True)


def upload_folder(local: str, remote: str, *, last: Sequence[str] = ()) -> None:
    """Copy a local folder to S3 (or to another local folder). Keys in `last` go last: they say that all is there."""
    entries = sorted(list_files(local), key=lambda entry: (entry.key in last, entry.key))
    for entry in entries:
        target = join(remote, *entry.key.split("/"))
        with explained(target):
            if is_remote(target):
                bucket, key = _split(target)
                _client().upload_file(entry.path, bucket, key)
            else:
                localfiles.write(target, functools.partial(shutil.copyfile, entry.path))


def download_folder(remote: str, local: str) -> None:
    """Copy a folder from S3 (or from a local folder) to a local folder. Each file appears whole or not at all."""
    entries = list_files(remote)
    if not entries:
        raise NotThereError(f"{remote}: nothing there; look at the address (bucket, then prefix)")
    for entry in entries:
        target = os.path.join(local, *entry.key.split("/"))
        with explained(entry.path):
            if is_remote(entry.path):
                bucket, key = _split(entry.path)
                localfiles.write(target, functools.partial(_client().download_file, bucket, key))
            else:
                localfiles.write(target, functools.partial(shutil.copyfile, entry.path))


def _split(path: str) -> tuple[str, str]:
    bucket, _, key = path.removeprefix(_S3).partition("/")
    if not bucket:
        raise UserError(f"{path}: no bucket in the address; write s3://bucket/prefix")
    return bucket, key


def _list_remote(base: str, recursive: bool) -> Iterator[Entry]:
    bucket, prefix = _split(base)
    prefix = f"{prefix.rstrip('/')}/" if prefix else ""
    more: dict[str, str] = {} if recursive else {"Delimiter": "/"}
    for page in _client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix, **more):
        for item in page.get("Contents", ()):
            key = item["Key"][len(prefix) :]
            if key and not key.endswith("/") and not any(part.startswith(".") for part in key.split("/")):
                yield Entry(f"{_S3}{bucket}/{item['Key']}", key, int(item["Size"]), item["ETag"].strip('"'))


def _get(path: str) -> bytes:
    bucket, key = _split(path)
    blob: bytes = _client().get_object(Bucket=bucket, Key=key)["Body"].read()
    return blob


def _get_cached(entry: Entry, cache_dir: str) -> bytes:
    if not entry.version:
        bucket, key = _split(entry.path)
        head = _client().head_object(Bucket=bucket, Key=key)
        entry = replace(entry, size=int(head["ContentLength"]), version=head["ETag"].strip('"'))
    copy = _copy(entry, cache_dir)
    with contextlib.suppress(OSError):
        blob = copy.read_bytes()
        if len(blob) == entry.size:
            os.utime(copy)  # used now: evicted later
            return blob
    blob = _get(entry.path)
    with contextlib.suppress(UserError):  # a full or read-only cache: slower, and no error
        localfiles.write_bytes(str(copy), blob)
    return blob


def drop_copy(entry: Entry, *, cache_dir: str) -> bool:
    """Forget the local copy of an S3 object, so that it is fetched again; whether there was one."""
    if not is_remote(entry.path):
        return False
    with contextlib.suppress(OSError):
        _copy(entry, cache_dir).unlink()
        return True
    return False


def _copy(entry: Entry, cache_dir: str) -> Path:
    name = hashlib.sha256(entry.path.encode()).hexdigest()[:40]
    version = re.sub("[^A-Za-z0-9-]", "", entry.version)
    return Path(cachefolder.resolve(cache_dir), "s3", name[:2], f"{name}-{version}")


_lock = threading.Lock()


def _client() -> Any:  # boto3 makes its classes at run time: there is no type to name
    settings = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_MAX_ATTEMPTS")
    with _lock:  # a client may be shared by threads, but making one is not thread-safe
        return _make_client(os.getpid(), tuple(os.environ.get(name) for name in settings))


@functools.lru_cache(maxsize=4)
def _make_client(_pid: int, _settings: tuple[str | None, ...]) -> Any:
    retries = {} if "AWS_MAX_ATTEMPTS" in os.environ else {"retries": {"max_attempts": 5, "mode": "standard"}}
    config = Config(max_pool_connections=32, connect_timeout=10, read_timeout=60, **retries)
    return boto3.session.Session().client("s3", config=config)


_CREDENTIALS: Final = (
    "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run on a machine with an instance role"
)
_PERMISSION: Final = "no permission; this needs s3:ListBucket, s3:GetObject and (to write) s3:PutObject"
_BY_CODE: Final[dict[str, tuple[type[UserError], str]]] = {
    "NoSuchBucket": (NotThereError, "no such bucket; look at the name after s3:// and at the account you are in"),
    "InvalidBucketName": (UserError, "not a bucket name; write s3://bucket/prefix"),
    "NoSuchKey": (NotThereError, "no such object in this bucket; look at the address"),
    "404": (NotThereError, "no such object or bucket; look at the address"),
    "AccessDenied": (NotAllowedError, _PERMISSION),
    "403": (NotAllowedError, _PERMISSION),
    "InvalidAccessKeyId": (UserError, f"AWS does not know this access key; {_CREDENTIALS}"),
    "SignatureDoesNotMatch": (UserError, f"the secret key does not fit the access key; {_CREDENTIALS}"),
    "ExpiredToken": (UserError, "the session token has expired; log in again (aws sso login)"),
    "PermanentRedirect": (UserError, "the bucket lies in another region; set AWS_REGION to the bucket's"),
    "301": (UserError, "the bucket lies in another region; set AWS_REGION to the bucket's"),
}


@contextlib.contextmanager
def explained(path: str) -> Iterator[None]:
    """Turn what boto3 and the file system raise about `path` into a UserError that says what to do."""
    with localfiles.explained(path):
        try:
            yield
        except (aws.NoCredentialsError, aws.PartialCredentialsError) as error:
            raise UserError(f"{path}: no AWS credentials found; {_CREDENTIALS}") from error
        except aws.ProfileNotFound as error:
            raise UserError(f"{path}: {error}; set AWS_PROFILE to a profile in ~/.aws/config") from error
        except (aws.ConnectionError, aws.HTTPClientError) as error:
            where = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "AWS"
            raise UserError(f"{path}: cannot reach {where}; look at the network and at AWS_ENDPOINT_URL") from error
        except aws.ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            kind, advice = _BY_CODE.get(code, (UserError, f"S3 answered {code}: {error}; try again"))
            raise kind(f"{path}: {advice}") from error
        except aws.BotoCoreError as error:
            raise UserError(f"{path}: {error}; look at the address and at the AWS settings") from error
