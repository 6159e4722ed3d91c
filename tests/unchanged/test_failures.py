"""No failure leaves `watch`: a loop goes on with the same bits, and the verdict says in a line what is not judged."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import sightline
from sightline.contract.errors import UserError
from sightline.doctor.budget import Budget
from sightline.doctor.watch import loop as loop_room
from sightline.doctor.watch import watch as watch_room
from sightline.doctor.watch.loop import Loop, OptimizerTrack
from sightline.doctor.watch.trace_monitor import TraceMonitor
from sightline.doctor.watch.watch import Watch
from tests.unchanged.forms import Net
from tests.unchanged.modes import digest

ROWS = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))
PAIR = ROWS, ROWS[:, :3].argmax(dim=1)


def train(open_context: Callable[..., Any] | None, model: nn.Module | None = None) -> tuple[str, Any]:
    """Train with a scaler, a load and an evaluation, so that each event happens; return a digest and the watch."""
    torch.manual_seed(0)
    model = model or Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cpu")
    loader = DataLoader(TensorDataset(*PAIR), 8)
    left: list[Any] = [model, optimizer]

    def run() -> None:
        for _ in range(2):
            for rows, label in loader:
                optimizer.zero_grad()
                scaler.scale(F.cross_entropy(_read(model(rows)), label)).backward()
                scaler.unscale_(optimizer)
                scaler.step(optimizer)
                scaler.update()
            model.load_state_dict({name: tensor.clone() for name, tensor in model.state_dict().items()})
            with torch.no_grad():
                left.extend(_read(model.eval()(rows)) for rows, _ in loader)
            model.train()

    watch = None if open_context is None else open_context(model, optimizer, loader)
    if watch is None:
        run()
    else:
        with watch:
            run()
        str(watch.report)
    return digest([*left, torch.get_rng_state()]), watch


def _read(outputs: Any) -> Tensor:
    return outputs if isinstance(outputs, Tensor) else outputs.logits


def watch_with_all(model: nn.Module, optimizer: Any, loader: Any) -> Any:
    return sightline.watch(model, optimizer=optimizer, loss=F.cross_entropy, loader=loader, evaluation=loader)


def watch_alone(model: nn.Module, optimizer: Any, loader: Any) -> Any:
    return sightline.watch(model, optimizer=optimizer)


def watch_average(model: nn.Module, optimizer: Any, loader: Any) -> Any:
    return sightline.watch(model, optimizer=optimizer, ema=model)


def fail(*_: Any, **__: Any) -> Any:
    raise ZeroDivisionError("planted")


PARTS: list[tuple[Any, str]] = [
    *((Watch, name) for name in ("_begin", "_check", "_begin_forward", "_begin_part", "_end_forward")),
    *((Watch, name) for name in ("_before_load", "_before_backward", "_after_backward", "_before_unscaling")),
    *((Watch, name) for name in ("_before_update", "_after_update", "_digest", "take", "_stop_recording")),
    *((Loop, name) for name in ("track", "choose_step", "keep_loss", "place", "parameters", "modules")),
    *((OptimizerTrack, name) for name in ("__post_init__", "read_rate", "marks", "end_update", "measure_small")),
    *((TraceMonitor, name) for name in ("follow", "_begin_epoch", "_keep_classes", "write_verdict", "_examine")),
    *((watch_room, name) for name in ("hang", "hide_hooks", "observe_backward", "find_obstacle", "examine_models")),
    *((watch_room, name) for name in ("trace_calls", "start_monitor", "prepare_search")),
    *((loop_room, name) for name in ("find_program_line", "stack_numbers", "has_slices", "run_unseen")),
]


_OF_CHECKS = ("_check", "examine_models", "find_obstacle")
"""Parts that only a watch with a loss and loaders has."""


@pytest.fixture(scope="module")
def plain_digest() -> str:
    return train(None)[0]


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(watch_room, "examine_models", partial(watch_room.examine_models, budget=Budget(0.0)))


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize(("owner", "name"), PARTS, ids=[name for _, name in PARTS])
def test_a_part_that_fails_is_said(owner: Any, name: str, plain_digest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner, name, fail)
    watched, watch = train(watch_with_all if name in _OF_CHECKS else watch_alone)
    assert watched == plain_digest
    assert torch._C._len_torch_function_stack() == 0
    text = str(watch.report)
    if name not in ("prepare_search", "take", "find_user_line", "place"):  # of findings alone
        assert "ZeroDivisionError: planted" in text


def test_nothing_is_said_of_a_loop_whose_updates_are_not_seen(
    plain_digest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Watch, "_after_update", fail)
    watched, watch = train(watch_average)
    assert watched == plain_digest
    assert watch.findings == []
    assert "updates: ZeroDivisionError: planted" in str(watch.report)


class Refusing(torch.optim.SGD):
    """Optimiser whose first step raises an error, as one does that cannot reach another process."""

    num_steps = 0

    def step(self, closure: Any = None) -> Any:
        self.num_steps += 1
        if self.num_steps == 1:
            raise ConnectionError("planted")
        return super().step(closure)


@pytest.mark.parametrize("forgets", [False, True])
def test_a_step_that_raises_is_no_step_of_which_later_ones_are_a_part(forgets: bool) -> None:
    """The loop goes on without it: bits and findings are those of other loops, and a bug of a later step is found."""

    def run(watched: bool) -> tuple[str, Any]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
        optimizer = Refusing(model.parameters(), lr=0.1)
        watch = sightline.watch(model, optimizer=optimizer) if watched else nullcontext()
        with watch:
            for _ in range(12):
                rows = torch.randn(16, 6)
                if not forgets:
                    optimizer.zero_grad()
                F.cross_entropy(model(rows), rows[:, :3].argmax(dim=1)).backward()
                with suppress(ConnectionError):
                    optimizer.step()
        return digest([model, optimizer, torch.get_rng_state()]), watch

    (plain, _), (watched, watch) = run(False), run(True)
    assert watched == plain
    assert [finding.code for finding in watch.findings] == ["gradients-kept"] * forgets
    assert "updates 11" in watch.report.summary


def test_a_log_that_fails_ends_nothing(plain_digest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            fail()

    handler, logger = Failing(), logging.getLogger("sightline")
    logger.addHandler(handler)
    logger.setLevel(logging.NOTSET)
    monkeypatch.setattr(Watch, "_before_load", fail)
    try:
        assert train(watch_alone)[0] == plain_digest
    finally:
        logger.removeHandler(handler)


# --- programs that cannot be read -------------------------------------------------------------------------------------


class Failing:
    """Loader whose first batch is an error."""

    def __iter__(self) -> Any:
        raise OSError("no such disk")


class Uncopied(Net):
    def __init__(self) -> None:
        super().__init__()
        self.rows = (each for each in ROWS)


@dataclasses.dataclass
class Outputs:
    logits: Tensor

    @property
    def probabilities(self) -> Tensor:
        return fail()


class OfObjects(Net):
    def forward(self, rows: Tensor) -> Any:
        return Outputs(super().forward(rows))


class OfProperties(Net):
    @property
    def size(self) -> int:
        return fail()


PROGRAMS: dict[str, tuple[Any, Any, Any]] = {
    "a loader that fails": (Net, F.cross_entropy, Failing()),
    "no batch": (Net, F.cross_entropy, []),
    "a batch of one": (Net, F.cross_entropy, [(ROWS,)]),
    "an empty tuple": (Net, F.cross_entropy, [()]),
    "texts": (Net, F.cross_entropy, ["a", "b"]),
    "numbers": (Net, F.cross_entropy, [1, 2]),
    "objects": (Net, F.cross_entropy, [object()]),
    "a loss that fails": (Net, fail, [PAIR]),
    "a loss of three": (Net, lambda a, b, c: a.sum(), [PAIR]),
    "a loss without a gradient": (Net, lambda a, b: 0.0, [PAIR]),
    "a model without a copy": (Uncopied, F.cross_entropy, [PAIR]),
    "outputs of a class": (OfObjects, F.cross_entropy, [PAIR]),
    "a property that fails": (OfProperties, F.cross_entropy, [PAIR]),
    "an empty set": (Net, F.cross_entropy, DataLoader(TensorDataset(*(each[:0] for each in PAIR)), 8)),
}


_JUDGED = ("a property that fails", "a model without a copy")
"""Programs that are judged all the same: a copy shares what cannot be copied."""


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_that_cannot_be_read_goes_on(name: str) -> None:
    make, loss, loader = PROGRAMS[name]
    torch.manual_seed(0)
    plain, _ = train(None, make())
    torch.manual_seed(0)
    options = {"loss": loss, "loader": loader, "evaluation": loader}
    watched, watch = train(lambda model, optimizer, _: sightline.watch(model, optimizer=optimizer, **options), make())
    assert watched == plain
    is_said = any("not judged: " in line for line in watch.report.verdict)
    assert is_said or watch.findings or name in _JUDGED


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": 3},
        {"loss": F.cross_entropy, "loader": 5},
        {"loss": F.cross_entropy, "loader": [PAIR], "evaluation": 5},
        {"declared": "same-batch"},
    ],
)
def test_wrong_arguments_are_refused_at_once(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"^watch: "):
        sightline.watch(Net(), **options)
