"""The verdict of a check says in three lines what held, what was not judged, and what to do; nothing changes."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

import sightline
from sightline.contract.errors import UserError
from sightline.doctor.check import check_module, make_subject
from sightline.doctor.evidence import MEASUREMENTS, Evidence
from sightline.doctor.evidence.data.source import Reading
from sightline.doctor.finding import Finding, FindingLocation
from sightline.instrument.work import WorkCounter
from sightline.workbench.check.suite import all_rules
from tests.processes import ROOT

ROWS, LABELS = torch.randn(32, 6, generator=torch.Generator().manual_seed(0)), torch.arange(32) % 3
BATCH = ROWS, LABELS


def test_it_counts_what_held_and_says_which_arguments_are_missing() -> None:
    counts, not_judged, action = check_module(nn.Linear(6, 3), nn.CrossEntropyLoss(), BATCH).verdict
    assert counts.startswith("verdict: of ")
    assert counts.endswith(" held and 0 did not")
    assert not_judged.startswith(
        "  not judged: the steps of your loop, the optimizer, the evaluation data, the score of your evaluation, how "
    )
    assert action.startswith("  to judge more, give optimizer=optimizer, evaluation=test_loader, score=score, ")
    assert action.endswith("; to judge the loop, put `with sightline.watch(model):` around it")


def test_what_is_given_is_not_asked_for() -> None:
    model = nn.Linear(6, 3)
    data = TensorDataset(ROWS, LABELS)
    loaders = [DataLoader(data, 8, shuffle=True), DataLoader(TensorDataset(ROWS + 1, LABELS), 8)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = nn.CrossEntropyLoss()
    given: dict[str, Any] = {"optimizer": optimizer, "evaluation": loaders[1], "score": lambda model, loader: 1.0}
    verdict = sightline.check(model, loss, loaders[0], **given, budget_s=60.0).verdict
    assert not any(word in "".join(verdict) for word in ("optimizer", "evaluation data", "DataLoader")), verdict
    assert verdict[2] == "  to judge the loop, put `with sightline.watch(model):` around it"  # no check can


@pytest.mark.parametrize("has_step", [False, True])
@pytest.mark.parametrize("convert", [np.asarray, torch.as_tensor])
def test_targets_that_are_arrays_are_said_not_to_be_judged(convert: Callable[[Any], Any], has_step: bool) -> None:
    """A loss that takes them is asked with them as they are: no relation divides or exchanges their rows."""
    model, batch = nn.Linear(6, 3), (ROWS, convert(LABELS.numpy()))
    loss = lambda outputs, labels: nn.functional.cross_entropy(outputs, torch.as_tensor(labels))  # noqa: E731
    words: dict[str, Any] = {"step": lambda batch: loss(model(batch[0]), batch[1])} if has_step else {"loss": loss}
    _, not_judged, _ = check_module(model, loader=batch, **words).verdict
    assert ("targets that are NumPy arrays (collate them to tensors)" in not_judged) == (convert is np.asarray)


def test_a_budget_that_is_spent_is_said_in_numbers_of_relations_and_one_that_affords_all_is_named() -> None:
    spent = check_module(nn.Linear(6, 3), nn.CrossEntropyLoss(), BATCH, budget_s=0.0)
    assert re.search(r" \d+ relations for want of time", spent.verdict[1])
    (seconds,) = re.findall(r"budget_s=(\d+)", spent.verdict[2])
    whole = sightline.check(nn.Linear(6, 3), nn.CrossEntropyLoss(), BATCH, budget_s=float(seconds))
    assert "for want of time" not in whole.verdict[1]
    assert len(whole.examined.judged) > len(spent.examined.judged)


def test_more_time_is_not_asked_for_what_no_time_would_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Evidence, "affords", lambda self, names: self.count_passes(names) < 10)
    spent = check_module(nn.Linear(6, 3), nn.CrossEntropyLoss(), BATCH)
    assert re.search(
        r"  not judged: other-samples: .* \(fewer than two batches of 16 samples\)", spent.to_text(verbose=True)
    )


def test_each_relation_is_listed_where_that_is_asked_for_and_in_files(tmp_path: Path) -> None:
    report = check_module(nn.Linear(6, 3), nn.CrossEntropyLoss(), BATCH)
    short, whole = str(report), report.to_text(verbose=True)
    assert "report.to_text(verbose=True) lists all relations" in short
    assert "no-update" not in short
    assert re.search(r"\n  not judged: no-update: .* differs after its steps .* \(no optimizer was given\)\n", whole)
    for ending in ("json", "html", "txt"):
        report.save(tmp_path / f"report.{ending}")
        text = (tmp_path / f"report.{ending}").read_text()
        assert "no-update" in text
        assert "no optimizer was given" in text
    document = json.loads((tmp_path / "report.json").read_text())
    assert document["verdict"] == [*report.verdict]
    assert not {*document["judged"]} & {*document["not_judged"]}


def test_symptoms_stand_in_one_line_under_their_cause() -> None:
    texts = [f"[code-{number}] what {number}" for number in range(5)]
    finding = Finding("c", "error", "s", "model.init", FindingLocation(), "1", "2", "3", evidence={"explains": texts})
    (line,) = [line for line in str(finding).split("\n") if line.startswith("  with it: ")]
    assert line == f"  with it: {'; '.join(texts[:3])} and 2 more"


INTERNAL = {
    name
    for name in {*MEASUREMENTS} | {rule.judge.__name__ for rule in all_rules()}
    if "_" in name.strip("_") or name in ("taught", "aims", "addends", "<lambda>")
}
"""Names of measurements and of functions of rules that are no words of English which a sentence may need."""


SPEAKING = {"Fault", "Finding", "NotApplicableError", "rule"}


def list_internal(text: str) -> set[str]:
    return INTERNAL & {*re.findall(r"<lambda>|(?<![\w.])[A-Za-z]\w+", text)}


def list_texts(path: Path) -> Iterator[str]:
    """List the texts of a module from which findings and reasons are made."""
    for call in ast.walk(ast.parse(path.read_text())):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in SPEAKING:
            words = {keyword.value for keyword in call.keywords if keyword.arg not in ("evidence", "where")}
            for node in (node for part in (*call.args, *words) for node in ast.walk(part)):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


def test_no_text_of_a_rule_or_reason_says_the_name_of_an_internal() -> None:
    assert len(INTERNAL) > 150
    texts = {text for path in (ROOT / "sightline").rglob("*.py") for text in list_texts(path)}
    assert len(texts) > 1000
    assert not {text: names for text in texts if (names := list_internal(text))}


@pytest.mark.parametrize(
    ("model", "loss", "words"),
    [
        (nn.Linear(6, 3), nn.CrossEntropyLoss(), {}),
        (nn.Linear(6, 3), nn.CrossEntropyLoss(), {"budget_s": 0.0}),
        (nn.Linear(5, 3), nn.CrossEntropyLoss(), {}),
        (nn.Linear(6, 3), nn.MSELoss(), {}),
    ],
)
def test_no_report_says_the_name_of_an_internal(model: nn.Module, loss: Any, words: dict[str, Any]) -> None:
    report = check_module(model, loss, BATCH, **words)
    assert len(report.verdict) == 3
    assert list_internal(report.to_text(verbose=True)) == set()


def fail(outputs: Tensor, target: Tensor) -> Tensor:
    raise ValueError("no such unit")


def test_a_loss_that_fails_is_a_line_of_the_verdict_and_no_finding() -> None:
    report = check_module(nn.Linear(6, 3), fail, BATCH)
    assert report.findings == []
    assert report.verdict[0].endswith("loss(outputs, batch[1]) ends in ValueError: no such unit")
    assert "step=step, as your loop has it: `def step(batch): input, target = batch; return " in report.verdict[2]


def test_a_step_that_fails_is_an_error() -> None:
    model = nn.Linear(6, 3)
    report = check_module(model, loader=BATCH, step=lambda batch: fail(model(batch[0]), batch[1]))
    assert [finding.code for finding in report.findings] == ["first-step"]
    assert "ended in ValueError: no such unit" in report.verdict[1]
    assert report.verdict[2] == "  mend the first step, and check again"


class Leaking(nn.Module):
    """Network whose layers are in a plain list."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.last = [nn.Linear(6, 8)], nn.Linear(8, 3)

    def forward(self, rows: Tensor) -> Tensor:
        return self.last(self.layers[0](rows).relu())


def mean_of_columns(outputs: Tensor, target: Tensor) -> Tensor:
    return ((outputs.mean(1, keepdim=True) - target.float()) ** 2).mean()


class Edited(Dataset[Any]):
    """Data set that changes what it stores where it is read."""

    def __init__(self) -> None:
        self.rows = ROWS.clone()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        row = self.rows[index]
        row *= 0.5
        return row, LABELS[index]


@pytest.mark.parametrize(
    ("code", "model", "loss", "data", "function"),
    [
        ("unregistered", Leaking(), nn.CrossEntropyLoss(), BATCH, Leaking.forward),
        ("loss-form", nn.Linear(6, 3), mean_of_columns, BATCH, mean_of_columns),
        ("data-mutation", nn.Linear(6, 3), nn.CrossEntropyLoss(), DataLoader(Edited(), 8), Edited.__getitem__),
        (
            "data-mutation",
            nn.Linear(6, 3),
            nn.CrossEntropyLoss(),
            DataLoader(Subset(Edited(), range(24)), 8),
            Edited.__getitem__,
        ),
        (
            "double-softmax",
            nn.Sequential(nn.Linear(6, 3), nn.Softmax(dim=1)),
            nn.CrossEntropyLoss(),
            BATCH,
            None,
        ),
    ],
)
def test_a_finding_names_the_lines_of_the_program_that_it_is_about(
    code: str, model: nn.Module, loss: Any, data: Any, function: Any
) -> None:
    (finding, *_) = [each for each in check_module(model, loss, data).findings if each.code == code]
    expected = (None, None) if function is None else (__file__, function.__code__.co_firstlineno)
    assert (finding.where.file, finding.where.line) == expected, finding


def test_one_cause_is_one_finding() -> None:
    model = nn.Sequential(nn.Linear(6, 3), nn.Softmax(dim=1))
    causes = [finding.cause for finding in sightline.check(model, nn.CrossEntropyLoss(), BATCH).findings]
    assert causes.count("loss.double_softmax") == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch about torch.jit, and about itself
@pytest.mark.parametrize("fuse", [torch.jit.script, partial(torch.compile, backend="aot_eager")])
def test_a_model_that_torch_fuses_is_asked_what_it_ends_in(fuse: Callable[[nn.Module], nn.Module]) -> None:
    model = fuse(nn.Sequential(nn.Linear(6, 3), nn.Softmax(dim=1)))
    for _ in range(3):  # from its second run on one node of the graph stands for all of a scripted one
        model(ROWS)
    causes = [finding.cause for finding in sightline.check(model, nn.CrossEntropyLoss(), BATCH).findings]
    assert "loss.double_softmax" in causes


@pytest.mark.parametrize("words", [{"loader": 5}, {"loader": BATCH, "evaluation": 5}])
def test_what_is_no_batch_is_refused_in_a_line(words: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"^check: a batch is \(inputs, target\) or a mapping, .*; found 5$"):
        sightline.check(nn.Linear(6, 3), nn.CrossEntropyLoss(), **words)


def test_each_tensor_outside_of_the_model_counts() -> None:
    outside = [torch.randn(3, requires_grad=True) for _ in range(2)]

    class Shifted(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) * outside[0].exp() + outside[1]

    found = sightline.check(Shifted(6, 3), nn.CrossEntropyLoss(), BATCH).findings
    (finding,) = [each for each in found if each.code == "unregistered"]
    assert "2 tensor(s)" in str(finding)


class HalfRegistered(nn.Module):
    """Layers of which one is in a plain list, with a tensor outside; a view in the place of a transposition."""

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.hidden, self.read_scale = [nn.Linear(3, 8)], lambda: scale
        self.mixed, self.last = nn.Conv1d(8, 16, 1), nn.Linear(16, 3)

    def forward(self, points: Tensor) -> Tensor:
        rows = self.hidden[0](points) * self.read_scale()
        return self.last(self.mixed(rows.view(len(rows), 8, -1)).amax(dim=2))


def test_layers_that_nobody_registers_are_asked_in_float64_too() -> None:
    scale = torch.ones(())
    model, clouds = HalfRegistered(scale), torch.randn(32, 20, 3, generator=torch.Generator().manual_seed(0))
    before = model.hidden[0].weight.clone()
    report = sightline.check(model, nn.CrossEntropyLoss(), (clouds, LABELS))
    assert {"unregistered", "point-order"} <= {finding.code for finding in report.findings}, report
    assert "hidden[0].weight, hidden[0].bias" in str(report)
    assert "ended in" not in report.verdict[1]
    assert scale.dtype == torch.float32
    assert torch.equal(model.hidden[0].weight, before)


class Slow(nn.Module):
    """Layer whose forward pass takes 20 ms by its own clock, and as many as they are counted."""

    now_s = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, values: Tensor) -> Tensor:
        Slow.now_s += 0.02
        return self.layer(values)


def test_a_slow_network_is_asked_as_much_as_one_of_fifteen_milliseconds(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 0.3 s: 20 passes in any case, which is said beforehand; counted by their time these would be 5."""
    monkeypatch.setattr("sightline.doctor.evidence.time", SimpleNamespace(process_time=lambda: Slow.now_s))
    monkeypatch.setattr(WorkCounter, "nominal_s", 0.02)
    subject = make_subject(Slow(), nn.CrossEntropyLoss(), [BATCH], None)
    with caplog.at_level("INFO", logger="sightline"):
        hasty, patient = (Evidence({"subject": subject}, 0.3, each) for each in (False, True))
        for evidence in (hasty, patient):
            evidence.get("passed")
            evidence.seconds["gradients"] = 0.0  # six passes: the budget is spent
    assert [evidence.affords(["trial"]) for evidence in (hasty, patient)] == [False, True]  # seven passes
    assert not patient.affords(["free"])  # thirty
    assert [record.getMessage() for record in caplog.records if "may take up to" in record.getMessage()]


def measure_check(budget_s: float | None, monkeypatch: pytest.MonkeyPatch, *, rate: float = 1.0) -> tuple[float, Any]:
    """Check a network of 20 ms a pass on a machine of some speed, by a clock that passes alone move."""
    Slow.now_s = 0.0
    clock = SimpleNamespace(process_time=lambda: Slow.now_s * rate)
    for module in ("budget", "evidence"):
        monkeypatch.setattr(f"sightline.doctor.{module}.time", clock)
    report = check_module(Slow(), nn.CrossEntropyLoss(), BATCH, budget_s=budget_s)
    return Slow.now_s * rate, report.examined


def test_a_machine_of_half_the_speed_asks_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    fast, slow = (measure_check(None, monkeypatch, rate=rate) for rate in (0.01, 20.0))
    assert fast[1] == slow[1]
    assert slow[0] > 10  # more than twice the seconds of the budget: they are those of a usual processor


@pytest.mark.parametrize("budget_s", [0.2, 0.4])
def test_a_stated_budget_bounds_the_time(budget_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    spent_s, examined = measure_check(budget_s, monkeypatch)
    assert budget_s / 4 < spent_s <= 1.25 * budget_s + 0.06
    assert [reason for reason in examined.not_judged.values() if "of processor time" in reason]


class Attending(nn.Module):
    """Attention over a sequence that sees later steps; no position is filled up."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.query, self.last = nn.Embedding(12, 8), nn.Linear(8, 8), nn.Linear(8, 12)

    def forward(self, tokens: Tensor) -> Tensor:
        rows = self.table(tokens)
        weights = (self.query(rows) @ rows.transpose(1, 2)).softmax(dim=-1)
        return self.last(weights @ rows).transpose(1, 2)


def test_each_rule_of_a_code_is_named_by_what_holds() -> None:
    """One of the three rules of attention was asked: the others are not said to hold with it."""
    tokens = torch.randint(1, 12, (16, 6), generator=torch.Generator().manual_seed(0))
    labels = torch.randint(12, (16, 6), generator=torch.Generator().manual_seed(1))
    examined = check_module(Attending(), nn.CrossEntropyLoss(), (tokens, labels)).examined
    judged, others = (
        [name for name in names if name.startswith("attention: ")] for names in (examined.judged, examined.not_judged)
    )
    assert [name.split()[1:5] for name in judged] == [["weights", "of", "a", "softmax"]]
    assert {examined.not_judged[name] for name in others} == {"the target is not the next input", "no padded rows"}


def test_two_relations_of_a_code_have_other_words() -> None:
    relations = [rule.relation for rule in all_rules() if rule.judge.__module__.startswith("sightline.doctor")]
    twice = {name for name in relations if relations.count(name) > 1}
    assert {name.partition(":")[0] for name in twice} == {"initial-loss"}  # of a loss alone, and of a network


def test_what_could_not_be_asked_is_no_other_kind_of_program() -> None:
    """A loss of several samples and of one: the verdict says that there are too few, and not that there are none."""
    few = check_module(nn.Linear(6, 3), nn.CrossEntropyLoss(), (ROWS[:1], LABELS[:1])).verdict[1]
    found = re.search(r", (\d+) relations left out \((.+)\), (\d+) relations of other kinds of programs$", few)
    assert found, few
    assert int(found[1]) > 3
    assert "fewer than" in found[2]


@pytest.mark.parametrize("budget_s", ["4", -1.0, float("nan")])
def test_a_budget_that_is_none_is_refused_in_a_line(budget_s: Any) -> None:
    with pytest.raises(UserError, match=r"^check: budget_s: found .*, allowed are seconds, 0 or more$"):
        sightline.check(nn.Linear(6, 3), nn.CrossEntropyLoss(), BATCH, budget_s=budget_s)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (partial(sightline.check, loader=BATCH, step=5), "check: step is a function of one batch"),
        (partial(sightline.watch, loader=[BATCH], step=5), "watch: step is a function of one batch"),
        (partial(sightline.watch, step=lambda batch: batch), "watch: `step` is asked with batches of `loader`"),
        (partial(sightline.check, loss=nn.CrossEntropyLoss(), loader=BATCH, evaluation=[]), "evaluation has no batch"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_a_line(call: Callable[..., Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        call(nn.Linear(6, 3))


def watch_loop(**given: Any) -> Any:
    model = nn.Linear(6, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with sightline.watch(
        model, **{name: value(model) if name == "step" else value for name, value in given.items()}
    ) as watch:
        for _ in range(4):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(ROWS), LABELS).backward()
            optimizer.step()
    return watch.report


def test_a_step_of_watch_that_fails_is_an_error() -> None:
    report = watch_loop(loader=[BATCH], step=lambda model: lambda batch: 1 / 0)
    assert "first-step" in [finding.code for finding in report.findings]


def test_what_a_slow_set_left_out_is_said_by_watch_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reading, "MAX_READING_S", 0.0)
    loaders = [DataLoader(TensorDataset(rows, LABELS), 8) for rows in (ROWS, ROWS + 0.1)]
    step = lambda model: lambda batch: nn.functional.cross_entropy(model(batch[0]), batch[1])  # noqa: E731
    report = watch_loop(loader=loaders[0], evaluation=loaders[1], step=step)
    assert re.search(r" of 32 samples, .*slow to read", report.verdict[1]), report.verdict
