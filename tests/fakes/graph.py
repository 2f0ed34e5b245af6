"""A fake CUDA graph: a list of operations with the addresses of their tensors, replayed without the Python code.

A replay fails if a recorded address is not allocated any more. Memory that was allocated during the recording holds
garbage when a replay starts, so results that rely on its old content differ.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from fakes.streams import Hazard, Queues, poison
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_leaves, tree_map_only

MAKE_ONLY = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
"""Operations that only allocate."""


@dataclass(frozen=True)
class Address:
    """The address of a tensor. It does not keep the memory allocated."""

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
    """Addresses to which the returned tensors are copied; None if the function writes to its arguments."""


class FakeGraph:
    """Replaces `torch.cuda.CUDAGraph`."""

    def __init__(self, queues: Queues) -> None:
        self._queues = queues
        self.operations: list[_Operation] = []
        self.num_replays = 0
        self.num_launches = 0
        """Number of operations that are launches of this project's kernels."""
        self._own: list[Tensor] = []

    def add_launch(self, launch: Callable[..., Any], args: Any, kwargs: Any) -> None:
        """Records the launch of a kernel, which writes to its arguments."""
        self.num_launches += 1
        self.operations.append(_Operation(launch, _addresses((args, kwargs)), None))

    def add(self, function: Any, args: Any, kwargs: Any, results: Any, news: list[Tensor]) -> None:
        """Records an operation of torch.

        Args:
            results: the returned value.
            news: the tensors of the results that are new memory.
        """
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
