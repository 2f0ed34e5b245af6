"""The modules that mutation tests change, and the tests that should notice."""

from __future__ import annotations

from typing import NamedTuple


class Target(NamedTuple):
    """Modules of one responsibility.

    Args:
        files: patterns below rwkv_batch/. A module belongs to the first target that has it.
        tests: files or folders below tests/, the modules' own tests. Tests of `slow.py` are left out.
        wider: further tests, which run if the own tests notice nothing.
    """

    name: str
    files: tuple[str, ...]
    tests: tuple[str, ...]
    wider: tuple[str, ...]


SAMPLER = ("logprobs", "penalties", "philox", "sample", "sampler", "selection", "slot_constraints", "slot_tables")
QUEUE = ("admission", "prefix", "scheduler", "sequence", "shared_lengths", "snapshots", "source")
TARGETS = (
    Target(
        "sampler",
        tuple(f"engine/{name}.py" for name in SAMPLER),
        (
            "engine/test_sampler.py",
            "engine/test_selection.py",
            "engine/test_penalties.py",
            "engine/test_philox.py",
            "engine/test_running_ahead.py",
            "engine/test_slot_constraints.py",
        ),
        (
            "engine/test_engine.py",
            "llm",
            "text/test_constraint.py",
            "kernels/test_cpu_sampling.py",
        ),
    ),
    Target(
        "queue",
        tuple(f"engine/{name}.py" for name in QUEUE),
        ("engine/test_engine.py", "engine/test_abort.py", "engine/test_out_of_memory.py", "engine/test_snapshots.py"),
        (
            "engine/test_running_ahead.py",
            "engine/test_occupancy.py",
            "llm",
            "test_serving.py",
        ),
    ),
    Target(
        "engine",
        ("engine/*.py",),
        (
            "engine/test_engine.py",
            "engine/test_running_ahead.py",
            "engine/test_abort.py",
            "engine/test_out_of_memory.py",
        ),
        (
            "engine",
            "llm",
            "test_serving.py",
            "text/test_constraint.py",
            "models/test_strategy.py",
        ),
    ),
    Target(
        "commit",
        (
            "job/output/commit.py",
            "job/output/storage.py",
            "job/output/writer.py",
            "job/output/results.py",
            "job/report/scores.py",
        ),
        (
            "job/output/test_writer.py",
            "job/output/test_results.py",
            "job/report/test_scores.py",
            "job/test_resume.py",
            "job/output/test_output.py",
            "job/output/test_commit.py",
            "job/output/test_storage.py",
            "job/test_crash.py",
        ),
        ("job",),
    ),
    Target(
        "resume",
        ("job/state.py", "job/fingerprint.py", "job/plan.py", "job/stream.py", "job/report/history.py"),
        ("job/test_plan.py", "job/test_resume.py", "job/test_refusals.py", "job/test_upgrades.py"),
        ("job",),
    ),
    Target(
        "text",
        ("text/stop_strings.py", "text/detokenizer.py"),
        ("text/test_stop_strings.py", "text/test_detokenizer.py"),
        ("llm", "test_serving.py", "job/test_demo_jobs.py"),
    ),
    Target(
        "requests",
        (
            "requests.py",
            "score_requests.py",
            "serving.py",
            "call_lock.py",
            "prefetch.py",
            "rows.py",
            "output_builder.py",
            "sampling_fields.py",
            "sampling_params.py",
        ),
        (
            "llm",
            "test_score_requests.py",
            "test_sampling_params.py",
            "text/test_constraint.py",
            "test_serving.py",
            "test_serving_abort.py",
            "test_call_lock.py",
        ),
        ("engine/test_abort.py", "job", "integrations"),
    ),
)
