"""What must not be split: frames of one video, images of one site. Each row gets the name of its group."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from data.errors import UserError
from data.manifest import Row
from data.problems import Problem

# NOAA's names for frames of ROV video: 56321614_EX1708_VID_20170926T212000Z_ROVHD.mp4_1378.png is camera, cruise,
# UTC start of the video, frame number. Copies made by augmentation add something after the number.
_VIDEO: Final = re.compile(
    r"(?P<camera>\d+)_(?P<cruise>[A-Za-z0-9-]+)_VID_(?P<start>\d{8}T\d{6}Z)_(?P<kind>\w+)"
    r"\.(?:mp4|mov|avi|mkv|mts|m4v|mpg)_(?P<frame>\d{1,15})(?:[_.-][^/]*)?$",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class VideoFrame:
    """What a frame's name says: camera, cruise, UTC start of the video ("20170926T212000Z"), frame number."""

    camera: str
    cruise: str
    start: str
    frame: int

    @property
    def video(self) -> str:
        return f"{self.camera}_{self.cruise}_{self.start}"


def parse_video_name(key: str) -> VideoFrame | None:
    """The parts of a NOAA frame name (with or without folders before it), or None."""
    found = _VIDEO.match(key.rpartition("/")[2])
    return VideoFrame(found["camera"], found["cruise"], found["start"].upper(), int(found["frame"])) if found else None


@dataclass(frozen=True)
class Grouped:
    """A group for each row, the frame number where the name has one, one sentence on how, and what found no group.

    `alone` tells for each row whether it is a group by itself, its image.
    """

    groups: tuple[str, ...]
    frames: tuple[int | None, ...]
    alone: tuple[bool, ...]
    how: str
    problems: tuple[Problem, ...]


def form(rows: Sequence[Row], group_by: str, columns: Sequence[str]) -> Grouped:
    """Groups by `group_by`: a column, "video", "image", "regex:PATTERN", or "" for the best that the rows offer.

    "" takes the column `group`, else the video in the names, else each image by itself. A row without a group is a
    group by itself. Raises UserError for a column that is not there or a pattern that is none or fits no row.
    """
    videos = [parse_video_name(row.key) for row in rows]
    if group_by == "image":
        names, how = [""] * len(rows), ""
    elif group_by.startswith("regex:"):
        find = _pattern(group_by.removeprefix("regex:"))
        names, how = [find(row.key) for row in rows], f"by the pattern {group_by.removeprefix('regex:')}"
    elif group_by in columns or (not group_by and "group" in columns):
        column = group_by or "group"
        names, how = [row.columns.get(column, "") for row in rows], f"by the column {column}"
    elif group_by in ("", "video"):
        names, how = [video.video if video else "" for video in videos], "by the video in the file names"
    else:
        have = f"columns: {', '.join(columns)}" if columns else "no columns, since it is a folder"
        raise UserError(
            f"--group-by {group_by}: no such column (there are {have}); give one, or video, image, regex:PATTERN"
        )
    if group_by not in ("", "image") and not any(names):
        raise UserError(f"--group-by {group_by}: no image got a group from it; look at the names, or leave it out")
    problems = [
        row.problem("no_group", "in no group; stands by itself")
        for row, name in zip(rows, names, strict=True)
        if not name and any(names)
    ]
    return Grouped(
        groups=tuple(name or row.key for row, name in zip(rows, names, strict=True)),
        frames=tuple(video.frame if video else None for video in videos),
        alone=tuple(not name for name in names),
        how=_sentence(names, how),
        problems=tuple(problems),
    )


def _sentence(names: Sequence[str], how: str) -> str:
    if not any(names):
        return (
            "Each image is its own group: nothing kept near neighbours together, "
            "so scores may be those of images almost seen in training."
        )
    alone = sum(not name for name in names)
    rest = f"; {alone} images without one stand by themselves" if alone else ""
    return f"Grouped {how}: {len(set(names) - {''})} groups{rest}."


def _pattern(pattern: str) -> Callable[[str], str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"--group-by regex:{pattern}: not a regular expression: {error}; mend it") from error
    if compiled.groups > 1 and "group" not in compiled.groupindex:
        raise UserError(
            f"--group-by regex:{pattern}: {compiled.groups} parentheses; keep one pair around the group's name, "
            "write (?:…) for the others, or name it (?P<group>…)"
        )
    which = "group" if "group" in compiled.groupindex else compiled.groups

    def find(key: str) -> str:
        found = compiled.search(key)
        return (found[which] or "") if found else ""

    return find
