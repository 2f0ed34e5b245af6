"""Completions of the harness's model: where they end, how they are sampled, what is cut off."""

from __future__ import annotations

import json
from typing import Any

import torch

from integrations.small_model import VOCAB, encode, greedy_text, instances
from rwkv_batch.integrations.lm_eval import RwkvBatchLM
from rwkv_batch.sampling_params import SamplingParams


def sampling_params(lm: RwkvBatchLM, **arguments: Any) -> SamplingParams:
    params, _, later = lm._completions.sampling_params(arguments)
    assert later == []
    return params


def test_completions_end_where_the_task_says(model, oracle, checkpoint_file):
    reference = oracle("7.0", checkpoint_file("7.0", vocab=VOCAB))
    lm, context = model(), "a story\n\n"
    whole = greedy_text(reference, [0, *encode(context)], 24).decode(errors="replace")
    stop = next(character for character in whole[3:] if character.isascii())
    cases = [
        ({"until": [], "max_gen_toks": 24}, whole),
        ({"until": stop, "max_gen_toks": 24}, whole.split(stop)[0]),
        ({"until": ["never", stop, ""], "max_new_tokens": 24, "do_sample": False}, whole.split(stop)[0]),
        (
            {"until": ["never"], "max_tokens": 5},
            greedy_text(reference, [0, *encode(context)], 5).decode(errors="replace"),
        ),
    ]
    arguments = [json.loads(json.dumps(case)) for case, _ in cases]
    got = lm.generate_until(instances("generate_until", *[(context, case) for case in arguments]), disable_tqdm=True)
    assert got == [expected for _, expected in cases]
    assert arguments == [case for case, _ in cases]  # the harness keys its cache by them


def test_a_blank_line_ends_nothing_and_token_0_does(model):
    lm = model()
    params = sampling_params(lm, until=["Q:"], max_gen_toks=8)
    assert (params.stop_strings, params.stop_token_ids, params.ignore_eos) == (("Q:",), None, False)
    assert lm.eot_token_id == lm.prefix_token_id == 0


def test_samples_differ_between_repeats_and_do_not_depend_on_other_requests(model):
    lm = model()
    arguments = {"until": [], "do_sample": True, "temperature": 1.0, "max_gen_toks": 12}
    together = lm.generate_until(
        instances("generate_until", ("b", arguments), *[("a", arguments)] * 3), disable_tqdm=True
    )
    alone = lm.generate_until(instances("generate_until", *[("a", arguments)] * 3), disable_tqdm=True)
    assert together[1:] == alone
    assert len(set(alone)) == 3


def test_samples_are_the_same_in_every_process_where_no_seed_is_given(model):
    """torch draws the seed of a process. `lm_eval.evaluate` sets none."""
    arguments = {"until": [], "do_sample": True, "temperature": 1.0, "max_gen_toks": 12}
    found = []
    for set_seed in (torch.seed, torch.seed, lambda: torch.manual_seed(5)):
        set_seed()
        lm = model()
        found.append(lm.generate_until(instances("generate_until", ("a", arguments)), disable_tqdm=True))
        assert lm.get_model_info()["sampling_seed"] == (5 if len(found) == 3 else lm.llm.seed)
    assert found[0] == found[1] != found[2]


def test_generation_arguments_become_sampling_parameters(model, caplog):
    lm = model()
    params = sampling_params(lm, until=["\n"], do_sample=True, top_p=0.5, top_k=3, num_beams=4)
    assert (params.temperature, params.top_p, params.top_k, params.max_tokens) == (1.0, 0.5, 3, 256)
    assert sampling_params(lm, until=[], temperature=0.7).temperature == 0.7
    assert sampling_params(lm, until=[], temperature=0.7, do_sample=False).temperature == 0.0
    assert "num_beams: got 4" in caplog.text


def test_thinking_is_left_out_of_a_completion(model, oracle, checkpoint_file):
    whole = greedy_text(oracle("7.0", checkpoint_file("7.0", vocab=VOCAB)), [0, *encode("a")], 12)
    text = whole.decode(errors="replace")
    request = instances("generate_until", ("a", {"until": [], "max_gen_toks": 12}))
    assert model(think_end_token=text[3]).generate_until(request, disable_tqdm=True) == [
        text.split(text[3])[-1].lstrip()
    ]
