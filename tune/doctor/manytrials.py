"""The search doctor during and after the search: what went wrong in many trials at once."""

import math
import re
from collections import Counter

import pandas as pd

from data.words import counted
from models.metrics import wilson
from tune.doctor.beforehand import MOSTLY_ONE, WIDE, dead_above
from tune.doctor.facts import FEW, SCORE, Facts, Finding, half_width, z_of_many
from tune.space import Float

# Searches of the default space lose 26 to 42 % of their trials (benchmarks/README.md, space.py). It is said of more
# only: where the 95 % interval of the share begins above this, as with 4 of 4 trials, 7 of 10, 12 of 20.
_USUAL_LOSS = 0.35
# Share of dense units that are zero for every validation image, from which on a layer is called dead.
_DEAD_UNITS = 0.9


def collapsed(facts: Facts) -> Finding | None:
    dead, known = facts.collapsed, "top_share" in facts.scored
    count, total = int(dead.sum()), len(dead)
    if not _too_many(count, total) and not (count == total == facts.planned > 0):
        return None
    scores = facts.scored.loc[dead, SCORE]
    said = " to ".join(dict.fromkeys((f"{scores.min():.2f}", f"{scores.max():.2f}")))
    one = "; they name one class for every image, or do no better" if known else ""
    return Finding(
        "collapsed",
        f"{count} of {counted(total, 'trial')} ended at chance",
        f"validation accuracy {said}, always naming the commonest of {len(facts.validation_counts)} classes gives "
        f"{facts.majority:.2f} on these {facts.n} images{one}",
        "mend this before trusting the best of the rest: the learning rate first, then labels and images",
    )


def _too_many(count: int, total: int) -> bool:
    return total >= FEW and wilson(count, total)[0] > _USUAL_LOSS


def learning_rate(facts: Facts) -> Finding | None:
    """Whether the learning rate parts the collapsed trials from the living ones, and where it does not explain them."""
    # With nearly all images of one class, naming it always is what a network learns, at any rate.
    if collapsed(facts) is None or "learning_rate" not in facts.scored or facts.majority >= MOSTLY_ONE:
        return None
    rates, is_dead = facts.scored["learning_rate"].astype(float), facts.collapsed
    dead, alive = rates[is_dead].sort_values(), rates[~is_dead]
    # The chance that they fall apart so cleanly, in one direction or the other, if the rate had no part in it.
    if len(alive) and 2 / math.comb(len(rates), len(dead)) < 0.01:
        if dead.min() > alive.max():
            return _decided(dead, alive, f"search below {dead.min():.2g}")
        if dead.max() < alive.min():
            return _decided(dead, alive, f"search above {dead.max():.2g}, or give more --epochs")
    bound = dead_above(facts)
    if bound is None:
        return None
    low = dead[dead < bound]
    if low.empty:
        return Finding(
            "learning-rate",
            "the collapsed trials all lie at rates that are known to teach this network nothing",
            f"learning rates {dead.min():.2g} to {dead.max():.2g}; {bound:g} is the bound",
            f"search below {bound:g}",
        )
    return _unexplained(facts, dead, low, bound)


def _decided(dead: "pd.Series[float]", alive: "pd.Series[float]", advice: str) -> Finding:
    return Finding(
        "learning-rate",
        "the learning rate decided which trials learned",
        f"all {len(dead)} trials from {dead.min():.2g} to {dead.max():.2g} ended at chance, and none of the "
        f"{len(alive)} from {alive.min():.2g} to {alive.max():.2g}",
        advice,
    )


def _unexplained(facts: Facts, dead: "pd.Series[float]", low: "pd.Series[float]", bound: float) -> Finding:
    rate = facts.dimension("learning_rate")
    linear = isinstance(rate, Float) and rate.scale != "log" and rate.low * 10 <= rate.high
    what = f"the learning rate's {rate.scale} scale" if linear and isinstance(rate, Float) else "the learning rate"
    named = ", ".join(f"{value:.4f}" if value >= 0.0001 else f"{value:.2g}" for value in low.iloc[:5])
    if len(low) == len(dead):
        said = f"all {len(dead)} had rates below {bound:g}, under which networks of this kind are known to learn"
    else:
        said = f"{len(dead) - len(low)} of the {len(dead)} collapsed trials had rates of {bound:g} or more, but "
        said += f"{len(low)} died at lower ones too"
    return Finding(
        "learning-rate",
        f"{what} does not explain {'the' if len(low) == len(dead) else 'all'} collapsed trials",
        f"{said} ({named}{', ...' if len(low) > 5 else ''})",
        "lower the rates, and look further: labels that do not fit their images, too few images a class, a narrow "
        "dense layer, pixels that were scaled twice",
    )


def nothing_learned(facts: Facts) -> Finding | None:
    scored = facts.scored
    if len(scored) < FEW or facts.majority >= MOSTLY_ONE:
        return None
    best = float(scored[SCORE].iloc[0])
    low, _ = wilson(round(best * facts.n), facts.n, z_of_many(len(scored)))
    # On few images even a perfect trial cannot be shown to be better; then that is what there is to say, and is said.
    unshowable = half_width(facts.n) > WIDE and best - facts.majority > half_width(facts.n)
    if low > facts.majority or unshowable:
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
        f"at least {dead.min():.0%} of its units are zero for every validation image, and pass on no gradient",
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
        "this is no matter of hyperparameters: mend its cause, and begin a new search",
    )


def _errors(facts: Facts) -> list[str]:
    if "error" not in facts.table:
        return []
    return [str(error) for error in facts.table["error"].dropna() if str(error)]
