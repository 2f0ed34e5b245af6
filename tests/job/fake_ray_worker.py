"""What runs on the nodes of a cluster of Ray, with the fake engine."""

from __future__ import annotations

import sys

from job import fake_llm

sys.modules["rwkv_batch.llm"] = fake_llm

from rwkv_batch.job.workers import ray_worker  # noqa: E402


class RayJobWorker(ray_worker.RayJobWorker):
    """Is pickled by its name in this module, which actors therefore import."""


def inspect_on_node(*arguments):
    return ray_worker.inspect_on_node(*arguments)
