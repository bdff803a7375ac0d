"""The problems table: everything that is wrong with a collection, at once, each with what to do about it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import pandas as pd

ADVICE: Final[dict[str, str]] = {
    "missing": "put the file there, mend the path, or delete the row",
    "unreadable": "mend or replace the file, or delete it",
    "other_file": "nothing, if it is not meant as an image; else export it as JPEG or PNG",
    "duplicate": "nothing, or delete the copy; only the first by path is used, so that no copy lands in two splits",
    "two_labels": "decide which label is right and delete the other; until then none of them is used",
    "duplicate_row": "delete all but one of the rows",
    "few_images": "label more images of this class, or merge it with another",
    "single_group": "add images of this class from another group (video, site, …); until then it cannot be tested",
    "same_name": "rename one: on a disk that ignores case (macOS, Windows) one file would overwrite the other",
    "similar_labels": "if they are one class, write them alike; they count as different classes",
    "no_label": "write the label, or delete the row; unlabelled images are not used",
    "no_path": "write the path of the image, or delete the row",
    "short_row": "give the row as many fields as the header",
    "bad_row": "write each field in one line, and close its quotes or leave them out",
    "bad_path": "write s3://bucket/key, or a path below the folder of images",
    "outside": "write an absolute path, or give --images a folder above all images",
    "unknown_split": "write train, validation or test, or leave the field empty",
    "straddling": "put the whole group into one split, or delete the split column to have it split by group",
    "no_group": "name its group, if it has near neighbours (same video, same site); else nothing",
    "no_row": "give the files rows, if they are meant to be used",
}
"""What to do, by problem code. A code that is not here is a mistake of ours."""

COLUMNS: Final = ("row", "path", "problem", "detail", "what_to_do")


@dataclass(frozen=True)
class Problem:
    """One finding. `row` is the line in the CSV (the header is line 1), None where there is no CSV."""

    path: str
    problem: str
    detail: str
    row: int | None = None

    def __post_init__(self) -> None:
        assert self.problem in ADVICE, self.problem


def table(problems: Iterable[Problem]) -> pd.DataFrame:
    """The problems as a data frame with `COLUMNS`, sorted by row, then path."""
    rows = sorted(problems, key=lambda p: (p.row if p.row is not None else -1, p.path, p.problem, p.detail))
    return pd.DataFrame(
        {
            "row": pd.array([p.row for p in rows], dtype="Int64"),
            "path": pd.array([p.path for p in rows], dtype="str"),
            "problem": pd.array([p.problem for p in rows], dtype="str"),
            "detail": pd.array([p.detail for p in rows], dtype="str"),
            "what_to_do": pd.array([ADVICE[p.problem] for p in rows], dtype="str"),
        },
    )
