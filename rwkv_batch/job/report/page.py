"""The page report.html: one file without scripts or links, from a template beside this module."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import yaml

from ... import __version__
from ..config import describe_settings
from .advice import input_rows, latest_config, latest_model
from .page_parts import Table
from .page_results import errors, interval_text, lengths, samples, scores, value_text
from .page_runs import began, runs
from .page_speed import speed, where_the_time_went
from .page_template import environment, style
from .summary import describe_sharing
from .wording import count, counted, date, duration, large, moment, percent, rounded, shortened, size

MOST_FILES = 50
SETTINGS_CHARACTERS = 20_000
MACHINE = {"host": "host", "cpu": "processor", "cpus": "CPUs", "system": "system"}
VERSIONS = ("rwkv_batch", "python", "pyarrow")


def render(report: Mapping[str, Any]) -> str:
    """Returns the report as an HTML page. Facts that the report lacks, as of an earlier version, are left out."""
    name = report.get("name") or PurePath(report["output"]).name
    found = errors(report)
    tracks, tracks_note = where_the_time_went(report)
    rows = sum(input_rows(report).values())
    mark = "…" if not report["complete"] else "!" if found else "✓"
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            style=style(),
            title=f"{mark} {name}: {counted(rows, 'row')}",
            name=name,
            pills=_pills(report),
            lead=_lead(report),
            tiles=_tiles(report),
            warnings=report.get("warnings", []),
            scores=scores(report),
            errors=found,
            speed=speed(report),
            tracks=tracks,
            tracks_note=tracks_note,
            **lengths(report),
            samples=samples(report),
            **runs(report),
            kernels=_kernels(report),
            machine=_machine(report),
            job=_job(report),
            inputs=_inputs(report["job"].get("input", [])),
            job_file=_yaml(_changed(latest_config(report))),
            all_settings=_yaml(latest_config(report)),
            version=__version__,
            written=date(moment(time.time())),
        )
    )


def _pills(report: Mapping[str, Any]) -> list[dict[str, str]]:
    """The state of the job in a few words each."""
    number = input_rows(report).get("error", 0)
    outcome = report["runs"][-1]["outcome"] if report["runs"] else ""
    if report["complete"]:
        state = {"kind": "good", "text": "finished"}
    elif report["damaged"]:
        state = {"kind": "bad", "text": "damaged parts"}
    elif outcome == "finished":
        state = {"kind": "warn", "text": "not finished"}
    else:
        state = {"kind": "warn", "text": outcome} if len(outcome) < 40 else {"kind": "bad", "text": "failed"}
    found = [state, *([{"kind": "bad", "text": counted(number, "error")}] if number else [])]
    return [pill for pill in found if pill["text"]]


def _lead(report: Mapping[str, Any]) -> list[str]:
    """What ran on what, when and how long."""
    model, all_runs = latest_model(report), report["runs"]
    path = str(latest_config(report).get("model", {}).get("path") or model.get("model", "a model"))
    kinds = [str(model[key]) for key in ("version", "dtype", "quantization") if model.get(key)]
    named = PurePath(path).name + (f" ({', '.join(kinds)})" if kinds else "")
    place = model.get("device_name") or {"cpu": "the CPU"}.get(model.get("device", ""), model.get("device", ""))
    hosts = [*dict.fromkeys(run["machine"]["host"] for run in all_runs if "host" in run.get("machine", {}))]
    workers = all_runs[-1].get("workers", {}) if all_runs else {}
    if len(workers) > 1:
        place = f"{place.partition(':')[0]} with {len(workers)} workers" if place else ""
    where = f" on {place}" if place else ""
    where += f" on {hosts[0]}" if len(hosts) == 1 else f" on {len(hosts)} machines" if hosts else ""
    sources = [PurePath(str(file["file"])).name for file in report["job"].get("input", [])]
    source = sources[0] if len(sources) == 1 else counted(len(sources), "file")
    verb = "scored" if report["task"] == "score" else "completed"
    rows = f"{count(report['rows_planned'])} rows of {source}" if sources else counted(report["rows_planned"], "row")
    sentences = [f"{named}{where} {verb if report['complete'] else f'has not {verb} all of'} {rows}."]
    if all_runs:
        ends = [run["ended"] if isinstance(run["ended"], str) else moment(run["ended"]) for run in all_runs]
        started, ended = date(began(all_runs[0])), date(max(ends))
        until = ended[11:] if started[:10] == ended[:10] else ended
        sentences.append(
            f"{started} – {until}: {duration(report['serving_seconds'])} of serving in {counted(len(all_runs), 'run')}."
        )
    return sentences


def _tiles(report: Mapping[str, Any]) -> list[dict[str, str]]:
    """The most important numbers."""
    tokens, seconds = report["tokens"], report["serving_seconds"]
    tiles = [
        _tile(name.replace("_", " "), value_text(name, one["value"]), f"95 %: {interval_text(name, one)}")
        for name, one in _first_scores(report)
    ]
    good, bad = (input_rows(report).get(status, 0) for status in ("ok", "error"))
    several = report["rows"].get("ok", 0)
    notes = [f"{counted(several, 'sample')}"] if several > good else []
    notes.append(f"{counted(bad, 'error')}, {percent(bad / max(good + bad, 1))}" if bad else "no errors")
    tiles.append(_tile("rows ok", count(good), "; ".join(notes)))
    kinds = {"prompt_tokens": "prompt tokens", "completion_tokens": "completion tokens", "num_tokens": "scored tokens"}
    tiles += [_tile(kinds[name], large(number), _mean(report, name)) for name, number in tokens.items()]
    kind = "scored" if report["task"] == "score" else "completion"
    made = {
        name: sum(run[f"{name}_tokens"] for run in report["runs"]) / seconds if seconds else 0
        for name in (kind, "prompt")
    }
    tiles.append(_tile(f"{kind} tokens/s", rounded(made[kind]), f"and {rounded(made['prompt'])} prompt tokens/s"))
    if describe_sharing(report):
        requested, computed = (report["prefixes"][name] for name in ("tokens_requested", "tokens_computed"))
        ratio = f"{requested / computed:.1f} times fewer were computed"
        tiles.append(_tile("prompt tokens saved", large(requested - computed), f"of {large(requested)}; {ratio}"))
    rows = sum(run["rows"] for run in report["runs"])
    speed = f"{rounded(rows / seconds)} rows/s" if seconds and rows else ""
    return [*tiles, _tile("time of serving", duration(seconds), speed)]


def _tile(label: str, value: str, note: str) -> dict[str, str]:
    return {"label": label, "value": value, "note": note}


def _first_scores(report: Mapping[str, Any]) -> list[tuple[str, Mapping[str, float]]]:
    return [*report["scores"].items()][:2]


def _mean(report: Mapping[str, Any], name: str) -> str:
    """How many tokens a text has on average; "" where it is not known."""
    found = report.get("lengths", {}).get(name)
    what = {"prompt_tokens": "row", "completion_tokens": "sample", "num_tokens": "text"}[name]
    return f"{rounded(found['mean'])} a {what}" if found else ""


def _kernels(report: Mapping[str, Any]) -> Table:
    backends = latest_model(report).get("backends", [])
    rows = [[one["op"], one["backend"], one.get("on", ""), "; ".join(one.get("not_used", []))] for one in backends]
    head = ["op", "backend", "on", "why not another one"]
    if not any(row[2] for row in rows):
        head, rows = [*head[:2], head[3]], [[*row[:2], row[3]] for row in rows]
    return Table.of(head, rows)


def _machine(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    model = latest_model(report)
    machine: dict[str, Any] = next((run["machine"] for run in reversed(report["runs"]) if "machine" in run), {})
    peaks = [run["memory"]["peak_bytes"] for run in report["runs"] if "peak_bytes" in run.get("memory", {})]
    versions = [f"{name} {machine[name]}" for name in VERSIONS if name in machine]
    versions += [f"torch {model['torch']}"] if "torch" in model else []
    return [
        *(
            (key.replace("_", " "), str(model[key]))
            for key in ("model", "format", "version", "tokenizer")
            if model.get(key)
        ),
        *(
            (key.replace("_", " "), str(model[key]))
            for key in ("layers", "state_dtype", "quantization")
            if model.get(key)
        ),
        *(
            [("slots", f"{count(model['max_batch_size'])}, at most {count(model['max_batch_tokens'])} tokens a step")]
            if "max_batch_size" in model
            else []
        ),
        *([("memory", model["memory_plan"].removeprefix("memory: "))] if "memory_plan" in model else []),
        *([("largest host memory", size(max(peaks)))] if peaks else []),
        *([("device", model["device_name"])] if "device_name" in model else []),
        *((label, str(machine[name])) for name, label in MACHINE.items() if machine.get(name)),
        *([("threads", str(model["threads"]))] if "threads" in model else []),
        *([("versions", ", ".join(versions))] if versions else []),
    ]


def _job(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    parts, job = report["parts"], report["job"]
    damaged = [f"{name}: {error[:200]}" for name, error in [*report["damaged"].items()][:10]]
    return [
        ("task", report["task"]),
        ("output", report["output"]),
        ("parts", f"{count(parts['published'])} of {count(parts['planned'])}"),
        *([("damaged parts", "; ".join(damaged))] if damaged else []),
        ("rows", count(report["rows_planned"])),
        *(
            [("rows a part", count(job["plan"]["output.rows_per_part"]))]
            if "output.rows_per_part" in job["plan"]
            else []
        ),
        *_chat(report),
        ("fingerprint", job["fingerprint"]),
        *([("started by version", job["version"])] if "version" in job else []),
    ]


def _chat(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How conversations became prompts, where there were any."""
    chat: dict[str, Any] = next((run["chat"] for run in reversed(report["runs"]) if run.get("chat")), {})
    shown = [f"{name} {value}" if name != "found" else str(value) for name, value in chat.items() if name != "stop"]
    return [("chat", "; ".join(shown))] if shown else []


def _inputs(manifest: Sequence[Mapping[str, Any]]) -> Table:
    rows = [[str(one["file"]), count(one["rows"]), size(one["bytes"]) if one.get("bytes") else ""] for one in manifest]
    left = len(rows) - MOST_FILES
    more = f"and {count(left)} more files: see report.json" if left > 0 else ""
    return Table(["file", "rows", "size"], rows[:MOST_FILES], frozenset({1, 2}), more)


def _changed(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that are not at their defaults, and those that have none, as a job file has them."""
    return _different(config, {setting.name: setting.default for setting in describe_settings()}, "")


def _different(settings: Mapping[str, Any], defaults: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and name not in defaults:
            if inner := _different(value, defaults, f"{name}."):
                found[key] = inner
        elif value != defaults.get(name):
            found[key] = value
    return found


def _yaml(settings: Mapping[str, Any]) -> str:
    if not settings:
        return ""
    text = yaml.safe_dump(_plain(settings), sort_keys=False, allow_unicode=True, width=100)
    return shortened(text, SETTINGS_CHARACTERS)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value
