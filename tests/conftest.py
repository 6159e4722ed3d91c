"""Fixtures that every room's tests share."""

from __future__ import annotations

import ctypes
import functools
import gc
import itertools
import os
import sys
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

# Before torch is imported, here and in the commands that tests start: two workers whose threads wait for one another on
# two cores take twice as long. Tests of threads set their number themselves.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from tests.marks import list_long_cases
from tests.processes import skip_sync
from tests.tree_digest import order_by_digest
from tests.whole_run import WholeRun

ROOT = Path(__file__).resolve().parents[1]
_COMPILED: set[str] = set()
"""Kernels that workers compiled, in the words of tests/kernels.txt."""
_GARBAGE = (10_000, 10, 10)
"""Python's own, with ten thousand objects in place of 700: searching took a fifteenth of the time of small tests."""


_TIMED = ("doctor.budget", "doctor.evidence", "doctor.evidence.data.source", "workbench.check.key_rules")
_COMPUTING = ("layer_rules", "sample_statistics")
"""Modules that end what they measure by processor time."""


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(WholeRun(config), "whole_run")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported and collected is never garbage; searching it takes a third of the time, here and in tests."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(*_GARBAGE)
        gc.enable()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--third", action="store_true", help="a third of the files, which the digest of the package draws")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests of tests/long_cases.txt as long, before those that are not asked for are left out."""
    if config.option.third:
        files = {item.nodeid.partition("::")[0] for item in items}
        drawn = set(order_by_digest(files)[: len(files) // 3])
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid.partition("::")[0] not in drawn])
        items[:] = [item for item in items if item.nodeid.partition("::")[0] in drawn]
    long = list_long_cases()
    for item in items:
        if item.nodeid.removeprefix("tests/") in long:
            item.add_marker(pytest.mark.long)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Pass on which kernels a worker compiled: it waited for them, and its neighbour perhaps for the same ones."""
    if hasattr(session.config, "workeroutput"):
        from tools.compile_kernels import list_compiled

        session.config.workeroutput["compiled"] = list_compiled()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    _COMPILED.update(getattr(node, "workeroutput", {}).get("compiled", ()))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the kernels that `make test` would not compile before its workers begin."""
    new = sorted(_COMPILED - set((ROOT / "tests" / "kernels.txt").read_text().splitlines()))
    if new:
        terminalreporter.write_sep("=", "compiled in a worker and not in tests/kernels.txt")
        terminalreporter.write_line("\n".join(new))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real samples and golden numbers beside the project."""
    path = Path(os.environ.get("SIGHTLINE_SHARED", ROOT.parent / "shared"))
    if not (path / "data").is_dir():
        pytest.skip(f"the real samples are not at {path}; set SIGHTLINE_SHARED to the folder that holds them")
    return path


@pytest.fixture(autouse=True)
def _deterministic() -> None:
    """Every test starts from the same random state and uses deterministic algorithms."""
    torch.default_generator.manual_seed(0)  # `torch.manual_seed` also notes its call for devices that there are not
    torch.use_deterministic_algorithms(True)


class _Clock:
    """Clock of processor time by which all that happens between two looks takes a tenth of a millisecond."""

    perf_counter = staticmethod(time.perf_counter)

    def __init__(self) -> None:
        self.process_time = self.thread_time = self.compute_seconds = itertools.count(0.0, 1e-4).__next__


@pytest.fixture(scope="session", autouse=True)
def _no_machine_is_slow(pytestconfig: pytest.Config) -> Iterator[None]:
    """What checks ask is the same on all machines; in long tests the processor's time decides, as it does for users."""
    if pytestconfig.option.markexpr != "not long":
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        clock = _Clock()
        for name in _TIMED:
            patch.setattr(f"sightline.{name}.time", clock)
        for name in _COMPUTING:
            patch.setattr(f"sightline.workbench.check.{name}.compute_seconds", _Clock().compute_seconds)
        yield


@pytest.fixture(scope="session", autouse=True)
def _quick_sync() -> Iterator[None]:
    """Tests and what they fork do not wait for the disk; the new interpreters that they start do."""
    sync = skip_sync()
    yield
    os.fsync = sync


@pytest.fixture(scope="module")
def unchecked() -> Iterator[None]:
    """Trainings in commands without `--no-check` begin without their checks, which take most of a small one."""
    with mock.patch("sightline.workbench.check.suite.run_quick", return_value=[]):
        yield


@pytest.fixture(scope="module")
def torchlib_once() -> Iterator[None]:
    """Files of ONNX are written by one table of operators a process; torch parses the sources of all of them for each.

    A second of processor time, a third of what a small file takes.
    """
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    with mock.patch.object(ONNXRegistry, "from_torchlib", staticmethod(_torchlib())):
        yield


@pytest.fixture(scope="module")
def package_digested_once() -> Iterator[None]:
    """Saved features depend on the package's sources, which do not change meanwhile: three readings a probe of all."""
    from sightline.workbench.probe import saved_features

    with mock.patch.object(saved_features, "digest_package", functools.cache(saved_features.digest_package)):
        yield


@functools.cache
def _torchlib() -> Callable[..., object]:
    """What makes the table of a version of the operators; writing a file only reads it."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    return functools.cache(ONNXRegistry.from_torchlib)


@pytest.fixture(scope="session", autouse=True)
def _shared_runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """All workers of a session find the same trained runs (tests/trained.py)."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "trained"
    with mock.patch.dict(os.environ, SIGHTLINE_TRAINED_RUNS=str(folder)):
        yield


@pytest.fixture(scope="module", autouse=True)
def _freed_memory_is_given_back() -> Iterator[None]:
    """The C library keeps what tests of large networks freed: a worker grew by some 100 MB over each of these files."""
    yield
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
    if trim is not None:
        trim(0)


@pytest.fixture(scope="module", autouse=True)
def _nothing_is_compiled() -> None:
    """No file of tests finds what another has compiled: a loop in such a process is not observed."""
    compiler = sys.modules.get("torch._dynamo.eval_frame")
    if any(backend is not None for backend in getattr(compiler, "cached_backends", {}).values()):
        torch._dynamo.reset()
