"""Where fine-tuning starts: overrides read back as what was meant, weights as they were."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sightline.config import read_config
from sightline.errors import UserError
from sightline.runs import lineage
from sightline.studies.study_runs import assert_same_source, init_override, scratch_overrides
from tests.cases import run_each

CONFIG = Path(__file__).parents[2] / "configs" / "segment" / "synthetic_shapes_dgcnn.yaml"
OFF = {"frozen": "[]", "layer_decay": "null"}


@run_each("name", ["runs/a: b", "runs/a #1", "007", "[x]", "it's", 'a "b"', "null"])
def test_a_source_is_text_whatever_it_is_called(name: str) -> None:
    config = read_config(CONFIG, [init_override(name)])
    assert config.init is not None
    assert config.init.source == name


def test_from_scratch_drops_what_serves_given_weights(tmp_path: Path) -> None:
    frozen = "optimizer={name: adam, lr: 1e-3, frozen: [{modules: head, until_epoch: 1}]}"
    config = read_config(CONFIG, [init_override(tmp_path), frozen])
    given = [init_override(tmp_path), "init.modules=points", "optimizer.frozen=[]", "seed=3"]
    off = ["init=null", *(f"optimizer.{key}={to}" for key, to in OFF.items() if key in config.optimizer.arguments)]
    assert scratch_overrides(config, given) == ["seed=3", *off]
    assert "optimizer.frozen=[]" in off
    assert read_config(CONFIG, scratch_overrides(config)).init is None


def test_weights_that_are_no_longer_those_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "source" / "checkpoints" / "step_00000001"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    run = tmp_path / "run"
    assert_same_source(run, folder)  # nothing was begun
    run.mkdir()
    kept = {"from": "source", "checkpoint": "last", "match": {"matched": 1, "total": 1, "filled": []}}
    kept |= {"modules": None, "source": None, "lineage": None, "sha256": lineage.evaluated_sha256(folder)}
    (run / "lineage.json").write_text(json.dumps(kept))
    assert_same_source(run, folder)
    (folder / "model.safetensors").write_bytes(b"others")
    with pytest.raises(UserError, match="started from other weights"):
        assert_same_source(run, folder)
