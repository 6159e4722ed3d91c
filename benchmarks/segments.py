"""Benchmarks of reductions by segment, each against torch's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.case import BenchmarkCase, equal, implementation
from sightline import ops


def cases() -> list[BenchmarkCase]:
    return [
        _case("scatter_sum", "index_add", 64, _index_add, lambda rows: ops.scatter_sum(**_unsorted(rows))),
        _case("scatter_sum", "index_add", 3, _index_add, lambda rows: ops.scatter_sum(**_unsorted(rows))),
        _case("scatter_max", "scatter_reduce", 64, _scatter_reduce, lambda rows: ops.scatter_max(**_unsorted(rows))[0]),
        _case("segment_sum", "segment_reduce", 64, _segment_reduce("sum"), _segment_csr("sum")),
        _case("segment_max", "segment_reduce", 64, _segment_reduce("max"), _segment_csr("max")),
    ]


def _case(
    name: str, theirs: str, channels: int, baseline: Callable[[Any], Tensor], form: Callable[[Any], Tensor]
) -> BenchmarkCase:
    return BenchmarkCase(
        suite="geometry",
        label=f"{name}_{{rows}}x{{channels}}_to_{{segments}}",
        size={"rows": 1_000_000, "channels": channels, "segments": 100_000},
        quick={"rows": 2000, "segments": 300},
        make=_make_rows,
        baseline=implementation(theirs, baseline, equal),
        variants=(implementation("sightline", form, equal),),
    )


def _make_rows(*, rows: int, channels: int, segments: int) -> dict[str, Any]:
    """Rows, a segment of each in any order and in rising order, at least one row in each, and where they begin."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(0, segments, (rows - segments,), generator=generator)
    index = torch.cat([torch.arange(segments), drawn])[torch.randperm(rows, generator=generator)]
    bounds = torch.nn.functional.pad(index.bincount(minlength=segments).cumsum(0), (1, 0))
    return {"src": torch.randn(rows, channels, generator=generator), "index": index, "indptr": bounds}


def _unsorted(rows: dict[str, Any]) -> dict[str, Any]:
    return {"src": rows["src"], "index": rows["index"], "dim": 0, "dim_size": len(rows["indptr"]) - 1}


def _zeros(rows: dict[str, Any]) -> Tensor:
    return torch.zeros(len(rows["indptr"]) - 1, rows["src"].shape[1])


def _index_add(rows: dict[str, Any]) -> Tensor:
    return _zeros(rows).index_add_(0, rows["index"], rows["src"])


def _scatter_reduce(rows: dict[str, Any]) -> Tensor:
    index = rows["index"][:, None].expand_as(rows["src"])
    return _zeros(rows).scatter_reduce_(0, index, rows["src"], "amax", include_self=False)


def _segment_reduce(reduce: str) -> Callable[[dict[str, Any]], Tensor]:
    return lambda rows: torch.segment_reduce(rows["src"], reduce, offsets=rows["indptr"], axis=0)


def _segment_csr(reduce: Any) -> Callable[[dict[str, Any]], Tensor]:
    return lambda rows: ops.segment_csr(rows["src"], rows["indptr"], reduce=reduce)
