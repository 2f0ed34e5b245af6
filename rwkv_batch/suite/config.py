"""The settings of a suite file: types, defaults and meanings. `load_suite` in load.py reads one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field

from ..errors import one_of
from ..job.config import ChatFormatName, EngineSection, ModelSection
from ..job.section import Path, Section, setting
from ..text.chat import format_names

if TYPE_CHECKING:
    from .tasks import Task


def _no_path(name: str) -> str:
    """A name that may be a part of a file's name."""
    if not name or name.startswith(".") or any(not (letter.isalnum() or letter in "._+=@-") for letter in name):
        raise ValueError
    return name


Name = Annotated[str, AfterValidator(_no_path)]
NAME_EXPECTED = "letters, digits and . _ + = @ -, not beginning with a dot"
Names = str | Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]
Limit = Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, lt=1)]


class HarnessSection(Section):
    """Tasks of the lm-evaluation-harness: an entry of `tasks` with the key `lm_eval`."""

    lm_eval: Names = setting(
        ..., "Tasks, groups or tags of the harness. Each has a result of its own.", "a name, or a list of names"
    )
    name: Name | None = setting(
        None,
        "The name of the result, where the harness's is taken: the same task with other settings. With several tasks, "
        "it stands before the name of each.",
        f"{NAME_EXPECTED}; or null",
    )
    num_fewshot: Annotated[int, Field(ge=0)] | None = setting(
        None, "Examples in the prompt. null takes the task's own number.", "an integer from 0, or null"
    )
    limit: Limit | None = setting(
        None,
        "The first N documents of each task, or a share of them.",
        "an integer from 1, a number between 0 and 1, or null",
    )
    chat_format: ChatFormatName | None = setting(
        None,
        "The chat format in which prompts are rendered. null applies none.",
        one_of([*format_names(), "null"]),
    )
    think: Literal["none", "open", "fake"] = setting(
        "none", "How a prompt in a chat format ends, as `chat.think` of a job file."
    )
    system_instruction: str | None = setting(
        None, "A text at the beginning of every prompt; in a chat format the system's message.", "a text, or null"
    )
    fewshot_as_multiturn: bool = setting(True, "In a chat format, each example is a turn of the conversation.")
    gen_kwargs: dict[str, Any] = setting(
        {}, "Arguments of generation that replace the task's, such as `{temperature: 0.7}`.", "a mapping"
    )
    model_args: dict[str, Any] = setting(
        {},
        "Other model arguments of the model `rwkv_batch`, such as `{add_bos_token: false}`; see the conventions of the "
        "lm-evaluation-harness.",
        "a mapping",
    )
    metadata: dict[str, Any] = setting({}, "What some tasks ask for, such as `{max_seq_lengths: [4096]}`.", "a mapping")
    include_path: Path | None = setting(
        None, "A folder with tasks of your own; a relative path begins at the suite file.", "a folder, or null"
    )
    include_defaults: bool = setting(
        True,
        "Read the harness's own tasks, which takes up to a minute. Where no entry asks for them, only the tasks below "
        "`include_path` are known.",
    )
    confirm_run_unsafe_code: bool = setting(False, "Run tasks that execute code which the model has written.")

    @property
    def names(self) -> list[str]:
        """The harness's names."""
        return [self.lm_eval] if isinstance(self.lm_eval, str) else list(self.lm_eval)

    def result_name(self, task: str) -> str:
        """The name of the results of a task of the harness."""
        if self.name is None:
            return task
        return self.name if len(self.names) == 1 else f"{self.name}-{task}"


class JobSection(Section):
    """A job: an entry of `tasks` with the key `job`."""

    name: Name = setting(..., "The name of the result.", NAME_EXPECTED)
    job: Path = setting(
        ...,
        "A job file; a relative path begins at the suite file. The suite says which model it runs, and where the "
        "output goes. Other paths are those of the job file: they begin at the current folder.",
        "a job file",
    )
    set: dict[str, Any] = setting(
        {},
        "Settings that replace the job's, such as `{sampling.n: 8}`.",
        "a mapping from names such as sampling.n to values",
    )
    grade: dict[str, Any] | None = setting(
        None, "How completions are graded. A job with `task: score` has none.", "a mapping, or null"
    )


class SuiteOutput(Section):
    """The output: where results go."""

    path: Path = setting(..., "The folder of all results. `--output` replaces it.", "a folder on a local disk")


class SuiteConfig(Section):
    """A suite: the tasks, and what all of them have in common."""

    name: str | None = setting(None, "The name of the suite, for messages. null takes the file's.", "a text, or null")
    model: dict[str, Any] = setting(
        {},
        "Settings of the section `model` of a job file, for all checkpoints and tasks; `--models` names the "
        "checkpoints.",
        "a mapping",
    )
    engine: dict[str, Any] = setting(
        {}, "Settings of the section `engine` of a job file, for all checkpoints and tasks.", "a mapping"
    )
    tasks: Annotated[list[dict[str, Any]], Field(min_length=1)] = setting(
        ..., "The tasks.", "a list of mappings, each with the key lm_eval or job"
    )
    output: SuiteOutput = setting(..., "Where results go.")


@dataclass(frozen=True)
class Suite:
    """A suite that has passed every check but those of the harness.

    Args:
        name: of the suite.
        file: the suite file, for errors.
        model: settings of the model; the path means nothing.
        engine: settings of the engine.
        tasks: in the order of the file.
        output: the folder of all results.
    """

    name: str
    file: str
    model: ModelSection
    engine: EngineSection
    tasks: tuple[Task, ...]
    output: str


def task_sections() -> Mapping[str, type[Section]]:
    """Key that says what an entry of `tasks` is → its section."""
    return {"lm_eval": HarnessSection, "job": JobSection}
