"""What every set that is prepared from files keeps, whatever its layout: a row of set_rows.py is examined."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from sightline.contract import registry
from sightline.contract.types import Field, SampleKey
from tests.data.preparing import expect_progress, names_of
from tests.data.set_rows import ROWS


def test_every_prepared_set_has_a_row() -> None:
    """But images with boxes, whose table of labels has an exam of its own."""
    builders = {name: registry.data.get_entry(name).builder for name in registry.data.names()}
    prepared = {name for name, builder in builders.items() if hasattr(builder, "plan")}
    boxes = {name for name, builder in builders.items() if hasattr(builder, "label_format")}
    assert prepared - boxes == {row.name for row in ROWS.values()}


def check_field(value: torch.Tensor, promised: Field, sizes: dict[str, int]) -> None:
    """Dtype, bounds, and sizes: equal words of the sample's shapes stand for equal sizes."""
    assert str(value.dtype) == f"torch.{promised.dtype}"
    words = promised.shape.split()
    assert len(words) == value.ndim
    for word, size in zip(words, value.shape, strict=True):
        assert sizes.setdefault(word, size) == size
        assert not word.isdecimal() or int(word) == size
    if value.numel() and promised.low is not None and promised.high is not None:
        low, high = value.min().item(), value.max().item()
        slack = 1e-6 * max(abs(promised.low), abs(promised.high))  # float32
        assert promised.low - slack <= low <= high <= promised.high + slack


@pytest.mark.parametrize("layout", ROWS)
def test_a_set_keeps_its_promises(tmp_path: Path, layout: str) -> None:
    row = ROWS[layout]
    builder: Any = registry.data.get_entry(row.name).builder
    source = tmp_path / "source"
    row.write(source)
    command: dict[str, Any] = {"source": source / row.source, "target": tmp_path / "set", "name": row.name}
    surveyed = builder.survey(source / row.source, **row.options)
    manifest = builder.prepare(**command, progress=expect_progress, **row.options)
    assert manifest["outcome"] == "prepared"
    assert surveyed["source"]
    assert builder.prepare(**command, progress=expect_progress, **row.options)["outcome"] == "already there"
    assert builder.verify(tmp_path / "set") >= len(manifest["files"])
    assert builder.describe(tmp_path / "set")["set"] == row.name
    assert set(builder.card()) > {"set", "prepare"}
    seen: list[str] = []
    sizes = builder(split="train", root=str(tmp_path / "set"), **row.arguments).info.split_sizes
    for split in (split for split, size in sizes.items() if size):
        part = builder(split=split, root=str(tmp_path / "set"), **row.arguments)
        assert len(part) == part.info.split_sizes[split] == sizes[split]
        seen += names_of(part)
        key = SampleKey(len(part) - 1, 1, 2)
        sample = part[key]
        assert list(sample) == list(part.info.fields)
        named: dict[str, int] = {}
        for name, value in sample.items():
            check_field(value, part.info.fields[name], named)
            value.fill_(0)
        again, copied = part[key], pickle.loads(pickle.dumps(part))[key]
        torch.testing.assert_close(copied, again, rtol=0, atol=0, equal_nan=True)
        assert any(value.any() for value in again.values()), "zeros written into a sample reach the set"
        with pytest.raises(IndexError, match=f"asked for .*{len(part)}"):
            part[SampleKey(len(part), 0, 0)]
    assert len(seen) == len(set(seen)), "a sample is in two parts"
    expected = getattr(builder, "expected_info", None)
    if expected is not None and not row.arguments:
        info, promised = part.info, expected()
        assert list(promised.fields) == list(info.fields)
        stated = ("num_classes", "class_names", "in_channels", "num_joints")
        known = [name for name in stated if name in info.facts]
        assert [promised.facts[name] for name in known] == [info.facts[name] for name in known]
