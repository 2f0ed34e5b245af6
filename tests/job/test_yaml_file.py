"""YAML of job files: variables as in Docker Compose, keys for notes, standard input, and no exception but one."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from rwkv_batch.errors import ConfigurationError
from rwkv_batch.job.load import load_job
from rwkv_batch.job.yaml_file import parse_yaml, read_yaml

GOOD = "model: {path: demo}\ninput: {path: p.parquet}\noutput: {path: out}\n"


@pytest.fixture(autouse=True)
def variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"DATA": "/my data", "N": "5", "EMPTY": "", "ODD": 'a: "b" # }\\ ${N}', "ON": "true"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("UNSET", raising=False)


def read(tmp_path: Path, text: str) -> Any:
    (tmp_path / "job.yaml").write_text(text)
    return read_yaml(tmp_path / "job.yaml")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("${DATA}", "/my data"),
        ("${DATA}/x", "/my data/x"),
        ("{a: ${DATA}/x, b: [${N}, ${N}]}", {"a": "/my data/x", "b": [5, 5]}),
        ("${N}", 5),
        ("'${N}'", "5"),
        ('"${N}"', "5"),
        ("${ON}", True),
        ("${N}${N}", 55),
        ("|\n  ${N}\n  x", "5\nx\n"),
        ("{${N}: 1}", {5: 1}),
        ("${ODD}", 'a: "b" # }\\ ${N}'),
        ('"${ODD}"', 'a: "b" # }\\ ${N}'),
        ("${EMPTY}", None),
        ("'${EMPTY}'", ""),
        ("${UNSET:-7}", 7),
        ("${UNSET-out/x}", "out/x"),
        ("${UNSET:-}", None),
        ("${UNSET:-a b}/c", "a b/c"),
        ("${EMPTY:-full}", "full"),
        ("'${EMPTY-full}'", ""),
        ("${N:?must be there}", 5),
        ("1 # ${UNSET}", 1),
        ("$${N}", "${N}"),
        ('"$${"', "${"),
        ("$N and $$ and $5", "$N and $$ and $5"),
        ("{a: &x '${N}', b: *x}", {"a": "5", "b": "5"}),
        ("\U000f0000 ${N}", "\U000f0000 5"),
    ],
)
def test_variables(tmp_path: Path, value: str, expected: Any) -> None:
    assert read(tmp_path, f"k: {value}\n") == {"k": expected}


def test_variables_without_a_value_are_named_all_at_once(tmp_path: Path) -> None:
    text = 'a: ${UNSET}\nb: [x, "${UNSET}", "${EMPTY:?give me a folder}"]\nc: ${UNSET?}\nd: "${1}"\n'
    with pytest.raises(ConfigurationError) as caught:
        read(tmp_path, text)
    place = f"{tmp_path}/job.yaml: "
    assert str(caught.value).splitlines() == [
        f"{place}the environment variable UNSET is not set; set it, write ${{UNSET:-default}}, or $${{UNSET}} for this "
        "text",
        f"{place}the environment variable EMPTY is not set: give me a folder",
        f"{place}found ${{ without a name and }}, expected ${{NAME}}, ${{NAME:-default}} or ${{NAME:?message}}; "
        "the text ${ is written as $${",
    ]


def test_variables_are_of_files_only() -> None:
    assert parse_yaml("'${DATA}'") == "${DATA}"
    job = {"model": {"path": "demo"}, "input": {"path": "${DATA}"}, "output": {"path": "out"}}
    assert load_job(job, {"model.path": "${N}"}).input.path == "${DATA}"


def test_keys_for_notes_and_anchors(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    text = "x-common: &s {temperature: 0.5, top_p: 0.9}\nx-1: note\n" + GOOD + "sampling: {<<: *s, top_p: 0.3}\n"
    file.write_text(text)
    job = load_job(file)
    assert (job.sampling.temperature, job.sampling.top_p) == (0.5, 0.3)
    file.write_text("X-a: 1\n" + GOOD + "engine: {x-a: 1}\n")
    with pytest.raises(ConfigurationError) as caught:
        load_job(file)
    assert "engine.x-a: unknown key" in str(caught.value) and "X-a: unknown key" in str(caught.value)


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(GOOD + "task: ${UNSET:-score}"))
    assert load_job("-").task == "score"
    monkeypatch.setattr("sys.stdin", io.StringIO("task: x\n"))
    with pytest.raises(ConfigurationError, match=r"^standard input: task: got 'x'"):
        load_job("-")


def test_a_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    job = load_job(
        {
            "model": {"path": "~/m.pth", "tokenizer": "~/v.txt", "init_state": "~/s.pth"},
            "input": {"path": ["~/a*.parquet", "b~/~"]},
            "output": {"path": "~"},
            "run": {"state_dir": "~/state"},
        }
    )
    assert (job.model.path, job.model.tokenizer, job.model.init_state) == (
        "/home/me/m.pth",
        "/home/me/v.txt",
        "/home/me/s.pth",
    )
    assert job.input.path == ["/home/me/a*.parquet", "b~/~"]
    assert (job.output.path, job.run.state_dir) == ("/home/me", "/home/me/state")
    settings = {"model": {"path": "demo"}, "input": {"path": "p"}, "output": {"path": "~no-such-user/x"}}
    with pytest.raises(ConfigurationError, match=r"output.path: got '~no-such-user/x', expected a folder"):
        load_job(settings)


@pytest.mark.parametrize(
    "value", ["!!int ''", "!!int x", "!!bool x", "!!timestamp x", "2026-13-45", "[" * 3000, "\x00"]
)
def test_yaml_that_python_cannot_read(tmp_path: Path, value: str) -> None:
    for parse in (parse_yaml, lambda text: read(tmp_path, text)):
        with pytest.raises(ConfigurationError, match=r"not valid YAML|not a YAML value"):
            parse(f"a: {value}")


def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ConfigurationError, match=rf"^no.yaml: No such .* \(looked up in the current folder, {tmp_path}\)"
    ):
        read_yaml("no.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9")
    with pytest.raises(ConfigurationError, match=r"^latin.yaml: not a text file in UTF-8"):
        read_yaml("latin.yaml")
