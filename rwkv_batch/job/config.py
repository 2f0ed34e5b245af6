"""The settings of a job file, section by section: types, defaults and meanings. `load_job` in load.py reads one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, TypeGuard, Union, get_args, get_origin

from pydantic import AfterValidator, Field, InstanceOf
from pydantic.fields import FieldInfo

from ..dtypes import DtypeName, StateDtypeName
from ..errors import one_of
from ..models.matrices.quantization import QUANTIZATIONS, check_quantization
from ..sampling_fields import Biases
from ..sampling_params import SAMPLING_FIELDS, SamplingParams
from ..text.chat import format_names
from .input.formats import FORMATS
from .messages import listed
from .output.codec import EXPECTED as EXPECTED_CODEC
from .output.codec import Codec
from .report_section import ReportSection
from .run_section import RunSection
from .score_section import ScoreSection
from .section import Count, Path, Seconds, Section
from .section import setting as _setting

JOB_SAMPLING = SamplingParams(max_tokens=256, seed=0)
"""The sampling section of a job whose file has none."""


def _known_format(name: str) -> str:
    if name not in ("auto", *FORMATS):
        raise ValueError
    return name


def _known_quantization(name: str) -> str:
    check_quantization(name)
    return name


def _known_codec(text: str) -> str:
    Codec.of(text)
    return text


def _known_chat_format(name: str) -> str:
    if name not in format_names():
        raise ValueError
    return name


ExtraColumn = Literal["prompt", "input_row", "input_file"]
EXTRA_COLUMNS: tuple[str, ...] = get_args(ExtraColumn)
Gibibytes = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Milliseconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1)]
Interval = Annotated[int, Field(ge=1, le=4)]
Quantization = Annotated[str, AfterValidator(_known_quantization)]
Format = Annotated[str, AfterValidator(_known_format)]
ChatFormatName = Annotated[str, AfterValidator(_known_chat_format)]
CodecName = Annotated[str, AfterValidator(_known_codec)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$")]


class ModelSection(Section):
    """The model: which one, and in which form."""

    path: Path = _setting(
        ...,
        "The model: `demo` (bundled), a checkpoint file, a folder in Hugging Face layout, or one of them on the "
        "Hugging Face hub or in an object store.",
        "'demo', a .pth or .safetensors file, a folder, hf://owner/repo/file@revision, or s3://bucket/file",
    )
    tokenizer: Path | None = _setting(
        "auto",
        "What makes token ids of text. `auto` decides by the size of the vocabulary and by the files beside the model; "
        "null means token ids in and out.",
        "auto, world, bytes, a vocabulary or tokenizer.json file, or null",
    )
    dtype: Literal["auto"] | DtypeName = _setting(
        "auto", "Number format of weights and activations. `auto` takes the checkpoint's."
    )
    quantization: Quantization | None = _setting(
        None,
        "Weight format of the large matrices. int8 stores weights in 8 bits; w8a8 also multiplies with inputs of 8 "
        "bits, which is faster and coarser.",
        one_of([*QUANTIZATIONS, "null"]),
    )
    strategy: str | None = _setting(
        None,
        "ChatRWKV's strategy string: device, number format and weight format of each layer. It replaces "
        "`engine.device`, `model.dtype` and `model.quantization`.",
        "a ChatRWKV strategy such as 'cuda fp16 *10 -> cpu fp32', or null",
    )
    init_state: Path | None = _setting(
        None, "A file of tuned initial states that every sequence starts from.", "a file with an initial state, or null"
    )
    ln_x_eps: Annotated[float, Field(gt=0)] | None = _setting(
        None,
        "Epsilon of the group norm over heads, for a checkpoint that needs another one than its version's.",
        "a number above 0, or null",
    )
    parse_special_tokens: bool = _setting(
        False,
        "A special token of a tokenizer.json that is spelled out in a prompt, such as <|endoftext|>, becomes its id. "
        "With false, it is text like any other, so that a prompt cannot end the document.",
    )
    sha256: Sha256 | None = _setting(
        None,
        "SHA-256 of the model's weight file; of a folder, of its weight files one after the other, in the order of "
        "their names. The job refuses a model with any other.",
        "64 hexadecimal digits, or null",
    )


class EngineSection(Section):
    """The engine: where and how the model runs."""

    device: str = _setting(
        "auto",
        "Where the model runs. `auto` is the first CUDA device where there is one, else the CPU.",
        "auto, cpu, cuda or cuda:<index>",
    )
    backend: Literal["auto", "triton", "cuda", "cpu", "reference"] = _setting(
        "auto",
        "Which kernels run the model. `auto` takes the fastest that work here; a backend named here must serve every "
        "operation, or the job is refused.",
    )
    max_batch_size: Literal["auto"] | Count = _setting(
        "auto",
        "Sequences that run at the same time. `auto` takes as many as are useful and fit into memory.",
        "auto or an integer from 1",
    )
    max_batch_tokens: Literal["auto"] | Count = _setting(
        "auto", "Tokens of one step: prompt chunks and decoded tokens together.", "auto or an integer from 1"
    )
    admission_delay_ms: Milliseconds = _setting(
        0.0,
        "Milliseconds that a free slot waits for more free slots, at most: 1/32 of the slots take their next sequences "
        "together, so fewer steps read prompts. An idle engine does not wait.",
        "a number of milliseconds from 0",
    )
    state_dtype: StateDtypeName = _setting(
        "float32",
        "Number format of the recurrent states. float16 halves their memory and traffic, and is rounded "
        "stochastically after every token.",
    )
    prefix_sharing: bool = _setting(True, "Compute a prefix that several prompts have in common once.")
    prefix_host_gib: Gibibytes = _setting(
        1.0,
        "Host memory, in GiB, for states of shared prefixes when more are needed at a time than there are slots.",
        "a number of GiB from 0",
    )
    constraint_timeout: Seconds = _setting(
        10.0,
        "Seconds that compiling one JSON schema, regular expression or grammar may take. Beyond it the row is an error "
        "row, `constraint_too_large`.",
        "a number of seconds above 0",
    )
    memory_share: Share = _setting(
        0.85,
        "The share of the memory that is free when the model is inspected that weights, slots and workspace may take. "
        "On a CPU the free memory is that within the control group's limit.",
        "a number above 0 up to 1",
    )
    logprobs_mode: Literal["raw_logprobs", "processed_logprobs"] = _setting(
        "raw_logprobs",
        "The distribution that `cumulative_logprob` and `token_logprobs` are of. `raw_logprobs`: the model's own. "
        "`processed_logprobs`: the one that the token is drawn from, after penalties, biases, bans, temperature and "
        "filters. Of task score they are always the model's own.",
    )
    state_write_interval: Interval = _setting(
        1,
        "A decoding sequence's recurrent state is written at every n-th of its tokens, and the updates between are "
        "kept beside it: less memory traffic, slots that take up to a quarter more memory, and the same bits. RWKV-7 "
        "on a GPU.",
        "an integer from 1 to 4",
    )
    batch_invariant: bool = _setting(
        True,
        "A row's results do not depend, bit for bit, on the rows beside it, so that a job that was killed or is run "
        "in shards ends with the same bytes. false is faster, and equal up to rounding.",
    )


class InputSection(Section):
    """The input: files, columns and prompts."""

    path: Path | Annotated[list[Path], Field(min_length=1)] = _setting(
        ...,
        "The input's files. Relative paths are relative to the folder in which the command is started; `~` is the home "
        "folder.",
        "a file, folder, glob or URL, or a list of them",
    )
    format: Format = _setting(
        "auto", "Format of the files. `auto` finds it by their names and first bytes.", one_of(["auto", *FORMATS])
    )
    columns: dict[str, str | None] = _setting(
        {},
        "Role → column, for roles whose column has another name, such as `{prompt: question}`. null: no column has the "
        "role.",
        "a mapping from roles to names of columns, or to null: not used",
    )
    template: str | None = _setting(
        None,
        "A Jinja template that makes the prompt from the row's columns, such as "
        '`"Question: {{ question }}\\nAnswer:"`, or a file that holds one.',
        "a Jinja template, a file that holds one, or null",
    )
    limit: Count | None = _setting(
        None,
        "The job has only this many rows, the first ones. A trial is better made with `--limit` on the command line, "
        "which has an output of its own.",
        "a number of rows from 1, or null",
    )
    max_prompt_tokens: Count | None = _setting(
        None,
        "A row whose prompt or context has more tokens becomes an error row.",
        "an integer from 1, or null",
    )


class ChatSection(Section):
    """How the conversations of a column of messages become prompts."""

    format: ChatFormatName = _setting(
        "auto",
        "The chat format. `auto` takes the chat template beside the model, else `rwkv`; RWKV's official template is "
        "`bot`.",
        one_of(format_names()),
    )
    think: Literal["none", "open", "fake"] = _setting(
        "none",
        "How a prompt ends. `none`: the model begins as it likes; `open`: with a thought; `fake`: with a thought that "
        "is closed at once.",
    )
    template: str | None = _setting(
        None,
        "A Jinja chat template, as in Hugging Face, or a file that holds one. null takes the one beside the model.",
        "a Jinja template, a file that holds one, or null",
    )


class OutputSection(Section):
    """The output: where it goes, and its columns."""

    path: Path = _setting(
        ...,
        "The folder that will hold the parts and nothing else. Everything else goes to the state folder.",
        "a folder on a local disk, or s3://, gs:// or az:// with a bucket and a folder",
    )
    rows_per_part: Literal["auto"] | Count = _setting(
        "auto",
        "Input rows of one part file. `auto` makes about 256 parts of 200 to 20000 rows; a job that was started before "
        "keeps its own.",
        "auto or an integer from 1",
    )
    flush_seconds: Annotated[float, Field(ge=0, le=86400)] = _setting(
        30.0,
        "Finished rows are committed to the disk at least so often. A crash loses no more than these seconds' rows and "
        "the rows in flight.",
        "a number of seconds from 0 to 86400",
    )
    input_columns: Literal["all", "none"] | list[str] = _setting(
        "all",
        "The input's columns that each output row repeats. The column with the role `id` is always repeated.",
        "all, none, or a list of column names",
    )
    columns: dict[str, Annotated[str, Field(min_length=1)]] = _setting(
        {},
        "Column that the job adds → another name for it, such as `{completion: rating, status: rating_status}`, where "
        "the input has a column of its name.",
        "a mapping from names of columns that the job adds to other names",
    )
    extra: list[ExtraColumn] = _setting(
        [],
        "Further columns: `prompt` is the text that the model read, of task score the context; null where it is token "
        "ids. `input_row` is the number of the row in the whole input, from 0. `input_file` is the file of the row.",
        f"a list of {one_of(EXTRA_COLUMNS)}",
    )
    compression: CodecName = _setting(
        "zstd", "Compression of the parts, with its level after a colon, such as `zstd:12`.", EXPECTED_CODEC
    )
    row_group_rows: Literal["auto"] | Count = _setting(
        "auto",
        "The most records of a row group of a part. `auto` is 4096. A row group ends earlier where it has 64 MiB.",
        "auto or an integer from 1",
    )
    token_ids: bool = _setting(False, "Add the column `token_ids`: the ids of the completion or continuation.")
    logprobs: bool = _setting(False, "Add the column `token_logprobs`: the log-probability of each of these tokens.")


class JobConfig(Section):
    """A job: every setting, with its default where the file does not have it.

    Make one with `load_job`; the sections are attributes of the same names as in the file.
    """

    task: Literal["generate", "score"] = _setting(
        "generate", "`generate` completes prompts. `score` gives log-likelihoods of continuations of contexts."
    )
    model: ModelSection
    engine: EngineSection = EngineSection()
    input: InputSection
    chat: ChatSection = ChatSection()
    sampling: InstanceOf[SamplingParams] = JOB_SAMPLING
    score: ScoreSection = ScoreSection()
    output: OutputSection
    run: RunSection = RunSection()
    report: ReportSection = ReportSection()


class Setting(NamedTuple):
    """A setting of a job file, for a reference of all of them.

    Args:
        name: "section.key", or the key alone outside of sections.
        default: None where the default is null, and where `is_required`.
        expected: the right values in words.
        doc: its meaning, in one or two sentences.
        is_required: every job file must have it.
    """

    name: str
    default: Any
    expected: str
    doc: str
    is_required: bool = False


def describe_settings() -> list[Setting]:
    """All settings of a job file, in the order of its sections."""
    return [setting for name, field in JobConfig.model_fields.items() for setting in _settings(name, field)]


def _settings(name: str, field: FieldInfo) -> Iterator[Setting]:
    section = field.annotation
    if name == "sampling":
        docs = SamplingParams.field_docs()
        for key, declared in SAMPLING_FIELDS.items():
            if declared.in_jobs:
                doc = docs[key][0].upper() + docs[key][1:]
                yield Setting(f"sampling.{key}", getattr(JOB_SAMPLING, key), declared.description, doc)
    elif is_section(section):
        for key, inner in section.model_fields.items():
            yield from _settings(f"{name}.{key}", inner)
    else:
        required = field.is_required()
        yield Setting(name, None if required else field.default, expected_of(field), field.description or "", required)


def expected_of(field: FieldInfo | None) -> str:
    """The right values of a setting in words; they complete the sentence "got X, expected …"."""
    if field is None:
        return "a mapping"
    if is_section(field.annotation):
        return f"a mapping with {listed(field.annotation.model_fields)}"
    if isinstance(field.json_schema_extra, dict):
        return str(field.json_schema_extra["expected"])
    return one_of(list(_names_of(field.annotation)))


def _names_of(annotation: Any) -> Iterator[str]:
    """The names that a setting takes whose type consists of `Literal`s, or is bool."""
    if annotation is bool:
        yield from ("true", "false")
    elif get_origin(annotation) is Literal:
        yield from get_args(annotation)
    elif get_origin(annotation) in (Union, UnionType):
        for member in get_args(annotation):
            yield from _names_of(member)


def is_section(annotation: Any) -> TypeGuard[type[Section]]:
    return isinstance(annotation, type) and issubclass(annotation, Section)


def sampling_with(base: SamplingParams, values: Mapping[str, Any]) -> SamplingParams:
    """Returns `base` with some fields replaced; a `seed` of None keeps the base's.

    Raises:
        ValueError: a value is of the wrong type or out of range; "SamplingParams.<field>: got …, expected …".
    """
    given = {name: value for name, value in values.items() if name != "seed" or value is not None}
    return replace(base, **{name: sampling_value(name, value) for name, value in given.items()})


def sampling_value(name: str, value: Any) -> Any:
    """The value of a sampling field as `SamplingParams` takes it: in JSON and YAML, a token id as a key may be text."""
    if isinstance(SAMPLING_FIELDS[name].kind, Biases) and isinstance(value, dict):
        return {int(key) if isinstance(key, str) and key.isdecimal() else key: bias for key, bias in value.items()}
    return value
