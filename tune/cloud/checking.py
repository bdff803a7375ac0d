"""What `tune/preflight.py` does: look, fill in, make, or list what is left."""

import importlib.metadata
import json
import os
import platform
import re
import tomllib

from data.errors import UserError
from tune.aws import Aws
from tune.cloud import checks, clusteraccess, leftovers
from tune.cloud.askaws import fact, gather
from tune.cloud.checksfile import command
from tune.cloud.clusterfile import UNSET_GROUP, ClusterFile, project_folder, read
from tune.cloud.clusterfill import changes
from tune.cloud.clustergroup import with_group
from tune.cloud.clusterwrite import private, save, write
from tune.cloud.facts import Here
from tune.cloud.preflightsettings import PreflightConfig
from tune.cloud.trainingmemory import needs


def preflight(config: PreflightConfig) -> int:
    """Exit code 0 where nothing stops (nothing bills), else 1."""
    file = read(config.file)
    if config.leftovers:
        return _leftovers(file, config)
    if config.write:
        file = _write(file, config)
    if config.create:
        return _create(file, config)
    return 0 if config.write else _look(file, config)


def _look(file: ClusterFile, config: PreflightConfig) -> int:
    facts = gather(file, here(file), config.plan, fact(lambda: needs(config.plan)))
    findings = checks.run(facts)
    good = checks.good(findings)
    if config.json:
        rows = [finding.as_dict() for finding in findings]
        print(json.dumps({"cluster": file.name, "region": file.region, "good": good, "findings": rows}, indent=1))
    else:
        print("\n".join([*checks.lines(findings), checks.verdict(findings)]))
    return 0 if good else 1


def _write(file: ClusterFile, config: PreflightConfig) -> ClusterFile:
    new = write(file, config)
    changed = changes(file.text, new.text)
    if config.json:
        left = [{"line": each.line, "what": each.what} for each in new.unfilled]
        print(json.dumps({"file": file.path, "changed": changed, "unfilled": left}, indent=1))
        return new
    print("\n".join(changed) or f"{file.path}: nothing to change")
    for cidr in new.ssh_from:
        if config.ssh_from and private(cidr):
            print(f"note: {cidr} lies in a local network; unless a VPN leads to AWS, it sees you at another address")
    if not config.create and {each.text for each in new.unfilled} <= {UNSET_GROUP}:
        print(f"next: {command(file, '--create')}, then {command(file, '').rstrip()}")
    elif not config.create:
        print(f"not filled in yet: {new.missing}; the next --write may do it")
    return new


def _create(file: ClusterFile, config: PreflightConfig) -> int:
    if config.print:
        print("\n".join(clusteraccess.printed(file)))
        return 0
    cloud = Aws(file.region)
    for line in clusteraccess.create(file, cloud):
        print(line, flush=True)
    new = with_group(file, cloud)
    save(file, new)
    print("\n".join(changes(file.text, new.text)), end="\n" if new.text != file.text else "")
    print(f"AWS takes about 15 seconds to know new roles everywhere; then {command(file, '').rstrip()}")
    return 0


def _leftovers(file: ClusterFile, config: PreflightConfig) -> int:
    found = leftovers.find(Aws(file.region), file.name, file.bucket)
    if config.json:
        print(leftovers.as_json(found))
    else:
        print("\n".join([*leftovers.lines(found), leftovers.verdict(found, file.name, file.region)]))
    return 0 if found.clean else 1


def here(file: ClusterFile) -> Here:
    """This machine, and the pins of the project that the file lies in."""
    return Here(
        python=platform.python_version(),
        ray=importlib.metadata.version("ray"),
        ray_pinned=_pinned("ray", project_folder(file.path)),
        missing=tuple(source for source in file.mounted if not os.path.exists(os.path.expanduser(source))),
    )


def _pinned(name: str, folder: str) -> str:
    """The version that pyproject.toml holds a distribution to; "" where there is no such file or pin."""
    path = os.path.join(folder, "pyproject.toml")
    try:
        with open(path, "rb") as opened:
            project = tomllib.load(opened)
    except FileNotFoundError:
        return ""
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); mend it") from error
    pins = project.get("tool", {}).get("uv", {}).get("constraint-dependencies", [])
    found = next((match for pin in pins if (match := re.fullmatch(rf"{name}==([\w.]+)", pin))), None)
    return found[1] if found else ""
