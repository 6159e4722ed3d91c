"""Builds small runs, plants bugs by wrapping what was built, and asserts that a finding says all it must."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from sightline.config import read_config
from sightline.contract import registry
from sightline.contract.binding import AvailableKeys, declared_outputs
from sightline.contract.dataset import Dataset
from sightline.contract.types import SampleKey
from sightline.doctor.attempts import MissingError, attempt
from sightline.doctor.evidence import Evidence
from sightline.doctor.examine import Examination, Judgement
from sightline.doctor.finding import CAUSES, Finding
from sightline.doctor.rules import get_rule
from sightline.engine.build import TrainingSetup, build
from sightline.engine.distributed import World
from sightline.engine.run_data import build_transforms
from sightline.parts.tasks.classification import Classify
from sightline.store.loading.batch_reader import BatchReader
from sightline.workbench.check.context import Context
from sightline.workbench.check.run_subject import _locate_all
from sightline.workbench.check.suite import all_rules, run_all

CONFIG = """\
data: {name: synthetic_shapes, num_points: 32, train_size: 240, test_size: 24}
model: {name: pointnet_plain, embedding: 32, dropout: 0.0}
losses:
  - {name: cross_entropy}
metrics: [{name: accuracy}]
optimizer: {name: sgd, lr: 0.1}
train: {epochs: 2, batch_size: 16}
evaluate: {metric: overall_accuracy}
"""


def make(folder: Path, *overrides: str, text: str = CONFIG, **given: Any) -> TrainingSetup:
    """A small run, built from a real config file."""
    path = folder / "small.yaml"
    path.write_text(text)
    return build(read_config(path, overrides), World(), **given)


def judge(rule: Callable[..., Any], context: Context, **given: Any) -> list[Finding]:
    """The findings of one rule on a run, located in its config; none where it does not judge."""
    all_rules()
    evidence, own = Evidence({"run": context, **given}, math.inf), get_rule(rule)
    try:
        read = {name: evidence.get(name) for name in own.reads}
    except MissingError:
        return []
    found = attempt(own.code, lambda: list(own.find(**read)), {})
    if isinstance(found, MissingError):
        assert found.kind == "apply", found.reason
        return []
    return _locate_all(Examination(judgements=[Judgement(own, "broken", findings=found)]), context, otherwise="data")


class Wrapped(Dataset):
    """A data set whose batches pass through `edit(batch, keys)`; its `info` takes changes."""

    def __init__(self, inner: Any, edit: Callable[[dict[str, Any], Sequence[SampleKey]], Any], **changes: Any) -> None:
        self.inner = inner
        self.edit = edit
        facts = {**inner.info.facts, **changes.pop("facts", {})}
        self.info = dataclasses.replace(inner.info, facts=facts, **changes)

    def __len__(self) -> int:
        return len(self.inner)

    def get_batch(self, keys: Sequence[SampleKey]) -> dict[str, Any]:
        batch = self.inner.get_batch(keys)
        return self.edit(batch, keys) or batch

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        return {name: value[0] for name, value in self.get_batch([key]).items() if name != "sample_index"}


def with_data(built: TrainingSetup, wrap: Callable[[Any], Any]) -> TrainingSetup:
    """The run on another training set; the part that chooses the checkpoint follows where it is of the same set."""
    before, dataset = built.data.train.dataset, wrap(built.data.train.dataset)
    parts = {name: getattr(built.data, name) for name in ("train", "selection", "test")}
    for name, part in parts.items():
        if part.dataset is before:
            parts[name] = dataclasses.replace(part, dataset=dataset, reader=BatchReader(dataset))
    data = dataclasses.replace(built.data, **parts, facts=dict(dataset.info.facts))
    stream = dataclasses.replace(built.job.stream, reader=parts["train"].reader)
    evaluated = BatchReader(dataset, build_transforms(built.config.transforms.evaluate, dataset.info.facts))
    evaluators = {
        f"{name}_evaluator": dataclasses.replace(getattr(built, f"{name}_evaluator"), reader=evaluated)
        for name in ("selection", "test")
        if getattr(built.data, name).dataset is before
    }
    return dataclasses.replace(built, data=data, job=dataclasses.replace(built.job, stream=stream), **evaluators)


def with_model(built: TrainingSetup, model: nn.Module) -> TrainingSetup:
    """The run with another model, its task and its optimiser."""
    recipe = registry.optimizers.build(built.config.optimizer, facts=built.data.facts)
    job = dataclasses.replace(built.job, model=model, optimizer=recipe.build(model))
    return with_losses(dataclasses.replace(built, job=job), losses_of(built))


def with_losses(built: TrainingSetup, losses: Mapping[str, nn.Module]) -> TrainingSetup:
    """The run with other losses under the names of its config."""
    names = built.data.facts["class_names"]
    task = Classify(losses=losses, class_names=names, **subject_of(built, built.job.model))  # type: ignore[arg-type]
    return with_evaluators(dataclasses.replace(built, job=dataclasses.replace(built.job, task=task)), task=task)


def subject_of(built: TrainingSetup, model: nn.Module) -> dict[str, Any]:
    """What a task of this model is given: the model, and the keys that the data and the model offer."""
    batch = AvailableKeys("data", built.data.train.reader.keys)
    outputs = AvailableKeys("model", declared_outputs(model.forward, owner="model"))
    return {"model": model, "batch_keys": batch, "output_keys": outputs}


def with_evaluators(built: TrainingSetup, **changes: Any) -> TrainingSetup:
    """The run whose evaluators have other values of their fields."""
    names = ("selection_evaluator", "test_evaluator")
    return dataclasses.replace(built, **{n: dataclasses.replace(getattr(built, n), **changes) for n in names})


def losses_of(built: TrainingSetup) -> dict[str, nn.Module]:
    """The losses of a run, made again from its config."""
    return {c.name: registry.losses.build(c, facts=built.data.facts) for c in built.config.losses}


def caught(built: TrainingSetup, code: str, cause: str, severity: str = "error") -> Finding:
    """The gravest finding, after asserting that it is the expected one and says all that a finding must say."""
    findings = run_all(built, World())
    assert findings, f"nothing was found; expected {code}"
    top = findings[0]
    told = "\n".join(map(str, findings))
    assert (top.code, top.cause, top.severity) == (code, cause, severity), told
    assert len([f for f in findings if f.severity == "error"]) == (severity == "error"), told
    assert_complete(top)
    return top


def assert_complete(finding: Finding) -> None:
    """Everything that a person, or a script, reads of a finding is there; nothing is a placeholder."""
    for text in (finding.summary, finding.measured, finding.expected, finding.action):
        assert text.strip()
        assert "\n" not in text
        assert "None" not in text
    assert finding.cause in CAUSES
    assert finding.cause not in finding.alternatives
    assert str(finding.where)
    document = json.loads(json.dumps(finding.to_dict()))
    wanted = "code severity summary cause where measured expected action alternatives evidence phase"
    assert set(document) == set(wanted.split())
    assert document["where"]


def assert_healthy(built: TrainingSetup) -> None:
    """No error, no warning."""
    findings = run_all(built, World())
    assert [f for f in findings if f.severity != "note"] == [], "\n".join(map(str, findings))
