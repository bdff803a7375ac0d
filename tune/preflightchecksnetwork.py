"""Checks of where the machines will stand and who reaches them: VPC, subnets, security group."""

from collections.abc import Iterator

from tune.clusterfile import UNSET_ADDRESS, UNSET_SUBNET, ClusterFile, NodeType
from tune.inboundrules import SSH, addresses, reaches, within
from tune.preflightchecksfile import command, open_rules
from tune.preflightfacts import Facts, Finding, Group, Subnet


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
    if file.ssh_from == (UNSET_ADDRESS,):
        return  # unfilled
    named = {str(name) for kind in file.types for name in kind.config.get("SecurityGroupIds") or ()}
    if named:
        for each in (group for group in facts.groups.value if group.id in named):
            yield from open_rules(list(each.rules), f"security group {each.id}", f"narrow its rule for port {SSH}")
        if lost := sorted(named - {group.id for group in facts.groups.value}):
            what = f"{file.region} has no security group {', '.join(lost)}"
            yield Finding("security group", "stop", what, "mend SecurityGroupIds, or leave them out, then --create")
        return
    vpcs = {subnet.vpc for kind in file.types for subnet in used(facts, kind)}
    here = [group for group in facts.groups.value if group.vpc in vpcs and group.name == file.group_name]
    if not here or not here[0].rules:
        lack = "does not exist yet" if not here else "has no rules"
        what = f"security group {file.group_name} {lack}; Ray would fill it, with SSH open to the world"
        yield Finding("security group", "stop", what, f"{command(file, '--create')} makes it")
        return
    found = list(open_rules(list(here[0].rules), f"security group {file.group_name}", command(file, "--create")))
    yield from found
    if not found:
        yield from _differences(file, here[0])


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
