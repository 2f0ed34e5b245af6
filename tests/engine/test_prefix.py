"""The prefix trie: every request is in it once, below prefixes that it may share, and shared tokens count once."""

from hypothesis import given
from hypothesis import strategies as st

from rwkv_batch.engine.prefix import MIN_SHARED_TOKENS, Prefix, plan_prefixes
from rwkv_batch.engine.request import Request
from rwkv_batch.sampling_params import SamplingParams

ONLY_SCORES = SamplingParams(max_tokens=0)


def request(row, prompt, sample=0, score_start=None):
    return Request((row, sample), prompt, SamplingParams(), row=row, sample=sample, score_start=score_start)


def context(row, prompt):
    """A request that only scores `next_token_ids`."""
    return Request((row, 0), prompt, ONLY_SCORES, row=row, next_token_ids=(1, 2))


def walk(roots):
    """All (request, prefixes above it) of a trie, and all prefixes.

    For a request that a prefix serves, that prefix is the last one above it.
    """
    found, prefixes = [], []

    def visit(node, above):
        if isinstance(node, Prefix):
            prefixes.append(node)
            assert node.parent is (above[-1] if above else None)
            if node.request is not None:
                found.append((node.request, [*above, node]))
            for child in node.children:
                visit(child, [*above, node])
        else:
            found.append((node, above))

    for root in roots:
        visit(root, [])
    return found, prefixes


BEGINNINGS = ([], [1] * 9, [1] * 9 + [2] * 9, [1] * 9 + [2] * 7 + [0] * 9)
PROMPTS = st.builds(
    lambda beginning, rest: beginning + rest,
    st.sampled_from(BEGINNINGS),
    st.lists(st.integers(0, 2), min_size=1, max_size=20),
)
"""Prompts many of which share prefixes, and prefixes of prefixes."""


@given(
    prompts=st.lists(st.tuples(PROMPTS, st.none() | st.integers(1, 40)), min_size=1, max_size=25),
    contexts=st.lists(PROMPTS, max_size=6),
)
def test_every_request_appears_once_below_its_own_prefixes(prompts, contexts):
    requests = [request(i, prompt, score_start=start) for i, (prompt, start) in enumerate(prompts)]
    requests += [context(len(prompts) + i, prompt) for i, prompt in enumerate(contexts)]
    found, prefixes = walk(plan_prefixes(requests))
    assert sorted(served.row for served, _ in found) == list(range(len(requests)))
    for served, above in found:
        length = 0
        for prefix in above:
            assert prefix.length - length >= MIN_SHARED_TOKENS
            length = prefix.length
            assert served.prompt_token_ids[:length] == prefix.token_ids.tolist()
        is_prefix = above and above[-1].request is served
        assert is_prefix or length < len(served.prompt_token_ids)  # the last token is computed for the request
        if served.score_start is not None:
            assert length <= max(served.score_start - 1, 0)  # so are the tokens from which scores are taken
    assert all(len(prefix.children) + (prefix.request is not None) >= 2 for prefix in prefixes)
    assert all(prefix.children for prefix in prefixes)


def test_few_shot_headers_are_computed_once():
    header = list(range(100))
    questions = [[200 + q] * 20 for q in range(5)]
    requests = [
        request(q, header + question + [choice] * 3, score_start=120)
        for q, question in enumerate(questions)
        for choice in (300, 301, 302, 303)
    ]
    found, prefixes = walk(plan_prefixes(requests))
    computed = sum(p.length - (p.parent.length if p.parent else 0) for p in prefixes)
    computed += sum(len(served.prompt_token_ids) - above[-1].length for served, above in found)
    assert computed == 100 + 5 * 19 + 20 * 4
    assert len(prefixes) == 6


def test_two_prompts_share_from_eight_tokens_on():
    for common in (MIN_SHARED_TOKENS - 1, MIN_SHARED_TOKENS):
        requests = [request(row, [*range(common), 100 + row]) for row in (0, 1)]
        _, prefixes = walk(plan_prefixes(requests))
        assert [prefix.length for prefix in prefixes] == ([common] if common == MIN_SHARED_TOKENS else [])


def test_without_sharing_between_rows_the_samples_of_a_row_share():
    prompt = list(range(30))
    requests = [request(row, prompt, sample) for row in (0, 1) for sample in (0, 1, 2)]
    _, prefixes = walk(plan_prefixes(requests, share_between_rows=False))
    assert [len(prefix.children) for prefix in prefixes] == [3, 3]
    assert all(prefix.length == 29 for prefix in prefixes)


def test_a_context_is_read_once_for_all_its_continuations():
    """Four choices of 4 tokens: the context is computed once, then three tokens of each choice."""
    question = list(range(60))
    requests = [context(0, question)]
    requests += [request(0, [*question, i, i, i], i, score_start=61) for i in range(100, 104)]
    found, (prefix,) = walk(plan_prefixes(requests))
    assert prefix.token_ids.tolist() == question
    assert prefix.request is requests[0]
    assert [len(one.prompt_token_ids) - prefix.length for one, _ in found if one is not requests[0]] == [3] * 4
