"""What a report warns of: what was found in a sentence, and what to do about it in another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .claims import UNFINISHED
from .phases import share_of
from .wording import count, counted, percent

FEW_SLOTS = 0.5
"""A warning comes where a smaller share of the slots was in use."""
SHORT_SECONDS = 60.0
"""A job that has served for less time gets no warnings about its speed."""
MANY_CUT = 0.2
MANY_REPEATED = 0.01
MANY_ERRORS = 0.01
MANY_UNRECORDED = 0.1
LONG_WAIT = 0.1
UNUSED_OPS = {"generate": {"score", "log_normalizer"}, "score": {"sample", "select", "top_tokens"}}
"""Task → ops that it does not need, or only for columns that few jobs have."""
NOTHING_TO_DO = ("no such kernel",)
"""Reasons why a kernel does not serve that no user can change."""

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

Warning = dict[str, str]
"""A warning: "found" and "do"."""


def warnings_of(report: Mapping[str, Any]) -> list[Warning]:
    """Returns the warnings of a report, those about results first."""
    found = [*_of_files(report), *_of_results(report), *_of_runs(report), *_of_speed(report)]
    return [{"found": sentence, "do": advice} for sentence, advice in found]


def _of_files(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if damaged := report["damaged"]:
        names = ", ".join([*damaged][:3]) + (" …" if len(damaged) > 3 else "")
        parts = f"{counted(len(damaged), 'part')} cannot be read: {names}."
        yield parts, "Start the job again: it makes damaged parts again."
    parts = report["parts"]
    if not report["complete"] and not report["damaged"]:
        there = f"{count(parts['published'])} of {counted(parts['planned'], 'part')}"
        yield (
            f"The job is not finished: {there} are there. Rows of the others are not in this report.",
            "Start the same command again to go on.",
        )


def _of_results(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    statuses = input_rows(report)
    rows, errors = sum(statuses.values()), statuses.get("error", 0)
    if rows and errors / rows > MANY_ERRORS:
        codes = ", ".join([*report["errors"]][:3])
        yield (
            f"{percent(errors / rows)} of the rows are errors, most of them {codes}.",
            "Each error code is listed with its first rows. Where a limit was too low, or a disk or a device has "
            "failed, rwkv-batch run JOB.yaml --retry-errors serves these rows again. Where the input is wrong, mend "
            "it, and run the job into another output.",
        )
    reasons = report["finish_reasons"]
    good = sum(number for reason, number in reasons.items() if reason != "error")
    cut, repeated = reasons.get("length", 0), reasons.get("repetition", 0)
    if good and cut / good > MANY_CUT:
        limit = _setting(report, "sampling", "max_tokens")
        known = f" at max_tokens, which was {count(limit)}" if isinstance(limit, int) else ""
        yield (
            f"{percent(cut / good)} of the completions were cut{known}.",
            "If they should have ended by themselves, raise sampling.max_tokens, or set a stop string (sampling.stop).",
        )
    if good and repeated / good > MANY_REPEATED:
        yield (
            f"{percent(repeated / good)} of the completions were ended because they repeated themselves.",
            "Raise the temperature, or set presence_penalty or repetition_penalty.",
        )
    if bias := report.get("choices", {}).get("position_bias"):
        yield _position_bias(bias)


def _position_bias(bias: Mapping[str, Any]) -> tuple[str, str]:
    letter, chosen, expected = letter_of(bias["position"]), percent(bias["chosen"]), percent(bias["expected"])
    known = bias["compared_with"] == "answers"
    other = f"{expected} of the answers are there" if known else f"at random it would be {expected}"
    chance = f"{bias['p_value']:.1g}" if bias["p_value"] >= 1e-6 else "less than 0.000001"
    return (
        f"The model chose position {letter} in {chosen} of {counted(bias['rows'], 'row')}, and {other}: it prefers "
        f"that position (the probability that this is chance is {chance}).",
        ("" if known else "This holds if the right answers are spread evenly. ")
        + "Score the texts of the choices instead of their letters (score.choice_template), or give each row with "
        "its choices in several orders.",
    )


def _of_runs(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if report["runs"] and not report["complete"]:
        outcome = report["runs"][-1]["outcome"]
        if outcome == "killed":
            yield (
                "The last run ended without a word: its process was killed.",
                "A batch system does that at a limit of time or memory, the kernel when host memory runs out. Lower "
                "engine.max_batch_size if memory was short, and start the same command again.",
            )
        elif outcome not in ("finished", "stopped by a signal", *UNFINISHED):
            yield f"The last run has failed: {outcome[:300]}", "Mend the cause, and start the same command again."
    halved = [mark for mark in report.get("marks", []) if mark["kind"] == "halved"]
    if halved:
        last = halved[-1]
        yield (
            f"Device memory ran out {counted(len(halved), 'time')}; the last time, the slots went from "
            f"{count(last['slots_before'])} to {count(last['slots_after'])}. Results are the same.",
            "Set engine.max_batch_size to the smaller number, or lower engine.memory_share.",
        )


def _of_speed(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield from _of_kernels(report)
    if report["serving_seconds"] < SHORT_SECONDS:
        return
    yield from _of_recordings(report)
    tracks = report.get("phases", [])
    waits = {"input": share_of(tracks, "input"), "disk": share_of(tracks, "write")}
    if waits["input"] > LONG_WAIT:
        yield (
            f"{percent(waits['input'])} of the time the engine waited for rows to be read.",
            ("Read the input from a faster disk, or simplify the template; reading and tokenizing use one core."),
        )
    if waits["disk"] > LONG_WAIT:
        yield (
            f"{percent(waits['disk'])} of the time the engine waited for results to be written.",
            ("Write to a faster disk, raise output.flush_seconds, or repeat fewer columns (output.input_columns)."),
        )
    used, slots = report["utilisation"]["slots"], _slots(report)
    if used < FEW_SLOTS and waits["input"] <= LONG_WAIT:
        full = report["utilisation"]["step_tokens"] > FEW_SLOTS
        advice = (
            "Steps were full of prompt tokens: raise engine.max_batch_tokens if memory allows it."
            if full
            else "There were too few rows for so many slots, or a few long rows at the end; more rows in one job help."
        )
        yield f"Only {percent(used)} of the {count(slots)} slots were in use on average.", advice


def _of_kernels(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    unused = UNUSED_OPS.get(report["task"], set())
    reasons: dict[str, list[str]] = {}
    for op in latest_model(report).get("backends", []):
        if op["backend"] == "reference" and op["op"] not in unused:
            for reason in op["not_used"]:
                if not reason.endswith(NOTHING_TO_DO):
                    reasons.setdefault(reason, []).append(op["op"])
    for reason, ops in reasons.items():
        yield (
            f"The slow definitions in PyTorch served {', '.join(dict.fromkeys(ops))}: {reason[:300]}.",
            "rwkv-batch doctor shows what is missing on this machine.",
        )


def _of_recordings(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    reasons = report.get("unrecorded_steps", {})
    steps = sum(run["steps"] for run in report["runs"]) if reasons else 0
    share = sum(reasons.values()) / max(steps, 1)
    if share > MANY_UNRECORDED and report["task"] != "score":  # no step that scores is recorded
        said = ", or ".join(f"{reason} ({percent(number / max(steps, 1))})" for reason, number in reasons.items())
        yield (
            f"{percent(share)} of the steps were not replayed from recordings, and took more time of the CPU: steps in "
            f"which a row {said}.",
            "Put such rows into a job of their own, or ask for fewer log-probabilities.",
        )


def letter_of(position: int) -> str:
    """The name of a choice's position, from 0: "A", "B", …; the last letter stands for all that follow."""
    return LETTERS[min(position, len(LETTERS) - 1)]


def input_rows(report: Mapping[str, Any]) -> Mapping[str, int]:
    """Input rows by status. Reports of earlier versions have output rows only, one for each sample."""
    found: Mapping[str, int] = report.get("input_rows", report["rows"])
    return found


def latest_model(report: Mapping[str, Any]) -> dict[str, Any]:
    """The description of the model by the latest run that has loaded it; {} where none has."""
    return next((run["model"] for run in reversed(report["runs"]) if "model" in run), {})


def latest_config(report: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the latest run, section by section; {} where none has recorded them."""
    return next((run["config"] for run in reversed(report["runs"]) if "config" in run), {})


def _setting(report: Mapping[str, Any], section: str, key: str) -> Any:
    return latest_config(report).get(section, {}).get(key)


def _slots(report: Mapping[str, Any]) -> int:
    return max(map(int, report["timeline"]["slots"]), default=0)
