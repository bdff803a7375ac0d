"""A duel in words: its contestants, its verdicts, and what they rest on."""

from typing import Any

from data.words import counted


def duel_lines(duel: dict[str, Any]) -> list[str]:
    """The lines of a duel for the end of a run, from what `duel.json` holds."""
    lines = [f"duel        {_contestant_line(each)}" for each in duel["contestants"]]
    lines += [f"cost        {_cost_line(each)}" for each in duel["contestants"]]
    lines += [f"note        {note}" for note in _notes(duel)]
    if duel["ended"]:
        lines.append(f"verdict     cannot tell yet: the duel ended before all had trained ({duel['ended']})")
    lines += [f"verdict     {words(pair, duel['images'])}" for pair in duel["pairs"]]
    return [*lines, f"bundled     {_bundled(duel)}"]


def words(pair: dict[str, Any], images: int) -> str:
    """The verdict on one pair in a sentence."""
    better, worse = (pair[who] for who in (("second", "first") if pair["verdict"] == "second" else ("first", "second")))
    if pair["reason"]:
        told = f"{better} is better than {worse}" if pair["verdict"] != "cannot tell" else f"cannot tell {_both(pair)}"
        return f"{told}: {pair['reason']}"
    sign = -1 if pair["verdict"] == "second" else 1
    seeds, images_span = (_span(pair[key], sign) for key in ("seeds_interval", "images_interval"))
    spans = f"95 % interval {seeds} over the {len(pair['by_seed'])} seeds, {images_span} over the {images} test images"
    if pair["verdict"] == "cannot tell":
        return f"cannot tell {_both(pair)}: {better} minus {worse} is {pair['difference']:+.3f} test accuracy ({spans})"
    return f"{better} is better than {worse} by {sign * pair['difference']:.3f} test accuracy ({spans})"


def _both(pair: dict[str, Any]) -> str:
    return f"{pair['first']} from {pair['second']}"


def _span(interval: list[float], sign: int) -> str:
    low, high = sorted(sign * bound for bound in interval)
    return f"{low:+.3f} to {high:+.3f}"


def _contestant_line(each: dict[str, Any]) -> str:
    if each["learning_rate"] is None:
        return f"{each['name']}: {each['failure'] or 'not yet through its learning rates'}"
    rate = f"{each['name']} at learning rate {each['learning_rate']:.3g}"
    if not each["test_accuracy"]:
        return f"{rate}: not yet through its seeds"
    test, validation = (_mean_and_range(each[f"{split}_accuracy"]) for split in ("test", "validation"))
    failed = f"; {each['failed_seeds']} seeds gave no network" if each["failed_seeds"] else ""
    return f"{rate}: test accuracy {test}, validation {validation} over {len(each['test_accuracy'])} seeds{failed}"


def _mean_and_range(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "none"
    return f"{sum(known) / len(known):.3f} ({min(known):.3f} to {max(known):.3f})"


def _cost_line(each: dict[str, Any]) -> str:
    cost = each["cost"]
    return (
        f"{each['name']}: {counted(cost['trials'], 'training')} of at most {counted(cost['most_epochs'], 'epoch')}, "
        f"{counted(cost['epochs'], 'epoch')} run, {cost['cpu_seconds']:.3g} CPU-seconds"
    )


def _notes(duel: dict[str, Any]) -> list[str]:
    notes = [
        f"{each['name']}'s best learning rate {each['learning_rate']:.3g} is the {each['edge']} one that it tried: a "
        "better one may lie beyond"
        for each in duel["contestants"]
        if each["edge"]
    ]
    if any(each["failed_seeds"] for each in duel["contestants"]):
        notes.append("a seed that gave no network counts as always naming the commonest training class")
    if duel["pairs"]:
        guess = duel["majority_rate"]
        alike = "; images of one group are alike, so over new groups the intervals are wider"
        notes.append(
            f"always naming {duel['majority_label']} gives {guess:.3f} of the {duel['images']} test images of "
            f"{counted(duel['groups'], 'group')}{alike if duel['groups'] < duel['images'] else ''}"
        )
        scores = {each["name"]: each["test_accuracy"] for each in duel["contestants"]}
        guessing = [name for name, values in scores.items() if values and sum(values) / len(values) <= guess]
        if guessing:
            notes.append(f"no better on the mean than always naming {duel['majority_label']}: {', '.join(guessing)}")
    return notes


def _bundled(duel: dict[str, Any]) -> str:
    why = "the winner's best seed" if duel["winner"] else "the best of all, since none is better than every other"
    why = "the best so far" if duel["ended"] else why
    chosen = duel["bundled"]
    score = f"validation accuracy {chosen['validation_accuracy']:.3f}"
    return f"{chosen['contestant']} from seed {chosen['seed']}: {why}, {score}"
