"""`--write`: what goes into a cluster file, from the flags and, where they are silent, from AWS."""

import ipaddress
import platform
from typing import Final

from data import localfiles, store
from data.errors import UserError
from tune.aws import Aws, AwsError
from tune.cloud import askaccess, askmachines
from tune.cloud.accesspolicies import role_name
from tune.cloud.askaws import USABLE, regions_of
from tune.cloud.clusterfile import UNSET_ADDRESS, UNSET_GROUP, UNSET_IMAGE, UNSET_SUBNET, ClusterFile
from tune.cloud.clusterfill import Filling, bucket_name, filled, ours
from tune.cloud.clustergroup import with_group
from tune.cloud.facts import Subnet
from tune.cloud.preflightsettings import PreflightConfig

# AWS publishes the newest id of each of its images under such a name, in every region. The images hold NVIDIA's open
# driver, and no framework: those come by the project's own pins.
_IMAGES: Final = tuple(
    f"/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-{version}/latest/ami-id"
    for version in ("24.04", "22.04")
)
_LATEST: Final = "latest"
_WIDEST: Final = 2**8
# RFC 1918, and RFC 6598 for providers that put many customers behind one address.
_LOCAL: Final = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10")


def write(file: ClusterFile, config: PreflightConfig) -> ClusterFile:
    """The file as it is on disk afterwards."""
    new = planned(file, config)
    save(file, new)
    return new


def save(old: ClusterFile, new: ClusterFile) -> None:
    """Write the file whole or not at all; not where nothing changed."""
    if new.text != old.text:
        localfiles.write_bytes(store.absolute(old.path), _as_it_was(old.path, new.text))


def _as_it_was(path: str, text: str) -> bytes:
    """UTF-8, with the mark at its beginning if it had one."""
    marked = store.read(store.absolute(path)).startswith(b"\xef\xbb\xbf")
    return text.encode("utf-8-sig" if marked else "utf-8")


def planned(file: ClusterFile, config: PreflightConfig) -> ClusterFile:
    """The file with all that can be filled in. AWS is asked only for what the flags and the file leave open."""
    moved = bool(config.region) and config.region != file.region
    bucket = bucket_name(config.bucket) if config.bucket else ""
    first = Filling(region=config.region, bucket=bucket, ssh_from=ssh_range(config.ssh_from) if config.ssh_from else "")
    new = filled(file, first)
    cloud = Aws(new.region)
    unset_image = any(kind.image == UNSET_IMAGE for kind in file.types)
    unset_subnets = any(UNSET_SUBNET in kind.subnets for kind in file.types)
    if moved or unset_image or unset_subnets:
        _check_region(cloud)
    latest = config.image == _LATEST or (not config.image and (unset_image or moved))
    subnets = _subnets(new, config, cloud) if config.subnets or unset_subnets or _stale(file, moved) else ()
    second = Filling(
        image=newest_image(cloud) if latest else config.image,
        subnets=tuple(subnet.name for subnet in subnets),
        zones=tuple(dict.fromkeys(subnet.zone for subnet in subnets)),
        profiles={kind.name: role_name(new, head=kind.head) for kind in new.types if ours(kind.profile, new)},
        options=_options(config),
        metrics=config.with_metrics,
        python=".".join(platform.python_version_tuple()[:2]),
    )
    return _grouped(filled(new, second), cloud, moved)


def _grouped(file: ClusterFile, cloud: Aws, moved: bool) -> ClusterFile:
    """With the id of the security group, if it was made before; else --create puts it in. One of the region that the
    file leaves is none of this region."""
    if moved and file.group_ids:
        file = filled(file, Filling(group=UNSET_GROUP))
    return with_group(file, cloud) if any(UNSET_GROUP in kind.groups for kind in file.types) else file


def _stale(file: ClusterFile, moved: bool) -> bool:
    """Subnets that are filled in belong to the region that the file leaves."""
    return moved and any(kind.subnets for kind in file.types)


def _options(config: PreflightConfig) -> dict[str, str]:
    usd = {"max-usd": f"{config.max_usd:g}"} if config.max_usd else {}
    return {**({"ttl": config.ttl} if config.ttl else {}), **usd}


def _check_region(cloud: Aws) -> None:
    known = regions_of(cloud)
    if known.get(cloud.region) not in USABLE:
        some = ", ".join(sorted(region for region, state in known.items() if state in USABLE))
        why = "is not enabled in this account" if cloud.region in known else "is no region of AWS"
        raise UserError(f"--region {cloud.region} {why}; give one of {some}")


def newest_image(cloud: Aws) -> str:
    """The id of the newest Deep Learning Base image of the region."""
    for name in _IMAGES:
        try:
            return str(cloud.ask("ssm", "get_parameter", Name=name)["Parameter"]["Value"])
        except AwsError as error:
            if error.code != "ParameterNotFound":
                raise
    what = f"AWS publishes no Deep Learning Base image for {cloud.region}"
    raise UserError(f"{what}; give one by --image ami-…, as the console's catalogue of images lists it")


def _subnets(file: ClusterFile, config: PreflightConfig, cloud: Aws) -> tuple[Subnet, ...]:
    """Those that were named; else the default VPC's, first the zones that have most of the file's machine types."""
    known = askaccess.subnets(cloud)
    if config.subnets:
        names = [name.strip() for name in config.subnets.split(",") if name.strip()]
        by_name = {subnet.name: subnet for subnet in known}
        if lost := [name for name in names if name not in by_name]:
            raise UserError(f"--subnets: {file.region} has no {', '.join(lost)}; it has {', '.join(by_name) or 'none'}")
        return tuple(by_name[name] for name in names)
    vpc = askaccess.default_vpc(cloud)
    there = [subnet for subnet in known if subnet.vpc == vpc and subnet.public]
    if not there:
        what = (
            f"{file.region} has no default VPC with public subnets" if vpc == "none" else f"{vpc} has no public subnet"
        )
        raise UserError(f"{what}; aws ec2 create-default-vpc --region {file.region}, or name yours by --subnets")
    offered = askmachines.offers(cloud, sorted({kind.instance_type for kind in file.types}))

    def missing(subnet: Subnet) -> int:
        return sum(subnet.zone not in zones for zones in offered.values())

    own = [subnet for subnet in there if subnet.default] or there
    with_all = [subnet for subnet in own if not missing(subnet)]
    # Two zones that have every type are better than four of which each lacks one; else what there is.
    chosen = with_all if len({subnet.zone for subnet in with_all}) > 1 else own
    return tuple(sorted(chosen, key=lambda subnet: (missing(subnet), subnet.zone)))


def ssh_range(given: str) -> str:
    """The one address as a range, 203.0.113.7 -> 203.0.113.7/32. `UserError` for anything that lets in more than an
    office, and for what can only be guessed."""
    look = "curl https://checkip.amazonaws.com prints the address that AWS sees you at"
    if given.strip().lower() in ("me", "my-ip", "auto", "self"):
        raise UserError(f"--ssh-from {given}: only somebody outside can tell that; {look}; give that one")
    try:
        found = ipaddress.ip_network(given.strip(), strict=False)
    except ValueError:
        raise UserError(f"--ssh-from {given}: no IP address; {look}") from None
    if found.version != 4:
        raise UserError(f"--ssh-from {given}: the file's rule is for IPv4; give that address (curl -4 …): {look}")
    if found.num_addresses > _WIDEST:
        wide = "the whole world" if found.prefixlen == 0 else f"{found.num_addresses:,} addresses"
        raise UserError(f"--ssh-from {given}: that lets in {wide}; give one address ({look})")
    if found.is_loopback or found.is_unspecified or found.is_multicast or str(found) == UNSET_ADDRESS:
        raise UserError(f"--ssh-from {given}: no address that AWS could see you at; {look}")
    return str(found)


def private(cidr: str) -> bool:
    """Whether a range lies within a local network, where AWS sees another address unless there is a VPN."""
    found = ipaddress.ip_network(cidr)
    return any(found.overlaps(ipaddress.ip_network(local)) for local in _LOCAL)
