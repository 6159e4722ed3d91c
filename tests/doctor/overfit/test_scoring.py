"""The run's metric on fitted samples: batch norms answer as they did while the samples were fitted."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sightline.workbench.fit.fit_one import FitOptions, fit_one, make_setup
from sightline.workbench.fit.samples import training_score
from tests.doctor.overfit import nets
from tests.doctor.overfit.nets import run


class Normed(nets.Net):
    """The head reads vectors that a batch norm has divided by their spread over the samples."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(64)

    def forward(self, *, points: Tensor) -> nets.Logits:
        return {"logits": self.head(self.norm(torch.relu(self.each(points)).amax(1)))}


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_after_the_statistics_are_taken_evaluation_gives_what_training_gave(tmp_path: Path, precision: str) -> None:
    built = run(tmp_path, f"train.precision={precision}", model=Normed())
    bench, samples = make_setup(built, FitOptions(samples=3))
    batch, model = bench.batch_in(precision), built.job.model.to(torch.float64 if precision == "float64" else None)
    with torch.no_grad():
        expected = model.train()(points=batch["points"])["logits"]
        score = training_score(built, built.job, batch, samples.indices)
        found = model.eval()(points=batch["points"])["logits"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert score == pytest.approx(float((expected.argmax(1) == batch["label"]).double().mean()))


def test_samples_that_are_known_by_heart_score_in_full_and_others_not(tmp_path: Path) -> None:
    result = fit_one(run(tmp_path, model=Normed()), FitOptions(samples=4, steps=60), lambda line: None)
    assert [curve.score for curve in result.attempts if curve.stop == "reached"] == [1.0]
    result = fit_one(run(tmp_path, model=nets.Constant()), FitOptions(samples=2, steps=5), lambda line: None)
    assert all(math.isnan(curve.score) for curve in result.attempts)
