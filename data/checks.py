"""The checks that configurations make of themselves: one wording for each, naming the field and what it got."""

import math


def at_least(config: object, **least: float) -> None:
    """ValueError unless each named field is a finite number of at least this."""
    for name, low in least.items():
        value = getattr(config, name)
        if not (math.isfinite(value) and value >= low):
            raise ValueError(f"{name} must be >= {low:g}, got {value}")


def above_zero(config: object, *names: str) -> None:
    """ValueError unless each named field is a finite number above 0."""
    for name in names:
        value = getattr(config, name)
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be > 0 and finite, got {value}")


def one_of(config: object, **allowed: tuple[str, ...]) -> None:
    """ValueError unless each named field is one of these. The command line checks as much; a resumed file does not."""
    for name, values in allowed.items():
        value = getattr(config, name)
        if value not in values:
            raise ValueError(f"{name} must be one of {', '.join(values)}, got {value}")
