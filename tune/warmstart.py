"""`--warm-start`: the best points of an earlier study are tried first, right after the defaults."""

import contextlib
import os
import tempfile

import optuna
import sqlalchemy.exc
from optuna.trial import FrozenTrial, TrialState

from data import store
from data.errors import UserError
from tune.space import Choice, Float, Int, Space, Values

_FILE = "study.db"
STUDY = "eagleray"
"""What our searches call the study in their file."""


def earlier_points(source: str, space: Space, most: int) -> list[Values]:
    """At most `most` different points of the study in `source` (a run's folder or its study.db, on disk or in a
    bucket), best first, as Optuna parameters; what the study did not vary has its default, and points outside the
    space are left out.

    Their values are not taken over: on other images they would say something else, so the points are tried again.
    Nothing in the study is unpickled.
    """
    path = source if source.endswith(".db") else store.join(source, _FILE)
    with tempfile.TemporaryDirectory() as folder:
        copy = os.path.join(folder, _FILE)
        store.write(copy, store.read(path))  # Optuna may bring an older file up to date: not the user's own
        trials = _scored(copy, path)
    points: list[Values] = []
    for trial in trials:
        point = _point(trial, space)
        if point is not None and point not in points:
            points.append(point)
    if not points:
        raise UserError(
            f"{path}: none of its {len(trials)} scored trials lies in this search's space ({space.describe()}); "
            "leave --warm-start out, or search the space that it searched"
        )
    return points[:most]


def _scored(database: str, path: str) -> list[FrozenTrial]:
    """The trials that have a value, best first by the first objective."""
    try:
        with contextlib.closing(_Opened(f"sqlite:///{database}")) as storage:
            names = optuna.get_all_study_names(storage)
            ours = STUDY if STUDY in names else names[0]
            study = optuna.load_study(study_name=ours, storage=storage)
            trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    except (sqlalchemy.exc.DatabaseError, optuna.exceptions.StorageInternalError, IndexError, RuntimeError) as error:
        raise UserError(f"{path} holds no readable study ({error}); give a run's folder or its study.db") from error
    highest = study.directions[0] == optuna.study.StudyDirection.MAXIMIZE
    return sorted(trials, key=lambda trial: ((-1 if highest else 1) * trial.values[0], trial.number))


class _Opened(optuna.storages.RDBStorage):
    def close(self) -> None:
        self.remove_session()
        self.engine.dispose()


def _point(trial: FrozenTrial, space: Space) -> Values | None:
    point = space.first_point()
    for dimension in space.dimensions:
        if dimension.parameter in trial.params:
            point[dimension.parameter] = trial.params[dimension.parameter]
        value = point[dimension.parameter]
        # Another program may have searched something else by the same name.
        fits = isinstance(value, {Float: float, Int: int, Choice: str}[type(dimension)])
        if not fits or not dimension.holds(dimension.from_parameter(value)):
            return None
    return point
