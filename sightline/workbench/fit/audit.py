"""Audit of the samples: NaN or infinite numbers, empty targets, equal inputs with different targets."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sightline.workbench.check.checks.data.batches import find_non_finite
from sightline.workbench.check.context import get_loss_path
from sightline.workbench.check.core.finding import Fault
from sightline.workbench.describe.trace import tree_leaves
from sightline.workbench.fit.fit_attempt import FitSetup
from sightline.workbench.fit.loss_probe import LossProbe
from sightline.workbench.fit.samples import Samples


def audit_batch(bench: FitSetup) -> Iterator[Fault]:
    """Report tensors of the batch with NaN or infinite numbers."""
    for number in find_non_finite(bench.batch, bench.batch):
        yield Fault(
            f"'{number.leaf}' of the samples contains NaN or infinite numbers",
            causes=("data.corrupt_sample", "data.normalisation"),
            at="data",
            sample=number.sample,
            measured=f"{number.num_bad} of {number.size} numbers are NaN or infinite",
            expected="finite inputs and targets",
            action="mend or leave out the sample; `sightline view` shows it at every stage",
        )


def audit_first_loss(probe: LossProbe) -> Iterator[Fault]:
    """Report a first loss that is not finite: the fault of the model's outputs, or else of the loss."""
    if math.isfinite(probe.start):
        return
    bad = next(find_non_finite(probe.outputs, probe.read), None)
    if bad is not None:
        yield Fault(
            f"the model gives NaN or infinity in '{bad.key}', before the first step",
            causes=("model.numerics", "model.init"),
            at="model",
            measured=f"a loss of {probe.start:g}; {bad.num_bad} of {bad.size} numbers of '{bad.key}' are NaN or "
            "infinite",
            expected="finite samples have finite outputs and a finite loss",
            action="--trace shows the first layer that gives them; look for a division by zero, a log or a root of it",
        )
    else:
        yield Fault(
            "the loss of finite outputs is not finite, before the first step",
            causes=("loss.form", "model.numerics"),
            at="losses",
            measured=f"a loss of {probe.start:g}"
            + (f"; all numbers of {', '.join(probe.read)} are finite" if probe.read else ""),
            expected="finite samples have finite outputs and a finite loss",
            action="look for a division by zero or a log of it in the loss; bound what it takes",
        )


def audit_targets(bench: FitSetup, samples: Samples, probe: LossProbe) -> Iterator[Fault]:
    """Report losses with a count of 0, equal inputs with different targets, and constant targets."""
    job, sample = bench.built.job, first_sample(bench)
    weights = job.loss_weights_at(job.num_steps)
    for name, count in probe.counts.items():
        if count == 0 and weights[name] > 0:
            yield Fault(
                f"the loss '{name}' has a count of 0 for these samples: there is no target to fit",
                causes=("data.ignore_handling", "data.target_encoding"),
                at=get_loss_path(bench.built.config, name),
                sample=sample,
                measured="a count of 0: every target is ignored, or absent",
                expected="at least one target that counts",
                action="look at the labels of these samples and at ignore_index; give other samples by another seed",
            )
    yield from itertools.islice(_iter_contradictions(samples, probe), 1)
    for name in probe.targets:  # a network that does nothing can fit a target with a single value
        value = bench.batch[name]
        is_numeric = isinstance(value, Tensor) and value.is_floating_point() and value.numel() > 1
        if is_numeric and float(value.min()) == float(value.max()):
            yield Fault(
                f"the target '{name}' is {float(value.min()):g} everywhere: fitting it proves nothing",
                severity="warning",
                causes=("data.target_encoding", "data.centre"),
                at="data",
                sample=sample,
                measured=f"{value.numel()} numbers, all {float(value.min()):g}",
                expected="a target that varies",
                action="see the target with `sightline view`; is it made at the right place and scale?",
            )


def _iter_contradictions(samples: Samples, probe: LossProbe) -> Iterator[Fault]:
    """Report two samples with equal inputs, if their targets differ or a loss must separate them."""
    first: dict[bytes, tuple[int, bytes]] = {}
    is_cloud, inputs = "points" in probe.inputs, f"equal {', '.join(probe.inputs)}"
    for key in samples.keys:
        batch = samples.reader([key])
        digests = [
            _hash_fields(batch, names, is_cloud=is_cloud)  # a point goes with its target
            for names in (probe.inputs, (*probe.inputs, *probe.targets))
        ]
        index, target_digest = first.setdefault(digests[0], (key.index, digests[1]))
        if index == key.index:
            continue
        same = f"samples {index} and {key.index} are the same to the model"
        if target_digest != digests[1]:
            yield Fault(
                f"{same} and have different targets",
                causes=("data.label_mapping", "data.corrupt_sample", "data.duplicate_randomness"),
                at="data",
                sample=key.index,
                measured=f"{inputs}; different {', '.join(probe.targets)}",
                expected="equal inputs have equal targets: no network gives two outputs for one input",
                action="one of the two targets is wrong; mend or leave out the sample",
                evidence={"samples": [index, key.index]},
            )
        elif not probe.targets:
            yield Fault(
                f"{same}, but the loss compares them",
                causes=("data.pairing", "data.duplicate_randomness"),
                at="data",
                sample=key.index,
                measured=inputs,
                expected="different samples",
                action="leave one of the two out of the set",
                evidence={"samples": [index, key.index]},
            )


def first_sample(bench: FitSetup) -> int | None:
    """Return the index of the batch's first sample; None if the batch has no indices."""
    index = bench.batch.get("sample_index")
    return int(index[0]) if isinstance(index, Tensor) and len(index) else None


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
