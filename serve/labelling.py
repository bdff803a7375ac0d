"""Label every image of a folder or bucket into one CSV, in constant memory; a stopped run goes on where it stopped."""

import contextlib
import csv
import itertools
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Literal, TextIO

from tqdm import tqdm

from data import store
from data.errors import UserError
from data.images import IMAGE_SUFFIXES, Failure
from models.predictor import Prediction, Predictor

_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")


@dataclass(frozen=True)
class LabelConfig:
    """Which model labels which images, and where the answers go."""

    bundle: str
    """The trained model: a bundle folder (runs/NAME/bundle) or its s3:// address."""
    images: str
    """Folder of images, or its s3:// address; folders below it are read too."""
    out: str = "predictions.csv"
    """The CSV to write: a local file or an s3:// address."""
    probabilities: bool = False
    """Add a column p_CLASS for each class."""
    overwrite: bool = False
    """Replace an existing output file."""
    batch_size: int = 32
    """Images that go through the network together."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the network runs."""
    threads: int = 0
    """CPU threads for the network. 0 leaves it to torch."""
    readers: int = 16
    """Files that are read at once, which matters for s3:// and network drives."""
    cache_dir: str = ""
    """Folder for copies of bundles read from s3://. Empty is the user's cache folder."""

    def __post_init__(self) -> None:
        for name in ("bundle", "images", "out"):
            if not getattr(self, name):
                raise ValueError(f"{name} must not be empty")
        for name, least in (("batch_size", 1), ("readers", 1), ("threads", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be >= {least}, got {getattr(self, name)}")

    def absolute(self) -> "LabelConfig":
        """All paths absolute or s3://, once."""
        bundle, images, out = (store.absolute(path) for path in (self.bundle, self.images, self.out))
        return replace(self, bundle=bundle, images=images, out=out)


@dataclass
class Summary:
    """What a run found. `labels` and `failures` count images by label and by failure code."""

    out: str
    skipped: int = 0
    resumed: int = 0
    labels: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        failed = sum(self.failures.values())
        parts = [f"{count:,} {label}" for label, count in sorted(self.labels.items())]
        if failed:
            codes = ", ".join(f"{count:,} {code}" for code, count in self.failures.most_common())
            parts.append(f"{failed:,} failed ({codes}; the column error says why)")
        text = f"{sum(self.labels.values()) + failed:,} images: {', '.join(parts)}"
        if self.resumed:
            text += f"; {self.resumed:,} of them from the run before"
        if self.skipped:
            text += f"; {self.skipped:,} files that are not images by their name were skipped"
        return f"{text} -> {self.out}"


def label_images(config: LabelConfig, *, progress: bool = False) -> Summary:
    """Write `config.out`: a row for each image, sorted by path, with its label or its failure.

    The file appears whole, at the end. Until then the rows go to `OUT.MODEL.partial` beside it, and the same command
    goes on from there after a kill (an image that changed in between keeps its first answer). For an output in S3
    that file is temporary and a stopped run starts anew. UserError where there is nothing to read or write.
    """
    config = config.absolute()
    if not config.overwrite and store.exists(config.out):
        raise UserError(f"{config.out}: exists already; give another --out or add --overwrite")
    entries = store.list_files(config.images)
    images = [entry for entry in entries if PurePosixPath(entry.key).suffix.lower() in IMAGE_SUFFIXES]
    if not images:
        known = " ".join(sorted(IMAGE_SUFFIXES))
        raise UserError(f"{config.images}: no image among {len(entries):,} files; images end in {known}")
    predictor = Predictor.load(
        config.bundle, device=config.device, threads=config.threads or None, cache_dir=config.cache_dir
    )
    summary = Summary(config.out, skipped=len(entries) - len(images))
    with _finished_whole(config.out, predictor.info.id) as partial:
        table = _Table(partial, predictor.info.classes if config.probabilities else ())
        with (
            table.resumed(images, summary) as rows,
            tqdm(total=len(images), initial=summary.resumed, unit="image", disable=not progress) as bar,
        ):
            left = store.read_many(images[summary.resumed :], workers=config.readers)
            for batch in _batches(left, config.batch_size):
                answers = predictor.predict_bytes([blob for _, blob in batch])
                for (path, _), answer in zip(batch, answers, strict=True):
                    table.write(rows, path, answer)
                    _count(summary, answer)
                rows.flush()
                bar.update(len(batch))
    return summary


def spreadsheet_safe(cell: str) -> str:
    """Put an apostrophe before what a spreadsheet would run as a formula (OWASP, "CSV injection")."""
    return f"'{cell}" if cell.startswith(_FORMULA_STARTS) else cell


def _plain(cell: str) -> str:
    return cell[1:] if cell.startswith("'") and cell[1:].startswith(_FORMULA_STARTS) else cell


class _Table:
    """The CSV: its columns, and how much of a table that a killed run left behind still holds."""

    def __init__(self, path: Path, classes: Sequence[str]) -> None:
        self._path = path
        self._classes = classes
        extra = [spreadsheet_safe(f"p_{name}") for name in classes]
        self._header = ["path", "label", "probability", "confident", "error", *extra]

    @contextlib.contextmanager
    def resumed(self, images: Sequence[store.Entry], summary: Summary) -> Iterator[TextIO]:
        """Open the table for writing after the rows that are there already and belong to these images."""
        fresh = self._path.with_name(f"{self._path.name}.new")
        with _open(fresh, "w") as rows:
            writer = csv.writer(rows)
            writer.writerow(self._header)
            for row in self._kept(images):
                writer.writerow(row)
                summary.resumed += 1
                if row[4]:
                    summary.failures[row[4].partition(":")[0]] += 1
                else:
                    summary.labels[_plain(row[1])] += 1
            rows.flush()
            os.replace(fresh, self._path)
            yield rows

    def write(self, rows: TextIO, path: str, answer: Prediction | Failure) -> None:
        csv.writer(rows).writerow([spreadsheet_safe(cell) for cell in [path, *self._cells(answer)]])

    def _cells(self, answer: Prediction | Failure) -> list[str]:
        if isinstance(answer, Failure):
            return ["", "", "", f"{answer.code}: {answer.message}", *("" for _ in self._classes)]
        confident = "" if answer.confident is None else str(answer.confident).lower()
        extra = [f"{value:.6f}" for value in answer.probabilities] if self._classes else []
        return [answer.label, f"{answer.probability:.6f}", confident, "", *extra]

    def _kept(self, images: Sequence[store.Entry]) -> Iterator[list[str]]:
        if not self._path.exists():
            return
        with _open(self._path, "r") as left:
            reader = csv.reader(left)
            if next(reader, None) != self._header:
                return
            row_before: list[str] | None = None
            # The last row is never kept: a kill may have cut it, and a cut number still looks like a number.
            for row, entry in zip(reader, images, strict=False):
                if row_before is not None:
                    yield row_before
                if len(row) != len(self._header) or row[0] != spreadsheet_safe(entry.path):
                    return
                row_before = row


def _open(path: Path, mode: Literal["r", "w"]) -> TextIO:
    # A file name on disk need not be valid text; surrogateescape writes its bytes back as they were.
    return path.open(mode, encoding="utf-8", errors="surrogateescape", newline="")


@contextlib.contextmanager
def _finished_whole(out: str, model: str) -> Iterator[Path]:
    """A path to write to; what is there in the end becomes `out` in one step, unless an error ends it before."""
    if store.is_remote(out):
        with tempfile.TemporaryDirectory() as folder:
            yield (partial := Path(folder, out.rpartition("/")[2]))
            assert partial.exists()
            store.upload_folder(folder, store.parent(out))
        return
    with store.explained(out):
        os.makedirs(store.parent(out), exist_ok=True)
        yield (partial := Path(f"{out}.{model}.partial"))
        os.replace(partial, out)


def _batches(files: Iterator[tuple[str, bytes | Failure]], size: int) -> Iterator[list[tuple[str, bytes | Failure]]]:
    while batch := list(itertools.islice(files, size)):
        yield batch


def _count(summary: Summary, answer: Prediction | Failure) -> None:
    if isinstance(answer, Failure):
        summary.failures[answer.code] += 1
    else:
        summary.labels[answer.label] += 1
