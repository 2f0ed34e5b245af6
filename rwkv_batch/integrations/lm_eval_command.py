"""The command `rwkv-batch lm-eval`: the lm-evaluation-harness's own command line, with `--model rwkv_batch`."""

from __future__ import annotations

import re
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from inspect import Parameter, signature
from typing import Any

import lm_eval
import lm_eval.evaluator
from lm_eval._cli.harness import HarnessCLI
from lm_eval.config.evaluate_config import EvaluatorConfig
from lm_eval.utils import setup_logging, simple_parse_args_string

from ..arguments import settings_of
from ..llm import LLM, inspect_model
from ..settings import EngineSettings, ModelSettings
from .lm_eval import NAME, RwkvBatchLM
from .lm_eval_arguments import check_own, engine_options, merged
from .model_arguments import adapter_arguments, check_arguments, report

COMMAND = "rwkv-batch lm-eval"
_HARNESS_COMMAND = re.compile(r"(?<![\w-])lm-eval(?= (?:run|ls|list|validate|--))")


def main(arguments: Sequence[str]) -> int:
    """Runs the harness's command line with these arguments, and returns the exit code.

    Raises:
        ConfigurationError, CheckpointError, CapacityError, BackendError: the model or its arguments are wrong. They are
            checked before the harness reads its tasks, which takes far longer.
    """
    setup_logging()
    sys.argv = [COMMAND, *arguments]
    command_line = HarnessCLI()
    _rename(command_line._parser)
    for parser in command_line._subparsers.choices.values():
        _rename(parser)
    options = command_line.parse_args()
    _check(options)
    with _real_device():
        command_line.execute(options)
    return 0


def _rename(parser: ArgumentParser) -> None:
    """Writes this command's name into a parser's help in place of the harness's."""
    parser.prog = re.sub("^lm-eval", COMMAND, parser.prog)
    for name in ("usage", "epilog"):
        text = getattr(parser, name)
        setattr(parser, name, text and _HARNESS_COMMAND.sub(COMMAND, text))


def _check(options: Namespace) -> None:
    """Opens the model of an evaluation without its weights, where it is one of this package, and prints a line."""
    given = _given(options)
    if options.command != "run" or given.get("model") != NAME:
        return
    arguments = given.get("model_args") or {}
    if isinstance(arguments, str):
        arguments = simple_parse_args_string(arguments)
    arguments = merged(arguments, {name: given.get(name) for name in ("batch_size", "max_batch_size", "device")})
    check_arguments(arguments, option="--model_args", own=adapter_arguments(RwkvBatchLM))
    check_own(arguments)
    summary = inspect_model(*_settings(arguments))
    report(f"{summary}; the harness now reads its tasks, which may take a minute, and loads the model then")


def _given(options: Namespace) -> Mapping[str, Any]:
    """What the user gave: options of the command line, and of the file of `--config` where the former lack them."""
    config = getattr(options, "config", None)
    from_file = EvaluatorConfig.load_yaml_config(config) if config else {}
    return {**from_file, **{name: value for name, value in vars(options).items() if value is not None}}


def _settings(arguments: Mapping[str, Any]) -> tuple[ModelSettings, EngineSettings]:
    """The settings that `LLM` makes of the model arguments."""
    parameters = signature(LLM).parameters.values()
    defaults = {one.name: one.default for one in parameters if one.kind is not Parameter.VAR_KEYWORD}
    model = arguments.get("pretrained", arguments.get("model"))
    given = {**arguments, "model": model, **engine_options(arguments)}
    of_adapter = adapter_arguments(RwkvBatchLM)
    others = {name: value for name, value in given.items() if name not in defaults and name not in of_adapter}
    known = {name: given[name] for name in defaults if name in given}
    return settings_of({**defaults, **known, "others": others})


@contextmanager
def _real_device() -> Iterator[None]:
    """Inside, the harness's results name the devices of the model in place of the option `--device`."""

    @wraps(lm_eval.evaluator.simple_evaluate)
    def evaluated(*arguments: Any, **options: Any) -> Any:
        results = lm_eval.evaluator.simple_evaluate(*arguments, **options)
        if results is not None and "model_device" in results["config"]:
            results["config"]["device"] = results["config"]["model_device"]
        return results

    lm_eval.simple_evaluate = evaluated
    try:
        yield
    finally:
        del lm_eval.simple_evaluate
