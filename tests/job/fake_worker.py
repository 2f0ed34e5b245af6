"""The program of a worker's process, with the fake engine."""

import sys

from job import fake_llm

sys.modules["rwkv_batch.llm"] = fake_llm

from rwkv_batch.job.workers.local_worker import main as main  # noqa: E402
