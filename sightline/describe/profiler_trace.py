"""A trace of training steps, as torch's profiler writes it for viewers, added up by part, by module and by kernel."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from sightline.describe.kernel_kinds import HOST, classify_kernel
from sightline.engine.step import PROFILER_END_PREFIX
from sightline.errors import RunError

__all__ = ["MODULE", "WAITING", "Cost", "Key", "StepCosts", "costs_of"]

MODULE = "module: "
"""Before the path of a module: the name of the span of one of its calls."""
WAITING = "waiting"
"""The part of a step of a GPU in which it does nothing."""
_STEP, _NODE, _OPTIMIZER = "ProfilerStep#", "autograd::engine::evaluate_function: ", "Optimizer."
_ON_DEVICE = {"kernel", "gpu_memcpy", "gpu_memset"}
_OWN_WORK = {"data": "data loading", "transfer": "transfer", "optimise": "optimiser"}

Key = tuple[str, str | None, str]
"""The part of the step, the path of the innermost module or None outside of all of them, and the kind of work."""
Event = Mapping[str, Any]


class Cost(NamedTuple):
    """Of a step, on average: seconds in which this alone ran; at the worst moment: bytes that it had made by then."""

    seconds: float
    bytes_at_peak: int


@dataclass(frozen=True)
class StepCosts:
    """Where time and memory of a step went; all times are means over `num_steps`.

    `costs` adds up: the seconds to `step_s`, the bytes to `peak_bytes` less `resident_bytes`, which lived before.
    `calls` counts the calls of each module in a step, in the order of the first; `peaks` is the level of memory that
    was reached while a module ran, forward or backward, `kind_peaks` while a kind of kernel did.
    """

    num_steps: int
    step_s: float
    resident_bytes: int
    peak_bytes: int
    costs: dict[Key, Cost]
    calls: dict[str, float]
    peaks: dict[str, int]
    kind_peaks: dict[str, int]


def costs_of(events: Iterable[Event], *, resident_bytes: int = 0) -> StepCosts:
    """The costs in the `traceEvents` of a trace; of a GPU, seconds are those of its kernels, and of its `WAITING`.

    `resident_bytes` lived before the first step: torch does not trace what the CPU's allocator gave out earlier. Raises
    RunError for a trace without a whole step.
    """
    events = [event for event in events if event.get("ph") in ("X", "i")]
    steps = sorted(
        (event["ts"], event["ts"] + event["dur"], event["tid"])
        for event in events
        if event["name"].startswith(_STEP) and event["cat"] == "user_annotation"
    )
    if not steps:
        raise RunError("the profiler recorded no whole step")
    threads = _spans(events, steps[0][0], steps[-1][1])
    main = threads.pop(steps[0][2])
    parts = _parts(main, steps)
    makers: dict[int, str | None] = {}
    for spans in (main, *threads.values()):  # the forward pass first, which makes the nodes of the backward pass
        _place(spans, parts, makers)
    on_device: Counter[int] = Counter()
    for event in events:
        if event.get("cat") in _ON_DEVICE:
            on_device[event.get("args", {}).get("External id", -1)] += event["dur"]
    if on_device:
        micros = _device_micros([span for each in (main, *threads.values()) for span in each], parts, on_device)
    else:
        micros = _host_micros(main, parts)
    memory = _Memory(
        [s for each in (main, *threads.values()) for s in each], has_gpu=bool(on_device), base=resident_bytes
    )
    calls = Counter(span.name[len(MODULE) :] for span in main if span.name.startswith(MODULE))
    return StepCosts(
        num_steps=len(steps),
        step_s=sum(end - start for start, end, _ in steps) / 1e6 / len(steps),
        resident_bytes=memory.base,
        peak_bytes=memory.peak,
        costs={
            key: Cost(micros.get(key, 0.0) / 1e6 / len(steps), memory.made[key])
            for key in dict.fromkeys((*micros, *memory.made))
        },
        calls={path: count / len(steps) for path, count in calls.items()},
        peaks=memory.peaks,
        kind_peaks=memory.kind_peaks,
    )


@dataclass(eq=False)
class _Span:
    """Something that ran on a thread, within `around`, or a change of memory there, at once.

    `alone` is what of its time no span within it took, in microseconds.
    """

    name: str
    start: float
    end: float
    args: Event
    around: _Span | None = None
    alone: float = 0.0
    key: Key = ("", None, "")


def _spans(events: Iterable[Event], first: float, last: float) -> dict[Any, list[_Span]]:
    """The spans of each thread in the order in which they began, nested; the steps themselves are left out."""
    threads: dict[Any, list[_Span]] = defaultdict(list)
    for event in events:
        is_ours = event.get("cat") in ("cpu_op", "user_annotation") or event["name"] == "[memory]"
        if is_ours and not event["name"].startswith(_STEP) and first <= event["ts"] < last:
            end = event["ts"] + event.get("dur", 0.0)
            threads[event["tid"]].append(_Span(event["name"], event["ts"], end, event.get("args", {})))
    for spans in threads.values():
        spans.sort(key=lambda span: (span.start, -span.end))
        stack: list[_Span] = []
        for span in spans:
            while stack and stack[-1].end <= span.start:
                stack.pop()
            if stack:
                span.around = stack[-1]
                span.end = min(span.end, span.around.end)  # a trace rounds ends
                span.around.alone -= span.end - span.start
            span.alone += span.end - span.start
            stack.append(span)
    return threads


def _parts(main: Iterable[_Span], steps: Iterable[tuple[float, float, Any]]) -> list[tuple[float, float, str]]:
    """The parts of all steps as (start, end, name), one after the other, as the loop's own clock ended them."""
    laps = [
        (span.end, span.name[len(PROFILER_END_PREFIX) :]) for span in main if span.name.startswith(PROFILER_END_PREFIX)
    ]
    found = []
    for begin, end, _ in steps:
        start = begin
        for at, name in laps:
            if start < at <= end:
                found.append((start, at, name))
                start = at
        found.append((start, end, "between steps"))
    return found


def _place(spans: Iterable[_Span], parts: Sequence[tuple[float, float, str]], makers: dict[int, str | None]) -> None:
    """Give every span its key. A node of the backward pass belongs to the module whose call made it."""
    kind = cache(classify_kernel)
    starts = [start for start, _, _ in parts]
    latest: str | None = None
    for span in spans:
        part = parts[bisect_right(starts, span.start) - 1][2]
        module = None if span.around is None else span.around.key[1]
        number = span.args.get("Sequence number")
        if span.name.startswith(MODULE):
            module = span.name[len(MODULE) :]
        elif span.name.startswith(_NODE):
            # Gradients are added up right after the node that gave them, and have no number.
            module = latest = latest if number is None else makers.get(number, module)
        elif number is not None and part != "backward":
            makers[number] = module  # the last one that began with this number made the node
        if span.name == "[memory]" and span.around is not None:
            work = span.around.key[2]
        else:
            work = _work(part, kind(span.name), is_optimizer=span.name.startswith(_OPTIMIZER))
        span.key = part, module, work


def _work(part: str, kind: str = HOST, *, is_optimizer: bool = False) -> str:
    """The kind of work, which is that of the part where it has one of its own."""
    return _OWN_WORK.get(part, "optimiser" if is_optimizer else kind)


def _host_micros(spans: Iterable[_Span], parts: Iterable[tuple[float, float, str]]) -> dict[Key, float]:
    """Microseconds of each key over all steps; what no span took is of its part."""
    micros: defaultdict[Key, float] = defaultdict(float)
    for start, end, part in parts:
        micros[part, None, _work(part)] += end - start
    for span in spans:
        micros[span.key] += span.alone
        if span.around is None:
            micros[span.key[0], None, _work(span.key[0])] -= span.end - span.start
    return micros


def _device_micros(
    spans: Iterable[_Span], parts: Iterable[tuple[float, float, str]], on_device: Mapping[int, float]
) -> dict[Key, float]:
    """Microseconds of each key over all steps: of data on the host, of all else in the kernels that it queued."""
    micros: defaultdict[Key, float] = defaultdict(float)
    for start, end, part in parts:
        if part == "data":
            micros[part, None, _work(part)] += end - start
    for span in spans:
        if span.key[0] != "data":
            micros[span.key] += on_device.get(span.args.get("External id", -1), 0.0)
    micros[WAITING, None, WAITING] = sum(end - start for start, end, _ in parts) - sum(micros.values())
    return micros


class _Memory:
    """The level of memory over all steps: its peak, what lived then by who had made it, and levels reached."""

    def __init__(self, spans: Iterable[_Span], *, has_gpu: bool, base: int) -> None:
        found = [span for span in spans if span.name == "[memory]" and bool(span.args["Device Type"]) == has_gpu]
        found.sort(key=lambda span: span.start)
        if has_gpu and found:
            base = int(found[0].args["Total Allocated"]) - int(found[0].args["Bytes"])
        self.base = self.peak = level = base
        self.made: Counter[Key] = Counter()
        self.peaks: Counter[str] = Counter()
        self.kind_peaks: Counter[str] = Counter()
        alive: dict[int, Key] = {}
        since_peak: list[tuple[Key, int]] = []
        for span in found:
            change, place = int(span.args["Bytes"]), span.args["Addr"]
            level += change
            if change > 0:
                alive[place] = span.key
                for path in _around(span.key[1]):
                    self.peaks[path] = max(self.peaks[path], level)
                self.kind_peaks[span.key[2]] = max(self.kind_peaks[span.key[2]], level)
            since_peak.append((alive[place] if change > 0 else alive.pop(place, ("between steps", None, HOST)), change))
            if level > self.peak:
                self.peak = level
                for key, size in since_peak:
                    self.made[key] += size
                since_peak.clear()


def _around(path: str | None) -> list[str]:
    """The path of a module and those of the modules around it, to the model's own, which is empty."""
    if path is None:
        return []
    words = path.split(".") if path else []
    return [".".join(words[:length]) for length in range(len(words) + 1)]
