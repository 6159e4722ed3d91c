"""Forms of programs: what is tried without a step, what a step shows, and that nothing of the user's changes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import sightline
from sightline.contract.errors import UserError
from sightline.contract.pytree import tree_leaves
from sightline.doctor import check
from sightline.doctor.check import check_module, make_subject
from sightline.doctor.examine import Examination
from sightline.doctor.forms.form import Form, standing_in
from sightline.doctor.forms.step_form import OpaqueForm, observe_step
from sightline.doctor.forms.tried_forms import find_form
from sightline.doctor.report import Report
from sightline.instrument import copy_module
from tests.doctor.observing import judged

G = torch.Generator().manual_seed(0)
ROWS, LABELS = torch.randn(32, 6, generator=G), torch.arange(32) % 3
OTHERS, NUMBERS = torch.randn(32, 6, generator=G), torch.randn(32, generator=G)


@pytest.fixture(scope="module", autouse=True)
def _warns_always() -> Iterator[None]:
    """Torch warns of some things once in a process, and warnings are errors: no test depends on those before it."""
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(before)


class Net(nn.Module):
    """A model of one tensor that can keep a penalty, with layers that a program may capture."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head, self.penalty = nn.Linear(6, 8), nn.Linear(8, 3), torch.zeros(())

    def forward(self, rows: Tensor) -> Tensor:
        hidden = self.inner(rows).tanh()
        self.penalty = hidden.square().mean()
        return self.head(hidden)


class Two(Net):
    def forward(self, rows: Tensor, more: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(rows + more)


class Pair(Net):
    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return super().forward(rows), self.penalty


class Inside(Net):
    def forward(self, rows: Tensor, labels: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        logits = super().forward(rows)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


class Decoder(Net):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 6)


# --- what is tried ----------------------------------------------------------------------------------------------------


def weighted(outputs: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    return (F.cross_entropy(outputs, labels, reduction="none") * weights.abs()).mean()


def add_penalty(outputs: Tensor, penalty: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(outputs, labels) + penalty


def reconstruct(outputs: Tensor, rows: Tensor, penalty: Tensor) -> Tensor:
    return F.mse_loss(outputs, rows) + penalty


class Both(Decoder):
    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return super().forward(rows), self.penalty


KEYED = {"rows": ROWS, "label": LABELS, "file": ["a"] * 32}
TRIED: dict[str, tuple[type[nn.Module], Any, Any, str]] = {
    "a pair": (Net, nn.CrossEntropyLoss(), (ROWS, LABELS), ""),
    "two inputs": (
        Two,
        nn.CrossEntropyLoss(),
        (ROWS, OTHERS, LABELS),
        "model(batch[0], batch[1]), loss(outputs, batch[2])",
    ),
    "weights": (Net, weighted, (ROWS, LABELS, NUMBERS), "model(batch[0]), loss(outputs, batch[1], batch[2])"),
    "an index": (
        Net,
        nn.CrossEntropyLoss(),
        (ROWS, LABELS, torch.arange(32)),
        "model(batch[0]), loss(outputs, batch[1])",
    ),
    "a tensor": (Decoder, nn.MSELoss(), ROWS, "model(batch), loss(outputs, batch)"),
    "a tuple of one": (Decoder, nn.MSELoss(), (ROWS,), "model(batch[0]), loss(outputs, batch[0])"),
    "labels nobody reads": (
        Both,
        reconstruct,
        (ROWS, LABELS),
        "model(batch[0]), loss(outputs[0], batch[0], *outputs[1:])",
    ),
    "two outputs": (Pair, add_penalty, (ROWS, LABELS), "model(batch[0]), loss(*outputs, batch[1])"),
    "triplets": (Net, nn.TripletMarginLoss(), (ROWS, OTHERS, ROWS.flip(0)), "model(input) of each, loss(*outputs)"),
    "the loss inside": (Inside, None, (ROWS, LABELS), "model(batch[0], batch[1]), whose outputs hold the loss"),
    "names": (Net, nn.CrossEntropyLoss(), KEYED, "model(rows=batch['rows']), loss(outputs, batch['label'])"),
    "another name": (
        Net,
        nn.CrossEntropyLoss(),
        {"image": ROWS, "target": LABELS},
        "model(batch['image']), loss(outputs, target=batch['target'])",
    ),
}


@pytest.mark.parametrize("name", TRIED)
def test_the_first_call_that_runs_is_taken_and_said(name: str) -> None:
    make, loss, batch, words = TRIED[name]
    form = find_form(make(), loss, batch)
    assert form.words == words
    report = check_module(make(), loss, batch)
    assert [finding.code for finding in report.findings if finding.severity != "note"] == []
    assert words.partition(", whose")[0] in report.verdict[0]


def test_labels_beyond_the_classes_of_a_pair_are_an_error_and_other_failures_are_none() -> None:
    bad = check_module(Net(), nn.CrossEntropyLoss(), (ROWS, LABELS + 1))
    assert [(each.code, each.cause) for each in bad.findings] == [("first-step", "data.label_mapping")]
    report = check_module(Net(), nn.CrossEntropyLoss(), (ROWS.byte(), LABELS))
    assert report.findings == []
    assert "model(batch[0]), loss(outputs, batch[1]) ends in RuntimeError" in report.verdict[0]
    assert "`def step(batch): rows, target = batch; return loss(model(rows), target)`" in report.verdict[2]


# --- what a step shows ------------------------------------------------------------------------------------------------


def list_alarms(report: Report) -> list[str]:
    return [finding.code for finding in report.findings if finding.severity != "note"]


def examine(model: nn.Module, step: Callable[[Any], Tensor], batches: list[Any]) -> tuple[Form, Examination]:
    subject = make_subject(model, None, batches, None, step=step)
    return subject.form, check.examine_subject(subject)


def test_inputs_are_what_the_model_gets_and_targets_what_the_loss_reads() -> None:
    """Derived inputs, a name that nobody reads, an index that only the model gets, labels that are moved first."""
    model = Two()

    def step(batch: Mapping[str, Any]) -> Tensor:
        rows, more = batch["rows"] / 255, batch["more"].flip(1)
        return F.cross_entropy(model(rows, more=more), batch["nested"]["label"].to("cpu").long())

    nested = {"label": LABELS.int(), "name": "a"}
    batch: dict[str, Any] = {"rows": ROWS, "more": OTHERS, "nested": nested, "file": ["a"] * 32}
    form = observe_step(model, step, batch)
    inputs, target = form.split(batch)
    assert torch.equal(inputs[0], ROWS / 255)
    assert torch.equal(inputs[1]["more"], OTHERS.flip(1))
    assert target is batch["nested"]["label"]
    outputs = form.call(model, inputs)
    assert torch.equal(form.evaluate(model, outputs, target), step(batch))
    other = torch.zeros(32, dtype=torch.int32)
    assert torch.equal(form.evaluate(model, outputs, other), F.cross_entropy(outputs, other.long()))
    half = form.evaluate(model, outputs[:8], LABELS[:8])
    assert torch.allclose(half, F.cross_entropy(outputs[:8], LABELS[:8]))


def test_a_list_of_numbers_that_the_loss_reads_is_target_and_one_that_it_does_not_read_is_none() -> None:
    model = Net()
    batch = (ROWS, LABELS, [2.0] * 32, ["a.png"] * 32)
    form = observe_step(model, lambda batch: F.cross_entropy(model(batch[0]), batch[1]) * batch[2][0], batch)
    assert set(form.split(batch).target) == {"1", "2"}


def test_random_numbers_of_a_step_are_those_of_its_inputs() -> None:
    """Mixed inputs meet the labels that were mixed by the same draw."""
    model = Net()

    def step(batch: tuple[Tensor, Tensor]) -> Tensor:
        order = torch.randperm(len(batch[0]))
        outputs = model(0.7 * batch[0] + 0.3 * batch[0][order])
        return 0.7 * F.cross_entropy(outputs, batch[1]) + 0.3 * F.cross_entropy(outputs, batch[1][order])

    form = observe_step(model, step, (ROWS, LABELS))
    mixed, target = form.split((ROWS, LABELS))
    partner = ((mixed - 0.7 * ROWS) / 0.3)[:, None].sub(ROWS).abs().sum(-1).argmin(1)
    outputs, state = model(mixed), torch.get_rng_state()
    expected = 0.7 * F.cross_entropy(outputs, LABELS) + 0.3 * F.cross_entropy(outputs, LABELS[partner])
    assert torch.allclose(form.evaluate(model, outputs, target), expected)
    assert torch.equal(torch.get_rng_state(), state)


class Words(nn.Module):
    """Scores of the next of 5 words for each of a row."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 5)

    def forward(self, words: Tensor) -> Tensor:
        return self.table(words)


WORDS = torch.randint(5, (32, 7), generator=G)


def test_a_tensor_of_inputs_and_target_is_divided_at_what_the_loss_alone_reads() -> None:
    """Words that follow, also where the row is made longer first; what a teacher says of the inputs."""
    model, teacher = Words(), nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))

    def follow(words: Tensor) -> Tensor:
        words = F.pad(words, (1, 0))
        return F.cross_entropy(model(words[:, :-1]).flatten(0, 1), words[:, 1:].long().flatten())

    form = observe_step(model, follow, WORDS)
    inputs, target = form.split(WORDS)
    assert torch.equal(inputs[:, 1:], target[:, :-1])
    assert torch.equal(target, WORDS)
    outputs, other = form.call(model, inputs), WORDS.flip(0)
    assert torch.equal(form.evaluate(model, outputs, other), F.cross_entropy(outputs.flatten(0, 1), other.flatten()))
    assert torch.equal(form.split(WORDS[:9]).target, WORDS[:9])

    student = Net()
    taught = observe_step(student, lambda b: F.mse_loss(student(b[0]), teacher(b[0]).detach()), (ROWS, LABELS))
    assert torch.equal(taught.split((OTHERS, LABELS)).target, teacher(OTHERS))
    wanted = torch.zeros(8, 3)
    outputs = student(ROWS[:8])
    assert torch.equal(taught.evaluate(student, outputs, wanted), F.mse_loss(outputs, wanted))


@pytest.mark.parametrize("kind", ["its own target", "read as numbers", "changed with the inputs"])
def test_a_tensor_that_the_loss_reads_itself_stays_whole(kind: str) -> None:
    model = Decoder()

    def step(rows: Tensor) -> Tensor:
        if kind == "its own target":
            return F.mse_loss(model(rows + 0.1), rows)
        if kind == "read as numbers":
            return F.mse_loss(model(rows), rows.flip(0)) * float(rows.abs().max())
        rows = rows / 2
        return F.mse_loss(model(rows), rows) + F.mse_loss(model(rows), rows.flip(0))

    assert torch.equal(observe_step(model, step, ROWS).split(ROWS).target, ROWS)


class Joined:
    """Loader of labelled rows beside twice as many without labels, each of a loader of its own."""

    def __init__(self, labels: Tensor) -> None:
        self.labelled = DataLoader(TensorDataset(ROWS, labels), 16, shuffle=True)
        self.others = DataLoader(TensorDataset(torch.cat((OTHERS, ROWS))), 32, shuffle=True)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for (rows, labels), (others,) in zip(self.labelled, self.others, strict=True):
            yield {"labelled": {"rows": rows, "labels": labels}, "others": others}


@pytest.mark.parametrize("is_sound", [True, False])
def test_parts_of_a_batch_with_rows_of_their_own_are_judged_with_their_loaders(is_sound: bool) -> None:
    """Labels of the first part are judged beside the rest of the loss; planted: probabilities for scores."""
    model = Net()

    def step(batch: Mapping[str, Any]) -> Tensor:
        scores = model(batch["labelled"]["rows"])
        loss = F.cross_entropy(scores if is_sound else scores.softmax(1), batch["labelled"]["labels"])
        views = [model(batch["others"] + 0.1 * torch.randn_like(batch["others"])) for _ in range(2)]
        return loss + 0.1 * F.mse_loss(*views)

    with judged() as judgements:
        report = sightline.check(model, step=step, loader=Joined(LABELS))
    assert list_alarms(report) == ([] if is_sound else ["double-softmax"])
    held = {each.rule.judge.__name__ for each in judgements if each.outcome == "held"}
    assert {"sorted_labels", "exchanged_rows", "drawn_samples", "cross_sample_leak", "constant_output"} <= held
    assert "failed" not in {each.outcome for each in judgements}


def test_several_calls_are_inputs_and_a_call_of_outputs_is_not_divided() -> None:
    model, coder, batch = Net(), Decoder(), (ROWS, OTHERS, NUMBERS)
    two = observe_step(model, lambda b: F.cosine_embedding_loss(model(b[0]), model(b[1]), b[2].sign()), batch)
    inputs, target = two.split(batch)
    assert torch.equal(torch.stack(inputs), torch.stack(batch[:2]))
    assert torch.equal(target, NUMBERS)

    def step(batch: Tensor) -> Tensor:
        return F.mse_loss(coder(coder(batch)), batch)

    whole = observe_step(coder, step, ROWS)
    assert isinstance(whole, OpaqueForm)
    assert "reads another's outputs" in whole.words
    assert list_alarms(check_module(coder, loader=ROWS, step=step)) == []


def test_gradients_with_respect_to_inputs_are_judged_as_a_whole() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))

    def step(batch: Tensor) -> Tensor:
        rows = batch.clone().requires_grad_()
        (slope,) = torch.autograd.grad(model(rows).sum(), rows, create_graph=True)
        return F.mse_loss(slope, batch)

    form, examination = examine(model, step, [ROWS])
    assert isinstance(form, OpaqueForm)
    assert examination.count("failed") == 0
    assert "no-gradient" in {each.rule.code for each in examination.judgements if each.outcome == "held"}


def test_parts_of_the_model_that_a_loss_reads_are_those_of_the_copy() -> None:
    """A penalty that the pass stores, a captured layer, a bound method: as when the program itself is run."""
    model = Net()
    model(ROWS * 100)  # a stale penalty
    head, forward = model.head, model.forward

    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(outputs, labels) + model.penalty + head.weight.square().mean() + 0 * forward(ROWS).mean()

    other: Any = copy_module(model)
    with torch.no_grad():
        other.head.weight.mul_(3)
    form = find_form(model, loss, (ROWS, LABELS))
    outputs = form.call(other, ROWS)
    expected = F.cross_entropy(outputs, LABELS) + other.penalty + other.head.weight.square().mean()
    assert torch.allclose(form.evaluate(other, outputs, LABELS), expected)
    assert float(model.penalty.detach()) > 2 * float(other.penalty.detach()), (
        "stale values stay with the program, and are not judged"
    )


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_of_the_program_changes(fails: bool) -> None:
    """Weights, buffers, gradients, modes, hooks, a teacher with a state, generators; of a step that fails, too."""
    model: Any = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 3))
    teacher, generator = nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3)), torch.Generator().manual_seed(3)
    model[0].weight.grad, model[1].momentum = torch.ones(8, 6), 0.2
    seen: list[int] = []
    model.register_forward_hook(lambda *_: seen.append(1))
    optimizer = torch.optim.Adam(model.parameters())

    def step(batch: tuple[Tensor, Tensor]) -> Tensor:
        model.train()
        optimizer.zero_grad()
        outputs = model(batch[0] + 0.1 * torch.randn(batch[0].shape, generator=generator))
        if fails:
            raise ValueError("a step that fails")
        return F.cross_entropy(outputs, batch[1]) + F.mse_loss(outputs, teacher(batch[0]))

    model.eval()
    parts = {id(part): dict(vars(part)) for module in (model, teacher) for part in module.modules()}
    before = copy.deepcopy((model.state_dict(), teacher.state_dict(), optimizer.state_dict()))
    states = generator.get_state(), torch.get_rng_state()
    report = sightline.check(model, loader=(ROWS, LABELS), step=step, optimizer=optimizer)
    assert ("first-step" in list_alarms(report)) == fails
    for module in (model, teacher):
        for part in module.modules():
            known = parts[id(part)]
            assert vars(part).keys() == known.keys()
            assert all(value is known[name] for name, value in vars(part).items())
    after = model.state_dict(), teacher.state_dict(), optimizer.state_dict()
    for (path, old), (_, new) in zip(tree_leaves(before), tree_leaves(after), strict=True):
        assert torch.equal(old, new), path
    assert torch.equal(model[0].weight.grad, torch.ones(8, 6))
    assert not model.training
    assert torch.equal(generator.get_state(), states[0])
    assert torch.equal(torch.get_rng_state(), states[1])


def test_a_model_inside_of_a_wrapper_stays_in_float32() -> None:
    model = Net()
    wrapper = nn.Sequential(model, nn.CrossEntropyLoss(weight=torch.ones(3)))
    _, examination = examine(model, lambda batch: wrapper[1](wrapper[0](batch[0]), batch[1]), [(ROWS, LABELS)])
    assert {tensor.dtype for tensor in wrapper.state_dict().values()} == {torch.float32}
    assert not any("refuses" in reason for reason in examination.list_reasons("apply", "failed"))


def test_standing_in_ends_with_an_error_too() -> None:
    model, other = Net(), Net()
    known = {id(part): vars(part) for part in model.modules()}

    def fail() -> None:
        with standing_in(model, other):
            assert model.head.weight is other.head.weight
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        fail()
    assert all(vars(part) is known[id(part)] for part in model.modules())


def test_what_is_no_step_is_refused_in_a_line() -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def update(batch: Any) -> Tensor:
        loss = F.cross_entropy(model(batch[0]), batch[1])
        optimizer.step()
        return loss

    def backward(batch: Any) -> Tensor:
        loss = F.cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        return loss

    steps: dict[str, Callable[[Any], Any]] = {
        "it steps an optimizer": update,
        "it calls backward": backward,
        "found float": lambda batch: model(batch[0]).mean().item(),
        r"found a tensor of shape \(32, 3\)": lambda batch: model(batch[0]),
    }
    for words, step in steps.items():
        with pytest.raises(UserError, match=f"^check: step= returns the loss of a batch.*{words}"):
            sightline.check(model, loader=(ROWS, LABELS), step=step)
    assert all(parameter.grad is None for parameter in model.parameters())


def ascend(model: nn.Module, batch: Any) -> Tensor:
    return -F.cross_entropy(model(batch["rows"]), batch["label"])


def soften(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch["rows"]).softmax(1), batch["label"])


@pytest.mark.parametrize(("run", "code"), [(ascend, "loss-direction"), (soften, "double-softmax")])
def test_a_bug_in_a_step_is_named(run: Callable[[nn.Module, Any], Tensor], code: str) -> None:
    model = Net()
    report = sightline.check(model, loader=[KEYED], step=lambda batch: run(model, batch))
    assert code in list_alarms(report)


def test_a_loss_with_weights_is_followed_in_float64() -> None:
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]))
    model = Net()
    for words in ({"loss": loss}, {"step": lambda batch: loss(model(batch[0]), batch[1])}):
        subject = make_subject(model, words.get("loss"), [(ROWS, LABELS)], None, step=words.get("step"))
        judged = {each.rule.judge.__name__: each.outcome for each in check.examine_subject(subject).judgements}
        assert "failed" not in judged.values()
        assert judged["uphill_gradient"] == "held"


def test_models_that_are_trained_together_are_each_judged_by_their_loss() -> None:
    """One loss for both, or one for each: what is found has the model's name, what both share is said once."""
    body, head = nn.Sequential(nn.Linear(6, 8), nn.Tanh()), nn.Linear(8, 3)
    models = {"body": body, "head": head}
    optimizers = [torch.optim.SGD(each.parameters(), 0.1) for each in (body, head)]

    def step(batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(head(body(batch[0])), batch[1])

    def cut(batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        return {"head": step(batch), "body": F.cross_entropy(head(body(batch[0]).detach()), batch[1])}

    batches = [(ROWS, LABELS)]
    sound = sightline.check(models, step=step, loader=batches, optimizer=optimizers)
    assert list_alarms(sound) == []
    assert sound.title == "body (Sequential), head (Linear)"
    found = sightline.check(models, step=cut, loader=batches, optimizer=optimizers).findings
    assert [each.summary.partition(":")[0] for each in found if each.code == "no-gradient"] == ["body"]
    alone = sightline.check(list(models.values()), step=step, loader=batches, optimizer=optimizers[1])
    assert [each.summary[:3] for each in alone.findings if each.code == "not-optimised"] == ["0: "]

    with pytest.raises(UserError, match=r"by the names of the models, body, head, that they train; 'head' has none"):
        sightline.check(models, step=lambda batch: {"body": step(batch)}, loader=batches)
    with pytest.raises(UserError, match=r"^check: several modules need a loader and a step"):
        sightline.check(models, F.cross_entropy, batches)


class Renamed:
    """Samples `(rows, label)` whose collate names them otherwise."""

    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return ROWS[index], int(LABELS[index])


def rename(samples: list[tuple[Tensor, int]]) -> dict[str, Tensor]:
    rows, labels = zip(*samples, strict=True)
    return {"label": torch.tensor(labels), "rows": torch.stack(rows)}


def test_samples_are_divided_as_their_collate_returns_them() -> None:
    loader: Any = DataLoader(Renamed(), 8, shuffle=True, collate_fn=rename)  # type: ignore[arg-type]
    model = Net()
    for words in ({"loss": nn.CrossEntropyLoss()}, {"step": lambda b: F.cross_entropy(model(b["rows"]), b["label"])}):
        subject = make_subject(model, words.get("loss"), list(loader), None, step=words.get("step"), loader=loader)
        judged = {each.rule.judge.__name__: each.outcome for each in check.examine_subject(subject).judgements}
        assert judged["sorted_labels"] == judged["drawn_samples"] == "held"
