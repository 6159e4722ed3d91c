"""Kernels in threads: every row once, errors told, and pools that outlive neither a fork nor a change of threads.

Networks that `torch.compile` takes as one graph.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sightline.ops import batched_nms, numba_kernels
from sightline.ops.numba_kernels import can_use_numba, run_parallel
from sightline.ops.waits import send_list
from tests.cases import run_each
from tests.layers.passes import BOUND, assert_passes_agree, run
from tests.marks import long_but
from tests.models.small_models import small_model, without_dropout
from tests.processes import run_program
from tools import compile_kernels


@pytest.fixture(params=[1, 2, 5])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def count_rows(first: int, last: int, seen: np.ndarray) -> None:
    seen[first:last] += 1


@numba_kernels.numba_kernel
def add_rows(first, last, values, total):  # type: ignore[no-untyped-def]
    for row in range(first, last):
        total[row] = values[row].sum()


@run_each("num_rows", [0, 1, 2, 3, 100])
def test_every_row_is_done_once(num_rows: int, threads: int) -> None:
    seen = np.zeros(num_rows, dtype=np.int64)
    run_parallel(count_rows, num_rows, seen)
    assert (seen == 1).all()


def test_a_kernel_gives_what_its_plain_form_gives(threads: int) -> None:
    values, found, plain = np.random.default_rng(0).random((50, 7)), np.zeros(50), np.zeros(50)
    run_parallel(add_rows, 50, values, found)
    add_rows.plain(0, 50, values, plain)
    np.testing.assert_allclose(found, plain, rtol=1e-15)


KERNEL = """
def add_up(first, last, values, total):
    for row in range(first, last):
        for turn in range(200_000):
            total[row] += values[row] / (turn + 1)
"""


def test_work_is_timed_without_compiling(tmp_path: Path) -> None:
    """A first call takes longer by what numba needs; the work is the same, for known types as for new ones."""
    pytest.importorskip("numba")
    (tmp_path / "kernels.py").write_text(KERNEL)  # compiled never before, and kept beside itself
    spec = importlib.util.spec_from_file_location("kernels_of_test", tmp_path / "kernels.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    kernel = numba_kernels.numba_kernel(module.add_up)
    total = np.zeros(50)

    def spent(dtype: str) -> tuple[float, float, float]:
        """The work that was counted, and the processor's time around the kernel: without the readings, and with them.

        A pause in a reading, as the garbage collector makes one, is in the two that enclose it.
        """
        values = np.ones(50, dtype=dtype)
        outer, work, inner = time.thread_time(), numba_kernels.compute_seconds(), time.thread_time()
        kernel(0, 50, values, total)
        inner, work, outer = (
            time.thread_time() - inner,
            numba_kernels.compute_seconds() - work,
            time.thread_time() - outer,
        )
        return work, inner, outer

    assert callable(kernel.machine_code)  # from here on numba itself is imported
    works = []
    for dtype in ("float64", "float32", "int64", "int32"):  # each is compiled anew; a pause can hit one of them
        (first_work, first, _), (known_work, least, most) = spent(dtype), spent(dtype)
        assert least - 1e-9 <= known_work <= most + 1e-9
        assert first_work < first - 0.02, "compiling is left out"
        works.append(first_work / known_work)
    assert 0.5 < min(works) < 2, "the kernel's own work is counted"


def test_kernels_run_where_numba_is_told_not_to_compile(tmp_path: Path) -> None:
    (tmp_path / "kernels.py").write_text(KERNEL)
    command = "import kernels, numpy as np; from sightline.ops.numba_kernels import numba_kernel; total = np.zeros(2); "
    command += "numba_kernel(kernels.add_up)(0, 2, np.ones(2), total); assert total[0] == total[1] > 1"
    search = os.pathsep.join([str(tmp_path), str(Path(numba_kernels.__file__).parents[2])])
    own = {"NUMBA_DISABLE_JIT": "1", "PYTHONPATH": search}
    subprocess.run([sys.executable, "-c", command], env={**os.environ, **own}, check=True)


READ_ONLY = """
import json, os, sys, tempfile
import numba
import numpy as np
from sightline.ops.numba_kernels import numba_kernel

def refused(dir=None, *, make=tempfile.TemporaryFile, **more):
    if any(str(dir).startswith(each) for each in read_only):
        raise PermissionError(f"{dir} is read-only")
    return make(dir=dir, **more)

tempfile.TemporaryFile = refused
for read_only in json.loads(sys.argv[1]):
    if os.fork():
        assert os.wait()[1] == 0
        continue
    import kernels
    kernel, total = numba_kernel(kernels.add_up), np.zeros(2)
    kernel(0, 2, np.ones(2), total)
    assert total[0] == total[1] > 0
    stats = kernel.machine_code.stats
    for stream in (sys.stdout, sys.stderr):
        print("=", sum(stats.cache_hits.values()), stats.cache_path, file=stream, flush=True)
    os._exit(0)
"""
"""Forks a process for each list of folders in which nothing can be written, with what is imported, but no kernel."""


def test_machine_code_is_kept_where_the_package_is_read_only(tmp_path: Path) -> None:
    """A user's cache begins with what was compiled at installation; a warning says where nothing can be written."""
    pytest.importorskip("numba")
    package, home = tmp_path / "package", tmp_path / "home"
    package.mkdir()
    (package / "kernels.py").write_text(KERNEL)
    search = os.pathsep.join([str(package), str(Path(numba_kernels.__file__).parents[1])])
    own = {"HOME": str(home), "XDG_CACHE_HOME": str(home), "PYTHONPATH": search, "NUMBA_CACHE_DIR": ""}
    read_only = json.dumps([[], [str(package)], [str(package), str(home)]])
    command = [sys.executable, "-c", READ_ONLY, read_only]
    done = subprocess.run(command, env={**os.environ, **own}, capture_output=True, text=True, check=True)
    kept = [line.split(" ", 2)[1:] for line in done.stdout.splitlines()]
    warned, warned_later, told, rest = re.split(r"^= .*\n", done.stderr, flags=re.MULTILINE)

    assert (kept[0], warned) == (["0", str(package / "__pycache__")], "")
    assert (kept[1][0], warned_later) == ("1", "")
    assert Path(kept[1][1]).is_relative_to(home)
    assert (kept[2], rest) == (["0", "None"], "")
    assert "set NUMBA_CACHE_DIR" in told


def test_the_list_that_is_compiled_before_the_workers_names_kernels_and_their_types() -> None:
    pytest.importorskip("numba")
    for line in Path(__file__).with_name("kernels.txt").read_text().splitlines():
        name, *words = line.split()
        module, _, function = name.rpartition(".")
        kernel = getattr(importlib.import_module(module), function)
        assert kernel.plain.__code__.co_argcount == len(words), line
        assert [compile_kernels.format_type(compile_kernels.parse_type(word)) for word in words] == words


@run_each("failing_row", [0, 9])
def test_an_error_in_any_part_is_raised_after_all_have_ended(failing_row: int, threads: int) -> None:
    seen = np.zeros(10, dtype=np.int64)

    def kernel(first: int, last: int) -> None:
        seen[first:last] += 1
        if first <= failing_row < last:
            raise ArithmeticError(f"row {failing_row}")

    with pytest.raises(ArithmeticError, match=f"row {failing_row}"):
        run_parallel(kernel, 10)
    assert (seen == 1).all()


def test_several_callers_at_once() -> None:
    seen = np.zeros((8, 1000), dtype=np.int64)
    with ThreadPoolExecutor(8) as callers:
        list(callers.map(lambda row: run_parallel(count_rows, 1000, row), seen))
    assert (seen == 1).all()


def test_a_forked_child_makes_threads_of_its_own(threads: int) -> None:
    """The parent's pool is there before the fork, and its threads are not in the child."""
    run_parallel(count_rows, 100, np.zeros(100, dtype=np.int64))
    child = os.fork()
    if child == 0:
        seen = np.zeros(100, dtype=np.int64)
        run_parallel(count_rows, 100, seen)
        os._exit(int(not (seen == 1).all()))
    assert os.waitpid(child, 0)[1] == 0


def test_what_kernels_can_take(monkeypatch: pytest.MonkeyPatch) -> None:
    single, double, half = torch.zeros(1), torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.bfloat16)
    assert can_use_numba(single, single)
    assert can_use_numba(double)
    assert not can_use_numba(single, double)
    assert not can_use_numba(half)
    assert not can_use_numba(torch.zeros(1, device="meta"))
    monkeypatch.setattr(numba_kernels, "_has_numba", lambda: False)
    assert not can_use_numba(single)


# --- Whole networks in one graph ---


GENERATOR = torch.Generator().manual_seed(0)
CLOUDS = {"points": torch.rand(3, 32, 3, dtype=torch.float64, generator=GENERATOR)}
PACKED = {
    "points": torch.randn(54, 3, dtype=torch.float64, generator=GENERATOR),
    "offsets": send_list([0, 3, 30, 54], torch.device("cpu")),
}
GIVEN: dict[str, dict[str, Tensor]] = {
    **dict.fromkeys(("dgcnn", "dgcnn_scenes", "pct", "pointnet", "pointnet2", "point_transformer"), CLOUDS),
    **dict.fromkeys(("dgcnn_parts", "point_transformer_dense"), CLOUDS | {"category": torch.tensor([0, 2, 1])}),
    "packed point_transformer": PACKED,
}
COMPILED = ("dgcnn_scenes", "packed point_transformer")


@pytest.mark.parametrize("name", long_but(COMPILED, GIVEN))
def test_a_network_is_one_graph(name: str) -> None:
    """In a process of its own, as what is compiled before may change how torch takes a network."""
    run_alone(f"compare_whole({name!r})")


@pytest.mark.long
def test_a_network_is_one_graph_after_an_export() -> None:
    """After torch.export of a suppression, torch compiles neither `max` with a default nor `sorted` of sizes."""
    run_alone("export_suppression(); compare_whole('packed point_transformer')")


def run_alone(calls: str) -> None:
    done = run_program(f"from tests.test_compiled import compare_whole, export_suppression; {calls}")
    assert done.returncode == 0, done.stderr


class Suppression(torch.nn.Module):
    def forward(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> Tensor:
        return batched_nms(boxes, scores, labels, 0.5)


def export_suppression() -> None:
    corners = torch.arange(14.0).reshape(7, 2)
    inputs = (torch.cat([corners, corners + 3], dim=1), torch.arange(7.0), torch.zeros(7, dtype=torch.int64))
    torch.export.export(Suppression(), inputs)


def compare_whole(name: str) -> None:
    """Training in float64, without a break, gives the numbers of the same network that runs line by line."""
    given, plain = GIVEN[name], without_dropout(small_model(name.removeprefix("packed ")).train())
    whole = copy.deepcopy(plain)
    whole.compile(fullgraph=True, backend="aot_eager")  # the graph is tested, not the code that a compiler makes of it
    weight = torch.randn(plain(**given)["logits"].shape, dtype=torch.float64)
    whole.load_state_dict(plain.state_dict())
    assert_passes_agree(run(whole, given, weight), run(plain, given, weight), BOUND)
