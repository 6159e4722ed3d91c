"""The table of cases: every bug that is planted for the doctor, and every correct subject that must raise nothing."""

from __future__ import annotations

import importlib.util
import inspect
import itertools
import os
import re
import runpy
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sightline
from sightline.engine.distributed import World
from sightline.workbench.check.suite import run_all
from tests.doctor import own_losses, own_network_bugs
from tests.doctor.broken_sets import BROKEN
from tests.doctor.observing import observe
from tests.doctor.oracle_slips import ORACLES
from tests.doctor.own_networks import HEALTHY as OWN_NETWORKS
from tests.doctor.own_networks import findings_of
from tests.doctor.plain_slips import LOOPS as SLIPS
from tests.doctor.plain_slips import MODULES as MODULE_SLIPS
from tests.doctor.programs import PROGRAMS
from tests.doctor.programs.asking import WAYS, is_asked
from tests.doctor.row import Row
from tests.doctor.rows import (
    adversaries,
    alarms,
    averaged,
    data,
    drawn,
    latents,
    lengths,
    losses,
    noise,
    resumes,
    run,
    scores,
    sound,
)
from tests.doctor.rows import model as models
from tests.planted.catalog import FAULTS, HEALTHY, FaultCase, HealthyCase
from tests.planted.trial import make_alarms, run_case
from tests.runtime import (
    blind_loaders,
    blind_loops,
    blind_losses,
    geometry_losses,
    healthy_loops,
    methods,
    mirrored_loaders,
    odd_modules,
    places,
    planted_loops,
    reviewed_programs,
    robust_loops,
    robust_modules,
)
from tests.runtime import odd_healthy_loops as odd

SHARED = Path(os.environ.get("SIGHTLINE_SHARED", Path(__file__).resolve().parents[3] / "shared"))
EXAMS = SHARED / "exams"
SCRIPTS = tuple(Path(__file__).parent / name for name in ("reports", "reports2", "ordinary"))
"""Folders of scripts that have both forms, and stand here."""
Subject = Callable[[int], object]
"""Runs with a seed, and calls `sightline.check` and `sightline.watch` as a user would."""


_UNNAMED = ("ema", "scheduler")
"""Arguments of `watch` that scripts of others do not get: it finds an average and a schedule in the program itself."""


def _make_row(kind: str, name: str, subject: Subject, **more: Any) -> Row:
    name = re.sub(r"[^\w:/]+", "_", name).strip("_")
    without = _UNNAMED if kind == "script" else ()
    return Row(id=f"{kind}/{name}", kind=kind, run=lambda seed, known: observe(lambda: subject(seed), without), **more)


def _make_pair(
    kind: str, name: str, subject: Callable[[bool, int], object], causes: Iterable[str], family: str = ""
) -> list[Row]:
    """Make rows of a subject with its bug and without."""
    bug = _make_row(kind, name, partial(subject, True), causes=tuple(causes), family=family, has_bug=True)
    healthy = _make_row(kind, f"{name}:ok", partial(subject, False), family=bug.family)
    return [healthy, _make_row(kind, name, partial(subject, True), **_describe(bug), twin=healthy.id)]


def _describe(row: Row) -> dict[str, Any]:
    return {"causes": row.causes, "family": row.family, "has_bug": row.has_bug}


# --- runs of configs --------------------------------------------------------------------------------------------------


def _list_runs() -> Iterator[Row]:
    for case in HEALTHY:
        yield Row(id=case.id, kind="run", run=_bind(case), family="run", title=case.title)
    for case in FAULTS:
        more: dict[str, Any] = {"causes": (case.cause,), "names": case.names, "twin": case.bench}
        yield Row(id=case.id, kind="run", run=_bind(case), has_bug=True, title=case.title, **more)
    for name, plant in {**own_losses.FAULTS, **own_losses.HEALTHY}.items():
        if name.endswith("times a constant"):
            continue  # by 100, at the same rate: a correct loss, but a warning of the updates' size is right
        yield _make_checked("own_losses", name, partial(_check_loss, plant), plant.cause)
    for name, (_, cause, make_run) in BROKEN.items():
        yield _make_checked("broken_sets", name, partial(_check_broken, make_run), cause)
    for cause, networks in own_network_bugs.BUGS.items():
        for name, network in networks.items():
            is_deep = any(words in name for words in own_network_bugs.DEEP)
            judge = partial(_check_network, name.partition(":")[0], network, is_deep)
            yield _make_checked("own_networks", name, judge, cause)
    for task, model in OWN_NETWORKS.items():
        yield _make_checked("own_networks", f"{task}: correct", partial(_check_network, task, model, True), "")


def _bind(case: HealthyCase | FaultCase) -> Callable[..., Any]:
    return lambda seed, known: run_case(case, seed=seed, known=known)


def _make_checked(source: str, name: str, judge: Callable[[int], Sequence[Any]], cause: str) -> Row:
    """Make the row of a run that is checked, and not trained."""
    more: dict[str, Any] = {"causes": (cause,)} if cause else {"family": "run"}
    name = re.sub(r"\W+", "_", name)
    run = lambda seed, known: tuple(make_alarms("check", judge(seed)))  # noqa: E731
    return Row(id=f"run/{source}/{name}", kind="run", run=run, has_bug=bool(cause), **more)


def _check_loss(plant: Any, seed: int) -> Sequence[Any]:
    with tempfile.TemporaryDirectory() as folder:
        return own_losses.findings_with(plant, Path(folder), seed)


def _check_broken(make_run: Callable[[Path], Any], seed: int) -> Sequence[Any]:
    with tempfile.TemporaryDirectory() as folder:
        return run_all(make_run(Path(folder)), World())


def _check_network(task: str, model: type[nn.Module], deep: bool, seed: int) -> Sequence[Any]:
    return findings_of(task, model, seed=seed, deep=deep)


# --- modules, checked -------------------------------------------------------------------------------------------------


def _check(make: Callable[[], Any], seed: int, *, has_optimizer: bool = False) -> None:
    """Check a model, a loss and a batch or loader as a user would."""
    subject = make()
    options = {"optimizer": torch.optim.Adam(subject[0].parameters(), lr=1e-3)} if has_optimizer else {}
    sightline.check(*subject[:3], **options, **dict(*subject[3:]))


def _check_pair(make: Callable[[bool], Any], bug: bool, seed: int) -> None:
    _check(lambda: make(bug), seed)


def _list_modules() -> Iterator[Row]:
    for family in (alarms, data, latents, lengths, losses, models, noise, scores):
        for name, (causes, make) in family.CASES.items():
            name = f"{family.__name__.rpartition('.')[2]}/{name}"
            yield from _make_pair("module", name, partial(_check_pair, make), causes.split())
    named = {make.__name__: (cause, make) for cause, makes in blind_losses.LOSSES.items() for make in makes}
    for name, (causes, make) in {**named, **odd_modules.PAIRS}.items():
        yield from _make_pair("module", name, partial(_check_pair, make), causes.split())
    for name, (causes, make) in odd_modules.SIGNS.items():
        yield _make_row("module", f"odd/{name}", partial(_check, make), causes=(causes,), has_bug=True)
    for name, case in places.ORDERS.items():
        yield from _make_pair("module", f"places/{name}", partial(_check_pair, case), ["data.layout"], "positions")
    for name, (pair, causes) in MODULE_SLIPS.items():
        yield from _make_pair("module", name, pair, causes.split())
    for name, (cause, make) in geometry_losses.PLANTED.items():
        yield _make_row("module", f"geometry/{name}", partial(_check, make), causes=(cause,), has_bug=True)
    correct: dict[str, Mapping[str, Callable[[], Any]]] = {
        "healthy": {make.__name__: make for make in blind_losses.HEALTHY_LOSSES},
        "geometry": geometry_losses.CORRECT,
        "odd": odd_modules.HEALTHY,
        "reviewed": reviewed_programs.PROGRAMS,
        "robust": robust_modules.PROGRAMS,
        "scored": scores.HEALTHY,
        "sound": sound.MODULES,
        "noise": noise.HEALTHY,
        "latents": latents.HEALTHY,
        "alarms": alarms.HEALTHY,
    }
    for source, makes in correct.items():
        for name, make in makes.items():
            subject = partial(_check, make, has_optimizer=source in ("reviewed", "robust", "sound"))
            yield _make_row("module", f"{source}/{name}", subject, family="predictions")


# --- loops, watched ---------------------------------------------------------------------------------------------------


def _train_twice(make: Callable[[], Any], seed: int) -> None:
    """Take two steps with a batch, watched."""
    model, loss, (inputs, target) = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with sightline.watch(model, optimizer=optimizer):
        for _ in range(2):
            optimizer.zero_grad()
            loss(model(inputs), target).backward()
            optimizer.step()


def _fit_to(inputs: Tensor, target: Tensor) -> tuple[nn.Module, Any]:
    """Make a network from inputs to targets of these shapes, of fewer than 49 classes, and its loss."""
    if not target.is_floating_point() and target.shape[1:] == inputs.shape[2:] != ():
        return nn.Conv2d(inputs.shape[1], 8, 3, padding=1), F.cross_entropy
    if inputs.ndim == target.ndim == 4 and target.shape[2:] == inputs.shape[2:]:
        return nn.Conv2d(inputs.shape[1], target.shape[1], 5, padding=2), F.mse_loss
    if not target.is_floating_point() and target.ndim == 1:
        return nn.Sequential(nn.Flatten(), nn.Linear(inputs[0].numel(), 48)), F.cross_entropy
    shape = target.shape[1:] or (1,)
    layers = nn.Flatten(), nn.Linear(inputs[0].numel(), target[0].numel()), nn.Unflatten(1, shape)
    return nn.Sequential(*layers), lambda outputs, wanted: F.mse_loss(outputs, wanted.view(-1, *shape).to(outputs))


def _train_on(make: Callable[[int], Any], seed: int) -> None:
    """Check a loader beside a small network, and train an epoch of it, watched."""
    loader = make(seed)
    inputs, target = next(iter(loader))
    model, loss = _fit_to(inputs, target)
    model.to(inputs.dtype)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    sightline.check(model, loss, loader, optimizer=optimizer)
    with sightline.watch(model, optimizer=optimizer):
        for inputs, target in itertools.islice(loader, 12):
            optimizer.zero_grad()
            loss(model(inputs), target).backward()
            optimizer.step()


def _watch_program(make: Callable[[], Any], seed: int) -> None:
    program = make()
    with sightline.watch(program.models, optimizer=program.optimizers):
        program.train()


_ODD: dict[str, tuple[Callable[[bool], object], str]] = {
    "gradients of another loss": (lambda bug: odd.play(clears=not bug), "optim.grad_accumulation"),
    "statistics of a frozen part": (lambda bug: odd.fine_tune(holds=not bug), "model.norm_mode"),
    "a rate as a factor": (lambda bug: odd.schedule(is_factor=not bug), "optim.scheduler"),
    "weights in bfloat16": (lambda bug: odd.compute_shortly(keeps_weights=not bug), "model.numerics"),
}


def _list_loops() -> Iterator[Row]:
    families = {"run": run.LOOPS | adversaries.LOOPS, "resumes": resumes.LOOPS, "drawn": drawn.LOOPS}
    for source, cases in {**families, "averaged": averaged.LOOPS, "alarms": alarms.LOOPS}.items():
        for name, (causes, loop) in cases.items():
            pair = lambda bug, seed, loop=loop: loop(bug)  # noqa: E731
            yield from _make_pair("loop", f"{source}/{name}", pair, causes.split())
    for name, (cause, loop) in blind_loops.LOOPS.items():
        yield from _make_pair("loop", name, lambda bug, seed, loop=loop: loop(bug), [cause])
    for name, (causes, loop) in methods.PAIRS.items():
        yield from _make_pair("loop", f"methods/{name}", lambda bug, seed, loop=loop: loop(bug), causes.split())
    for name, (odd_run, cause) in _ODD.items():
        yield from _make_pair("loop", f"odd/{name}", lambda bug, seed, run=odd_run: run(bug), [cause])
    for name, (pair, causes) in SLIPS.items():
        yield from _make_pair("loop", name, pair, causes.split())
    for make, cause in ((make, cause) for cause, makes in blind_losses.LOSSES.items() for make in makes):
        steps = lambda bug, seed, make=make: _train_twice(lambda: make(bug), seed)  # noqa: E731
        yield from _make_pair("loop", f"losses/{make.__name__}", steps, [cause])
    for loader, cause in ((loader, cause) for cause, loaders in blind_loaders.LOADERS.items() for loader in loaders):
        epoch = lambda bug, seed, loader=loader: _train_on(lambda seed: loader(bug), seed)  # noqa: E731
        yield from _make_pair("loop", f"loaders/{loader.__name__}", epoch, [cause])
    for name, (mirrored, coin) in mirrored_loaders.PLANTED.items():
        make = lambda bug, seed, make=mirrored, coin=coin: _train_on(partial(make, coin=coin, bug=bug), seed)  # noqa: E731
        yield from _make_pair("loop", f"mirrored/{name}", make, ["data.augment_target_mismatch"])
    for name, plant in planted_loops.PLANTS.items():
        more: dict[str, Any] = {"causes": (plant.cause,), "has_bug": True, "twin": "loop/healthy/plain"}
        yield _make_row("loop", f"planted/{name}", lambda seed, plant=plant: plant.run(), **more)
    for name, (cause, make) in geometry_losses.PLANTED.items():
        yield _make_row("loop", f"geometry/{name}", partial(_train_twice, make), causes=(cause,), has_bug=True)
    yield from _list_correct_loops()


def _list_correct_loops() -> Iterator[Row]:
    alone: dict[str, Mapping[str, Callable[[], object]]] = {
        "healthy": healthy_loops.LOOPS,
        "blind": blind_loops.HEALTHY_LOOPS,
        "odd": odd.LOOPS,
        "methods": methods.HEALTHY,
        "sound": sound.LOOPS,
        "alarms": alarms.HEALTHY_LOOPS,
        "latents": latents.LOOPS,
        "resumes": resumes.HEALTHY,
        "drawn": drawn.HEALTHY,
        "averaged": averaged.HEALTHY,
    }
    subjects: dict[str, Subject] = {
        f"{source}/{name}": lambda seed, run=run: run()  # type: ignore[misc]
        for source, runs in alone.items()
        for name, run in runs.items()
    }
    subjects |= {f"losses/{make.__name__}": partial(_train_twice, make) for make in blind_losses.HEALTHY_LOSSES}
    subjects |= {f"geometry/{name}": partial(_train_twice, make) for name, make in geometry_losses.CORRECT.items()}
    subjects |= {f"robust/{name}": partial(_watch_program, make) for name, make in robust_loops.LOOPS.items()}
    loaders = {make.__name__: lambda seed, make=make: make() for make in blind_loaders.HEALTHY_LOADERS}
    known = {name: make for name, make in mirrored_loaders.HEALTHY.items() if not name.endswith(", right")}
    subjects |= {f"loaders/{name}": partial(_train_on, make) for name, make in {**loaders, **known}.items()}
    for name, subject in subjects.items():
        family = "reading" if name.startswith("loaders") else "run"
        yield _make_row("loop", name, subject, family=family)


# --- wrong backward passes --------------------------------------------------------------------------------------------


def _list_oracles() -> Iterator[Row]:
    for name, make in ORACLES.items():
        pair = partial(_check_pair, make)
        if "right" in inspect.signature(make).parameters:
            yield _make_row(
                "oracle", name, lambda seed, make=make: _check(lambda: make(right=True), seed), family="oracles"
            )
        else:
            yield from _make_pair("oracle", name, pair, ["model.numerics"], "oracles")


# --- scripts of others ------------------------------------------------------------------------------------------------


def _run_main(path: Path, has_bug: bool, seed: int) -> None:
    """Run a form of a script."""
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    script = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    run = script.run if path.parent.name == "first" else script.main
    run(has_bug, sightline.watch, sightline.check)


def _run_public(path: Path, seed: int) -> None:
    with mock.patch.dict(os.environ, SL="1"):
        runpy.run_path(str(path), run_name="__main__")


def _ask_script(path: Path, seed: int) -> None:
    """Check the names that a script without a call of the package has, then train it watched."""
    script = runpy.run_path(str(path))
    model, loss, loader = (script.get(name) for name in ("model", "loss_fn", "train_loader"))
    optimizer = {"optimizer": script["optimizer"]} if "optimizer" in script else {}
    sightline.check(model, loss, loader, **optimizer, evaluation=script.get("test_loader"))
    with sightline.watch(model, **optimizer):
        script["train"]()


class Answer(NamedTuple):
    """What counts as named of a script: any of the causes; with words, a finding must have one of these."""

    causes: tuple[str, ...] = ()
    words: tuple[str, ...] = ()


def read_answers() -> dict[str, Answer]:
    """Read what counts as named of each script, by its exam and the word before the first underscore."""
    lines = (Path(__file__).parent / "scripts.txt").read_text(encoding="utf-8").splitlines()
    answers = {}
    for line in lines:
        if line and not line.startswith("#"):
            head, _, words = line.partition(" | ")
            name, *causes = head.split()
            answers[name] = Answer(tuple(causes), tuple(words.split(", ")) if words else ())
    return answers


def _list_scripts() -> Iterator[Row]:
    answers = read_answers()
    for path in sorted((EXAMS / "blind").glob("*/*.py")):
        name = f"{path.parent.name}/{path.stem}"
        if path.stem.startswith("b"):
            yield _make_row("script", name, partial(_run_main, path, False), family="run")
        else:
            known = answers.get(f"{path.parent.name}/{path.stem.partition('_')[0]}", Answer()).causes
            yield from _make_pair("script", name, partial(_run_main, path), known, "" if known else "run")
    for path in sorted((EXAMS / "public").glob("*_ok.py")):
        yield _make_row("script", f"public/{path.stem}", partial(_run_public, path), family="run")
    for path in sorted((EXAMS / "public").glob("*_bug.py")):
        number = path.stem.partition("_")[0]
        twin = {"23": "22"}.get(number, number)
        more: dict[str, Any] = {"causes": answers[f"public/{number}"].causes, "has_bug": True}
        yield _make_row(
            "script", f"public/{path.stem}", partial(_run_public, path), twin=f"script/public/{twin}_ok", **more
        )
    yield from _list_plain_scripts(answers)
    for path in (path for folder in SCRIPTS for path in sorted(folder.glob("[!_]*.py"))):
        known = answers.get(f"{path.parent.name}/{path.stem.partition('_')[0]}", Answer()).causes
        name = f"{path.parent.name}/{path.stem}"
        yield from _make_pair("script", name, partial(_run_main, path), known, "" if known else "run")


def _list_plain_scripts(answers: Mapping[str, Answer]) -> Iterator[Row]:
    """List the scripts without a call of the package, and three that end with one."""
    for path in sorted((EXAMS / "public2").glob("*_ok.py")):
        yield _make_row("script", f"public2/{path.stem}", partial(_ask_script, path), family="run")
    for path in sorted((EXAMS / "public2").glob("*_bug.py")):
        number = path.stem.partition("_")[0]
        more: dict[str, Any] = {**answers[f"public2/{number}"]._asdict(), "has_bug": True}
        twin = f"script/public2/{number}_ok"
        yield _make_row("script", f"public2/{path.stem}", partial(_ask_script, path), twin=twin, **more)
    for path in sorted((EXAMS / "public2").glob("r*_*.py")):
        number = path.stem.partition("_")[0]
        if number.removeprefix("r").isdecimal():
            answer = answers.get(f"public2/{number}")
            more = {"family": "run"} if answer is None else {**answer._asdict(), "has_bug": True}
            yield _make_row("script", f"public2/{path.stem}", partial(_run_public, path), **more)


# --- correct programs as projects write them --------------------------------------------------------------------------


def _ask_program(name: str, way: str, seed: int) -> None:
    WAYS[way](PROGRAMS[name]())


def _list_programs() -> Iterator[Row]:
    for name, make in PROGRAMS.items():
        program = make()
        for way in (way for way in WAYS if is_asked(way, program)):
            yield _make_row("program", f"{name}/{way}", partial(_ask_program, name, way), family="run")


ROWS: tuple[Row, ...] = (
    *(*_list_runs(), *_list_modules(), *_list_loops(), *_list_oracles(), *_list_scripts(), *_list_programs()),
)
BY_ID: Mapping[str, Row] = {row.id: row for row in ROWS}
