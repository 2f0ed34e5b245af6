"""Counts the launches of a layer: this package's kernels, and torch's."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from running import Session
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime.interpreter import GridExecutor
from versions import VARIANTS, served_by

from rwkv_batch.models.rows import padding_rows

FREE = {"view", "_unsafe_view", "slice", "select", "unbind", "split", "transpose", "t", "expand", "detach", "alias"}
"""Operations of torch that launch nothing: views and allocations."""
FREE |= {"empty", "empty_like", "new_empty", "unsqueeze", "squeeze"}


class Launches(TorchDispatchMode):
    """Counts torch's operations, but for those inside an interpreted kernel."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.counts = Counter()
        self._is_inside = False
        launch = GridExecutor.__call__

        def counted(executor, *args, **kwargs):
            self.counts[executor.fn.__name__] += 1
            self._is_inside = True
            try:
                return launch(executor, *args, **kwargs)
            finally:
                self._is_inside = False

        monkeypatch.setattr(GridExecutor, "__call__", counted)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        result = function(*args, **(kwargs or {}))
        is_conversion_of_nothing = name == "to" and result.dtype == args[0].dtype and result.device == args[0].device
        if not self._is_inside and name not in FREE and not is_conversion_of_nothing:
            self.counts[name] += 1
        return result


def count_launches(path, monkeypatch):
    session = Session(path, backend="triton")
    rows: Any = padding_rows(3, session.model.device)
    rows.slot_index.copy_(torch.tensor([2, -1, 0]))
    with monkeypatch.context() as patch, Launches(patch) as launches:
        session.model.forward(torch.tensor([1, 2, 3]), rows, session.pool.layers)
    return launches.counts


@pytest.mark.parametrize("version", served_by("triton"))
def test_a_layer_takes_few_launches(version, checkpoint_file, monkeypatch):
    sizes = dict(n_embd=32, n_att=32, n_ffn=64, head_size=16)
    one, three = (count_launches(checkpoint_file(version, n_layer=n, **sizes), monkeypatch) for n in (1, 3))
    per_layer = {name: (three[name] - one[name]) / 2 for name in three if three[name] != one[name]}
    print(f"RWKV-{version}: {sum(per_layer.values()):g} launches a layer: {per_layer}")
    assert sum(per_layer.values()) == VARIANTS[version].launches, per_layer
