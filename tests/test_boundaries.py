"""The house's rules, read from the imports: who may lean on whom, and which libraries stay in one file."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("data", "models", "tune", "serve")

NEVER = {
    "data": {"ray", "optuna", "torch", "torchvision", "models", "tune", "serve"},
    "models": {"ray", "optuna", "boto3", "PIL", "pandas", "tune", "serve"},
    "tune": {"serve", "fastapi"},
    "serve": {"tune", "optuna"},
}
ONE_FILE = {"PIL": ["data/images.py"], "onnxruntime": ["models/engine.py"], "onnx": ["models/onnxgraph.py"]}
# S3 through the store, AWS's control plane through one file, and the nodes' services, which stand alone.
ONE_FILE |= {"boto3": ["data/store.py", "tune/aws.py"], "botocore": ["data/store.py", "tune/aws.py"]}
ALONE = "tune/nodes/"


def imports(file: Path) -> set[str]:
    """The dotted names of all modules that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names.add(node.module or "")
    return names


def top(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_flow_one_way(package: str) -> None:
    found = {file.name: sorted(top(imports(file)) & NEVER[package]) for file in sources(package)}
    assert {name: bad for name, bad in found.items() if bad} == {}


@pytest.mark.parametrize(("library", "homes"), ONE_FILE.items())
def test_a_library_with_one_home_stays_there(library: str, homes: list[str]) -> None:
    users = [str(f.relative_to(ROOT)) for p in PACKAGES for f in sources(p) if library in top(imports(f))]
    assert [user for user in users if not user.startswith(ALONE)] == homes


def test_what_runs_on_nodes_stands_alone() -> None:
    for file in (ROOT / ALONE).glob("*.py"):
        # Ray itself only where one of them talks to it; of the project, which they must outlive, only each other.
        foreign = {name for name in imports(file) if not name.startswith("tune.nodes.")}
        assert top(foreign) <= {*sys.stdlib_module_names, "boto3", "botocore", "ray"}, file


def test_the_rule_sees_what_it_forbids(tmp_path: Path) -> None:
    file = tmp_path / "bad.py"
    file.write_text("def f():\n    import ray.tune\n    from serve.app import x\n")
    assert top(imports(file)) == {"ray", "serve"}


@pytest.mark.parametrize("package", PACKAGES)
def test_no_file_hides_another_module(package: str) -> None:
    """`python tune/search.py` puts tune/ first on the path: a file there named like a module would replace it."""
    taken = set(sys.stdlib_module_names) | set(PACKAGES) | set(importlib.metadata.packages_distributions())
    assert sorted({file.stem for file in sources(package)} & taken - {"__init__"}) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_nothing_runs_at_import(package: str) -> None:
    """A module's top level defines; it does not act."""
    for file in sources(package):
        for node in ast.parse(file.read_text()).body:
            call = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
            assert not call, f"{file}:{node.lineno}: a call at import time"


def test_top_level_holds_what_was_agreed() -> None:
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    listed = done.stdout.splitlines()
    allowed = {*PACKAGES, "tests", "benchmarks", "LICENSE", "CHANGELOG.md"}
    allowed |= {"pyproject.toml", "README.md", "cluster.yaml"}
    top_level = {line.split("/")[0] for line in listed if line}
    assert {name for name in top_level if not name.startswith(".")} <= allowed


def constraints() -> dict[str, str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    pins = project["tool"]["uv"]["constraint-dependencies"]
    return {normal(name): version for name, version in (pin.split("==") for pin in pins)}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_installed_distribution_is_pinned() -> None:
    pinned = constraints()
    own = {"eagleray", "pip", "setuptools", "wheel", "uv"}
    # This environment's own folder only: an imported Ray puts the copies that it ships onto the path.
    folders = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    installed = {normal(d.metadata["Name"]): d.version for d in importlib.metadata.distributions(path=folders)}
    assert "ray" in installed
    wrong = {n: (v, pinned.get(n)) for n, v in installed.items() if n not in own and pinned.get(n) != v}
    assert wrong == {}


def test_the_build_backend_is_pinned_too() -> None:
    requires = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    assert all("==" in requirement for requirement in requires)


def test_pins_name_no_index() -> None:
    assert "://" not in (ROOT / "pyproject.toml").read_text()
