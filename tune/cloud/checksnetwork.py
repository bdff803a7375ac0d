"""Checks of where the machines will stand and who reaches them: VPC, subnets, security group."""

from collections.abc import Iterator

from tune.cloud.checksfile import command, open_rules
from tune.cloud.clusterfile import UNSET_ADDRESS, UNSET_GROUP, UNSET_SUBNET, ClusterFile
from tune.cloud.facts import Facts, Finding, Group, Subnet
from tune.cloud.inboundrules import SSH, addresses, reaches, within
from tune.cloud.nodetypes import NodeType


def used(facts: Facts, kind: NodeType) -> tuple[Subnet, ...]:
    """The subnets that machines of a type will stand in: those that it names, else the public ones of the default VPC.

    Raises CannotTellError where AWS did not say.
    """
    known = facts.subnets.value
    if kind.subnets:
        return tuple(subnet for subnet in known if subnet.name in kind.subnets)
    return tuple(subnet for subnet in known if subnet.vpc == facts.default_vpc.value and subnet.public)


def subnets(facts: Facts) -> Iterator[Finding]:
    """Whether there is a place for the machines, and the laptop can reach the head in it."""
    file, known = facts.file, {subnet.name: subnet for subnet in facts.subnets.value}
    named = {name for kind in file.types for name in kind.subnets}
    by_name = command(file, "--write --subnets subnet-…,subnet-…")
    if named == {UNSET_SUBNET}:
        if facts.default_vpc.value == "none":
            yield _no_vpc(file, by_name)
        return
    if lost := sorted(named - known.keys() - {UNSET_SUBNET}):
        what = f"{file.region} has no subnet {', '.join(lost)}"
        yield Finding("subnets", "stop", what, f"{command(file, '--write')} --subnets with those that are there")
        return
    if any(not kind.subnets for kind in file.types) and facts.default_vpc.value == "none":
        yield _no_vpc(file, by_name)
        return
    places = {subnet for kind in file.types for subnet in used(facts, kind)}
    vpcs = sorted({subnet.vpc for subnet in places})
    if len(vpcs) > 1:
        what = f"the subnets lie in {len(vpcs)} VPCs ({', '.join(vpcs)}): nodes could not reach each other"
        yield Finding("subnets", "stop", what, by_name)
    hidden = sorted(subnet.name for subnet in places if not subnet.public)
    if hidden and not file.provider.get("use_internal_ips"):
        what = f"machines in {', '.join(hidden)} get no public address: the launcher refuses it"
        remedy = f"{by_name} with public ones, or provider.use_internal_ips: true behind a VPN"
        yield Finding("subnets", "stop", what, remedy)
    zones = sorted({subnet.zone for subnet in places})
    if len(zones) == 1:
        what = f"all in zone {zones[0]}: where its spot machines are gone there is nowhere else to go"
        yield Finding("subnets", "warning", what, by_name)
    elif len(vpcs) == 1 and not (hidden and not file.provider.get("use_internal_ips")):
        where = "the default VPC" if vpcs[0] == facts.default_vpc.answer else vpcs[0]
        yield Finding("subnets", "ok", f"{len(places)} in {where}: {', '.join(zones)}")


def _no_vpc(file: ClusterFile, remedy: str) -> Finding:
    what = f"{file.region} has no default VPC, and the file names no subnets: there is nowhere to put a machine"
    return Finding("subnets", "stop", what, f"aws ec2 create-default-vpc --region {file.region}, or {remedy}")


def group(facts: Facts) -> Iterator[Finding]:
    """The group as it is. Ray leaves one alone that has rules; one that it makes itself is open to the world."""
    file = facts.file
    if file.ssh_from == (UNSET_ADDRESS,) or any(UNSET_GROUP in kind.groups for kind in file.types):
        return  # unfilled
    vpcs = {subnet.vpc for kind in file.types for subnet in used(facts, kind)}
    known = {each.id: each for each in facts.groups.value}
    if lost := sorted(file.group_ids - known.keys()):
        what = f"{file.region} has no security group {', '.join(lost)}"
        yield Finding("security group", "stop", what, f"{command(file, '--create')} makes it and writes its id")
        return
    if any(not kind.groups for kind in file.types):
        named = [each for each in known.values() if each.vpc in vpcs and each.name == file.group_name]
        if not named or not named[0].rules:
            what = f"security group {file.group_name} is not there with its rules; Ray's own lets in the world to SSH"
            yield Finding("security group", "stop", what, f"{command(file, '--create')} makes it")
            return
        chosen = named
    else:
        chosen = [known[name] for name in sorted(file.group_ids)]
    for each in chosen:
        yield from _group(file, each, vpcs)


def _group(file: ClusterFile, each: Group, vpcs: set[str]) -> Iterator[Finding]:
    mine = each.name == file.group_name
    mend = command(file, "--create") if mine else f"narrow the rules of {each.id}"
    found = list(open_rules(list(each.rules), f"security group {each.name}", mend))
    if vpcs and vpcs != {each.vpc}:
        what = f"security group {each.name} ({each.id}) belongs to {each.vpc}, the subnets to {', '.join(sorted(vpcs))}"
        found.append(Finding("security group", "stop", what, f"{command(file, '--create')} makes one there"))
    yield from found
    if not found and mine:
        yield from _differences(file, each)
    elif not found:
        yield Finding("security group", "ok", f"{each.name} ({each.id}), your own")


def _differences(file: ClusterFile, here: Group) -> Iterator[Finding]:
    mend = f"{command(file, '--create')} sets it right; Ray does not"
    there = {cidr for rule in here.rules if reaches(rule, SSH) for cidr in addresses(rule)}
    name = f"security group {here.name}"
    if there != set(file.ssh_from):
        let_in, meant = ", ".join(sorted(there)) or "nobody", ", ".join(file.ssh_from)
        what = f"{name} lets in {let_in} to port 22, the file says {meant}"
        yield Finding("security group", "stop", what, mend)
    if not any(within(rule, here.id) for rule in here.rules):
        yield Finding("security group", "stop", f"{name} lets the nodes not reach each other", mend)
    elif there == set(file.ssh_from):
        yield Finding("security group", "ok", f"{name}: port 22 from {', '.join(sorted(there))}, all inside")
