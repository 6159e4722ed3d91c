"""Every reader with its file damaged a thousand times: it reads, or refuses in one line, soon, and in little memory.

`SIGHTLINE_MUTATIONS` is another number of mutations a reader.
"""

from __future__ import annotations

import os
import random
import resource
import signal
import sys
import traceback
import tracemalloc
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sightline.contract.errors import RunError, UserError
from tests.long.fuzzed_readers import Reader, file_readers, prepared_readers, run_readers
from tests.long.fuzzed_sets import set_readers
from tests.long.mutations import mutated

NUM_MUTATIONS = int(os.environ.get("SIGHTLINE_MUTATIONS", "1000"))
MAX_BYTES = 128 * 2**20
"""Of memory, for files of a few kilobytes."""
MAX_SECONDS = 10.0
"""Of a processor, memory being traced."""


class _TooLongError(BaseException):
    """Raised within what does not end; nothing that catches exceptions catches it."""


@pytest.mark.parametrize("readers", [file_readers, prepared_readers, run_readers, set_readers])
def test_damaged_files_are_refused_in_a_line(
    readers: Callable[[Path], Iterator[Reader]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    faults: Counter[str] = Counter()
    for reader in readers(tmp_path):
        reader.read()
        found = Counter(fault for number in range(NUM_MUTATIONS) if (fault := _fault(reader, number)))
        with capsys.disabled():
            sys.stdout.write(f"{reader.name}: {NUM_MUTATIONS} mutations, {found.total()} faults\n")
            sys.stdout.writelines(f"  {count} x {fault}\n" for fault, count in found.items())
            sys.stdout.flush()
        faults += found
    assert not faults, "\n".join(f"{count} x {fault}" for fault, count in faults.most_common())


def _fault(reader: Reader, number: int) -> str:
    """What reading a damaged file does that it must not; empty for nothing. Everything is put back."""
    kept = {path: path.read_bytes() for path in reader.path.parent.iterdir() if path.is_file() and reader.reseal}
    kept[reader.path] = reader.path.read_bytes()
    seed = f"{reader.name} {number}"
    reader.path.write_bytes(mutated(kept[reader.path], random.Random(seed)))
    tracemalloc.start()
    try:
        if reader.reseal is not None:
            reader.reseal()
        tracemalloc.reset_peak()
        with _limited(), warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            reader.read()
    except (UserError, RunError) as error:
        if not all(line.isprintable() for line in str(error).splitlines()):
            return f"{reader.name}: not printable: {str(error)[:200]!a} (first with seed {number})"
    except (Exception, _TooLongError) as error:  # noqa: BLE001  whatever else comes out is the fault that is looked for
        at = [each for each in traceback.extract_tb(error.__traceback__) if "/sightline/" in each.filename][-1:]
        place = "".join(f"{each.filename.rpartition('/sightline/')[2]}:{each.lineno}" for each in at)
        return f"{reader.name}: {type(error).__name__} at {place}: {str(error)[:90]}"
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        for path, content in kept.items():
            path.write_bytes(content)
    return f"{reader.name}: asked for {peak:,} bytes" if peak > MAX_BYTES else ""


@contextmanager
def _limited() -> Iterator[None]:
    """Within this no more than `MAX_SECONDS` of a processor are had, nor 4 GiB of addresses beyond those in use."""

    def stop(*_: object) -> None:
        raise _TooLongError(f"does not end within {MAX_SECONDS:g} s")

    before, most = signal.signal(signal.SIGVTALRM, stop), resource.getrlimit(resource.RLIMIT_AS)
    num_pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (num_pages * resource.getpagesize() + 2**32, most[1]))
    signal.setitimer(signal.ITIMER_VIRTUAL, MAX_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, most)
