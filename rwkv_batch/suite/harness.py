"""Tasks of the lm-evaluation-harness, evaluated with a model that is loaded already."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Sequence
from glob import escape, glob
from typing import TYPE_CHECKING, Any

import lm_eval
import lm_eval.evaluator
from lm_eval.tasks import TaskManager

from ..errors import ConfigurationError, did_you_mean
from ..integrations.lm_eval import NAME, RwkvBatchLM
from ..integrations.lm_eval_arguments import check_own
from ..integrations.model_arguments import adapter_arguments
from .harness_results import leaves_of, metrics_of, samples_of
from .messages import Done
from .tasks import HarnessTask

if TYPE_CHECKING:
    from ..llm import LLM

GIVEN = ("pretrained", "model", "batch_size", "max_batch_size", "device", "chat_format", "think", "enable_thinking")
"""Arguments of the adapter that no `model_args` name, because the suite gives them."""
BOOTSTRAP_ITERATIONS = 1000
"""Resamplings for the standard errors of perplexities and the like. The harness's default, 100,000, takes minutes."""


class Harness:
    """The harness with the index of its tasks, which is read once.

    Args:
        tasks: all tasks of a suite.
    """

    def __init__(self, tasks: Sequence[HarnessTask]) -> None:
        logging.getLogger("lm_eval").setLevel(logging.WARNING)
        # These ask for compilers, drivers and packages, which takes seconds for each task and each checkpoint.
        lm_eval.evaluator.add_env_info = lambda results: None
        lm_eval.evaluator.get_git_commit_hash = lambda: None
        sections = [task.section for task in tasks]
        self._tasks = tasks
        self._paths = list(dict.fromkeys(one.include_path for one in sections if one.include_path is not None))
        self._has_defaults = any(one.include_defaults for one in sections)
        self._managers: dict[str, TaskManager] = {}

    def problems(self) -> Iterator[str]:
        """What is wrong with the tasks: a line each."""
        for path in self._paths:
            if not os.path.isdir(path):
                yield f"include_path: {path} is not a folder, expected one with tasks of the harness"
                return
        for task in self._tasks:
            known = self._manager(task).task_index
            if task.task not in known:
                hint = did_you_mean(task.task, known)
                yield f"{task.where}: the harness has no task {task.task!r}{hint}; see rwkv-batch lm-eval ls tasks"
            try:
                _check_arguments(task)
            except ConfigurationError as error:
                yield f"{task.where.removesuffix('.lm_eval')}.model_args: {error}"

    def evaluate(self, llm: LLM, task: HarnessTask, cache: str) -> Done:
        """Evaluates a task.

        Args:
            cache: the beginning of the path of a file that keeps answers. It is removed when the task is done.
        """
        section = task.section
        chat = {} if section.chat_format is None else {"chat_format": section.chat_format, "think": section.think}
        lm = RwkvBatchLM(llm, **{**section.model_args, **chat})
        os.makedirs(os.path.dirname(cache), exist_ok=True)
        results = lm_eval.simple_evaluate(
            model=lm,
            tasks=[task.task],
            num_fewshot=section.num_fewshot,
            limit=section.limit,
            use_cache=cache,
            bootstrap_iters=BOOTSTRAP_ITERATIONS,
            system_instruction=section.system_instruction,
            apply_chat_template=section.chat_format is not None,
            fewshot_as_multiturn=section.fewshot_as_multiturn,
            gen_kwargs=dict(section.gen_kwargs) or None,
            task_manager=self._manager(task),
            confirm_run_unsafe_code=section.confirm_run_unsafe_code,
        )
        settings = {
            "lm_eval": lm_eval.__version__,
            "model": lm.get_model_info(),
            "num_fewshot": results["n-shot"],
            "task_versions": results["versions"],
            "tasks": {leaf: results["results"].get(leaf, {}) for leaf in leaves_of(results)},
        }
        done = Done(metrics_of(results, task.task), samples_of(results), 0.0, _plain(settings))
        for path in glob(f"{escape(cache)}_rank*.db*"):
            os.unlink(path)
        return done

    def _manager(self, task: HarnessTask) -> TaskManager:
        """The index of the harness's tasks. Tasks with other `metadata` have an index of their own."""
        metadata = {"pretrained": NAME, **task.section.metadata}
        key = json.dumps(metadata, sort_keys=True, default=str)
        if key not in self._managers:
            self._managers[key] = TaskManager(
                include_path=list(self._paths), include_defaults=self._has_defaults, metadata=metadata
            )
        return self._managers[key]


def _check_arguments(task: HarnessTask) -> None:
    """Raises ConfigurationError where `model_args` has an unknown name or a wrong value."""
    given = task.section.model_args
    known = [name for name in adapter_arguments(RwkvBatchLM) if name not in GIVEN]
    for name in given:
        if name not in known:
            raise ConfigurationError(
                f"unknown argument {name!r}{did_you_mean(name, known)}, expected {', '.join(known)}"
            )
    check_own({"pretrained": "demo", **given})


def _plain(value: Any) -> Any:
    """A value as JSON has it; what JSON does not know is text."""
    return json.loads(json.dumps(value, default=str))
