"""Known results of the demo model: greedy tokens of some prompts, with their log-probabilities.

    python -m rwkv_batch.demo.known

computes them with the definitions, in float32 on a CPU, and writes known.json beside the model.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

FILE = Path(__file__).with_name("known.json")
NUM_TOKENS = 24
PROMPTS = (
    "if",
    "class Error(Exception):\n",
    "    def __init__(self, ",
    '''def mean(values):
    """Return the arithmetic mean of a sequence of numbers.

    Raises ValueError where there are none.
    """
    total, count = 0.0, 0
    for value in values:
        total += value
        count += 1
    if not count:
        raise ValueError("mean of no values")
''',
)


class Known(NamedTuple):
    """A prompt and its greedy completion.

    Args:
        prompt_ids: token ids of the prompt.
        token_ids: the greedy tokens.
        logprobs: the natural logarithm of each greedy token's probability.
        leads: the difference between that logarithm and the one of the second most likely token.
    """

    prompt_ids: list[int]
    token_ids: list[int]
    logprobs: list[float]
    leads: list[float]


def known() -> list[Known]:
    """The contents of known.json: an entry for each of `PROMPTS`."""
    return [Known(**entry) for entry in json.loads(FILE.read_text())]


def main() -> None:
    from ..llm import LLM
    from ..sampling_params import SamplingParams
    from .corpus import encode

    llm = LLM("demo", tokenizer=None, device="cpu", dtype="float32", backend="reference")
    params = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True, logprobs=2)
    entries = []
    for prompt in PROMPTS:
        prompt_ids = list(encode(prompt))
        (output,) = llm.generate([{"prompt_token_ids": prompt_ids}], params)
        completion = output.outputs[0]
        leads = []
        for found in completion.logprobs or []:
            first, second = sorted((one.logprob for one in found.values()), reverse=True)[:2]
            leads.append(round(first - second, 5))
        logprobs = [round(logprob, 6) for logprob in completion.token_logprobs]
        entries.append(Known(prompt_ids, completion.token_ids, logprobs, leads)._asdict())
    FILE.write_text("[\n" + ",\n".join(json.dumps(entry) for entry in entries) + "\n]\n")


if __name__ == "__main__":
    main()
