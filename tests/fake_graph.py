"""A recorded step: operations and the addresses of their tensors, replayed without the Python that made them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from fake_streams import Hazard, Queues, poison
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_leaves, tree_map_only

MAKE_ONLY = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
"""Operations that only allocate."""


@dataclass(frozen=True)
class Address:
    """Where a tensor lies. It does not keep the memory from being given back."""

    storage: StorageWeakRef
    dtype: torch.dtype
    size: torch.Size
    stride: tuple[int, ...]
    offset: int

    @classmethod
    def of(cls, tensor: Tensor) -> Address:
        storage = StorageWeakRef(tensor.untyped_storage())
        return cls(storage, tensor.dtype, tensor.size(), tensor.stride(), int(tensor.storage_offset()))

    def tensor(self) -> Tensor:
        storage = torch.UntypedStorage._new_with_weak_ptr(self.storage.cdata)
        if storage is None:
            raise Hazard(f"a recorded step uses memory that has been given back: {self.dtype} {list(self.size)}")
        return torch.empty(0, dtype=self.dtype).set_(storage, self.offset, self.size, self.stride)


class _Operation(NamedTuple):
    function: Callable[..., Any]
    arguments: Any
    results: Any
    """Filled from what the function returns; None where it writes to its arguments."""


class FakeGraph:
    """`torch.cuda.CUDAGraph`. What was allocated while it was recorded is its own: garbage when a replay starts."""

    def __init__(self, queues: Queues) -> None:
        self._queues = queues
        self.operations: list[_Operation] = []
        self.num_replays = 0
        self.num_launches = 0
        """Kernels of ours among the operations."""
        self._own: list[Tensor] = []

    def add_launch(self, launch: Callable[..., Any], args: Any, kwargs: Any) -> None:
        """A kernel that writes to its arguments."""
        self.num_launches += 1
        self.operations.append(_Operation(launch, _addresses((args, kwargs)), None))

    def add(self, function: Any, args: Any, kwargs: Any, results: Any, news: list[Tensor]) -> None:
        """An operation of torch's, what it has returned, and what of that is new memory."""
        self._own += news
        if any(a.alias_info is not None and a.alias_info.is_write for a in function._schema.arguments):
            self.operations.append(_Operation(function, _addresses((args, kwargs)), None))
        elif news and function.overloadpacket.__name__ not in MAKE_ONLY:
            self.operations.append(_Operation(function, _addresses((args, kwargs)), _addresses(results)))

    def replay(self) -> None:
        self.num_replays += 1
        self._queues.run(writes=self._touched())
        for tensor in self._own:
            poison(tensor)
        for operation in self.operations:
            args, kwargs = _tensors(operation.arguments)
            found = operation.function(*args, **kwargs)
            if operation.results is not None:
                for place, value in zip(tree_leaves(_tensors(operation.results)), tree_leaves(found), strict=True):
                    place.copy_(value)

    def _touched(self) -> list[Tensor]:
        """Every tensor that the operations read or write."""
        leaves = tree_leaves([(operation.arguments, operation.results) for operation in self.operations])
        return [leaf.tensor() for leaf in leaves if isinstance(leaf, Address)]


def _addresses(tree: Any) -> Any:
    return tree_map_only(Tensor, Address.of, tree)


def _tensors(tree: Any) -> Any:
    return tree_map_only(Address, Address.tensor, tree)
