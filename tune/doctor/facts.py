"""What the search doctor looks at, as plain values, and what it says: facts in, findings out."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from statistics import NormalDist
from typing import Literal

import numpy as np
import pandas as pd

from data.collection import Collection
from models.metrics import wilson
from tune.settings import SearchConfig
from tune.space import Dimension, Space

# The column of trials.csv that trials are judged by. Its home imports Ray, which the doctor does without.
SCORE = "validation_accuracy"

# Most images that are looked at for being blank, spread evenly over the collection: enough to see a tenth.
_LOOKED_AT = 256
# Grey levels between the darkest and the brightest pixel of an image without content. JPEG makes 1 or 2 of nothing.
_BLANK_LEVELS = 4
# Problems because of which an image is left out. Copies are not among them: their first one is used.
_LEFT_OUT = ("missing", "unreadable", "two_labels", "no_label", "no_path", "bad_path")
# A trial that was ended early counts from this many epochs on: nearly every network names one class at its start.
_LEAST_EPOCHS = 3
# All validation images but a rounding are given one class.
_ONE_CLASS = 0.999

FEW = 4
"""Scored trials below which nothing is said of a share of them."""

Severity = Literal["note", "warning"]


@dataclass(frozen=True)
class Finding:
    """One thing that the doctor says: `what` was found, on which `evidence`, and what to do (`advice`)."""

    rule: str
    what: str
    evidence: str
    advice: str
    severity: Severity = "warning"

    def as_dict(self) -> dict[str, str]:
        """JSON-ready."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Facts:
    """All that a rule may look at. What is not known keeps its default, and rules that need it stay silent."""

    table: pd.DataFrame = field(default_factory=pd.DataFrame)
    """The trials so far, with the columns of trials.csv as far as they are known. Without `status` all have ended."""
    space: Space | None = None
    planned: int = 0
    """Trials that the search is to run."""
    model: str = "cnn"
    frozen: bool = False
    """Whether only a head over a frozen base is trained."""
    optimizer: str = "adam"
    patience: int = 0
    classes: tuple[str, ...] = ()
    train_counts: tuple[int, ...] = ()
    """Training images of each class, in the order of `classes`."""
    validation_counts: tuple[int, ...] = ()
    listed: int = 0
    """Images that the collection names, good or bad."""
    left_out: tuple[tuple[str, int], ...] = ()
    """Kinds of problem because of which images are not used, and how many, the commonest first."""
    blank_share: float = 0.0
    """Share of the images that are one flat colour, 0..1."""
    widen: bool = False
    """Whether the search looks beyond its bounds by itself."""

    @property
    def n(self) -> int:
        """Validation images."""
        return sum(self.validation_counts)

    @property
    def majority(self) -> float:
        """Validation accuracy of always naming the commonest class; NaN without validation images."""
        return max(self.validation_counts) / self.n if self.n else float("nan")

    @cached_property
    def scored(self) -> pd.DataFrame:
        """Trials that ended by themselves, or early after a few epochs, with a validation accuracy; best first."""
        table = self.table
        if SCORE not in table or not self.n:
            return table.iloc[:0].assign(**{SCORE: pd.Series(dtype=float)})
        kept = table[SCORE].notna()
        if "status" in table:
            early = table["status"].isin(["pruned", "stopped"]) & (self.column("epochs_run") >= _LEAST_EPOCHS)
            kept &= (table["status"] == "finished") | early
        by = [SCORE, *(c for c in ("validation_loss", "trial") if c in table)]
        return table[kept].sort_values(by, ascending=[column != SCORE for column in by])

    @cached_property
    def collapsed(self) -> "pd.Series[bool]":
        """For each scored trial, whether it learned nothing.

        Its validation accuracy is not shown to be above always naming the commonest class, and it names one class for
        every validation image (`top_share`), or is at or below that rate without having learned its training images
        either: a trial that knows those has overfitted, which is another illness. Where `top_share` is not known, the
        first alone decides.
        """
        scored = self.scored
        accuracy = scored[SCORE].astype(float)
        at_chance = accuracy.map(lambda a: wilson(round(a * self.n), self.n)[0]) <= self.majority
        if "top_share" not in scored:
            return at_chance
        share = scored["top_share"].astype(float)
        return at_chance & ((share >= _ONE_CLASS) | (accuracy <= self.majority) & ~self._learned | share.isna())

    @property
    def _learned(self) -> "pd.Series[bool]":
        """For each scored trial, whether it is shown to do better on its training images than naming one class."""
        n, training = sum(self.train_counts), self.column("last_training_accuracy").reindex(self.scored.index)
        least = training.fillna(0.0).map(lambda a: wilson(round(a * n), n)[0])
        return least > max(self.train_counts, default=0) / max(n, 1)

    def column(self, name: str) -> "pd.Series[float]":
        """A column of the table as floats, NaN where it is missing."""
        if name not in self.table:
            return pd.Series(np.nan, index=self.table.index)
        return pd.to_numeric(self.table[name], errors="coerce")

    def dimension(self, name: str) -> Dimension | None:
        """The searched dimension of that name."""
        dimensions = self.space.dimensions if self.space else ()
        return next((d for d in dimensions if d.name == name), None)


@dataclass(frozen=True)
class Rule:
    """One thing that can be wrong, and when to look for it: before the search, or in its trials."""

    name: str
    when: Literal["before", "after"]
    check: Callable[[Facts], Finding | None]


def half_width(n: int, p: float = 0.5) -> float:
    """Half of the 95 % interval of a proportion p of n images, widest at the default p = 0.5."""
    low, high = wilson(round(p * n), n)
    return (high - low) / 2


def z_of_many(comparisons: int) -> float:
    """z for 95 % confidence over so many comparisons at once (Bonferroni): 1.96 for one, 3.02 for twenty."""
    return NormalDist().inv_cdf(1 - 0.025 / max(1, comparisons))


def difference(first: float, second: float, n: int) -> float:
    """Half width of the 95 % interval of the difference of two proportions, each of n images, taken as independent.

    1.96 sqrt((p (1 - p) + q (1 - q)) / (n + 2)) with p and q after one more success and failure each (Agresti and
    Caffo, The American Statistician 54, 2000). Trials are scored on the *same* images, so errors that they share cancel
    and the true interval is narrower; without the paired answers this is the width that can be defended.
    """
    p, q = ((share * n + 1) / (n + 2) for share in (first, second))
    return 1.96 * float(np.sqrt((p * (1 - p) + q * (1 - q)) / (n + 2)))


def facts_of(
    config: SearchConfig, collection: Collection, table: pd.DataFrame | None = None, space: Space | None = None
) -> Facts:
    """The facts of a search over `collection`, with the trials so far; `space` where it was widened since.

    Reads a few hundred images of the pack: while a search runs, take `dataclasses.replace(facts, table=...)`.
    """
    train, problems = config.train.resolved(frozen=config.model.frozen), collection.problems["problem"]
    left_out = problems[problems.isin(_LEFT_OUT)].value_counts()
    return Facts(
        table=pd.DataFrame() if table is None else table,
        space=space or config.search_space(),
        planned=config.trial_count,
        model=config.model.model,
        frozen=config.model.frozen,
        optimizer=train.optimizer,
        patience=train.patience,
        widen=config.widen,
        classes=collection.classes,
        train_counts=_counts(collection, "train"),
        validation_counts=_counts(collection, "validation"),
        listed=len(collection.table) + int(left_out.sum()),
        left_out=tuple((str(kind), int(count)) for kind, count in left_out.items()),
        blank_share=_blank_share(collection),
    )


def _counts(collection: Collection, split: str) -> tuple[int, ...]:
    labels = collection.subset(split).labels
    return tuple(int(count) for count in np.bincount(labels, minlength=len(collection.classes)))


def _blank_share(collection: Collection) -> float:
    images = collection.images()
    rows = collection.table["row"].to_numpy()[:: max(1, len(collection.table) // _LOOKED_AT)]
    return float(np.mean([np.ptp(images[row], axis=(0, 1)).max() <= _BLANK_LEVELS for row in rows]))
