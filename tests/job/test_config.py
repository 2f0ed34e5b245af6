"""Job files: every mistake is reported, all at once, each with where, what was given and what was expected."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from rwkv_batch.errors import ConfigurationError
from rwkv_batch.job.config import JobConfig, describe_settings
from rwkv_batch.job.fingerprint import default_settings
from rwkv_batch.job.load import load_job
from rwkv_batch.job.ray_section import RaySection
from rwkv_batch.models.matrices.quantization import QUANTIZATIONS
from rwkv_batch.ops import BACKENDS

FORMATS = f"{', '.join(QUANTIZATIONS)} or null"
"""The values of `model.quantization`, as messages list them."""
GOOD = "model: {path: demo}\ninput: {path: p.parquet}\noutput: {path: out}\n"


def load(tmp_path: Path, text: str, *overrides: str) -> JobConfig:
    (tmp_path / "job.yaml").write_text(text)
    return load_job(str(tmp_path / "job.yaml"), overrides)


def problems(tmp_path: Path, text: str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        load(tmp_path, text, *overrides)
    return [line.replace(f"{tmp_path}/", "") for line in str(caught.value).splitlines()]


def test_defaults(tmp_path: Path) -> None:
    job = load(tmp_path, GOOD + "engine:\n")
    assert job.task == "generate"
    assert (job.sampling.max_tokens, job.sampling.temperature, job.sampling.top_p, job.sampling.seed) == (256, 1, 1, 0)
    assert (job.engine.max_batch_size, job.engine.state_dtype, job.engine.prefix_sharing) == ("auto", "float32", True)
    assert (job.output.rows_per_part, job.output.flush_seconds, job.output.input_columns) == ("auto", 30, "all")
    assert (job.run.on_row_error, job.run.backend, job.run.state_dir) == ("continue", "local", None)
    assert job.run.segments == "store"


def test_every_setting_of_the_documented_example(tmp_path: Path) -> None:
    job = load(
        tmp_path,
        """
task: generate
model:   {path: demo, tokenizer: auto, dtype: auto, quantization: null, strategy: null, init_state: null,
          ln_x_eps: null, sha256: null}
engine:  {device: auto, backend: auto, max_batch_size: auto, max_batch_tokens: auto, state_dtype: float32,
          prefix_sharing: true, batch_invariant: false}
input:   {path: prompts/*.parquet, format: auto, columns: {prompt: prompt, id: id}, template: null, limit: null}
sampling: {max_tokens: 256, temperature: 1.0, top_p: 0.85, n: 1, seed: 0, stop: ["\\n\\nUser:"]}
output:  {path: out/eval, rows_per_part: 20000, flush_seconds: 30, input_columns: all, token_ids: false,
          logprobs: false}
run:     {state_dir: null, segments: store, on_row_error: continue, backend: local}
""",
    )
    assert job.input.columns == {"prompt": "prompt", "id": "id"}
    assert job.sampling.stop_strings == ("\n\nUser:",)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("task: gen", "task: got 'gen', expected generate or score"),
        (
            "typo: 1",
            "typo: unknown key (known: task, model, engine, input, chat, sampling, score, output, run, report)",
        ),
        ("sampling: {temprature: 1}", "sampling.temprature: unknown key (did you mean 'temperature'?)"),
        ("1: x", "1: unknown key (known: task, model,"),
        ("engine: {1: x}", "engine.1: unknown key (known: device, backend,"),
        ("sampling: {temperature: null}", "sampling.temperature: got null, expected a number from 0 to 100"),
        ("sampling: {logprobs: 2}", "sampling.logprobs: got 2, expected null: output.logprobs is"),
        ("sampling: {prompt_logprobs: 0}", "sampling.prompt_logprobs: got 0, expected null: output.logprobs is"),
        ("sampling: {detokenize: false}", "sampling.detokenize: got false, expected true: a job writes texts"),
        ("engine: {state_dtype: bfloat16}", "engine.state_dtype: got 'bfloat16', expected float32 or float16"),
        ("sampling: {top_p: 3}", "sampling.top_p: got 3, expected a number from 0 to 1"),
        ("sampling: {n: two}", "sampling.n: got 'two', expected an integer from 1 to 65536"),
        ("sampling: {stop: 5}", "sampling.stop: got 5, expected a non-empty string"),
        ("sampling: {min_tokens: 300}", "sampling.min_tokens: got 300, expected at most max_tokens (256)"),
        ("sampling: 3", "sampling: got 3, expected a mapping with n, temperature,"),
        ("engine: {max_batch_size: 0}", "engine.max_batch_size: got 0, expected auto or an integer from 1"),
        ("engine: {max_batch_size: many}", "engine.max_batch_size: got 'many', expected auto or an integer from 1"),
        ("engine: {backend: rocm}", "engine.backend: got 'rocm', expected auto, triton, cuda, cpu or reference"),
        ("engine: {prefix_sharing: 1}", "engine.prefix_sharing: got 1, expected true or false"),
        ("engine: {state_write_interval: 5}", "engine.state_write_interval: got 5, expected an integer from 1 to 4"),
        ("engine: {prefix_host_gib: -1}", "engine.prefix_host_gib: got -1, expected a number of GiB from 0"),
        ("engine: {constraint_timeout: 0}", "engine.constraint_timeout: got 0, expected a number of seconds above 0"),
        ("engine: {prefix_host_gib: .inf}", "engine.prefix_host_gib: got inf, expected a number of GiB from 0"),
        ("run: {on_row_error: skip}", "run.on_row_error: got 'skip', expected continue or stop"),
        (
            "chat: {format: bto}",
            "chat.format: got 'bto', expected auto, rwkv, bot, function_calling or template (did you mean 'bot'?)",
        ),
        ("chat: {think: always}", "chat.think: got 'always', expected none, open or fake"),
        (
            "chat: {format: rwkv, template: '{{ messages }}'}",
            "chat.template: got a template, expected none beside chat.format 'rwkv'",
        ),
        ("run: fast", "run: got 'fast', expected a mapping with state_dir, segments, on_row_error, backend"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, line: str, expected: str) -> None:
    (found,) = problems(tmp_path, GOOD + line)
    assert found.startswith(f"job.yaml: {expected}")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("model.sha256=abc", "got 'abc', expected 64 hexadecimal digits, or null"),
        ("model.path=null", "got null, expected 'demo', a .pth"),
        ("model.dtype=fp8", "got 'fp8', expected auto, float32, bfloat16 or float16"),
        ("model.quantization=no-such", f"got 'no-such', expected {FORMATS}"),
        ("model.ln_x_eps=0", "got 0, expected a number above 0, or null"),
        ("input.path=[]", "got [], expected a file, folder, glob or URL, or a list of them"),
        ("input.columns=[a]", "got ['a'], expected a mapping"),
        ("input.limit=0", "got 0, expected a number of rows from 1, or null"),
        ("output.rows_per_part='9'", "got '9', expected auto or an integer from 1"),
        ("output.flush_seconds=-1", "got -1, expected a number of seconds from 0 to 86400"),
        ("output.input_columns=some", "got 'some', expected all, none, or a list of column names"),
        ("sampling.temprature=0.7", "unknown key (did you mean 'temperature'?)"),
        ("temperature=0.7", "unknown key (did you mean 'sampling.temperature'?)"),
        ("nothing", "expected section.key=value"),
        ("model.path.x=1", "path is 'demo', not a section"),
        ("sampling.stop=[", "not a YAML value"),
    ],
)
def test_a_wrong_override_is_named(tmp_path: Path, override: str, expected: str) -> None:
    (found,) = problems(tmp_path, GOOD, override)
    assert found.startswith(f"-o {override}: {expected}")


def test_all_mistakes_are_reported_together(tmp_path: Path) -> None:
    text = "model: {pth: x}\ninput: {path: 5}\nsampling: {temprature: 1, top_p: 7}\noutput: {path: out}\n"
    assert problems(tmp_path, text) == [
        "job.yaml: sampling.temprature: unknown key (did you mean 'temperature'?)",
        "job.yaml: sampling.top_p: got 7, expected a number from 0 to 1",
        "job.yaml: model.path: missing, expected 'demo', a .pth or .safetensors file, a folder, "
        "hf://owner/repo/file@revision, or s3://bucket/file",
        "job.yaml: model.pth: unknown key (did you mean 'path'?)",
        "job.yaml: input.path: got 5, expected a file, folder, glob or URL, or a list of them",
    ]


def test_overrides_are_yaml_and_make_sections(tmp_path: Path) -> None:
    overrides = (
        "sampling.temperature=0.7",
        "sampling.stop=[a, b]",
        "run.state_dir=s",
        "sampling.logit_bias={'7': -1e1}",
    )
    job = load(tmp_path, GOOD, *overrides)
    assert (job.sampling.temperature, job.sampling.stop, job.run.state_dir) == (0.7, ["a", "b"], "s")
    assert job.sampling.logit_bias == {7: -10.0}


def test_numbers_in_scientific_notation_are_numbers(tmp_path: Path) -> None:
    assert load(tmp_path, GOOD, "model.ln_x_eps=1e-5").model.ln_x_eps == 1e-5


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model: {path: a, path: b}", "key 'path' is given twice"),
        ("model: {path: a}\nmodel: {path: b}", "key 'model' is given twice"),
        ("model: [", "not valid YAML"),
        ("? [a, b]\n: c", "not valid YAML"),
        ("template: {{ q }}", "a key is a mapping or a list; quote text that begins with { or ["),
        ("- a", "got ['a'], expected a mapping with task, model"),
        ("model: !!python/object/apply:os.system [ls]", "not valid YAML"),
    ],
)
def test_files_that_are_no_job(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in " ".join(problems(tmp_path, text))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"no\.yaml: No such file"):
        load_job(str(tmp_path / "no.yaml"))


def test_a_task_refuses_what_it_would_not_use(tmp_path: Path) -> None:
    templates = ("score.choice_template='{{a}}'", "score.continuation_template='{{b}}'")
    (found,) = problems(tmp_path, GOOD + "task: score\n", *templates)
    assert "score.continuation_template=" in found and "got a template beside score.choice_template" in found
    (found,) = problems(tmp_path, GOOD, "score.add_bos_token=true")
    assert "the task is generate" in found


def test_a_job_cannot_be_changed(tmp_path: Path) -> None:
    job = load(tmp_path, GOOD)
    with pytest.raises(ValueError, match="frozen"):
        job.output.path = "elsewhere"


def test_every_setting_is_described() -> None:
    described = {setting.name: setting for setting in describe_settings()}
    required = {"model.path", "input.path", "output.path"}
    optional = set(default_settings()) - {"sampling.logprobs", "sampling.prompt_logprobs", "sampling.detokenize"}
    of_ray = {name for name in described if name.startswith("run.ray.")}
    assert described.keys() - of_ray == required | optional - {"run.ray"}
    assert of_ray == {f"run.ray.{name}" for name in RaySection.model_fields}
    assert {name for name, setting in described.items() if setting.is_required} == required
    for name, setting in described.items():
        assert setting.doc.endswith("."), name
        assert setting.expected, name
    assert described["engine.backend"].expected == "auto, triton, cuda, cpu or reference"
    assert described["model.quantization"][1:3] == (None, FORMATS)
    assert described["sampling.max_tokens"][1:3] == (256, "an integer from 0 to 2147483647, or null")
    assert described["engine.prefix_sharing"].expected == "true or false"


def test_the_backends_of_a_job_are_those_of_the_library() -> None:
    assert get_args(JobConfig.model_fields["engine"].annotation.model_fields["backend"].annotation) == BACKENDS


def test_checking_a_job_file_imports_no_torch(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(GOOD)
    code = (
        "import sys; from rwkv_batch.job.load import load_job; load_job(sys.argv[1]); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "job.yaml")], check=False).returncode == 0


def test_null_is_no_limit_of_tokens() -> None:
    files = {"model": {"path": "demo"}, "input": {"path": "a.jsonl"}, "output": {"path": "out"}}
    sampling = load_job({**files, "sampling": {"max_tokens": None, "min_tokens": 300}}).sampling
    assert (sampling.max_tokens, sampling.token_limit) == (None, 65536)
