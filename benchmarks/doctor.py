"""What the search doctor says to planted faults, and that it is silent about healthy searches.

    python benchmarks/doctor.py
    python benchmarks/doctor.py --real labels.csv --real-weights mobilenet_v2.pth

Each fault is planted into the generated sample (at 32 pixels, where it is quick) and searched with default settings
through the same function as the command. Three searches without a fault follow: two generated samples at 64 pixels, and
a third one or, with --real, the frozen backbone over photographs. The last line is one JSON object: findings by fault.
"""

import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tyro
from PIL import Image

from data import cachefolder, sample
from data.collection import DataConfig, load_collection
from data.errors import UserError
from data.images import encode_png
from models.catalog import ModelConfig
from models.processes import prepare_environment
from tune.settings import SearchConfig
from tune.space import Float, Int, Space

SMALL = 32
RARE = 8


@dataclass(frozen=True)
class DoctorConfig:
    """What is searched."""

    trials: int = 10
    """Trials of each search."""
    real: str = ""
    """Labelled photographs for the third healthy search; empty: a third generated sample."""
    real_weights: str = ""
    """Weights of mobilenet_v2 for it; empty: torchvision's."""
    only: tuple[str, ...] = ()
    """Names of the searches to run; empty: all."""


@dataclass(frozen=True)
class HotSearch(SearchConfig):
    """A search around a learning rate of 10, which the command line refuses."""

    def search_space(self) -> Space:
        space = (Float("learning_rate", 1.0, 100.0, "log"), Int("epochs", 3, 10), Int("dense_units", 8, 128, log=True))
        return Space(space, {"learning_rate": 10.0, "epochs": 10, "dense_units": 32})


@dataclass(frozen=True)
class Case:
    """One search: how its settings are made in an empty folder, by name."""

    name: str
    make: Callable[[Path, DoctorConfig], SearchConfig]
    healthy: bool = False


def sample_rows() -> pd.DataFrame:
    """path (absolute), label of the generated sample, in random order."""
    table = Path(sample.ensure(cachefolder.resolve(""), 0))
    rows = pd.read_csv(table)
    rows["path"] = [str(table.parent / path) for path in rows["path"]]
    return rows.sample(frac=1, random_state=0).reset_index(drop=True)


def over(rows: pd.DataFrame, folder: Path, **settings: Any) -> SearchConfig:
    rows.to_csv(folder / "labels.csv", index=False)
    return SearchConfig(data=DataConfig(data=str(folder / "labels.csv"), image_size=SMALL), **settings)


def shuffled_labels(folder: Path, config: DoctorConfig) -> SearchConfig:
    rows = sample_rows()
    return over(rows.assign(label=np.random.default_rng(1).permutation(rows["label"])), folder)


def rate_of_ten(folder: Path, config: DoctorConfig) -> SearchConfig:
    usual = over(sample_rows(), folder)
    return HotSearch(data=usual.data)


def constant_images(folder: Path, config: DoctorConfig) -> SearchConfig:
    rows, random = sample_rows(), np.random.default_rng(2)
    for number in range(len(rows)):
        flat = np.full((40, 40, 3), random.integers(0, 256, 3), np.uint8)
        # The video stays in the name, so that the groups are the same.
        path = folder / Path(rows.loc[number, "path"]).name
        path.write_bytes(encode_png(flat))
        rows.loc[number, "path"] = str(path)
    return over(rows, folder)


def one_class(folder: Path, config: DoctorConfig) -> SearchConfig:
    rows = sample_rows().assign(label="common")
    rows.loc[: RARE - 1, "label"] = "rare"  # about one in a hundred
    return over(rows, folder)


def nan_pixels(share: float) -> Callable[[Path, DoctorConfig], SearchConfig]:
    def make(folder: Path, config: DoctorConfig) -> SearchConfig:
        rows = sample_rows()
        for number in range(int(share * len(rows))):
            path = folder / Path(rows.loc[number, "path"]).with_suffix(".tif").name
            pixels = np.asarray(Image.open(rows.loc[number, "path"]).convert("L")).astype(np.float32)
            pixels[:8] = np.nan
            Image.fromarray(pixels).save(path)
            rows.loc[number, "path"] = str(path)
        return over(rows, folder)

    return make


def eight_images(folder: Path, config: DoctorConfig) -> SearchConfig:
    rows = sample_rows()
    rows["group"] = rows.index.astype(str)
    rows["split"] = ["validation"] * 8 + ["test"] * 100 + ["train"] * (len(rows) - 108)
    return over(rows, folder)


def generated(seed: int) -> Callable[[Path, DoctorConfig], SearchConfig]:
    return lambda folder, config: SearchConfig(data=DataConfig(sample_seed=seed))


def third(folder: Path, config: DoctorConfig) -> SearchConfig:
    if not config.real:
        return generated(2)(folder, config)
    model = ModelConfig(model="mobilenet_v2", weights=config.real_weights)
    return SearchConfig(data=DataConfig(data=config.real, group_by="image"), model=model)


CASES = (
    Case("shuffled labels", shuffled_labels),
    Case("learning rate 10", rate_of_ten),
    Case("constant images", constant_images),
    Case("one class 99 %", one_class),
    Case("NaN pixels, every fifth", nan_pixels(0.2)),
    Case("NaN pixels, all", nan_pixels(1.0)),
    Case("validation of 8", eight_images),
    Case("healthy: generated 0", generated(0), healthy=True),
    Case("healthy: generated 1", generated(1), healthy=True),
    Case("healthy: third", third, healthy=True),
)


@dataclass(frozen=True)
class Diagnosis:
    """What came of one search: the doctor's findings, or the words with which it was refused."""

    name: str
    healthy: bool
    refused: str = ""
    findings: tuple[dict[str, str], ...] = ()
    trials: list[dict[str, Any]] = field(default_factory=list)


def diagnose(case: Case, config: DoctorConfig) -> Diagnosis:
    from tune import runs
    from tune.doctor import examination
    from tune.doctor.facts import facts_of

    with tempfile.TemporaryDirectory() as folder:
        made = case.make(Path(folder), config)
        settings = replace(made, trials=config.trials, out=f"{folder}/run")
        try:
            runs.search(settings)
        except UserError as error:
            return Diagnosis(case.name, case.healthy, refused=str(error))
        table = pd.read_csv(Path(folder, "run", "trials.csv"))
        facts = facts_of(settings, load_collection(settings.data), table)
        findings = tuple(finding.as_dict() for finding in (*examination.before(facts), *examination.after(facts)))
        return Diagnosis(case.name, case.healthy, "", findings, json.loads(table.to_json(orient="records")))


def main() -> int:
    prepare_environment()
    config = tyro.cli(DoctorConfig, description=__doc__, config=(tyro.conf.OmitArgPrefixes,))
    found = []
    for case in CASES:
        if not config.only or case.name in config.only:
            found.append(diagnose(case, config))
            print(f"so far {json.dumps(found[-1].__dict__)}", flush=True)
    print("\nsearch                   findings")
    for diagnosis in found:
        said = [f"{f['severity']} {f['rule']}: {f['what']} ({f['evidence']})" for f in diagnosis.findings]
        refused = [f"refused: {diagnosis.refused}"] if diagnosis.refused else []
        for number, line in enumerate(refused + said or ["nothing"]):
            print(f"{'' if number else diagnosis.name:<25}{line}")
    rules = {d.name: ["refused"] if d.refused else [f["rule"] for f in d.findings] for d in found}
    alarms = sum(len(d.findings) for d in found if d.healthy)
    print(json.dumps({"findings": rules, "false_alarms": alarms}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
