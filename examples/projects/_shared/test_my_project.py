"""my_project as a whole: its samples are what they declare, the checks find no error, and it trains."""

from pathlib import Path

import pytest
import torch

import sightline

CONFIG, PARTS = Path(__file__).parent / "my_project.yaml", Path(__file__).parent / "my_project.py"


def test_samples_are_what_they_declare_and_the_same_every_time():
    for split in ("train", "test"):
        data = sightline.load_data(CONFIG, split, transforms="none", plugins=[PARTS])
        again = sightline.load_data(CONFIG, split, transforms="none", plugins=[PARTS])
        for name, field in data.fields.items():
            value = data[0][name]
            assert torch.equal(value.nan_to_num(), again[0][name].nan_to_num()), f"{name} is not a function of its key"
            assert value.dtype == getattr(torch, field.dtype), name
            assert value.ndim == len(field.shape.split()), f"{name} is {tuple(value.shape)}, not {field.shape}"
            assert field.low is None or value.nan_to_num(nan=field.low).min() >= field.low, name
            assert field.high is None or value.nan_to_num(nan=field.high).max() <= field.high, name
    assert len(data.loader(batch_size=4)) == -(-len(data) // 4)


def test_the_checks_find_no_error():
    """They try data, network, loss and optimiser: sightline check my_project.yaml --plugin my_project.py"""
    report = sightline.check(CONFIG, plugins=[PARTS])
    assert report.is_sound, str(report)


def test_two_steps_train_and_the_run_is_evaluated_alike(tmp_path):
    result = sightline.train_run(CONFIG, ["train.steps=2"], plugins=[PARTS], out=tmp_path / "run")
    assert result.is_finished, result
    evaluated = sightline.evaluate(tmp_path / "run", plugins=[PARTS])
    assert evaluated.metrics == pytest.approx(result.document["metrics"], rel=0, abs=0, nan_ok=True)
