"""Checks of the machines: rentable in these zones, with a GPU, an image that fits, enough disk and memory."""

import math
from collections.abc import Iterable, Iterator
from typing import Final

from tune.cloud.checksfile import command
from tune.cloud.checksnetwork import used
from tune.cloud.clusterfile import UNSET_IMAGE, UNSET_SUBNET
from tune.cloud.facts import Facts, Finding, Image, Machine, Needs
from tune.cloud.nodetypes import NodeType

_MIB: Final = 2**20
_GIB: Final = 2**30
# Driver, firmware and ECC take of a GPU's memory what its data sheet does not tell.
_OF_A_GPU: Final = 0.92
# GiB: system with Ray's daemons, one training process with CUDA's libraries, the search's own process, the metrics.
_SYSTEM, _TRAINER, _DRIVER = 2.0, 3.5, 2.0
_OBJECT_STORE: Final = 0.3  # share of a node's memory that Ray sets aside for it
# Families whose GPUs NVIDIA's open driver does not know (it begins with Turing: g4dn, g5, g6, p4, p5).
_BEFORE_TURING: Final = ("p2.", "p3.", "p3dn.", "g3.", "g3s.")


def types(facts: Facts) -> Iterator[Finding]:
    """Each type in each zone of its subnets."""
    found = [finding for kind in facts.file.types for finding in _type(facts, kind)]
    names = ", ".join(dict.fromkeys(kind.instance_type for kind in facts.file.types))
    zones = ", ".join(sorted({zone for kind in facts.file.types for zone in zones_of(facts, kind)}))
    yield from found or [Finding("types", "ok", f"{names}: each in {zones}")]


def _type(facts: Facts, kind: NodeType) -> Iterator[Finding]:
    known, name, zones = facts.machines.value, kind.instance_type, zones_of(facts, kind)
    there = facts.offered.value.get(name, frozenset())
    label = f"{kind.name}: {name}"
    if name not in known:
        what = f"{label} is no instance type that {facts.file.region} knows"
        yield Finding("types", "stop", what, "mend InstanceType (as g5.xlarge), or choose another region")
    elif not zones & there:
        elsewhere = f"it is in {', '.join(sorted(there))}: add a subnet there" if there else "choose another region"
        what = f"{label} is offered in none of the zones {', '.join(sorted(zones))}"
        yield Finding("types", "stop", what, f"{elsewhere}, or delete the node type {kind.name}")
    elif kind.spot and not known[name].spot:
        remedy = f"take InstanceMarketOptions out of {kind.name}, or another type"
        yield Finding("types", "stop", f"{label} cannot be rented as spot", remedy)
    elif kind.subnets != (UNSET_SUBNET,) and (missing := zones - there):
        what = f"{label} is not offered in {', '.join(sorted(missing))}"
        go_on = f"nothing, since the launcher goes on to {', '.join(sorted(zones & there))}"
        yield Finding("types", "warning", what, f"{go_on}; or leave that zone's subnet out by --write --subnets")


def zones_of(facts: Facts, kind: NodeType) -> frozenset[str]:
    """Those of its subnets; while they are not filled in, all of the region's."""
    if kind.subnets == (UNSET_SUBNET,):
        return frozenset(subnet.zone for subnet in facts.subnets.value)
    return frozenset(subnet.zone for subnet in used(facts, kind))


def gpus(facts: Facts) -> Iterator[Finding]:
    """A worker without a GPU trains at a CPU's pace for more money."""
    known = facts.machines.value
    rented = [(kind, known[kind.instance_type]) for kind in facts.file.types if kind.instance_type in known]
    found = [finding for kind, machine in rented for finding in _gpu(facts, kind, machine)]
    have = {m.name: f"{m.name} {m.gpus} x {m.gpu} {m.gpu_mib / 1024:.0f} GiB" for _, m in rented if m.has_gpu}
    yield from found or [Finding("gpu", "ok", ", ".join(have.values()) or "none wanted")]


def _gpu(facts: Facts, kind: NodeType, machine: Machine) -> Iterator[Finding]:
    if kind.wants_gpu and not machine.has_gpu:
        offered, zones = facts.offered.value, zones_of(facts, kind)
        others = [m for m in facts.machines.value.values() if m.has_gpu and offered.get(m.name, frozenset()) & zones]
        nearest = _nearest(machine, others)
        hint = f"; {nearest.name} is the nearest" if nearest else ""
        what = f"{machine.name} has no GPU{' that CUDA runs on' if machine.gpu else ''}{hint}"
        remedy = f"write InstanceType: {nearest.name if nearest else 'g5.xlarge'} into {kind.name}, or GPU: 0 there"
        yield Finding("gpu", "stop", what, remedy)
    elif kind.head and machine.has_gpu and not kind.wants_gpu:
        what = f"the head is a {machine.name}, with a GPU that is paid for as long as the cluster is up"
        yield Finding("gpu", "warning", what, "take a head without GPU, as m6i.xlarge")


def _nearest(machine: Machine, others: Iterable[Machine]) -> Machine | None:
    """By vCPUs and memory, each as a ratio; of equals the one with the most GPU memory."""

    def distance(other: Machine) -> tuple[float, int, str]:
        steps = abs(math.log2(other.vcpus / machine.vcpus)) + abs(math.log2(other.memory_mib / machine.memory_mib))
        return steps, -other.gpu_mib, other.name

    fitting = [other for other in others if set(other.architectures) & set(machine.architectures)]
    return min(fitting, key=distance, default=None)


def images(facts: Facts) -> Iterator[Finding]:
    """There, usable, of the machines' architecture, with a driver, and no larger than their disks."""
    by_image: dict[str, list[NodeType]] = {}
    for kind in facts.file.types:
        if kind.image != UNSET_IMAGE:
            by_image.setdefault(kind.image, []).append(kind)
    again = f"{command(facts.file, '--write --image latest')} takes the newest Deep Learning Base image"
    for name, kinds in by_image.items():
        image = facts.images.value.get(name)
        if image is None:
            what = f"no image {name} in {facts.file.region}" if name else "ImageId is missing; Ray's default is too old"
            yield Finding("image", "stop", what, again)
            continue
        found = [*_image(name, image, again), *_fitting(facts, name, image, kinds, again)]
        yield from found or [Finding("image", "ok", f"{name}: {image.name}")]


def _image(name: str, image: Image, again: str) -> Iterator[Finding]:
    if image.state != "available":
        yield Finding("image", "stop", f"{name} is {image.state}, not available", again)
    if image.deprecated:
        yield Finding("image", "warning", f"{name} ({image.name}) is deprecated since {image.deprecated}", again)


def _fitting(facts: Facts, name: str, image: Image, kinds: list[NodeType], again: str) -> Iterator[Finding]:
    known = facts.machines.value
    rented = [machine for kind in kinds if (machine := known.get(kind.instance_type))]
    if wrong := sorted({m.name for m in rented if image.architecture not in m.architectures}):
        yield Finding("image", "stop", f"{name} is for {image.architecture}, which {', '.join(wrong)} is not", again)
    lower = image.name.lower()
    if any(machine.has_gpu for machine in rented):
        if not (image.owner == "amazon" and "deep learning" in lower and ("nvidia" in lower or "cuda" in lower)):
            what = f"cannot tell whether {name} ({image.name}, of {image.owner}) holds an NVIDIA driver"
            yield Finding("image", "warning", what, f"look for nvidia-smi in it, or {again}")
        old = sorted({m.name for m in rented if m.name.startswith(_BEFORE_TURING)})
        if old and "oss nvidia" in lower:
            what = f"the open driver of {name} does not know the GPUs of {', '.join(old)}"
            yield Finding("image", "stop", what, "take g4dn, g5 or g6, or an image with NVIDIA's proprietary driver")
    user = (facts.file.config.get("auth") or {}).get("ssh_user")
    expected = "ubuntu" if "ubuntu" in lower else "ec2-user" if "amazon linux" in lower else user
    if user != expected:
        yield Finding("image", "stop", f"{name} lets in {expected}, not {user}", f"write auth.ssh_user: {expected}")


def disks(facts: Facts) -> Iterator[Finding]:
    """The root disk: named as the image names it, as large as the image, and gone with its machine."""
    found = []
    for kind in facts.file.types:
        image = facts.images.value.get(kind.image) if kind.image != UNSET_IMAGE else None
        root = next((disk for disk in kind.disks if image is None or disk["DeviceName"] == image.root), None)
        if kind.disks and root is None and image:
            what = (
                f"{kind.name}: {kind.disks[0]['DeviceName']} is not the image's root disk ({image.root}): it is added"
            )
            found.append(Finding("disk", "stop", what, f"write DeviceName: {image.root}"))
        elif root and image and root.get("VolumeSize", image.disk_gib) < image.disk_gib:
            what = f"{kind.name}: {root['VolumeSize']} GiB is less than the image's {image.disk_gib}: EC2 refuses it"
            found.append(Finding("disk", "stop", what, f"write VolumeSize: {image.disk_gib + 75}"))
        if any(disk.get("DeleteOnTermination") is False for disk in kind.disks):
            what = f"{kind.name}: its disk stays, and is billed, when the machine is gone"
            found.append(Finding("disk", "warning", what, "write DeleteOnTermination: true"))
    sizes = sorted({int(disk.get("VolumeSize", 0)) for kind in facts.file.types for disk in kind.disks})
    size = f"{', '.join(map(str, sizes))} GiB" if sizes else "as large as the image"
    yield from found or [Finding("disk", "ok", f"{size}, gone with the machine")]


def memory(facts: Facts) -> Iterator[Finding]:
    """The GPU's against what training takes, and each node's own. Computed, conservatively; see trainingmemory.py."""
    known, plan = facts.machines.value, facts.plan
    needs = facts.needs.value
    what = f"{plan.model} ({plan.base}), {plan.image_size} pixels, batch {plan.batch_size}"
    found = [
        finding
        for kind in facts.file.types
        if (machine := known.get(kind.instance_type))
        for finding in (*_gpu_memory(machine, needs, what, kind), *_node_memory(machine, kind))
    ]
    upper = f"{what}: at most {needs.most / _GIB:.1f} GiB of GPU memory (computed, conservatively)"
    yield from found or [Finding("memory", "ok", upper)]


def _gpu_memory(machine: Machine, needs: Needs, what: str, kind: NodeType) -> Iterator[Finding]:
    there = machine.gpu_mib * _MIB * _OF_A_GPU
    if not machine.has_gpu or not kind.wants_gpu or needs.most <= there:
        return
    share = f"{kind.name}: the {machine.gpu} has {there / _GIB:.1f} GiB"
    if needs.least > there:
        least = f"{share}, and {what} needs {needs.least / _GIB:.1f} at the least"
        yield Finding("memory", "stop", least, "a smaller batch (--batch-size), images or model, or a larger GPU")
    else:
        most = f"{share}, and {what} may need up to {needs.most / _GIB:.1f} (computed, conservatively)"
        yield Finding("memory", "warning", most, "try it with one trial, or halve --batch-size")


def _node_memory(machine: Machine, kind: NodeType) -> Iterator[Finding]:
    there = machine.memory_mib / 1024
    work = _DRIVER if kind.head else _TRAINER * max(1, machine.gpus)
    need = _SYSTEM + work + _OBJECT_STORE * there
    if need > there:
        what = f"{kind.name}: {machine.name} has {there:.0f} GiB; system, Ray, its store and the work take {need:.1f}"
        yield Finding("memory", "warning", what, "take the next larger size")
