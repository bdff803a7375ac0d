"""The search doctor during and after the search: whether the best trial is as good as it looks."""

import math

from models.metrics import wilson
from tune.doctor.facts import FEW, SCORE, Facts, Finding, difference, half_width
from tune.space import AT_BOUND, Choice

# Training accuracy above the upper end of the validation accuracy's interval. A head over good frozen features knows
# all its training images and two thirds or more of the others, and is well; the bird story's best trial had 0.29.
_GAP = 0.28
# Half width of the interval between two trials that no gain of hyperparameters exceeds: about 45 images or fewer.
_BLIND = 0.2
# Optuna's TPE draws its first trials at random; before they are over nothing need beat the defaults.
_RANDOM_TRIALS = 10
# The best few trials, and the part of a range at its end that they must share, before a bound is said to hold them.
_BEST, _NEAR = 3, 0.2


def gap(facts: Facts) -> Finding | None:
    training = facts.column("last_training_accuracy").reindex(facts.scored.index)
    if len(training) < 1 or math.isnan(train := float(training.iloc[0])):
        return None
    best = float(facts.scored[SCORE].iloc[0])
    _, high = wilson(round(best * facts.n), facts.n)
    if train - high < _GAP:
        return None
    return Finding(
        "gap",
        f"the best trial knows its training images ({train:.2f}) and not the others ({best:.2f})",
        f"with {facts.n} validation images the accuracy is at most {high:.2f}: the gap is no accident of the split",
        "--augment light or strong, more --dropout, images from more groups"
        + ("" if facts.frozen else "; with few images a frozen backbone"),
    )


def at_bound(facts: Facts) -> Finding | None:
    """The best trial at an end of a range, where the rest agrees: the next best lie there too, or there are none."""
    held = at_bounds(facts)
    if not held:
        return None
    said = ", ".join(f"{name} {facts.scored[name].iloc[0]:.3g} at its {end} bound" for name, end in held.items())
    return Finding(
        "at-bound",
        "the best trial lies at a bound of the search space",
        said,
        "the space has been widened once: look at what the trials there have in common before a new search"
        if facts.widen
        else "what lies beyond may be better: give --widen",
    )


def at_bounds(facts: Facts) -> dict[str, str]:
    """Hyperparameters whose best value lies at a bound, each with "lower" or "upper".

    One best trial near an end means nothing: with three dimensions every fourth search has one by chance. It counts
    where the best three trials lie in the same fifth of the range, or where all others collapsed.
    Epochs are left out: early stopping chooses them, and `still_learning` speaks of them.
    """
    scored, found = facts.scored, dict[str, str]()
    if len(scored) < 2 * _BEST or facts.space is None:
        return found
    alone = int((~facts.collapsed).sum()) == 1
    for dimension in facts.space.dimensions:
        if isinstance(dimension, Choice) or dimension.name == "epochs" or dimension.name not in scored:
            continue
        places = [dimension.position(value) for value in scored[dimension.name].iloc[:_BEST]]
        for end, ends in (("lower", places), ("upper", [1 - place for place in places])):
            if abs(ends[0]) <= AT_BOUND and (alone or max(ends) <= _NEAR):
                found[dimension.name] = end
    return found


def indistinguishable(facts: Facts) -> Finding | None:
    """Whether half of the trials come as near to the best as chance does, on images too few to tell anything apart."""
    alive = facts.scored.loc[~facts.collapsed, SCORE].astype(float)
    if len(alive) < FEW:
        return None
    best, second, middle = float(alive.iloc[0]), float(alive.iloc[1]), float(alive.iloc[len(alive) // 2])
    width = difference(best, middle, facts.n)
    if width <= _BLIND or best - middle > width:
        return None
    return Finding(
        "indistinguishable",
        "the best trial cannot be told from the others",
        f"{best:.3f} against {second:.3f} for the second and {middle:.3f} for the middle one of {len(alive)}; on "
        f"{facts.n} images two trials must differ by {width:.2f} before it is more than chance",
        "more validation images; choosing among these trials is choosing by lot",
    )


def not_better_than_default(facts: Facts) -> Finding | None:
    scored = facts.scored
    if len(scored) <= _RANDOM_TRIALS or "trial" not in scored or int(scored["trial"].iloc[0]) != 0:
        return None
    return Finding(
        "defaults",
        "no trial beat the default hyperparameters",
        f"the defaults reached {float(scored[SCORE].iloc[0]):.3f}, the best of {len(scored) - 1} others "
        f"{float(scored[SCORE].iloc[1]):.3f} on {facts.n} validation images (plus or minus {half_width(facts.n):.2f})",
        "the search gained nothing: more images, --augment or another --model will do more than further trials",
        "note",
    )


def still_learning(facts: Facts) -> Finding | None:
    """Whether the most epochs that a trial can have ended the good ones, and no early stopping."""
    most, scored = facts.dimension("epochs"), facts.scored.loc[~facts.collapsed]
    if most is None or isinstance(most, Choice) or not {"best_epoch", "epochs_run", "epochs"} <= set(scored.columns):
        return None
    long = scored[
        (scored["epochs"] >= most.high - 0.2 * (most.high - most.low)) & (scored["epochs_run"] >= scored["epochs"])
    ]
    rising = long[long["best_epoch"] >= long["epochs_run"]]
    if len(long) < _BEST or len(rising) < 0.8 * len(long) or scored.index[0] not in rising.index:
        return None
    return Finding(
        "still-learning",
        "trials end before they have learned all they can",
        f"{len(rising)} of the {len(long)} trials with {int(long['epochs'].min())} epochs or more had their lowest "
        "validation loss in the last one, the best trial among them",
        f"give --epochs {2 * int(most.high)}; early stopping ends what does not need them",
        "note",
    )
