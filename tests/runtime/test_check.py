"""`sightline.check` of plain modules, of configs and of runs: what it takes, refuses, and leaves as it was."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils.data import DataLoader, Dataset, TensorDataset

import sightline
from sightline.contract.errors import UserError
from sightline.doctor.forms.tried_forms import find_form
from tests.runs.small import TINY
from tests.runtime.blind_loaders import Items
from tests.runtime.healthy_loops import batches, net
from tests.runtime.odd_healthy_loops import classes, mlp

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs/classify/synthetic_shapes_pointnet.yaml"
BATCH = torch.randn(16, 8, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 4


def list_codes(*subject: Any, **options: Any) -> list[str]:
    return [each.code for each in sightline.check(*subject, **options).findings if each.severity != "note"]


# --- what it takes ----------------------------------------------------------------------------------------------------


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(12, 3)

    def forward(self, points: Tensor, extra: Tensor) -> dict[str, Tensor]:
        return {"values": self.body(torch.cat([points, extra], dim=1))}


HEALTHY: dict[str, tuple[Callable[[], nn.Module], Any, Any]] = {
    "classifier, loader": (net, nn.CrossEntropyLoss(label_smoothing=0.1), lambda: list(batches(3))),
    "strong dropout": (lambda: net(dropout=0.9), F.cross_entropy, lambda: list(next(batches(1)))),
    "two inputs, outputs by name": (
        TwoInputs,
        lambda outputs, target: F.l1_loss(outputs["values"], target),
        lambda: [({"points": torch.randn(16, 10), "extra": torch.randn(16, 2)}, torch.randn(16, 3))],
    ),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_module_raises_nothing_and_is_unchanged(name: str) -> None:
    torch.manual_seed(0)
    make, loss, data = HEALTHY[name]
    model, batch = make(), data()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    before, random_state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    groups = copy.deepcopy(optimizer.state_dict())
    assert list_codes(model, loss, batch, optimizer=optimizer) == []
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items())
    assert torch.equal(random_state, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training
    assert optimizer.state_dict() == groups


def test_a_config_and_a_mapping_give_the_findings_of_the_command() -> None:
    tiny = {"name": "scale", "low": 0.001, "high": 0.001, "isotropic": True}
    config = TINY
    whole = {"base": str(config), "transforms": {"train": [tiny]}}
    assert sightline.check(config).findings == []
    assert [finding.code for finding in sightline.check(whole).findings][:1] == ["dataset-mismatch"]


def test_a_check_takes_several_optimizers_and_a_batch_in_one_argument() -> None:
    torch.manual_seed(0)

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.critic = nn.Linear(10, 4), nn.Linear(4, 1)

        def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
            return self.first(batch[0] * batch[1])

    model = Both()
    optimizers = [torch.optim.Adam(part.parameters()) for part in (model.first, model.critic)]
    batch = (torch.randn(16, 10), torch.ones(16, 10)), torch.arange(16) % 4
    assert list_codes(model, nn.CrossEntropyLoss(), batch, optimizer=optimizers) == []


class WholeBatch(nn.Module):
    def __init__(self, *, reads: str = "points") -> None:
        super().__init__()
        self.layers, self.reads = mlp(10, 32, 3), reads

    def forward(self, batch: Mapping[str, Any]) -> Tensor:
        return self.layers(batch[self.reads].float())


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = mlp(10, 32, 3)

    def forward(self, points: Tensor, weight: Tensor | None = None) -> Tensor:
        return self.layers(points)


class Inside(nn.Module):
    """Model with one of other arguments inside, under the name that wrappers use."""

    def __init__(self) -> None:
        super().__init__()
        self.module = Named()

    def forward(self, batch: Mapping[str, Any]) -> Tensor:
        return self.module(batch["points"])


def entropy(output: Tensor, batch: Mapping[str, Any]) -> Tensor:
    return F.cross_entropy(output, batch["label"])


@pytest.mark.parametrize("model", [WholeBatch(), Named(), nn.DataParallel(WholeBatch()), Inside()], ids=type)
def test_a_batch_may_be_a_mapping(model: nn.Module) -> None:
    """A loader, a list of batches, or one; file names are no input, and each sample has its own row."""
    rows, label = classes(400)
    read = lambda i: {"points": rows[i], "label": label[i], "file": f"{i}.pcd", "weight": 1.0}  # noqa: E731
    loader = DataLoader(Items(read, 400), 32, shuffle=True)
    for given in (loader, list(loader), next(iter(loader)))[slice(None if isinstance(model, WholeBatch) else 1)]:
        assert list_codes(model, entropy, given, optimizer=torch.optim.Adam(model.parameters(), 1e-3)) == []
    form = find_form(model, entropy, next(iter(loader)))
    assert form.target.keys == ("label",)
    assert set(form.inputs.keys) == ({"points", "weight"} if isinstance(model, Named) else {"points"})


def test_a_form_that_is_not_found_is_no_error() -> None:
    """The verdict names the call that failed, and the step to write."""
    batch = {"points": torch.randn(4, 10), "label": torch.zeros(4, dtype=torch.int64)}
    report = sightline.check(WholeBatch(reads="none"), entropy, batch)
    assert report.findings == []
    first, _, action = report.verdict
    assert (
        "no call of the model was found that runs: model(batch), loss(outputs, batch) ends in KeyError: 'none'" in first
    )
    assert "`def step(batch): return loss(model(batch['points']), batch['label'])`" in action


class Keeps(nn.Linear):
    """A module that keeps its last activation."""

    def forward(self, inputs: Tensor) -> Tensor:
        self.last = super().forward(inputs)
        return self.last


def test_a_module_that_keeps_a_result_is_checked() -> None:
    """torch copies no tensor with a history: a kept activation, or a weight that a parametrisation has computed."""
    kept, pruned = Keeps(8, 4), nn.Linear(8, 4)
    kept(BATCH[0])
    prune.l1_unstructured(pruned, "weight", 0.3)
    for model in (kept, pruned):
        report = sightline.check(model, nn.CrossEntropyLoss(), BATCH)
        assert [each.code for each in report.findings if each.severity == "error"] == []
    assert kept.last.grad_fn is not None


# --- what it refuses and names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("subject", "more", "message"),
    [
        ((net(),), {}, "needs its loss and a batch"),
        ((CONFIG, F.cross_entropy), {}, "belong to a module"),
        ((net(), F.cross_entropy, 5), {}, r"a batch is \(inputs, target\)"),
        ((net(), F.cross_entropy, []), {}, "the loader has no batch"),
        ((CONFIG,), {"plugins": "mine.py"}, r"plugins: found the text 'mine.py', allowed is a list: \['mine.py'\]"),
        ((CONFIG,), {"overrides": "seed=1"}, r"overrides: found the text 'seed=1', allowed is a list: \['seed=1'\]"),
        ((net(), abs, []), {"declared": "idle"}, r"declared: found 'idle', allowed is a list of codes: \['idle'\]"),
        (
            (None,),
            {},
            "subject: found null, allowed is the path of a YAML file or a run directory, a dict, or a module",
        ),
    ],
)
def test_arguments_that_do_not_fit_are_refused(subject: tuple[Any, ...], more: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        sightline.check(*subject, **more)


def test_a_model_that_cannot_be_copied_is_named() -> None:
    class Single(nn.Linear):
        def __deepcopy__(self, memo: dict[int, Any]) -> nn.Linear:
            raise RuntimeError("there is one of these")

    with pytest.raises(UserError, match=r"the model cannot be copied.*there is one of these"):
        sightline.check(nn.Sequential(mlp(8, 16, 4), Single(4, 4)), F.cross_entropy, BATCH)
    model = mlp(8, 16, 4)
    model.lock = threading.Lock()  # the copy shares it
    assert list_codes(model, F.cross_entropy, BATCH) == []
    lazy = nn.Sequential(nn.LazyLinear(16), nn.ReLU(), nn.LazyLinear(4))
    with pytest.raises(UserError, match=r"'0.weight' has no size yet; call the model with a batch first"):
        sightline.check(lazy, F.cross_entropy, BATCH)


@pytest.mark.parametrize("num_fitting", [0, 14])
def test_a_label_out_of_range_is_found_in_the_whole_batch_and_names_no_file_of_the_package(num_fitting: int) -> None:
    """The few samples that are tried first may all fit the outputs."""
    labels = torch.cat([torch.arange(num_fitting) % 3, torch.full((16 - num_fitting,), 4)])
    report = sightline.check(nn.Linear(8, 3), nn.CrossEntropyLoss(), (BATCH[0], labels))
    [finding] = [each for each in report.findings if each.code == "first-step"]
    assert (finding.severity, finding.cause, finding.where.file) == ("error", "data.label_mapping", None)
    assert "out of bounds" in finding.measured


def test_a_finding_about_a_module_can_be_declared() -> None:
    images = torch.rand(64, 3, 32, 32)
    program = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(3600, 2))
    subject = program, nn.CrossEntropyLoss(), ((images * 255).round() / 65025, torch.arange(64) % 2)
    assert list_codes(*subject)[:1] == ["input-statistics"]
    report = sightline.check(*subject, declared=("input-statistics",))
    assert all(each.code != "input-statistics" for each in report.findings)
    assert "what is declared (input-statistics)" in report.verdict[1]
    with pytest.raises(UserError, match=r"no finding has the code 'input-statistic'; did you mean 'input-statistics'"):
        sightline.check(*subject, declared=("input-statistic",))


# --- what it leaves as it was -----------------------------------------------------------------------------------------

GENERATOR = np.random.default_rng(0)


class Noisy(Dataset[Any]):
    """Noise from a generator of the set, and from one of its module."""

    def __init__(self) -> None:
        self.rng, self.rows = np.random.default_rng(1), torch.randn(200, 8)

    def __len__(self) -> int:
        return 200

    def __getitem__(self, index: int) -> Any:
        noise = float(self.rng.normal(0, 0.1)) + float(GENERATOR.normal(0, 0.1))
        return self.rows[index] + noise, int(self.rows[index, 0] > 0)


def test_generators_of_loader_set_and_module_are_put_back() -> None:
    data = Noisy()
    loader = DataLoader(data, 16, shuffle=True, generator=torch.Generator().manual_seed(0))

    def states() -> Any:
        own = [each.bit_generator.state["state"] for each in (data.rng, GENERATOR)]
        return loader.generator.get_state().tolist(), torch.get_rng_state().tolist(), own

    model, before = nn.Linear(8, 2), states()
    sightline.check(model, nn.CrossEntropyLoss(), loader)
    assert states() == before


def test_a_set_in_memory_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    data = TensorDataset(torch.randn(300, 8), torch.randint(0, 2, (300,)))
    monkeypatch.setattr(TensorDataset, "__deepcopy__", lambda own, memo: pytest.fail("copied"), raising=False)
    sightline.check(nn.Linear(8, 2), nn.CrossEntropyLoss(), DataLoader(data, 16, shuffle=True))


class Centred(nn.Module):
    """A loss with a running centre, a counter and a weight of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.centre, self.weight = nn.Buffer(torch.zeros(4)), nn.Parameter(torch.zeros(()))
        self.calls, self.mean = 0, torch.tensor(0.0)

    def forward(self, outputs: Tensor, target: Tensor) -> Tensor:
        self.calls += 1
        self.centre.mul_(0.9).add_(outputs.detach().mean(0), alpha=0.1)
        self.mean = 0.9 * self.mean + 0.1 * target.mean()
        return F.mse_loss(outputs - self.centre, target) * (-self.weight).exp() + self.weight


def test_a_loss_keeps_its_state() -> None:
    loss, model = Centred(), nn.Linear(8, 4)
    optimizer = torch.optim.Adam([*model.parameters(), *loss.parameters()])
    sightline.check(model, loss, (torch.randn(16, 8), torch.rand(16, 4)), optimizer=optimizer)
    assert (loss.calls, loss.weight.grad, float(loss.mean), bool(loss.centre.any())) == (0, None, 0.0, False)


LOWEST: list[int] = []
"""A variable of a closure is put back after a check."""


def test_ctc_is_asked_for_no_labels_that_are_none() -> None:
    """torch reads and writes beyond its memory for them: the process would be aborted."""
    LOWEST.clear()

    def loss(outputs: Tensor, label: Tensor) -> Tensor:
        LOWEST.append(int(label.min()))
        lengths = torch.full((len(outputs),), outputs.shape[1]), torch.full((len(outputs),), 5)
        scores = outputs.log_softmax(-1).transpose(0, 1)
        return F.ctc_loss(scores, label.clamp(min=0), *lengths, zero_infinity=True)

    sightline.check(mlp(8, 16, 6), loss, (torch.randn(8, 20, 8), torch.randint(1, 6, (8, 5))))
    assert min(LOWEST) >= 0
