"""The search doctor before the search: what in the space, the plan or the images would make its result worthless."""

import math

from data.words import counted
from tune.doctor.facts import Facts, Finding, half_width
from tune.space import Choice, Dimension, Float

# Learning rates above which networks of a kind learn nothing, by (optimiser, kind). Measured: benchmarks/README.md.
DEAD_ABOVE: dict[tuple[str, str], float] = {("adam", "cnn"): 0.03}
# Share of the draws in a dead region from which on it is said: below it, the sampler soon leaves the region by itself.
_DEAD_SHARE = 0.25
# Half width of the validation accuracy's interval that is too wide to choose by: it hides a gain of ten points.
WIDE = 0.12
# Validation images of a class, below which nothing can be said of the class.
_RARE = 3
# Share of one class above which accuracy cannot tell a good classifier from a constant.
MOSTLY_ONE = 0.9
# Shares of the images that are blank, or cannot be used, from which on something is wrong with more than a few files.
_BLANK, _UNUSED = 0.1, 0.05


def dead_above(facts: Facts) -> float | None:
    """The rate above which every optimiser of the search is known to learn nothing; None where none is known."""
    kind = "head" if facts.frozen else facts.model
    searched = facts.dimension("optimizer")
    names = searched.values if isinstance(searched, Choice) else (facts.optimizer,)
    known = [DEAD_ABOVE.get((name, kind)) for name in names]
    found = [bound for bound in known if bound is not None]
    return max(found) if len(found) == len(known) else None


def share_above(dimension: Dimension, value: float) -> float:
    """Share of a dimension's random draws that are above `value`, 0..1."""
    if isinstance(dimension, Choice):
        return 0.0
    if value <= dimension.low:
        return 1.0
    return 0.0 if value >= dimension.high else 1 - dimension.position(value)  # type: ignore[arg-type]


def scale(facts: Facts) -> Finding | None:
    """A learning rate whose bounds span orders of magnitude, and whose scale hardly visits the lower ones."""
    rate = facts.dimension("learning_rate")
    if not isinstance(rate, Float) or rate.scale == "log" or rate.low * 10 > rate.high:
        return None
    # The middle in orders of magnitude; a lower bound of 0 has none, so three orders are taken.
    middle = math.sqrt(max(rate.low, rate.high / 1000) * rate.high)
    meant = "is meant for values near 1; here it is nearly linear" if rate.scale == "reverse-log" else "is linear"
    return Finding(
        "scale",
        f"the learning rate lies on a {rate.scale} scale",
        f"that scale {meant}: {share_above(rate, middle):.0%} of the draws in {rate.low:g}-{rate.high:g} lie above "
        f"{middle:.2g}, the middle in orders of magnitude; a log scale has half of them below it",
        "search the learning rate on a log scale (--space default does)",
    )


def dead_region(facts: Facts) -> Finding | None:
    rate, bound = facts.dimension("learning_rate"), dead_above(facts)
    if rate is None or bound is None or (share := share_above(rate, bound)) < _DEAD_SHARE:
        return None
    what = f"{facts.optimizer} on a head over a frozen base" if facts.frozen else f"{facts.optimizer} on {facts.model}"
    return Finding(
        "dead-region",
        f"{share:.0%} of the learning rates that can be drawn are known to teach this network nothing",
        f"with {what}, every measured run from {bound:g} up ended at chance (benchmarks/README.md, dead_rates.py)",
        f"lower the upper bound of the learning rate to {bound:g} or less (--space default does)",
    )


def few_trials(facts: Facts) -> Finding | None:
    dimensions = len(facts.space.dimensions) if facts.space else 0
    if not 0 < facts.planned < 2 * dimensions:
        return None
    return Finding(
        "few-trials",
        f"{counted(facts.planned, 'trial')} for {counted(dimensions, 'searched hyperparameter')}",
        "the first is the defaults and the next ones are drawn at random: most combinations stay unseen",
        f"give --trials {5 * dimensions} or more, or search fewer hyperparameters",
        "warning" if facts.planned < dimensions else "note",
    )


def patience(facts: Facts) -> Finding | None:
    epochs = facts.dimension("epochs")
    if epochs is None or isinstance(epochs, Choice) or not 0 < epochs.high <= facts.patience + 1:
        return None
    return Finding(
        "patience",
        "early stopping can hardly ever act",
        f"it waits {counted(facts.patience, 'epoch')} for a better validation loss, and no trial has more than "
        f"{epochs.high}",
        f"give --epochs above {facts.patience + 1}, or a smaller --patience",
        "note",
    )


def small_validation(facts: Facts) -> Finding | None:
    if not facts.n or (half := half_width(facts.n)) <= WIDE:
        return None
    return Finding(
        "small-validation",
        f"{counted(facts.n, 'validation image')} cannot tell trials apart",
        f"an accuracy of 0.5 on them has a 95 % interval of plus or minus {half:.2f}",
        "give more images or more groups; until then take the best trial as one of several equals",
    )


def rare_class(facts: Facts) -> Finding | None:
    pairs = zip(facts.classes, facts.validation_counts, strict=False)
    rare = {label: count for label, count in pairs if count < _RARE}
    if not rare:
        return None
    listed = ", ".join(f"{label} {count}" for label, count in list(rare.items())[:5])
    have = "has" if len(rare) == 1 else "have"
    return Finding(
        "rare-class",
        f"{len(rare)} of {len(facts.classes)} classes {have} fewer than {_RARE} validation images",
        listed + (", ..." if len(rare) > 5 else ""),
        "label more of them, merge them with others, or read nothing into their scores",
        "warning" if 0 in rare.values() else "note",
    )


def one_class(facts: Facts) -> Finding | None:
    if not facts.n or facts.majority < MOSTLY_ONE:
        return None
    label = facts.classes[facts.validation_counts.index(max(facts.validation_counts))] if facts.classes else "one class"
    return Finding(
        "one-class",
        "accuracy says nearly nothing here",
        f"always naming {label} is right for {facts.majority:.1%} of the validation images",
        "read balanced accuracy and the recall of each class; give --balance weights, and more of the rare class",
    )


def blank_images(facts: Facts) -> Finding | None:
    if facts.blank_share < _BLANK:
        return None
    return Finding(
        "blank-images",
        f"{facts.blank_share:.0%} of the images are one flat colour",
        "of the images looked at, so many have no pixel that differs from the others: there is nothing to learn",
        "open a few of them; export them anew, or take them out",
    )


def unused_images(facts: Facts) -> Finding | None:
    count = sum(number for _, number in facts.left_out)
    if not facts.listed or count < _UNUSED * facts.listed:
        return None
    return Finding(
        "unused-images",
        f"{count} of {facts.listed} images cannot be used",
        ", ".join(f"{number} {kind}" for kind, number in facts.left_out),
        "problems.csv names each, with what to do; a class of which most are missing will be judged by the rest",
    )
