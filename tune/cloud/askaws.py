"""Asks AWS all that the pre-flight wants to know of a cluster file. What cannot be had is a fact without an answer."""

import os
import stat
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Final, Literal, TypeVar

from data.errors import UserError
from tune.aws import HOME, Aws
from tune.cloud import askaccess, askmachines
from tune.cloud.accesspolicies import partition
from tune.cloud.clusterfile import UNSET, ClusterFile
from tune.cloud.facts import Fact, Facts, Here, Identity, Needs
from tune.cloud.preflightsettings import Plan
from tune.cloud.quotas import quota_codes

USABLE: Final = ("opt-in-not-required", "opted-in")

T = TypeVar("T")


def fact(ask: Callable[[], T]) -> Fact[T]:
    """The answer, or in its place what AWS said."""
    try:
        return Fact(ask())
    except UserError as error:
        return Fact(why_not=str(error))


def gather(file: ClusterFile, here: Here, plan: Plan, needs: Fact[Needs]) -> Facts:
    """Everything that can be had, in the order in which one answer is needed for the next."""
    cloud = Aws(file.region)
    identity = fact(lambda: who(cloud))
    if identity.answer is None:
        return Facts(file, here, plan, needs, identity)
    regions = fact(lambda: regions_of(cloud))
    if regions.answer and regions.answer.get(file.region) not in USABLE:
        return Facts(file, here, plan, needs, identity, regions)
    machines = fact(partial(askmachines.machines, cloud, file))
    types = sorted({kind.instance_type for kind in file.types})
    on_spot = sorted({kind.instance_type for kind in file.types if kind.spot})
    groups, profiles = fact(partial(askaccess.groups, cloud, file)), {kind.profile for kind in file.types}
    images = {kind.image for kind in file.types}
    try_with = groups.answer if file.head.subnets and not file.unfilled else None
    return Facts(
        file,
        here,
        plan,
        needs,
        identity,
        regions,
        machines=machines,
        offered=fact(partial(askmachines.offers, cloud, sorted({*types, *(machines.answer or ())}))),
        subnets=fact(partial(askaccess.subnets, cloud)),
        default_vpc=fact(partial(askaccess.default_vpc, cloud)),
        groups=groups,
        keys=fact(partial(askaccess.key_pairs, cloud)),
        images=fact(partial(askmachines.images, cloud, _set(images))),
        bucket=fact(partial(askaccess.bucket, cloud, file.bucket)) if _set([file.bucket]) else Fact(),
        profiles=fact(partial(askaccess.profiles, cloud, _set(profiles))),
        spot_role=fact(partial(askaccess.spot_role, cloud)),
        quotas={code: fact(partial(askmachines.quota, cloud, code)) for code in quota_codes(file)},
        running=fact(partial(askmachines.running, cloud)),
        spot_prices=fact(partial(askmachines.spot_prices, cloud, on_spot)),
        on_demand={name: fact(partial(askmachines.on_demand, cloud, name)) for name in types},
        launch=fact(partial(askmachines.dry_run, cloud, file, try_with)) if try_with else None,
        private_key=private_key(file),
    )


def _set(names: Iterable[str]) -> list[str]:
    """Those that are no placeholders."""
    return sorted(name for name in names if name and not any(unset in name for unset in UNSET))


def who(cloud: Aws) -> Identity:
    """The login that all of this runs as."""
    answer = cloud.ask("sts", "get_caller_identity", region=HOME[partition(cloud.region)])
    return Identity(answer["Arn"], answer["Account"])


def regions_of(cloud: Aws) -> Mapping[str, str]:
    """Every region, and whether it is enabled."""
    home = HOME[partition(cloud.region)]
    answer = cloud.ask("ec2", "describe_regions", region=home, AllRegions=True)
    return {each["RegionName"]: each.get("OptInStatus", USABLE[0]) for each in answer["Regions"]}


def private_key(file: ClusterFile) -> Literal["", "missing", "open", "fine"]:
    """How the key stands that the file names: ssh refuses one that others may read."""
    named = (file.config.get("auth") or {}).get("ssh_private_key")
    if not named:
        return ""
    path = os.path.expanduser(str(named))
    if not os.path.isfile(path):
        return "missing"
    return "open" if stat.S_IMODE(os.stat(path).st_mode) & 0o077 else "fine"
