"""Audit of the samples: NaN or infinite numbers, empty targets, equal inputs with different targets."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sightline.describe.trace import tree_leaves
from sightline.doctor.core.finding import Finding
from sightline.doctor.overfit.fit_attempt import FitReporter, FitSetup
from sightline.doctor.overfit.loss_probe import LossProbe
from sightline.doctor.overfit.samples import Samples


def audit_batch(bench: FitSetup, reporter: FitReporter) -> list[Finding]:
    """Report tensors of the batch with NaN or infinite numbers."""
    findings = []
    for path, tensor in tree_leaves(bench.batch):
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            num_bad = int((~tensor.isfinite()).sum())
            findings.append(
                reporter.finding(
                    severity="error",
                    summary=f"'{path}' of the samples contains NaN or infinite numbers",
                    causes=("data.corrupt_sample", "data.normalisation"),
                    path="data",
                    sample=_find_bad_sample(bench.batch, tensor),
                    measured=f"{num_bad} of {tensor.numel()} numbers are NaN or infinite",
                    expected="finite inputs and targets",
                    action="mend or leave out the sample; `sightline view` shows it at every stage",
                )
            )
    return findings


def audit_first_loss(probe: LossProbe, reporter: FitReporter) -> Finding | None:
    """Report a first loss that is not finite: the fault of the model's outputs, or else of the loss."""
    if math.isfinite(probe.start):
        return None
    bad_outputs = [name for name in probe.read if not bool(probe.outputs[name].isfinite().all())]
    measured = f"a loss of {probe.start:g}"
    if bad_outputs:
        num_bad, size = int((~probe.outputs[bad_outputs[0]].isfinite()).sum()), probe.outputs[bad_outputs[0]].numel()
        measured += f"; {num_bad} of {size} numbers of '{bad_outputs[0]}' are NaN or infinite"
    elif probe.read:
        measured += f"; all numbers of {', '.join(probe.read)} are finite"
    return reporter.finding(
        severity="error",
        summary=f"the model gives NaN or infinity in '{bad_outputs[0]}', before the first step"
        if bad_outputs
        else "the loss of finite outputs is not finite, before the first step",
        causes=("model.numerics", "model.init") if bad_outputs else ("loss.form", "model.numerics"),
        path="model" if bad_outputs else "losses",
        measured=measured,
        expected="finite samples have finite outputs and a finite loss",
        action="--trace shows the first layer that gives them; look for a division by zero, a log or a root of it"
        if bad_outputs
        else "look for a division by zero or a log of it in the loss; bound what it takes",
    )


def audit_targets(bench: FitSetup, samples: Samples, probe: LossProbe, reporter: FitReporter) -> list[Finding]:
    """Report losses with a count of 0, constant targets, and equal inputs with different targets."""
    findings = [*_finding_counts(bench, probe, reporter), *_finding_contradiction(samples, probe, reporter)]
    return [*findings, *_finding_constant(bench, probe, reporter)]


def _finding_counts(bench: FitSetup, probe: LossProbe, reporter: FitReporter) -> Iterator[Finding]:
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


def _finding_constant(bench: FitSetup, probe: LossProbe, reporter: FitReporter) -> Iterator[Finding]:
    """Report floating-point targets with a single value: a network that does nothing can fit them."""
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


def _finding_contradiction(samples: Samples, probe: LossProbe, reporter: FitReporter) -> Iterator[Finding]:
    """Report two samples with equal inputs, if their targets differ or a loss must separate them."""
    first: dict[bytes, tuple[int, bytes]] = {}
    for key in samples.keys:
        batch = samples.reader([key])
        is_cloud = "points" in probe.inputs
        input_digest = _hash_fields(batch, probe.inputs, is_cloud=is_cloud)
        target_digest = _hash_fields(
            batch, (*probe.inputs, *probe.targets), is_cloud=is_cloud
        )  # a point goes with its target
        earlier = first.setdefault(input_digest, (key.index, target_digest))
        if earlier[0] == key.index:
            continue
        if earlier[1] != target_digest:
            target_names = ", ".join(probe.targets)
            yield reporter.finding(
                severity="error",
                summary=f"samples {earlier[0]} and {key.index} are the same to the model and have different targets",
                causes=("data.label_mapping", "data.corrupt_sample", "data.duplicate_randomness"),
                path="data",
                sample=key.index,
                measured=f"equal {', '.join(probe.inputs)}; different {target_names}",
                expected="equal inputs have equal targets: no network gives two outputs for one input",
                action="one of the two targets is wrong; mend or leave out the sample",
                evidence={"samples": [earlier[0], key.index]},
            )
            return
        if not probe.targets:
            yield reporter.finding(
                severity="error",
                summary=f"samples {earlier[0]} and {key.index} are the same to the model, but the loss compares them",
                causes=("data.pairing", "data.duplicate_randomness"),
                path="data",
                sample=key.index,
                measured=f"equal {', '.join(probe.inputs)}",
                expected="different samples",
                action="leave one of the two out of the set",
                evidence={"samples": [earlier[0], key.index]},
            )
            return


def first_sample(bench: FitSetup) -> int | None:
    """Return the index of the batch's first sample; None if the batch has no indices."""
    index = bench.batch.get("sample_index")
    return int(index[0]) if isinstance(index, Tensor) and len(index) else None


def _find_bad_sample(batch: Mapping[str, Any], tensor: Tensor) -> int | None:
    """Return the index of the first sample with a number that is not finite; None if rows are not samples."""
    index = batch.get("sample_index")
    if not isinstance(index, Tensor) or tensor.ndim == 0 or len(tensor) != len(index):
        return None
    rows = (~tensor.isfinite()).flatten(1).any(1) if tensor.ndim > 1 else ~tensor.isfinite()
    return int(index[int(rows.nonzero()[0])])


def _hash_fields(batch: Mapping[str, Any], names: tuple[str, ...], *, is_cloud: bool) -> bytes:
    """Hash these fields; for a cloud, regardless of the order of its points and their per-point fields."""
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
