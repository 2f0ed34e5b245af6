"""What `LLM(data_parallel=N)` costs its own process: CPU time for each row, and for each 1,000 tokens.

    python -m benchmarks.data_parallel --rows 4000 --tokens 64

The processes of the engines are not counted. Each kind of work is done with few and with many tokens a row; the two
CPU times give the costs of a row and of a token.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from time import perf_counter, process_time

from rwkv_batch import LLM, SamplingParams

PROMPT = "def mean(values):\n    "


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--engines", type=int, default=2)
    parser.add_argument("--rows", type=int, default=4000, help="rows with few tokens; a quarter of them with many")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of a row with many")
    options = parser.parse_args()
    with LLM(options.model, device=options.device, data_parallel=options.engines) as llm:
        works = {
            "generate": lambda rows, tokens: generate(llm, rows, tokens, None),
            "generate, logprobs=5": lambda rows, tokens: generate(llm, rows, tokens, 5),
            "score": lambda rows, tokens: score(llm, rows, tokens),
        }
        for work in works.values():
            work(50, 2)
        for name, work in works.items():
            print(json.dumps({"work": name, **costs(work, options.rows, options.tokens)}), flush=True)


def generate(llm: LLM, rows: int, tokens: int, logprobs: int | None) -> None:
    params = SamplingParams(max_tokens=tokens, ignore_eos=True, logprobs=logprobs)
    llm.generate([f"{PROMPT}{row}" for row in range(rows)], params, use_tqdm=False)


def score(llm: LLM, rows: int, tokens: int) -> None:
    llm.score([(f"{PROMPT}{row}", "x" * tokens) for row in range(rows)])


def costs(work: Callable[[int, int], None], rows: int, tokens: int) -> dict[str, float]:
    """Microseconds of this process for a row and for 1,000 tokens, and the rows in a second of wall time."""
    few, many = (rows, 1), (max(rows // 4, 1), tokens)
    start = perf_counter()
    of_few = cpu_seconds(lambda: work(*few))
    seconds = perf_counter() - start
    of_many = cpu_seconds(lambda: work(*many))
    # of_few = few rows × (row + token); of_many = many rows × (row + tokens × token)
    per_few, per_many = of_few / few[0], of_many / many[0]
    token = (per_many - per_few) / (tokens - 1)
    return {
        "us_per_row": round(1e6 * (per_few - token), 1),
        "us_per_1000_tokens": round(1e9 * token, 1),
        "rows_per_second": round(few[0] / seconds),
    }


def cpu_seconds(work: Callable[[], None]) -> float:
    """CPU seconds of all threads of this process."""
    start = process_time()
    work()
    return process_time() - start


if __name__ == "__main__":
    main()
