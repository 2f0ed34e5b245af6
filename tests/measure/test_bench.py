"""The bench command and the benchmarks run, and their counts are right. Speed is never asserted."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from rwkv_batch.measure.bench import BenchModel, main, measure, warm_up
from rwkv_batch.measure.table import format_table
from rwkv_batch.measure.variants import Variant
from rwkv_batch.measure.workloads import RaggedWorkload, ScoreWorkload, Workload, ragged_lengths
from rwkv_batch.run import EXIT_OK, EXIT_USAGE

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(checkpoint_file) -> Path:
    return checkpoint_file("7.0")


def test_the_command_prints_a_line_for_each_batch_size(model, capsys):
    code = main([str(model), "--batch-sizes", "2,1", "--input-len", "5", "--output-len", "3", "--dtype", "float32"])
    lines = capsys.readouterr().out.splitlines()
    assert code == EXIT_OK
    assert "rwkv7, cpu float32" in lines[0]
    header = next(i for i, line in enumerate(lines) if "requests/s" in line)
    rows = [line.split()[:4] for line in lines[header + 1 : header + 3]]
    assert rows == [["float32", "fixed", "1", "2"], ["float32", "fixed", "2", "4"]]
    assert lines[-1].startswith("Throughput: ") and "requests/s" in lines[-1]


def test_variants_and_workloads_are_lines_of_one_table(model, capsys):
    arguments = ["--batch-sizes", "2", "--input-len", "4", "--output-len", "2"]
    variants = ["--variants", "float32,float32+invariant", "--workloads", "ragged,score"]
    assert main([str(model), *arguments, *variants]) == EXIT_OK
    lines = capsys.readouterr().out.splitlines()
    header = next(i for i, line in enumerate(lines) if "requests/s" in line)
    rows = [line.split() for line in lines[header + 1 : header + 5]]
    assert [row[:2] for row in rows] == [[v, w] for v in ("float32", "float32+invariant") for w in ("ragged", "score")]
    # Scored prompts have no output tokens.
    assert [float(row[7]) > 0 for row in rows] == [True, False, True, False]


@pytest.mark.parametrize(
    "arguments", [["--workloads", "fixed,odd"], ["--variants", "int8"], ["--variants", "float32+"]]
)
def test_unknown_workloads_and_variants_are_usage_errors(model, arguments, capsys):
    with pytest.raises(SystemExit):
        main([str(model), *arguments])
    assert "expected" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["float32", "bfloat16+int8", "auto+invariant+half-state", "float16+w8a8+invariant"])
def test_a_variant_is_written_as_it_is_read(text):
    assert str(Variant.parse(text)) == text


def test_a_variant_is_settings_of_the_library():
    assert Variant.parse("bfloat16+int8+half-state").settings == {
        "dtype": "bfloat16",
        "quantization": "int8",
        "batch_invariant": False,
        "state_dtype": "float16",
    }


def test_ragged_lengths_have_their_mean_and_a_long_tail():
    lengths = sorted(ragged_lengths(100, 4000, random.Random(0)))
    assert 90 < sum(lengths) / len(lengths) < 105
    assert lengths[0] >= 1 and lengths[-1] == 800
    assert 50 < lengths[2000] < 70


def test_ragged_requests_are_the_same_at_every_call():
    workload = RaggedWorkload(num_prompts=20, input_len=6, output_len=3)
    requests = workload.requests(50)
    asked, again = ([(r.prompt_token_ids, r.params, r.row) for r in made] for made in (requests, workload.requests(50)))
    assert asked == again
    assert len({len(request.prompt_token_ids) for request in requests}) > 3
    assert len({request.params.max_tokens for request in requests}) > 2


def test_scoring_counts_every_prompt_token(model):
    engine = BenchModel(model, [2], device="cpu").engine(2)
    run = measure(engine, ScoreWorkload(num_prompts=3, input_len=4, output_len=0))
    assert (run.stats.prompt_tokens, run.stats.completion_tokens) == (12, 0)


def test_a_wrong_model_is_a_usage_error(tmp_path, capsys):
    assert main([str(tmp_path / "missing.pth")]) == EXIT_USAGE
    assert "missing.pth" in capsys.readouterr().err


@pytest.mark.parametrize("sizes", ["0", "1,,2", "-1", "many"])
def test_batch_sizes_are_whole_numbers(model, sizes, capsys):
    with pytest.raises(SystemExit):
        main([str(model), f"--batch-sizes={sizes}"])
    assert "expected a whole number from 1" in capsys.readouterr().err


def test_a_measurement_counts_its_own_run_only(model):
    engine = BenchModel(model, [2], device="cpu").engine(2)
    warm_up(engine)
    for _ in range(2):
        run = measure(engine, Workload(num_prompts=3, input_len=4, output_len=5))
        assert (run.stats.prompt_tokens, run.stats.completion_tokens, run.total_tokens) == (12, 15, 27)
        # Two requests run for five steps, then the third one for five.
        assert (run.stats.steps, run.occupancy) == (10, 0.75)
        assert 0 < sum(run.phase_seconds.values()) < run.seconds
        assert run.rest_seconds > 0


def test_prompts_are_the_same_at_every_call_and_free_of_the_end_of_text():
    workload = Workload(num_prompts=50, input_len=8, output_len=1)
    prompts = workload.prompts(4)
    assert prompts == workload.prompts(4)
    assert {token for prompt in prompts for token in prompt} == {1, 2, 3}


def test_table_columns_line_up():
    assert format_table(["", "speed"], [["a", "1"], ["long", "1234567"]]).splitlines() == [
        "        speed",
        "a           1",
        "long  1234567",
    ]


def test_the_engine_benchmark_rehearses(tmp_path):
    out = tmp_path / "result.json"
    command = [sys.executable, "-m", "benchmarks.engine", "--quick", "--no-rwkv", "--threads", "1"]
    command += ["--batch-sizes", "1,2", "--variants", "float32", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert set(result["tokens_per_second"]["rwkv_batch float32"]) == {
        "decode B=1",
        "decode B=2",
        "prefill B=1",
        "ragged B=2",
        "score B=2",
    }
    for parts in result["decode_step_milliseconds"]["rwkv_batch float32"].values():
        assert all(milliseconds > 0 for milliseconds in parts.values()), parts
    assert result["llm_step_milliseconds"]["stop strings"] > 0


def test_the_prefix_benchmark_counts_every_token(tmp_path):
    """A header of 700 tokens, questions of 60, four choices of 4 tokens; the last token of a choice is not fed."""
    out = tmp_path / "result.json"
    command = [sys.executable, "-m", "benchmarks.prefixes", "--quick", "--threads", "1", "--rounds", "1"]
    command += ["--subjects", "1", "--questions", "6", "--unshared-questions", "2", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())["contenders"]
    assert {name: (one["tokens_requested"], one["tokens_computed"]) for name, one in found.items()} == {
        "pairs, shared": (6 * 4 * 763, 700 + 6 * (59 + 4 * 4)),
        "pairs, not shared": (2 * 4 * 763, 2 * 4 * 763),
        "rows, shared": (6 * (760 + 4 * 763), 700 + 6 * (60 + 4 * 3)),
        "rows, not shared": (2 * (760 + 4 * 763), 2 * (760 + 4 * 3)),
    }
    assert found["pairs, shared"]["seconds_saved"] > 0 == found["pairs, not shared"]["seconds_saved"]


def test_the_sampling_benchmark_rehearses(tmp_path):
    out = tmp_path / "result.json"
    command = [sys.executable, "-m", "benchmarks.sampling", "--vocab", "300", "--batch-sizes", "1,3", "--rounds", "1"]
    command += ["--seconds", "0", "--threads", "1", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rates = json.loads(out.read_text())["rows_per_second"]
    assert set(rates["native"]) == set(rates["reference"]) > set(rates["torch"])
    assert len(rates["native"]) == len(done.stdout.splitlines()[3:])
    assert all(rate > 0 for by in rates.values() for (rate,) in by.values())
