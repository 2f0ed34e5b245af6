"""`EngineUDF` in this process, and in actors of a small Ray cluster."""

from __future__ import annotations

import asyncio
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from integrations.ray_failures import FailsOnce
from rwkv_batch.errors import ConfigurationError
from rwkv_batch.integrations.ray import MOST_ROW, EngineUDF
from rwkv_batch.llm import LLM
from rwkv_batch.rows import GenerateRow
from rwkv_batch.sampling_params import SamplingParams

TESTS = Path(__file__).parents[1]
SAMPLING = {"max_tokens": 6, "temperature": 1.0}
SETTINGS: dict[str, Any] = {"device": "cpu", "dtype": "float32", "max_batch_size": 8, "batch_invariant": True}
RESULTS = [
    *("sample_index", "completion", "finish_reason", "stop_reason", "status", "error_code", "error"),
    *("prompt_tokens", "completion_tokens", "cumulative_logprob"),
]


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM("demo", **SETTINGS) as loaded:
        yield loaded


@pytest.fixture
def udf() -> Iterator[Any]:
    """`udf(**arguments)`: an `EngineUDF` over the demo model in this process."""
    made: list[EngineUDF] = []

    def make(**arguments: Any) -> EngineUDF:
        made.append(EngineUDF(**{**SETTINGS, **arguments}))
        return made[-1]

    yield make
    for one in made:
        one._service.close()
        one.llm.close()


def served(one: EngineUDF, *batches: Any) -> list[pa.Table]:
    """What the class yields for batches that it is called for at the same time."""

    async def call(batch: Any) -> pa.Table:
        (table,) = [table async for table in one(batch)]
        return table

    async def call_all() -> list[pa.Table]:
        return await asyncio.gather(*map(call, batches))

    return asyncio.run(call_all())


def expected(llm: LLM, prompts: list[Any], numbers: list[int], params: dict[str, Any]) -> dict[int, list[str]]:
    """Row number → the texts of its samples, by the engine."""
    rows = [GenerateRow(n, n, prompt, SamplingParams(**params)) for n, prompt in zip(numbers, prompts, strict=True)]
    return {key: [sample.text for sample in output.outputs] for key, output in llm.serve(rows)}


def test_batches_that_are_served_at_the_same_time_share_the_slots(udf, llm):
    params = {**SAMPLING, "n": 2}
    one = udf(sampling=params, row_column="number")
    batches = [pa.table({"number": [i, i + 10], "prompt": [f"def f{i}(", "import "]}) for i in range(4)]
    found = served(one, *batches)
    texts = expected(
        llm,
        [prompt for batch in batches for prompt in batch["prompt"].to_pylist()],
        [number for batch in batches for number in batch["number"].to_pylist()],
        params,
    )
    for batch, table in zip(batches, found, strict=True):
        assert table.column_names == ["number", "prompt", *RESULTS]
        assert table["number"].to_pylist() == [n for n in batch["number"].to_pylist() for _ in range(2)]
        assert table["sample_index"].to_pylist() == [0, 1, 0, 1]
        assert table["completion"].to_pylist() == [text for n in batch["number"].to_pylist() for text in texts[n]]
        assert table["status"].to_pylist() == ["ok"] * 4
    # 16 samples of 6 tokens in 8 slots are 12 steps; one batch at a time would be 24.
    assert one.llm.stats().steps <= 18


@pytest.mark.parametrize("batch_format", ["arrow", "numpy", "pandas"])
def test_rows_that_cannot_be_served_become_error_columns(udf, batch_format):
    from ray.data.block import BlockAccessor

    prompts = [[1, 2], None, [1, 99_999]]
    table = pa.table({"ids": prompts, "number": [3, 4, 5], "kept": [0.5, None, 1.5]})
    batch = getattr(BlockAccessor.for_block(table), f"to_{batch_format}")()
    one = udf(columns={"prompt_token_ids": "ids"}, row_column="number", sampling={"max_tokens": 2, "ignore_eos": True})
    (found,) = served(one, batch)
    assert found["number"].to_pylist() == [3, 4, 5]
    assert found["kept"].to_pandas().isna().tolist() == [False, True, False]
    assert found["status"].to_pylist() == ["ok", "error", "error"]
    assert found["error_code"].to_pylist() == [None, "null_prompt", "token_out_of_range"]
    assert found["error"].to_pylist()[1:] == [
        "the column 'ids' is null",
        "the prompt holds id 99999, expected 0 to 256",
    ]
    assert found["finish_reason"].to_pylist() == ["length", "error", "error"]
    assert found["prompt_tokens"].to_pylist() == [2, None, None]
    assert found["completion_tokens"].to_pylist() == [2, None, None]
    assert found["completion"].to_pylist()[1:] == found["cumulative_logprob"].to_pylist()[1:] == [None, None]


def test_a_wrong_row_number_and_wrong_text_are_bad_rows(udf):
    wrong = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")])
    prompts = pa.chunked_array([pa.array(["a", "b", "c"]), wrong])
    batch = pa.table({"prompt": prompts})
    batch = batch.append_column("n", pa.array([MOST_ROW, None, 5, 0], pa.uint64()))
    (found,) = served(udf(row_column="n", sampling={"max_tokens": 1}), batch)
    assert found["error_code"].to_pylist() == [None, "bad_type", None, "invalid_text"]


def test_without_row_numbers_equal_prompts_have_equal_completions_in_any_batch(udf):
    one = udf(sampling=SAMPLING)
    prompts = ["import ", "def f(", "class A", "import "]
    (together,) = served(one, pa.table({"prompt": prompts}))
    alone = served(one, *(pa.table({"prompt": [prompt]}) for prompt in prompts))
    texts = together["completion"].to_pylist()
    assert [table["completion"].to_pylist() for table in alone] == [[text] for text in texts]
    assert texts[0] == texts[3]
    assert len({*texts}) == 3


def test_messages_are_rendered_by_the_chat_format(udf, llm):
    conversation = [{"role": "user", "content": "What is a list?"}]
    one = udf(columns={"messages": "talk"}, row_column="n", sampling=SAMPLING)
    (found,) = served(one, pa.table({"talk": [conversation], "n": [7]}))
    assert found["completion"].to_pylist() == expected(llm, [{"messages": conversation}], [7], SAMPLING)[7]


def test_continuations_are_scored(udf, llm):
    pairs = [("import ", "os"), ("def ", "main():"), ("a", None)]
    batch = pa.table({"before": [a for a, _ in pairs], "after": [b for _, b in pairs]})
    columns = {"context": "before", "continuation": "after"}
    one = udf(columns=columns, score={"prefix": "\n"}, token_ids=True, logprobs=True)
    (found,) = served(one, batch)
    scores = llm.score(pairs[:2], prefix="\n")
    assert found["logprob"].to_pylist() == [*(score.logprob for score in scores), None]
    assert found["is_greedy"].to_pylist() == [*(score.is_greedy for score in scores), None]
    assert found["num_tokens"].to_pylist() == [*(score.num_tokens for score in scores), None]
    assert found["token_ids"].to_pylist() == [*(score.token_ids for score in scores), None]
    assert found["status"].to_pylist() == ["ok", "ok", "error"]
    sums = [math.fsum(values) for values in found["token_logprobs"].to_pylist()[:2]]
    assert sums == pytest.approx([score.logprob for score in scores], rel=1e-6)


def test_result_columns_are_renamed_and_an_empty_batch_has_them_too(udf):
    one = udf(sampling={"max_tokens": 1}, output_columns={"completion": "answer", "error": "reason"}, token_ids=True)
    batch = pa.table({"prompt": ["a"], "error": ["kept"]})
    full, empty, without_columns = served(one, batch, batch.slice(0, 0), pa.table({}))
    names = [{"completion": "answer", "error": "reason"}.get(name, name) for name in RESULTS]
    assert full.column_names == empty.column_names == ["prompt", "error", *names, "token_ids"]
    assert full.schema.equals(empty.schema)
    assert without_columns.column_names == [*names, "token_ids"]
    assert full["error"].to_pylist() == ["kept"]
    with pytest.raises(ConfigurationError, match="output_columns: the batch has columns with names of results: status"):
        served(one, batch.append_column("status", pa.array([1])))
    with pytest.raises(ConfigurationError, match=r"columns: the batch has no column 'prompt' \(did you mean 'promt'"):
        served(one, pa.table({"promt": ["a"]}))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"max_bach_size": 8}, "EngineUDF: unknown argument 'max_bach_size' .did you mean 'max_batch_size'"),
        ({"columns": {"promt": "a"}}, "columns: got the role 'promt' .did you mean 'prompt'"),
        ({"columns": {"prompt": "a", "messages": "b"}}, "columns: got prompt and messages, expected one of"),
        ({"columns": {"context": "a"}}, "columns: got context, expected one of"),
        ({"sampling": {"temperature": -1}}, "temperature"),
        ({"sampling": {"n": 2}, "columns": {"context": "a", "continuation": "b"}}, "sampling: expected none"),
        ({"score": {"prefix": "a"}}, "score: expected none"),
        ({"score": {"prefx": "a"}, "columns": {"context": "a", "continuation": "b"}}, "score: got 'prefx', expected"),
        ({"output_columns": {"text": "a"}}, "output_columns: got 'text'"),
        ({"output_columns": {"completion": "status"}}, "output_columns: got two columns named 'status'"),
    ],
)
def test_wrong_arguments_are_refused_before_a_model_is_loaded(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        EngineUDF("no-such-model.pth", **arguments)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A local Ray cluster, whose token and files are its own."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        # Paths of sockets are short, so the files are not in pytest's folder.
        folder = tempfile.mkdtemp(prefix="ray")
        for name, value in {"AUTH_TOKEN": "0" * 48, "TMPDIR": folder, "USAGE_STATS_ENABLED": "0"}.items():
            patch.setenv(f"RAY_{name}", value)
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, (TESTS.parent, TESTS))))  # of the actors' processes
        # Two CPUs are for actors. Reading and writing need others, or the pipeline stands still.
        ray.init(num_cpus=4, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False)
        yield ray
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.soak
def test_results_do_not_depend_on_actors_and_one_whose_engine_fails_is_replaced(cluster, llm, tmp_path: Path):
    prompts = [f"def f{i}(" for i in range(30)]
    prompts[7] = None
    pq.write_table(pa.table({"prompt": prompts, "number": range(30)}), tmp_path / "in.parquet")
    marker = tmp_path / "failed"
    arguments = {"marker": str(marker), "sampling": SAMPLING, "row_column": "number", **SETTINGS}
    dataset = cluster.data.read_parquet(str(tmp_path / "in.parquet"), override_num_blocks=3)
    found = dataset.map_batches(
        FailsOnce,
        fn_constructor_kwargs=arguments,
        batch_size=4,
        batch_format="pyarrow",
        compute=cluster.data.ActorPoolStrategy(size=2),
    )
    found.write_parquet(str(tmp_path / "out"))
    assert marker.exists()
    table = pq.read_table(tmp_path / "out").sort_by("number")
    assert table["number"].to_pylist() == list(range(30))
    numbers = [number for number in range(30) if number != 7]
    texts = expected(llm, [prompts[number] for number in numbers], numbers, SAMPLING)
    assert table["completion"].to_pylist() == [texts[n][0] if n != 7 else None for n in range(30)]
    assert table["error_code"].to_pylist() == [None if n != 7 else "null_prompt" for n in range(30)]
