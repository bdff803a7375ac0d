"""The search doctor during and after the search: what the trials' rows say when they are looked at together."""

import math
import re
from collections import Counter

import pandas as pd

from models.metrics import wilson
from tune.doctorfacts import SCORE, Facts, Finding, difference, half_width, z_of_many
from tune.doctorspace import MOSTLY_ONE, dead_above
from tune.space import AT_BOUND, Choice, Float

# Scored trials below which nothing is said of a share of them.
_FEW = 4
# A healthy search loses up to a third of its trials to the ends of its space (benchmarks/README.md, doctor.py). More
# is said of it only where the 95 % interval of the share begins above this: 4 of 4 trials, 7 of 10, 12 of 20.
_USUAL_LOSS = 0.35
# Share of dense units that are zero for every validation image, from which on a layer is called dead.
_DEAD_UNITS = 0.9
# Training accuracy above the upper end of the validation accuracy's interval by so much is no accident of the split.
_GAP = 0.25
# Half width of the interval between two trials above which no search can choose, as with fewer than about 50 images.
_BLIND = 0.2
# Optuna's TPE draws its first trials at random; before they are over nothing need beat the defaults.
_RANDOM_TRIALS = 10
# The best few trials, and the part of a range at its end that they must share, before a bound is said to hold them.
_BEST, _NEAR = 3, 0.2


def collapsed(facts: Facts) -> Finding | None:
    dead, known = facts.collapsed, "top_share" in facts.scored
    count, total = int(dead.sum()), len(dead)
    if not _too_many(count, total):
        return None
    scores = facts.scored.loc[dead, SCORE]
    said = f"{scores.min():.2f}" + (f" to {scores.max():.2f}" if scores.max() > scores.min() else "")
    one = "; they name one class for every image, or do no better" if known else ""
    return Finding(
        "collapsed",
        f"{count} of {total} trials ended at chance",
        f"validation accuracy {said}, always naming the commonest of {len(facts.validation_counts)} classes gives "
        f"{facts.majority:.2f} on these {facts.n} images{one}",
        "mend this before trusting the best of the rest: a lower learning rate first, then labels and images",
    )


def _too_many(count: int, total: int) -> bool:
    return total >= _FEW and wilson(count, total)[0] > _USUAL_LOSS


def learning_rate(facts: Facts) -> Finding | None:
    """Whether the learning rate parts the collapsed trials from the living ones, and where it does not explain them."""
    if collapsed(facts) is None or "learning_rate" not in facts.scored:
        return None
    rates, is_dead = facts.scored["learning_rate"].astype(float), facts.collapsed
    dead, alive = rates[is_dead].sort_values(), rates[~is_dead]
    if len(alive) and dead.min() > alive.max() and 1 / math.comb(len(rates), len(dead)) < 0.01:
        return Finding(
            "learning-rate",
            "the learning rate decided which trials learned",
            f"all {len(dead)} trials from {dead.min():.2g} up ended at chance, all {len(alive)} up to "
            f"{alive.max():.2g} did not",
            f"search below {dead.min():.2g}",
        )
    bound = dead_above(facts)
    low = dead[dead < bound] if bound is not None else dead.iloc[:0]
    if bound is None or (low.empty and len(alive) == 0 and dead.min() < bound):
        return None
    if low.empty:
        return Finding(
            "learning-rate",
            "the collapsed trials all lie at rates that are known to teach this network nothing",
            f"learning rates {dead.min():.2g} to {dead.max():.2g}; {bound:g} is the bound",
            f"search below {bound:g}",
        )
    return _unexplained(facts, dead, low, bound)


def _unexplained(facts: Facts, dead: "pd.Series[float]", low: "pd.Series[float]", bound: float) -> Finding:
    rate = facts.dimension("learning_rate")
    linear = isinstance(rate, Float) and rate.scale != "log" and rate.low * 10 <= rate.high
    what = f"the learning rate's {rate.scale} scale" if linear and isinstance(rate, Float) else "the learning rate"
    named = ", ".join(f"{value:.4f}" if value >= 0.0001 else f"{value:.2g}" for value in low.iloc[:5])
    most = f"{len(dead) - len(low)} of the {len(dead)} collapsed trials had rates of {bound:g} or more, but " * (
        len(low) < len(dead)
    )
    return Finding(
        "learning-rate",
        f"{what} does not explain all collapsed trials",
        f"{most}{len(low)} died at lower ones too ({named}{', ...' if len(low) > 5 else ''})",
        "lower the rates, and look further: labels that do not fit their images, too few images a class, a narrow "
        "dense layer, pixels that were scaled twice",
    )


def nothing_learned(facts: Facts) -> Finding | None:
    scored = facts.scored
    if len(scored) < _FEW or facts.majority >= MOSTLY_ONE:
        return None
    best = float(scored[SCORE].iloc[0])
    low, _ = wilson(round(best * facts.n), facts.n, z_of_many(len(scored)))
    if low > facts.majority:
        return None
    training = facts.column("last_training_accuracy").reindex(scored.index).max()
    learned = f"; on its own training images a trial reached {training:.2f}" if training > 0 else ""
    return Finding(
        "nothing-learned",
        "no trial is shown to be better than always naming the commonest class",
        f"the best of {len(scored)} reached {best:.3f} on {facts.n} validation images, at least {low:.3f} allowing for "
        f"the choice among so many; the commonest class alone gives {facts.majority:.3f}{learned}",
        "look at twenty images beside their labels (are the labels shuffled, or shifted by a row?); then more images, "
        "or a pretrained --model",
    )


def dead_relus(facts: Facts) -> Finding | None:
    units = facts.column("dead_units").reindex(facts.scored.index).dropna()
    dead = units[units >= _DEAD_UNITS]
    if not _too_many(len(dead), len(units)):
        return None
    return Finding(
        "dead-relus",
        f"in {len(dead)} of {len(units)} trials the dense layer is dead",
        f"{dead.min():.0%} or more of its units are zero for every validation image, and pass on no gradient",
        "lower the learning rate's upper bound, or search more dense units",
    )


def diverged(facts: Facts) -> Finding | None:
    lost = [error for error in _errors(facts) if "no finite number" in error]
    if not lost or len(lost) < len(facts.table) / 10:
        return None
    return Finding(
        "diverged",
        f"the loss of {len(lost)} of {len(facts.table)} trials left the numbers",
        f"first: {lost[0]}",
        "lower the learning rate's upper bound; if it also happens at 0.0001, look for damaged images",
    )


def same_error(facts: Facts) -> Finding | None:
    """Most trials failed, and for one reason; numbers in the messages may differ."""
    errors = _errors(facts)
    kinds = Counter(re.sub(r"[\d.e+-]+", "#", error) for error in errors)
    kind, count = kinds.most_common(1)[0] if kinds else ("", 0)
    if count < 2 or count < len(facts.table) / 2:
        return None
    example = next(error for error in errors if re.sub(r"[\d.e+-]+", "#", error) == kind)
    return Finding(
        "same-error",
        f"{count} of {len(facts.table)} trials failed in the same way",
        example,
        "this is no matter of hyperparameters: mend its cause, and go on with --resume",
    )


def _errors(facts: Facts) -> list[str]:
    if "error" not in facts.table:
        return []
    return [str(error) for error in facts.table["error"].dropna() if str(error)]


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
        "--augment light or strong, more --dropout, images from more groups; with few images a frozen backbone",
    )


def at_bound(facts: Facts) -> Finding | None:
    """The best trial at an end of a range, where the rest agrees: the next best lie there too, or none comes near."""
    held = at_bounds(facts)
    if not held:
        return None
    said = ", ".join(f"{name} {facts.scored[name].iloc[0]:.3g} at its {end} bound" for name, end in held.items())
    return Finding(
        "at-bound",
        "the best trial lies at a bound of the search space",
        said,
        "what lies beyond may be better: give --widen",
    )


def at_bounds(facts: Facts) -> dict[str, str]:
    """Hyperparameters whose best value lies at a bound, each with "lower" or "upper".

    One best trial near an end means nothing: with three dimensions every fourth search has one by chance. It counts
    where the best three trials lie in the same fifth of the range, or where no other trial comes near the best.
    Epochs are left out: early stopping chooses them, and `still_learning` speaks of them.
    """
    scored, found = facts.scored, dict[str, str]()
    if len(scored) < 2 * _BEST or facts.space is None:
        return found
    best, second = (float(score) for score in scored[SCORE].iloc[:2])
    alone = best - second > difference(best, second, facts.n, z_of_many(len(scored) - 1))
    for dimension in facts.space.dimensions:
        if isinstance(dimension, Choice) or dimension.name == "epochs" or dimension.name not in scored:
            continue
        places = [dimension.position(value) for value in scored[dimension.name].iloc[:_BEST]]
        for end, ends in (("lower", places), ("upper", [1 - place for place in places])):
            if ends[0] <= AT_BOUND and (alone or max(ends) <= _NEAR):
                found[dimension.name] = end
    return found


def indistinguishable(facts: Facts) -> Finding | None:
    alive = facts.scored.loc[~facts.collapsed, SCORE].astype(float)
    if len(alive) < _FEW:
        return None
    best, second, worst = float(alive.iloc[0]), float(alive.iloc[1]), float(alive.iloc[-1])
    width = difference(best, worst, facts.n)
    if width <= _BLIND or best - worst > width:
        return None
    return Finding(
        "indistinguishable",
        "the best trial cannot be told from the others",
        f"{best:.3f} against {second:.3f} for the second and {worst:.3f} for the last of {len(alive)}; on {facts.n} "
        f"images two trials must differ by {width:.2f} before it is more than chance",
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
