"""What Ray does beside our work in its processes, and is left out: it would be a good part of an endpoint's CPU.

These are private names of Ray 2.60, since it has settings for neither; tests/test_serve_raysown.py sees to it that they
still do what is said here.
"""

from typing import Any


def end_log_monitor() -> None:
    """Ray looks into all its log files ten times a second for drivers that print them, as ours does not: a tenth of an
    idle endpoint's CPU. In the driver, once Ray runs."""
    from ray._private import worker

    node: Any = worker._global_node
    node.kill_log_monitor(check_alive=False)


def leave_out_latencies() -> None:
    """Ray's two histograms of latency, by deployment and by route. In the replica, before it answers.

    A replica behind HAProxy hands each request's latency to both of them one by one, and its node's agent puts each
    into a bucket once more, all in Python: 4 % of a small network's CPU in the agent alone. The endpoint's own
    histogram (`serve.watching.meters`) says the same, finer, and by model. Ray's counts of requests and errors stay.
    """
    from ray.serve._private import replica

    manager: Any = replica.ReplicaMetricsManager
    report = manager._report_cached_metrics

    def report_without(self: Any) -> None:
        self._cached_latencies.clear()
        if self._is_direct_ingress:  # behind Ray's own proxy it has the first only
            self._cached_ingress_processing_latencies.clear()
        report(self)

    manager._report_cached_metrics = report_without
