"""The public names document themselves: docstrings, examples that run, and help texts."""

from __future__ import annotations

import doctest
import inspect
import pydoc
from importlib import import_module
from types import FunctionType

import pytest

import rwkv_batch
from rwkv_batch import cli
from rwkv_batch.models.matrices.quantization import QUANTIZATIONS, weight_format
from rwkv_batch.run import EXIT_CODES

COMMANDS = ("run", "validate", "score", "report", "convert", "doctor", "bench")


@pytest.mark.parametrize("module", ["llm", "sampling_params", "job.execute"])
def test_examples_run(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = doctest.testmod(import_module(f"rwkv_batch.{module}"))
    assert found.attempted and not found.failed


@pytest.mark.parametrize("name", [name for name in rwkv_batch.__all__ if name != "__version__"])
def test_public_names_have_docstrings(name):
    public = getattr(rwkv_batch, name)
    assert public.__doc__ and not public.__doc__.startswith(f"{name}("), "a dataclass's generated docstring"
    for member, value in vars(public).items() if inspect.isclass(public) else ():
        function = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
        if (isinstance(function, FunctionType) and not member.startswith("_")) or isinstance(value, property):
            assert value.__doc__, f"{name}.{member}"


def test_the_package_lists_its_public_names():
    assert dir(rwkv_batch) == sorted(rwkv_batch.__all__)
    assert all(name in pydoc.render_doc(rwkv_batch) for name in ("LLM", "SamplingParams", "run_job"))


def test_help_of_LLM_names_every_setting():
    text = pydoc.plain(pydoc.render_doc(rwkv_batch.LLM))
    assert all(f"{name}:" in text for name in inspect.signature(rwkv_batch.LLM).parameters)


def helped(*arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([*arguments, "--help"])
    assert ended.value.code == 0
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_sentence_in_the_list_and_a_text_of_its_own(command, capsys):
    assert f" {command} " in helped(capsys=capsys)
    assert f"usage: rwkv-batch {command} " in helped(command, capsys=capsys)


@pytest.mark.parametrize("command", ["run", "validate", "score"])
def test_the_help_of_a_job_lists_the_exit_codes(command, capsys):
    text = helped(command, capsys=capsys)
    assert all(f"{code} {meaning}" in text for code, meaning in EXIT_CODES.items())


def test_the_help_of_convert_names_the_formats_that_it_writes(capsys):
    written = tuple(name for name in QUANTIZATIONS if weight_format(name).is_written)
    assert written == cli.CONVERTED_FORMATS
    assert all(name in helped("convert", capsys=capsys) for name in written)
