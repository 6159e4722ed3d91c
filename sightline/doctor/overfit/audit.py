"""Faults of the samples themselves: NaN or infinite numbers, empty targets, equal inputs that contradict."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sightline.describe.flow import tree_leaves
from sightline.doctor.core.finding import Finding
from sightline.doctor.overfit.fit_attempt import FitSetup
from sightline.doctor.overfit.fit_reporter import FitReporter
from sightline.doctor.overfit.loss_probe import LossProbe
from sightline.doctor.overfit.samples import Samples

__all__ = ["audit_batch", "audit_first_loss", "audit_targets", "first_sample"]


def audit_batch(bench: FitSetup, reporter: FitReporter) -> list[Finding]:
    """Numbers of the batch that are not finite."""
    found = []
    for path, tensor in tree_leaves(bench.batch):
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            bad = int((~tensor.isfinite()).sum())
            found.append(
                reporter.finding(
                    severity="error",
                    summary=f"'{path}' of the samples holds NaN or infinite numbers",
                    causes=("data.corrupt_sample", "data.normalisation"),
                    path="data",
                    sample=_row_of(bench.batch, tensor),
                    measured=f"{bad} of {tensor.numel()} numbers are NaN or infinite",
                    expected="finite inputs and targets",
                    action="mend or leave out the sample; `sightline view` shows it at every stage",
                )
            )
    return found


def audit_first_loss(probe: LossProbe, reporter: FitReporter) -> Finding | None:
    """A first loss that is not finite, of finite samples: the model's outputs, or else the loss, are at fault."""
    if math.isfinite(probe.start):
        return None
    broken = [name for name in probe.read if not bool(probe.outputs[name].isfinite().all())]
    measured = f"a loss of {probe.start:g}"
    if broken:
        bad, of = int((~probe.outputs[broken[0]].isfinite()).sum()), probe.outputs[broken[0]].numel()
        measured += f"; {bad} of {of} numbers of '{broken[0]}' are NaN or infinite"
    elif probe.read:
        measured += f"; all numbers of {', '.join(probe.read)} are finite"
    return reporter.finding(
        severity="error",
        summary=f"the model gives NaN or infinity in '{broken[0]}', before the first step"
        if broken
        else "the loss of finite outputs is not finite, before the first step",
        causes=("model.numerics", "model.init") if broken else ("loss.form", "model.numerics"),
        path="model" if broken else "losses",
        measured=measured,
        expected="finite samples have finite outputs and a finite loss",
        action="--trace shows the first layer that gives them; look for a division by zero, a log or a root of it"
        if broken
        else "look for a division by zero or a log of it in the loss; bound what it takes",
    )


def audit_targets(bench: FitSetup, samples: Samples, probe: LossProbe, reporter: FitReporter) -> list[Finding]:
    """Losses that count nothing, targets that are all one number, and equal inputs with different targets."""
    found = [*_of_counts(bench, probe, reporter), *_of_contradiction(samples, probe, reporter)]
    return [*found, *_of_constant(bench, probe, reporter)]


def _of_counts(bench: FitSetup, probe: LossProbe, reporter: FitReporter) -> Iterator[Finding]:
    job = bench.built.job
    weights = job.loss_weights_at(job.num_steps)
    for name, count in probe.counts.items():
        if count == 0 and weights[name] > 0:
            yield reporter.finding(
                severity="error",
                summary=f"the loss '{name}' has a count of 0 for these samples: there is no target to fit",
                causes=("data.ignore_handling", "data.target_encoding"),
                path=reporter.loss_path(name),
                sample=first_sample(bench),
                measured="a count of 0: every target is ignored, or absent",
                expected="at least one target that counts",
                action="look at the labels of these samples and at ignore_index; give other samples by another seed",
            )


def _of_constant(bench: FitSetup, probe: LossProbe, reporter: FitReporter) -> Iterator[Finding]:
    """A float target of one number throughout: it can be fitted by a network that does nothing."""
    for name in probe.targets:
        value = bench.batch[name]
        if isinstance(value, Tensor) and value.is_floating_point() and value.numel() > 1:
            low, high = float(value.min()), float(value.max())
            if low == high:
                yield reporter.finding(
                    severity="warning",
                    summary=f"the target '{name}' is {low:g} everywhere: fitting it proves nothing",
                    causes=("data.target_encoding", "data.centre"),
                    path="data",
                    sample=first_sample(bench),
                    measured=f"{value.numel()} numbers, all {low:g}",
                    expected="a target that varies",
                    action="see the target with `sightline view`; is it made at the right place and scale?",
                )


def _of_contradiction(samples: Samples, probe: LossProbe, reporter: FitReporter) -> Iterator[Finding]:
    """Two samples that the model cannot distinguish, and whose targets differ, or that losses must separate."""
    first: dict[bytes, tuple[int, bytes]] = {}
    for key in samples.keys:
        batch = samples.reader([key])
        is_cloud = "points" in probe.inputs
        seen = _digest(batch, probe.inputs, is_cloud=is_cloud)
        wanted = _digest(batch, (*probe.inputs, *probe.targets), is_cloud=is_cloud)  # a point goes with its target
        other = first.setdefault(seen, (key.index, wanted))
        if other[0] == key.index:
            continue
        if other[1] != wanted:
            differing = ", ".join(probe.targets)
            yield reporter.finding(
                severity="error",
                summary=f"samples {other[0]} and {key.index} are the same to the model and have different targets",
                causes=("data.label_mapping", "data.corrupt_sample", "data.duplicate_randomness"),
                path="data",
                sample=key.index,
                measured=f"equal {', '.join(probe.inputs)}; different {differing}",
                expected="equal inputs have equal targets: no network gives two outputs for one input",
                action="one of the two targets is wrong; mend or leave out the sample",
                evidence={"samples": [other[0], key.index]},
            )
            return
        if not probe.targets:
            yield reporter.finding(
                severity="error",
                summary=f"samples {other[0]} and {key.index} are the same to the model, but the loss compares them",
                causes=("data.pairing", "data.duplicate_randomness"),
                path="data",
                sample=key.index,
                measured=f"equal {', '.join(probe.inputs)}",
                expected="different samples",
                action="leave one of the two out of the set",
                evidence={"samples": [other[0], key.index]},
            )
            return


def first_sample(bench: FitSetup) -> int | None:
    """The first sample of the batch, where the batch has its index."""
    index = bench.batch.get("sample_index")
    return int(index[0]) if isinstance(index, Tensor) and len(index) else None


def _row_of(batch: Mapping[str, Any], tensor: Tensor) -> int | None:
    """The sample of the first number that is none, where rows are samples."""
    index = batch.get("sample_index")
    if not isinstance(index, Tensor) or tensor.ndim == 0 or len(tensor) != len(index):
        return None
    rows = (~tensor.isfinite()).flatten(1).any(1) if tensor.ndim > 1 else ~tensor.isfinite()
    return int(index[int(rows.nonzero()[0])])


def _digest(batch: Mapping[str, Any], names: tuple[str, ...], *, is_cloud: bool) -> bytes:
    """A hash of these fields; of a cloud, the same in whatever order its points, and all that is per point, stand."""
    state = hashlib.blake2b(digest_size=16)
    fields = {path: tensor for name in names for path, tensor in tree_leaves({name: batch.get(name)})}
    points = batch.get("points")
    if is_cloud and isinstance(points, Tensor):
        rows = {p: t for p, t in fields.items() if t.shape[: points.ndim - 1] == points.shape[:-1]}
        joined = torch.cat([t.reshape(points.shape[:-1].numel(), -1).double() for t in rows.values()], dim=1).numpy()
        state.update(joined[np.lexsort(joined.T[::-1])].tobytes())
        fields = {path: tensor for path, tensor in fields.items() if path not in rows}
    for path, tensor in sorted(fields.items()):
        state.update(f"{path}{tuple(tensor.shape)}".encode())
        state.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return state.digest()
