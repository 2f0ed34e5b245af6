"""The token ids that the bans of a request leave: what `allowed_token_ids` and `bad_token_ids` permit."""

from __future__ import annotations

import numpy as np

from ..sampling_params import SamplingParams
from .request import END_OF_TEXT

NOTHING = "nothing may be sampled"


def permitted_ids(params: SamplingParams, sampleable: np.ndarray) -> np.ndarray | None:
    """The ids that may be sampled: [V] bool, a new array; None where the request bans none.

    Args:
        sampleable: [V] bool, ids that can be sampled at all. Every id in `params` is below V.
    """
    if params.allowed_token_ids is None and not params.bad_token_ids:
        return None
    permitted = sampleable.copy()
    if params.allowed_token_ids is not None:
        permitted[:] = False
        permitted[params.allowed_token_ids] = sampleable[params.allowed_token_ids]
    permitted[list(params.bad_token_ids or ())] = False
    return permitted


def reason_of_nothing(params: SamplingParams, permitted: np.ndarray) -> str | None:
    """Why the bans leave no token to sample, in a sentence; None where they leave some.

    Args:
        permitted: [V] bool, what `permitted_ids` returns, or all sampleable ids.
    """
    if not params.token_limit:
        return None
    names = [name for name in ("allowed_token_ids", "bad_token_ids") if getattr(params, name)]
    if not permitted.any():
        return f"{NOTHING}: {' and '.join(names) or 'the vocabulary'} leave{'s' * (len(names) < 2)} no token"
    stops = [END_OF_TEXT, *(params.stop_token_ids or ())]
    num_permitted = np.count_nonzero(permitted)
    if params.min_tokens and num_permitted == permitted[sorted({*stops})].sum():
        what = "the end of text and stop_token_ids" if params.stop_token_ids else "the end of text"
        return f"{NOTHING}: min_tokens ({params.min_tokens}) bans {what}, and no other token is left"
    if params.ignore_eos and num_permitted == permitted[END_OF_TEXT]:
        return f"{NOTHING} but the end of text (token 0), and ignore_eos asks for tokens after it"
    return None
