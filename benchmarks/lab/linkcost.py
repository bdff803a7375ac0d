"""On a cluster's head: seconds of a training step of ResNet18 on one worker, and on two that share their gradients.

    ray submit cluster.yaml benchmarks/lab/linkcost.py -- --mbit 200

One thread a worker, and each worker on a node of its own. `--mbit` is the rate of each node's link, by which the cost
of the gradients is computed: of their bytes 2 (n - 1) / n leave each of n nodes, and as many come in (a ring's
all-reduce).
The last line is one JSON object.
"""

import argparse
import json
import sys
import time
from statistics import median
from typing import Any

import ray

_STEPS, _SKIPPED = 8, 2


class Worker:
    """One process of the training; its class is made an actor by `main`."""

    def __init__(self, batch: int, size: int) -> None:
        import torch
        from torchvision.models import resnet18

        torch.set_num_threads(1)
        torch.manual_seed(0)
        self._model = resnet18(weights=None, num_classes=2)
        self._batch = torch.rand(batch, 3, size, size), torch.randint(0, 2, (batch,))

    def address(self) -> str:
        """A free port of this node."""
        import socket

        with socket.socket() as probe:
            probe.bind(("", 0))
            return f"tcp://{ray.util.get_node_ip_address()}:{probe.getsockname()[1]}"

    def node(self) -> str:
        return str(ray.get_runtime_context().get_node_id())

    def gradient_bytes(self) -> int:
        return sum(each.numel() * each.element_size() for each in self._model.parameters())

    def join(self, address: str, rank: int, size: int) -> None:
        """From now on steps share their gradients."""
        import torch
        from torch.nn.parallel import DistributedDataParallel

        torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=size)
        self._model = DistributedDataParallel(self._model, broadcast_buffers=False, gradient_as_bucket_view=True)

    def steps(self) -> list[float]:
        """Seconds of each step, but for the first ones."""
        import torch

        optimizer = torch.optim.SGD(self._model.parameters(), lr=0.01)
        images, labels = self._batch
        seconds = []
        for _ in range(_STEPS + _SKIPPED):
            begun = time.monotonic()
            optimizer.zero_grad()
            loss: Any = torch.nn.functional.cross_entropy(self._model(images), labels)
            loss.backward()
            optimizer.step()
            seconds.append(time.monotonic() - begun)
        return seconds[_SKIPPED:]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mbit", type=int, default=0, help="rate of each node's link; 0 is none that counts")
    parser.add_argument("--batch", type=int, default=16, help="images of each worker")
    parser.add_argument("--size", type=int, default=64, help="side of the images in pixels")
    given = parser.parse_args()
    ray.init(logging_level=30)
    actor: Any = ray.remote(num_cpus=1, scheduling_strategy="SPREAD")(Worker)
    workers = [actor.remote(given.batch, given.size) for _ in range(2)]
    if len(set(ray.get([worker.node.remote() for worker in workers]))) < 2:
        raise SystemExit("both workers are on one node: this needs two with a free CPU each")
    alone = median(ray.get(workers[0].steps.remote()))
    address, gradients = ray.get([workers[0].address.remote(), workers[0].gradient_bytes.remote()])
    ray.get([worker.join.remote(address, rank, 2) for rank, worker in enumerate(workers)])
    two = median(max(step) for step in zip(*ray.get([worker.steps.remote() for worker in workers]), strict=True))
    computed = 2 * (2 - 1) / 2 * gradients * 8 / (given.mbit * 1e6) if given.mbit else 0.0
    times = {"alone_s": alone, "two_s": two, "computed_s": computed, "gradients_mb": gradients / 1e6}
    print(json.dumps({**times, "mbit": given.mbit, "batch": given.batch, "size": given.size}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
