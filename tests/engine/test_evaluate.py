"""Evaluation: every sample once, voting, and figures that do not depend on how samples are batched."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from sightline.engine.distributed import World
from sightline.errors import ConfigError
from sightline.types import SampleKey
from tests.runs.small import small_run

VOTE = "transforms.vote=[{name: scale}, {name: translate}]"


def test_the_batch_size_does_not_matter() -> None:
    built = small_run("train.precision=float64")
    results = [
        dataclasses.replace(built.test_evaluator, batch_size=size)(built.job.model, World()) for size in (1, 7, 24)
    ]
    assert results[0].metrics == results[1].metrics == results[2].metrics
    for result in results[1:]:
        assert result.losses == pytest.approx(results[0].losses, rel=1e-12)


def test_evaluating_twice_is_the_same_and_leaves_the_model_alone() -> None:
    built = small_run()
    built.job.model.train()
    before = {name: tensor.clone() for name, tensor in built.job.model.state_dict().items()}
    random_before = torch.get_rng_state()
    first, second = (built.test_evaluator(built.job.model, World()) for _ in range(2))
    assert (first.metrics, first.losses) == (second.metrics, second.losses)
    assert built.job.model.training
    assert torch.equal(random_before, torch.get_rng_state())
    assert all(torch.equal(before[n], t) for n, t in built.job.model.state_dict().items())


def test_accuracy_is_what_numpy_counts() -> None:
    built = small_run()
    result = built.test_evaluator(built.job.model, World())
    labels, guesses = [], []
    built.job.model.eval()
    for start in range(0, 24, 6):
        keys = [SampleKey(index, epoch=0, seed=0) for index in range(start, start + 6)]
        batch = built.data.test.reader(keys)
        with torch.no_grad():
            logits = built.job.model(points=batch["points"])["logits"]
        guesses += logits.argmax(1).tolist()
        labels += batch["label"].tolist()
    assert result.metrics["overall_accuracy"] == np.mean(np.array(guesses) == np.array(labels))
    recalls = [np.mean(np.array(guesses)[np.array(labels) == c] == c) for c in sorted(set(labels))]
    assert result.metrics["mean_class_accuracy"] == pytest.approx(np.mean(recalls), rel=1e-12)


def test_a_reader_that_repeats_a_sample_is_caught() -> None:
    built = small_run()
    reader = built.test_evaluator.reader

    def repeats(keys: list) -> dict:
        batch = reader(keys)
        batch["sample_index"][-1] = batch["sample_index"][0]
        return batch

    with pytest.raises(AssertionError, match=r"samples never and \d+ more than once"):
        dataclasses.replace(built.test_evaluator, reader=repeats)(built.job.model, World())


def test_votes_average_varied_passes_and_are_labelled() -> None:
    built = small_run("evaluate.votes=3", VOTE, "train.precision=float64")
    voted = built.test_evaluator(built.job.model, World())
    names = {"overall_accuracy", "mean_class_accuracy"}
    assert set(voted.metrics) == names | {f"{name}_vote3" for name in names}
    plain = small_run("train.precision=float64").test_evaluator(built.job.model, World())
    assert {name: voted.metrics[name] for name in names} == plain.metrics
    assert set(voted.per_class["mug"]) == {"accuracy", "accuracy_vote3", "count"}
    again = built.test_evaluator(built.job.model, World())
    assert voted.metrics == again.metrics


def test_voting_is_the_mean_of_probabilities() -> None:
    task = small_run().test_evaluator.task
    passes = [{"probabilities": torch.tensor([[0.9, 0.1]])}, {"probabilities": torch.tensor([[0.2, 0.8]])}]
    assert torch.allclose(task.vote(passes)["probabilities"], torch.tensor([[0.55, 0.45]]))


def test_votes_without_variation_are_refused() -> None:
    with pytest.raises(ConfigError, match="votes"):
        small_run("evaluate.votes=3")


def test_workers_read_what_the_process_itself_reads() -> None:
    built = small_run()
    alone = built.test_evaluator(built.job.model, World())
    ahead = dataclasses.replace(built.test_evaluator, workers=2)(built.job.model, World())
    assert (ahead.metrics, ahead.losses) == (alone.metrics, alone.losses)
