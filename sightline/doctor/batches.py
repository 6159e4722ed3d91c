"""First batches of a loader, how many rows they have, and parts of them with other rows."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from sightline.contract.errors import UserError
from sightline.contract.pytree import dense_leaves, is_dense, tree_leaves, tree_map

_MAX_BATCHES, _MAX_SMALL_BATCHES = 4, 64


def read_batches(batches: Iterable[Any], *, num_samples: int | None = None, name: str = "the loader") -> list[Any]:
    """Read the first four batches, or up to 64 until they have `num_samples`; those without samples are left out.

    Raises UserError if there is none.
    """
    first: list[Any] = []
    for batch in itertools.islice(batches, _MAX_BATCHES if num_samples is None else _MAX_SMALL_BATCHES):
        first.append(batch)
        if num_samples is not None and sum(map(_count_samples, first)) >= num_samples:
            break
    if not first:
        raise UserError(f"check: {name} has no batch")
    return [batch for batch in first if not _is_empty(batch)] or first


def _is_empty(batch: Any) -> bool:
    """Return True for a batch of no samples: none of its tensors has a row."""
    tensors = [tensor for _, tensor in dense_leaves(batch)]
    return bool(tensors) and not any(map(count_rows, tensors))


def _count_samples(batch: Any) -> int:
    return max((count_rows(tensor) for _, tensor in dense_leaves(batch)), default=0)


def join_leaves(trees: Iterable[Any], path: str) -> Tensor | None:
    """Join a leaf of several trees along its first axis; None where one has no such leaf, or one of other columns."""
    leaves = [dict(dense_leaves(tree)).get(path) for tree in trees]
    tensors = [leaf for leaf in leaves if leaf is not None and leaf.ndim]
    if len(tensors) < len(leaves) or len({leaf.shape[1:] for leaf in tensors}) != 1:
        return None
    return torch.cat(tensors)


def count_rows(tensor: Tensor) -> int:
    """Count the rows of a tensor; -1 for a number without axes."""
    return tensor.size(0) if tensor.ndim else -1


def fit_rows(tree: Any, num: int, rows: int) -> Any:
    """Cut the tensors and lists of `num` rows to other rows, or repeat them."""
    if isinstance(tree, Tensor):
        if not is_dense(tree) or count_rows(tree) != num:
            return tree
        return tree[torch.arange(rows, device=tree.device) % num]
    if isinstance(tree, list) and len(tree) == num and not any(True for _ in tree_leaves(tree)):
        return [tree[row % num] for row in range(rows)]
    if isinstance(tree, Mapping):
        return type(tree)(zip(tree, (fit_rows(item, num, rows) for item in tree.values()), strict=True))  # type: ignore[call-arg]
    if isinstance(tree, list | tuple) and not hasattr(tree, "_fields"):
        return type(tree)(fit_rows(item, num, rows) for item in tree)
    return tree_map(tree, lambda _, tensor: fit_rows(tensor, num, rows))


def count_first_rows(tree: Any) -> int:
    """Count the rows of the first tensor of a tree; 0 without one."""
    return next((count_rows(tensor) for _, tensor in dense_leaves(tree) if tensor.ndim), 0)


def list_sizes(tree: Any) -> list[Any]:
    """List the sizes of the rows of the tensors of a tree."""
    return [tensor.shape[1:] for _, tensor in dense_leaves(tree)]
