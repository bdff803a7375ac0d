"""What a user does, and what is seen of it: searches, their trials, requests through the tunnel."""

import csv
import time

from labhosts import Lab

BUCKET = "s3://eagleray-lab"
SEARCH = "--trials 3 --max-concurrent 1 --image-size 48 --prune off --seed 0"
# The columns of trials.csv besides the hyperparameters. What is measured is another number each time.
MEASURED = frozenset({"images_per_second", "cpu_seconds", "cost_s", "cost_usd", "seconds"})
SCORES = (
    *("status", "epochs_run", "best_epoch", "validation_accuracy", "validation_loss", "last_training_accuracy"),
    *("last_validation_loss", "top_share", "dead_units", "error"),
)

# Commands of the user that are Python: run on the laptop, or on the head by `ray exec`.
_IMPORT = "import sys; sys.path.insert(0, '/project'); from data import sample, store; "
_REQUEST = (
    "import ray; ray.init(logging_level=30); import ray.autoscaler.sdk; "
    "ray.autoscaler.sdk.request_resources(bundles=[dict(CPU=1)] * {})"
)


def python(code: str) -> str:
    return f'python -c "{code}"'


def data_in_bucket(lab: Lab) -> str:
    """The generated sample in the bucket: the address of its table."""
    copy = f"table = sample.ensure('/tmp/sample', 0); store.upload_folder(table.rpartition('/')[0], '{BUCKET}/dives')"
    lab.laptop(python(_IMPORT + copy))
    return f"{BUCKET}/dives/labels.csv"


def search_command(data: str, out: str, more: str = "", *, epochs: int = 4) -> str:
    """A search on the cluster; of a few epochs of a small CNN on two processes it takes half a minute a trial."""
    where = f"--data {data} --out {BUCKET}/{out}"
    return f"ray submit cluster.yaml tune/search.py -- {where} {SEARCH} --epochs {epochs} {more} 2>&1"


def trials_of(lab: Lab, out: str) -> list[dict[str, str]]:
    """The rows of a run's trials.csv in the bucket."""
    text = lab.laptop(python(_IMPORT + f"print(store.read('{BUCKET}/{out}/trials.csv').decode())"))
    return list(csv.DictReader(text.strip().splitlines()))


def down(lab: Lab) -> float:
    begun = time.monotonic()
    lab.laptop("ray down -y cluster.yaml 2>&1")
    left = lab.instances("running", "pending", "stopped", "stopping")
    if left:
        raise AssertionError(f"left after ray down: {left}")
    return time.monotonic() - begun


def ask_for(lab: Lab, cpus: int) -> None:
    """As many CPUs as a search would wait for; 0 takes the wish back."""
    lab.on_head(python(_REQUEST.format(cpus)))


def hyperparameters(trials: list[dict[str, str]]) -> list[str]:
    """The columns of a table of trials that the search chose."""
    return [column for column in trials[0] if column not in {"trial", *SCORES, *MEASURED}]


def differing(ours: list[dict[str, str]], theirs: list[dict[str, str]]) -> list[str]:
    """Columns of two tables of trials that do not agree: hyperparameters and scores, not what is measured."""
    assert len(ours) == len(theirs), f"{len(ours)} trials and {len(theirs)}"
    assert list(ours[0]) == list(theirs[0]), f"columns {list(ours[0])} and {list(theirs[0])}"
    columns = ["trial", *hyperparameters(ours), *SCORES]
    lacking = sorted({*SCORES, *MEASURED} - set(ours[0]))
    assert not lacking, f"no columns {lacking}: bring usercommands.py up to date"
    assert hyperparameters(ours), f"no hyperparameters in {list(ours[0])}"
    return [column for column in columns if [row[column] for row in ours] != [row[column] for row in theirs]]


def curl(lab: Lab, address: str, header: str = "") -> tuple[int, str]:
    """Status and body of a request from the laptop; 0 where nobody listens."""
    given = f"-H '{header}'" if header else ""
    text = lab.laptop(f"curl -s -m 20 -w '\\n%{{http_code}}' {given} '{address}'", check=False).rstrip()
    body, _, status = text.rpartition("\n")
    return int(status), body
