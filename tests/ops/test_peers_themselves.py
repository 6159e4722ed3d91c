"""Calls of PyTorch3D, torch-cluster and torch_scatter, beside the libraries themselves where they are installed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sightline import ops


def edges_of(found: Tensor) -> set[tuple[int, ...]]:
    return {tuple(edge) for edge in found.T.tolist()}


def test_torch_cluster_finds_the_same() -> None:
    theirs = pytest.importorskip("torch_cluster")
    x, y = torch.randn(60, 3), torch.randn(40, 3)
    batch, batch_y = torch.arange(60) // 25, torch.arange(40) // 15
    calls = {
        "knn": (x, y, 4, batch, batch_y),
        "knn_graph": (x, 4, batch),
        "radius": (x, y, 0.7, batch, batch_y, 64),
        "radius_graph": (x, 0.7, batch, False, 64),
    }
    for name, arguments in calls.items():
        assert edges_of(getattr(ops, name)(*arguments)) == edges_of(getattr(theirs, name)(*arguments)), name
    assert torch.equal(ops.nearest(x, y, batch, batch_y), theirs.nearest(x, y, batch, batch_y))
    for ratio in (0.07, 0.3, 0.5):
        assert torch.equal(ops.fps(x, batch, ratio), theirs.fps(x, batch, ratio, random_start=False))


def test_torch_scatter_finds_the_same() -> None:
    theirs = pytest.importorskip("torch_scatter")
    src, index = torch.randn(4, 300, 5), torch.randint(0, 40, (300,))
    index = index[index != 7][:280].view(1, -1, 1).expand(4, -1, 5)  # segment 7 is empty
    src = src[:, : index.shape[1]].contiguous()
    for name in ("sum", "add", "mean", "min", "max", "std", "softmax", "log_softmax", "logsumexp"):
        call = "scatter_add" if name == "add" else f"scatter_{name}"
        same(call, getattr(ops, call)(src, index, 1), getattr(theirs, call)(src, index, 1))
    for reduce in ("sum", "mean", "min", "max"):
        same(reduce, ops.scatter(src, index, 1, None, 45, reduce), theirs.scatter(src, index, 1, None, 45, reduce))
    rows = torch.sort(index[:, :, 0], dim=1).values
    indptr = torch.tensor([0, 5, 5, 100, 280])
    cut = src[:, :280]
    for reduce in ("sum", "mean", "min", "max"):
        same(
            reduce,
            ops.segment_csr(cut, indptr[None], None, reduce),
            theirs.segment_csr(cut, indptr[None], None, reduce),
        )
        same(reduce, ops.segment_coo(src, rows, None, 45, reduce), theirs.segment_coo(src, rows, None, 45, reduce))
    few = torch.randn(4, 4, 5)
    same("gather_csr", ops.gather_csr(few, indptr), theirs.gather_csr(few, indptr))


def same(name: str, ours: Tensor | tuple[Tensor, ...], theirs: Tensor | tuple[Tensor, ...]) -> None:
    for one, other in zip(*((x,) if isinstance(x, Tensor) else x for x in (ours, theirs)), strict=True):
        torch.testing.assert_close(one, other, msg=name)


def test_pytorch3d_finds_the_same() -> None:
    pytest.importorskip("pytorch3d")
    from pytorch3d import loss as losses
    from pytorch3d import ops as theirs

    p1, p2 = torch.randn(2, 30, 3), torch.randn(2, 20, 3)
    lengths = torch.tensor([30, 12]), torch.tensor([4, 20])
    calls = {
        "knn_points": {"p1": p1, "p2": p2, "lengths1": lengths[0], "lengths2": lengths[1], "K": 6, "return_nn": True},
        "ball_query": {"p1": p1, "p2": p2, "lengths1": lengths[0], "lengths2": lengths[1], "K": 6, "radius": 0.8},
        "sample_farthest_points": {"points": p1, "lengths": lengths[0], "K": 15},
    }
    for name, arguments in calls.items():
        for one, other in zip(getattr(ops, name)(**arguments), getattr(theirs, name)(**arguments), strict=True):
            torch.testing.assert_close(one, other, msg=name)
    for norm in (1, 2):
        how = {"x_normals": p1, "y_normals": p2, "norm": norm}
        for one, other in zip(
            ops.chamfer_distance(p1, p2, *lengths, **how), losses.chamfer_distance(p1, p2, *lengths, **how), strict=True
        ):
            torch.testing.assert_close(one, other)
