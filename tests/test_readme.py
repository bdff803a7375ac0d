"""The README is run, not read: its blocks in their order, its file list against the tree, its ports against Ray's."""

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest
import tyro
from PIL import Image

from serve.app import Down
from serve.corrections.gathering import GatherConfig
from serve.keys import Add, KeysConfig
from serve.labelling import LabelConfig
from serve.promote import PromoteConfig
from serve.settings import ServeConfig
from tests.commands import ROOT, Command
from tests.listening import beyond_this_machine, in_the_readme
from tune.cloud.preflightsettings import PreflightConfig
from tune.settings import SearchConfig, TrainJobConfig

README = (ROOT / "README.md").read_text()
# bash: run; server: run in the background for the blocks after it; example and aws: parsed; test: the test command.
# python: run as a program; json: compared with what the endpoint answers.
BLOCKS: list[tuple[str, str, str]] = re.findall(r"^```(\w+) ?(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
BASH = [(tag, script) for language, tag, script in BLOCKS if language == "bash"]
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
HERE = "http://127.0.0.1:8000"  # where the README's endpoint is
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


def photographs(folder: Path) -> None:
    """A folder and a file with the names that the programs have, and one file that is damaged."""
    shown = Image.open(ROOT / "tests/pictures/creature.png").convert("RGB")
    (folder / "new-pictures").mkdir()
    for name in ("photo.jpg", "new-pictures/creature.jpg", "new-pictures/cut.jpg"):
        shown.save(folder / name)
    whole = (folder / "photo.jpg").read_bytes()
    (folder / "new-pictures/cut.jpg").write_bytes(whole[: len(whole) // 2])


def aws_secret(clone: Path, env: dict[str, str]) -> str:
    """As the text above boto3's program says; back when the endpoint has seen the key, which may take two seconds."""
    (command,) = re.findall(r"`(uv run serve/keys\.py add \w+ --aws)`", README)
    key, _, secret = bash(command, clone, env).split("\n")[:3]
    deadline = time.monotonic() + 30
    while httpx.get(f"{HERE}/model", headers={"x-api-key": key}, timeout=30).status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return secret.removeprefix("aws_secret_access_key = ")


def python(program: str, clone: Path, env: dict[str, str]) -> None:
    """As a program elsewhere, in this project's environment, with the names that the text leaves to the reader."""
    elsewhere = clone / "elsewhere"
    if not elsewhere.exists():
        elsewhere.mkdir()
        photographs(elsewhere)
    before, after, expected = "", "", r"Answer\(.*\)\n\S*/creature.jpg \w+ [\d.]+ \w{12}\n\S*/cut.jpg truncated .*\n"
    if "def predict(images)" in program:
        before = f"key = {env['EAGLERAY_KEY']!r}\nimages = __import__('numpy').full((2, 224, 224, 3), 0.5)\n"
        after, expected = "print(labels.tolist())\n", r"\[([01]), \1\]\n"
    elif "boto3" in program:
        before = f"secret = {aws_secret(clone, env)!r}\n"
        after, expected = "print(answer['Body'].read().decode())\n", r"\[[\d.,]+\]\n"
    (elsewhere / "program.py").write_text(before + program + after)
    printed = bash("uv run program.py", elsewhere, {**env, "UV_PROJECT": str(clone)})
    assert re.fullmatch(expected, printed), f"{program}\n{printed}"


def form(answer: object) -> object:
    """What an answer is made of, and which error it names: all but what another model would answer otherwise."""
    if isinstance(answer, dict):
        return answer if "code" in answer else {name: form(value) for name, value in answer.items()}
    return [form(value) for value in answer] if isinstance(answer, list) else None


def assert_answered(shown: str, key: str) -> None:
    """With one image, or with a form of two where the block names files, of which the second is cut off."""
    blob = (ROOT / "tests/pictures/creature.png").read_bytes()
    headers = {"authorization": f"Bearer {key}"}
    if "creature.png" in shown:
        images = {"a": ("creature.png", blob), "b": ("cut.png", blob[: len(blob) // 2])}
        answer = httpx.post(f"{HERE}/predict", files=images, headers=headers, timeout=60)
    else:
        answer = httpx.post(f"{HERE}/predict", content=blob, headers=headers, timeout=60)
    assert answer.status_code == 200
    assert form(answer.json()) == form(json.loads(shown))


@pytest.mark.ray
def test_the_readmes_blocks_run_in_their_order(clone: Path, cache_dir: str) -> None:
    env = environment(cache_dir)
    printed: list[str] = []
    with contextlib.ExitStack() as servers:
        for language, tag, script in BLOCKS:
            if language == "python":
                python(script, clone, env)
            elif language == "json":
                assert_answered(script, env["EAGLERAY_KEY"])
            elif tag == "":
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
    assert {tag for tag, _ in BASH} == {"", "server", "example", "aws", "test"}
    assert {(language, tag) for language, tag, _ in BLOCKS if language != "bash"} == {("python", ""), ("json", "")}
    assert README.count("```") == 2 * len(BLOCKS)


@pytest.mark.parametrize("line", [line for tag, script in BASH if tag != "test" for line in script.splitlines()])
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
    commands = [script.strip() for tag, script in BASH if tag == "test"]
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


@pytest.mark.ray
def test_what_a_search_opens_to_all_is_what_the_readme_says_and_refuses_as_it_says(ray_cluster: None) -> None:
    """The tests' Ray is started as a search's is. Another Ray of this machine may hold the two ports that are fixed."""
    import ray

    ray.get(ray.remote(shlex.quote).remote(""))  # so that there is a worker
    found = beyond_this_machine(psutil.Process(), "tune/search.py")
    listed = in_the_readme("a search")
    assert found | {("dashboard.py", "metrics"), ("monitor.py", "metrics")} == listed
