"""The Lovász-softmax loss: the reference's numbers, its identities, and nothing where all labels are ignored."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import jaccard_score

from sightline.doctor.oracles.losses import lovasz
from sightline.losses.classification import LovaszSoftmax, lovasz_of_image
from tests.cases import run_each

CASES = [case for case in range(14) if case not in (4, 7, 9, 12)]  # those of chosen classes and of none: below


@run_each("case", CASES)
def test_value_and_gradient_are_those_of_the_reference(shared: Path, case: int) -> None:
    """Of a whole batch at once the reference is one image; per image it is the mean of all of them."""
    folder = shared / "golden" / "lidar"
    info = json.loads((folder / "lovasz_softmax.json").read_text())["cases"][case]
    with np.load(folder / "lovasz_softmax.npz", allow_pickle=False) as golden:
        logits, label, value, gradient = (
            torch.from_numpy(golden[f"case{case:02d}/{name}"]) for name in ("logits", "label", "loss", "grad_logits")
        )
    logits = logits.double().movedim(1, -1).contiguous().requires_grad_()
    loss = LovaszSoftmax(num_classes=logits.shape[-1], ignore_index=info["ignore"])
    given = {"logits": logits, "label": label.long()}
    if not info["per_image"]:
        given = {"logits": logits.flatten(0, 1)[None], "label": label.long().flatten(0, 1)[None]}
    # the reference divides by all images, those without a label among them
    found = loss(**given) / (len(label) if info["per_image"] else 1)
    found.backward()
    assert found.item() == pytest.approx(value.item(), abs=1e-12)
    assert torch.allclose(logits.grad, gradient.double().movedim(1, -1), rtol=0, atol=1e-12)


def test_perfect_predictions_cost_nothing_and_wrong_ones_the_jaccard_loss() -> None:
    """Of probabilities that are 0 or 1 it is 1 - IoU, averaged over the classes that labels have."""
    random = np.random.default_rng(0)
    for _ in range(5):
        label, guess = random.integers(0, 4, (2, 60))
        ious = jaccard_score(label, guess, labels=np.unique(label), average=None)
        probabilities = torch.eye(4, dtype=torch.float64)[torch.from_numpy(guess)]
        found = lovasz_of_image(probabilities, torch.from_numpy(label))
        assert found.item() == pytest.approx(1 - ious.mean(), abs=1e-12)
        perfect = torch.eye(4, dtype=torch.float64)[torch.from_numpy(label)]
        assert lovasz_of_image(perfect, torch.from_numpy(label)).item() == 0


def test_it_is_the_lovasz_extension_of_its_set_function() -> None:
    """By Choquet's integral, for every order of errors: sum of the errors' steps times the loss of those above."""
    probabilities = torch.tensor([[0.9, 0.1], [0.4, 0.6], [0.3, 0.7], [0.8, 0.2]], dtype=torch.float64)
    label = torch.tensor([0, 0, 1, 1])
    expected = []
    for number in (0, 1):
        is_class = (label == number).numpy()
        errors = np.abs(is_class - probabilities[:, number].numpy())
        levels = np.unique(np.concatenate([[0.0], errors]))
        total = 0.0
        for low, high in itertools.pairwise(levels):
            wrong = errors > low
            predicted = is_class ^ wrong
            total += (high - low) * (1 - (is_class & predicted).sum() / max(1, (is_class | predicted).sum()))
        expected.append(total)
    assert lovasz_of_image(probabilities, label).item() == pytest.approx(np.mean(expected), abs=1e-12)


def test_gradients_agree_with_finite_differences() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    label = torch.randint(0, 5, (2, 3, 4))
    loss = LovaszSoftmax(num_classes=5, ignore_index=0)
    assert torch.autograd.gradcheck(lambda values: loss(logits=values, label=label), logits)


def test_joined_clouds_are_images_of_their_own() -> None:
    torch.manual_seed(0)
    logits, label, offsets = torch.randn(9, 3), torch.randint(0, 3, (9,)), torch.tensor([0, 4, 4, 9])
    loss = LovaszSoftmax(num_classes=3)
    together = loss(logits=logits, label=label, offsets=offsets)
    alone = [loss(logits=logits[None, a:b], label=label[None, a:b]) for a, b in ((0, 4), (4, 9))]
    assert together.item() == pytest.approx(sum(each.item() for each in alone), abs=1e-6)
    assert loss.count(label=label, offsets=offsets) == 2, "the cloud without points counts nothing"
    with pytest.raises(ValueError, match="and no offsets; expected images or joined clouds"):
        loss(logits=logits, label=label)


def test_where_all_is_ignored_loss_and_gradient_are_zero() -> None:
    logits = torch.full((2, 2, 2, 3), 1e4, dtype=torch.float16, requires_grad=True)
    loss = LovaszSoftmax(num_classes=3, ignore_index=0)
    label = torch.zeros(2, 2, 2, dtype=torch.int64)
    found = loss(logits=logits, label=label)
    found.backward()
    assert found.item() == 0
    assert not logits.grad.any()
    assert loss.count(label=label) == 0


def test_images_without_a_label_change_nothing() -> None:
    torch.manual_seed(0)
    logits, label = torch.randn(3, 2, 4, 3), torch.randint(1, 3, (3, 2, 4))
    label[1] = 0
    loss = LovaszSoftmax(num_classes=3, ignore_index=0)
    assert loss.count(label=label) == 2
    kept = [0, 2]
    assert loss(logits=logits, label=label) == loss(logits=logits[kept], label=label[kept])


def test_check_deep_compares_it_with_an_integral() -> None:
    """The oracle's own form gives the same mean, for images and for joined clouds."""
    torch.manual_seed(0)
    logits, label, offsets = (
        torch.randn(12, 4, dtype=torch.float64),
        torch.randint(0, 4, (12,)),
        torch.tensor([0, 5, 12]),
    )
    loss = LovaszSoftmax(num_classes=4, ignore_index=0)
    mean = loss(logits=logits, label=label, offsets=offsets) / loss.count(label=label, offsets=offsets)
    rows = [logits[:5].numpy(), logits[5:].numpy()], [label[:5].numpy(), label[5:].numpy()]
    assert lovasz(*rows, ignore_index=0) == pytest.approx(mean.item(), abs=1e-12)


def test_lowered_precision_changes_neither_value_nor_gradient() -> None:
    """Its logits may carry bf16 digits; what is computed from them keeps those of float32."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 8, 16, 5, generator=generator).requires_grad_()
    label = torch.randint(-1, 5, (2, 8, 16), generator=generator)
    loss = LovaszSoftmax(num_classes=5, ignore_index=-1)
    plain = loss(logits=logits, label=label)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lowered = loss(logits=logits, label=label)
    assert lowered.dtype == torch.float32
    assert torch.equal(lowered, plain)
    gradients = [torch.autograd.grad(value, logits)[0] for value in (lowered, plain)]
    assert torch.equal(*gradients)
