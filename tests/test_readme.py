"""The README is run, not read: its commands in their order, its file list against the tree."""

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tyro

from serve.app import Down
from serve.corrections.gathering import GatherConfig
from serve.keys import Add, KeysConfig
from serve.labelling import LabelConfig
from serve.promote import PromoteConfig
from serve.settings import ServeConfig
from tests.commands import ROOT, Command
from tune.cloud.preflightsettings import PreflightConfig
from tune.settings import SearchConfig, TrainJobConfig

README = (ROOT / "README.md").read_text()
# bash: run; server: run in the background for the blocks after it; example and aws: parsed; test: the test command.
BLOCKS = re.findall(r"^```bash ?(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
COMMANDS = {
    "tune/search.py": SearchConfig,
    "tune/train.py": TrainJobConfig,
    "serve/app.py": ServeConfig,
    "serve/classify.py": LabelConfig,
    "serve/keys.py": KeysConfig,
    "serve/promote.py": PromoteConfig,
    "serve/gather.py": GatherConfig,
    "tune/preflight.py": PreflightConfig,
}
ALL_CONFIGS = (*COMMANDS.values(), Add, Down)


def uv_folder() -> str:
    """`uv run pytest` tells where uv is; else it is on the path."""
    found = os.environ.get("UV") or shutil.which("uv")
    assert found, "the README's commands need uv"
    return str(Path(found).parent)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The tree without runs/ of its own; the environment is this one, so that nothing is installed again."""
    for name in ("data", "models", "tune", "serve", "tests", "pyproject.toml"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def environment(cache: str) -> dict[str, str]:
    return {
        **os.environ,
        "PATH": f"{uv_folder()}{os.pathsep}{os.environ['PATH']}",
        "UV_PROJECT_ENVIRONMENT": sys.prefix,
        "UV_NO_SYNC": "1",
        "XDG_CACHE_HOME": cache,
        "EAGLERAY_KEYS": "",
    }


def bash(script: str, clone: Path, env: dict[str, str]) -> str:
    command = ["bash", "-euo", "pipefail", "-c", script]
    done = subprocess.run(command, check=False, cwd=clone, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def stop(server: Command) -> None:
    server.ctrl_c()
    assert server.end() == 0, server.text


@pytest.mark.ray
def test_the_readmes_commands_run_in_their_order(clone: Path, cache_dir: str) -> None:
    env = environment(cache_dir)
    printed: list[str] = []
    with contextlib.ExitStack() as servers:
        for tag, script in BLOCKS:
            if tag == "":
                printed.append(bash(script, clone, env))
            elif tag == "server":  # stays up for the blocks after it
                server = servers.enter_context(Command("-c", f"exec {script}", program="bash", cwd=clone, env=env))
                server.wait_for("Ctrl-C stops it")
                # The reader puts the key that the first start prints into this variable.
                shown = re.search(r"Bearer (er_[\w-]+)", server.text)
                assert shown, server.text
                env["EAGLERAY_KEY"] = shown[1]
                servers.callback(stop, server)
    first = printed[0]
    assert "generated" in first
    assert len(re.findall(r"^trial +\d", first, re.MULTILINE)) == 8
    assert re.search(r"serve it +uv run serve/app.py --bundle \S+/bundle", first)
    assert (clone / "runs" / "predictions.csv").read_text().startswith("path,label")
    assert '"predictions"' in printed[2]


def test_every_block_has_a_known_tag() -> None:
    assert {tag for tag, _ in BLOCKS} == {"", "server", "example", "aws", "test"}
    assert README.count("```") == 2 * (len(BLOCKS) + README.count("```json") + README.count("```python"))


@pytest.mark.parametrize("line", [line for tag, script in BLOCKS if tag != "test" for line in script.splitlines()])
def test_every_flag_in_the_readme_exists(line: str) -> None:
    words = shlex.split(line)
    if words[:5] == ["uv", "run", "serve", "run", "serve.app:app"]:
        ServeConfig.from_arguments(dict(word.split("=") for word in words[5:]))
        return
    if words[0] in ("curl", "export"):
        return
    if words[2] == "ray":
        check_ray(words[3:])
        return
    assert words[:2] == ["uv", "run"]
    config = Down if "--down" in words else COMMANDS[words[2]]
    tyro.cli(config, args=words[3:], config=(tyro.conf.OmitArgPrefixes,))


def check_ray(words: list[str]) -> None:
    """Ray's own command line takes it, and so does ours what `ray submit` hands on."""
    from ray.scripts.scripts import cli

    command = cli.commands[words[0]]
    parsed = command.make_context(words[0], words[1:]).params
    if words[0] == "submit":
        assert parsed["script"] == words[2]
        tyro.cli(COMMANDS[words[2]], args=list(parsed["script_args"]), config=(tyro.conf.OmitArgPrefixes,))


def test_the_test_command_is_what_ci_calls() -> None:
    commands = [script.strip() for tag, script in BLOCKS if tag == "test"]
    assert commands == ["uv run pytest"]
    assert commands[0] in (ROOT / ".ci" / "run").read_text().splitlines()


def test_the_file_list_is_the_tree() -> None:
    listed = re.findall(r"^\| `((?:data|models|tune|serve)/[\w/]+\.py)` \| \S", README, re.MULTILINE)
    packages = ("data", "models", "tune", "serve")
    tree = [str(path.relative_to(ROOT)) for name in packages for path in (ROOT / name).rglob("*.py")]
    assert sorted(listed) == sorted(path for path in tree if not path.endswith("__init__.py"))
    assert len(listed) == len(set(listed))


def test_the_flags_in_the_text_exist(capsys: pytest.CaptureFixture[str]) -> None:
    for config in ALL_CONFIGS:
        with pytest.raises(SystemExit):
            tyro.cli(config, args=["--help"], config=(tyro.conf.OmitArgPrefixes,))
    known = set(re.findall(r"--[a-z][a-z-]+", capsys.readouterr().out))
    text = re.sub(r"^```.*?^```$", "", README, flags=re.MULTILINE | re.DOTALL)
    assert set(re.findall(r"`[^`\n]*?(--[a-z][a-z-]+)", text)) - known == set()
