"""Layers of a user's own, and sums over neighbours: one planted bug each, and healthy ones that look like them.

`python -m tests.doctor.own_layers SEEDS` prints how often each bug comes first, with its cause.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sightline
from tests.doctor.own_network_bugs import BUGS, Bug, is_first
from tests.doctor.own_networks import CloudNet, Logits, PartNet, findings_of

BUGS_OF_LAYERS: dict[str, Bug] = {}
HEALTHY_LAYERS: dict[str, tuple[str, type[nn.Module]]] = {}


def _with_middle(layer: type[nn.Module]) -> type[CloudNet]:
    """A network of clouds with this layer, of 32 channels, between the others."""

    class WithMiddle(CloudNet):
        def __init__(self, *, num_classes: int, in_channels: int = 3) -> None:
            super().__init__(num_classes=num_classes, in_channels=in_channels)
            self.middle = layer(32, 32)

        def between(self, rows: Tensor) -> Tensor:
            return self.middle(rows).relu()

    return WithMiddle


class _TenthOfGradient(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        output = super().forward(input)
        return output.detach() + 0.1 * (output - output.detach())


class _DetachedInput(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.detach()) + 0 * input


class _Transposed(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return input @ self.weight + self.bias


class _Plain(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return input @ self.weight.T + self.bias


class _Standardised(nn.Linear):
    """Weights of mean 0 and deviation 1 in each row, as weight standardisation has them."""

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean(1, keepdim=True)
        return F.linear(input, weight / weight.std(1, keepdim=True), self.bias)


@sightline.surrogate_gradient
class _Declared(_TenthOfGradient):
    pass


for name, layer in {
    "a tenth of the gradient": _TenthOfGradient,
    "the input detached": _DetachedInput,
    "a transposed weight": _Transposed,
}.items():
    BUGS_OF_LAYERS[name] = Bug("classify", _with_middle(layer), "derived-layer", "model.structure", "middle")
for name, layer in {"written out": _Plain, "standardised weights": _Standardised, "declared": _Declared}.items():
    HEALTHY_LAYERS[name] = "classify", _with_middle(layer)


# --- sums over neighbours ---------------------------------------------------------------------------------------------


class Interpolated(PartNet):
    """Features of every fourth point, which the others take from the three nearest."""

    def weigh(self, squares: Tensor) -> Tensor:
        weights = 1 / (squares + 1e-6)
        return weights / weights.sum(-1, keepdim=True)

    def take(self, weights: Tensor, features: Tensor) -> Tensor:
        return (weights[..., None] * features).sum(dim=2)

    def between(self, rows: Tensor) -> Tensor:
        coarse = self.points[:, ::4]
        squares, index = torch.cdist(self.points, coarse).square().topk(3, largest=False)
        cloud = torch.arange(len(rows))[:, None, None]
        return rows + self.take(self.weigh(squares), rows[:, ::4][cloud, index])

    def enter(self, points: Tensor) -> Tensor:
        self.points = points[..., :3]
        return points

    reads_order = True


class _Tripled(Interpolated):
    def weigh(self, squares: Tensor) -> Tensor:
        return 3 * super().weigh(squares)


class _Halved(Interpolated):
    def weigh(self, squares: Tensor) -> Tensor:
        return super().weigh(squares) / 2

    def take(self, weights: Tensor, features: Tensor) -> Tensor:
        return (weights[..., None, :] @ features).squeeze(2)


class _Undivided(Interpolated):
    def weigh(self, squares: Tensor) -> Tensor:
        return 1 / (squares + 1e-6)


class _Doubled(Interpolated):
    """A mean of the neighbours, and the weights on top of it."""

    def weigh(self, squares: Tensor) -> Tensor:
        return super().weigh(squares) + 1 / 3


class _Product(Interpolated):
    def take(self, weights: Tensor, features: Tensor) -> Tensor:
        return (weights[..., None, :] @ features).squeeze(2)


class _Kernel(Interpolated):
    """Weights that fall linearly with the distance, as those of a kernel point do."""

    def weigh(self, squares: Tensor) -> Tensor:
        return (1 - squares.sqrt() / 0.5).clamp(min=0)


class _Counted(Interpolated):
    """A sum of the neighbours that are near enough: all of them, in a dense cloud."""

    def weigh(self, squares: Tensor) -> Tensor:
        return (squares < 100).to(squares)


for name, model in {"x 3": _Tripled, "/ 2, by a product": _Halved, "undivided": _Undivided, "+ 1/3": _Doubled}.items():
    BUGS_OF_LAYERS[f"weights {name}"] = Bug("parts", model, "neighbour-weights", "model.geometry")
for name, model in {"of 1": Interpolated, "by a product": _Product, "of a kernel": _Kernel, "0 or 1": _Counted}.items():
    HEALTHY_LAYERS[f"weights {name}"] = "parts", model


# --- heads ------------------------------------------------------------------------------------------------------------


class _Unread(CloudNet):
    """A second head that is called, and kept."""

    def __init__(self, *, num_classes: int, in_channels: int = 3) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels)
        self.other = nn.Linear(32, 2)

    def pooled(self, rows: Tensor) -> Tensor:
        pooled = super().pooled(rows)
        self.turned = self.other(pooled)
        return pooled


class _Cut(_Unread):
    """A second head that is used, and whose gradient is cut."""

    def pooled(self, rows: Tensor) -> Tensor:
        pooled = super().pooled(rows)
        return pooled * (1 + self.turned.detach().mean(1, keepdim=True))


class _Normed(CloudNet):
    """Logits that are standardised over the batch."""

    def forward(self, *, points: Tensor) -> Logits:
        logits = super().forward(points=points)["logits"]
        return {"logits": (logits - logits.mean()) / logits.std()}


BUGS_OF_LAYERS["a head that nothing reads"] = Bug("classify", _Unread, "no-gradient", "dist.unused_params", "other")
BUGS_OF_LAYERS["a head whose gradient is cut"] = Bug(
    "classify", _Cut, "no-gradient", "model.frozen_unintended", "other"
)
BUGS_OF_LAYERS["logits with a norm"] = Bug("classify", _Normed, "cross-sample-leak", "model.structure")

if __name__ == "__main__":
    assert not BUGS_OF_LAYERS.keys() & BUGS.keys()
    for name, planted in BUGS_OF_LAYERS.items():
        count = sum(is_first(planted, seed) for seed in range(int(sys.argv[1])))
        sys.stdout.write(f"| {name} | `{planted.code}` | {count} |\n")
        sys.stdout.flush()
    for name, (task, model) in HEALTHY_LAYERS.items():
        for seed in range(int(sys.argv[1])):
            told = [str(f) for f in findings_of(task, model, seed=seed) if f.severity != "note"]
            sys.stdout.write("\n".join([f"healthy {name} {seed}: {len(told)}", *told, ""]))
            sys.stdout.flush()
