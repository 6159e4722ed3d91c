"""Costs of training steps by part, module and kernel, summed from a trace of torch's profiler.

Kinds of work of operators and kernels, by their names in torch's profiler.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from sightline.contract.errors import RunError
from sightline.engine.step import PROFILER_END_PREFIX

HOST = "Python, autograd, dispatch"
"""Kind of the time between kernels: Python interpreter, autograd bookkeeping, dispatch."""

_KINDS = {
    "matrix products, convolutions": r"aten::(_?(add|sparse_)?(b|bad)?mm|addmv|mv|dot|vdot|linear|matmul|einsum|"
    r"_addmm_activation|baddbmm|addbmm|bilinear|.*conv.*|.*scaled_dot_product.*|mkldnn_.*linear.*)",
    "fused layers": r"numba::(layers\..*|ops\.(edge_convolution|vector_attention).*)",
    "search, gather": r"numba::(ops|store|areas\.\w+\.sets)\..*|"
    r"aten::(gather|index.*|_index_put.*|scatter.*|take.*|embedding.*|"
    r"topk|kthvalue|sort|argsort|nonzero.*|_?unique.*|searchsorted|bucketize|grid_sampler.*|_?cdist.*|masked_select|"
    r"masked_scatter|repeat_interleave|bincount)(_backward)?_?",
    "normalisation": r"aten::.*(batch|layer|group|instance|rms)_?norm.*",
    "reductions, pooling": r"aten::(sum|mean|max|min|a(rg)?max|a(rg)?min|std|var|var_mean|prod|any|all|cum.*|norm|"
    r"linalg_vector_norm|_?(log_)?softmax.*|logsumexp|.*pool.*|count_nonzero|nan_to_num)",
    "memory, layout": r"aten::(empty.*|zeros.*|ones.*|full.*|fill_|zero_|copy_|clone|to|_to_copy|contiguous|cat|stack|"
    r"pad|constant_pad_nd|slice.*|select.*|narrow|view.*|_?reshape.*|_unsafe_view|transpose|t|permute|expand.*|"
    r"as_strided.*|detach.*|squeeze.*|unsqueeze.*|flatten|unflatten|split.*|chunk|unbind|resize_?|set_|alias|"
    r"lift_fresh|repeat|tile|flip|roll|resolve_.*|movedim|.*upsample.*|arange|_local_scalar_dense|item|is_.*)|detach",
    "element by element": r"aten::.*",
    "other kernels": r"numba::.*",
    "compiled by torch": r"CompiledFunction(Backward)?|## Call CompiledFxGraph.*|Torch-Compiled Region.*|triton_.*",
}
_PATTERNS = [(kind, re.compile(pattern)) for kind, pattern in _KINDS.items()]


def classify_kernel(name: str) -> str:
    """Return the kind of an operator (`aten::addmm`) or of our kernels (`numba::store.files...`), else `HOST`.

    It is the first kind whose pattern matches the whole name. An operator that only calls another has its own kind.
    """
    return next((kind for kind, pattern in _PATTERNS if pattern.fullmatch(name)), HOST)


MODULE = "module: "
"""Prefix of a module's path in the name of a span of one of its calls."""
WAITING = "waiting"
"""Part of a step in which the GPU is idle."""
_STEP, _NODE, _OPTIMIZER = "ProfilerStep#", "autograd::engine::evaluate_function: ", "Optimizer."
_ON_DEVICE = {"kernel", "gpu_memcpy", "gpu_memset"}
_OWN_WORK = {
    "data": "data loading",
    "ahead": "data loading",
    "transfer": "transfer",
    "reduce": "gradients of all processes",
    "optimise": "optimiser",
}

Key = tuple[str, str | None, str]
"""Key of a cost: part of the step, path of the innermost module (None outside modules), and kind of work."""
Event = Mapping[str, Any]


class Cost(NamedTuple):
    """Mean exclusive seconds per step, and bytes allocated by this key that are alive at the memory peak."""

    seconds: float
    bytes_at_peak: int


@dataclass(frozen=True)
class StepCosts:
    """Time and memory of a step by key; all times are means over `num_steps`.

    `costs` is exhaustive: its seconds sum to `step_s`, its bytes to `peak_bytes` - `resident_bytes` (allocated before).
    `calls` counts the calls of each module per step, in the order of the first; `peaks` is the highest memory level
    while a module ran, forward or backward, `kind_peaks` while a kind of kernel ran.
    """

    num_steps: int
    step_s: float
    resident_bytes: int
    peak_bytes: int
    costs: dict[Key, Cost]
    calls: dict[str, float]
    peaks: dict[str, int]
    kind_peaks: dict[str, int]


def compute_step_costs(events: Iterable[Event], *, resident_bytes: int = 0) -> StepCosts:
    """Sum the costs in the `traceEvents` of a trace; on a GPU, seconds are those of its kernels and of `WAITING`.

    `resident_bytes` were allocated before the first step, which torch does not trace on the CPU. Raises RunError for a
    trace without a complete step.
    """
    events = [event for event in events if event.get("ph") in ("X", "i")]
    steps = sorted(
        (event["ts"], event["ts"] + event["dur"], event["tid"])
        for event in events
        if event["name"].startswith(_STEP) and event["cat"] == "user_annotation"
    )
    if not steps:
        raise RunError("the profiler recorded no complete step")
    threads = _build_spans(events, steps[0][0], steps[-1][1])
    main = threads.pop(steps[0][2])
    parts = _list_parts(main, steps)
    makers: dict[int, str | None] = {}
    for spans in (main, *threads.values()):  # main thread first: its forward pass makes the nodes of the backward pass
        _assign_keys(spans, parts, makers)
    on_device: Counter[int] = Counter()
    for event in events:
        if event.get("cat") in _ON_DEVICE:
            on_device[event.get("args", {}).get("External id", -1)] += event["dur"]
    if on_device:
        micros = _device_micros([span for thread in (main, *threads.values()) for span in thread], parts, on_device)
    else:
        micros = _host_micros(main, parts)
    memory = _Memory(
        [s for thread in (main, *threads.values()) for s in thread], has_gpu=bool(on_device), base=resident_bytes
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
    """Span of a thread's work within the span `around`, or an instant change of memory.

    `alone` is its exclusive time, without inner spans, in microseconds.
    """

    name: str
    start: float
    end: float
    args: Event
    around: _Span | None = None
    alone: float = 0.0
    key: Key = ("", None, "")


def _build_spans(events: Iterable[Event], first: float, last: float) -> dict[Any, list[_Span]]:
    """Build the nested spans of each thread in the order of their start, without the spans of steps."""
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


def _list_parts(main: Iterable[_Span], steps: Iterable[tuple[float, float, Any]]) -> list[tuple[float, float, str]]:
    """List the consecutive parts of all steps as (start, end, name), from the loop's own timestamps."""
    laps = [
        (span.end, span.name[len(PROFILER_END_PREFIX) :]) for span in main if span.name.startswith(PROFILER_END_PREFIX)
    ]
    parts = []
    for begin, end, _ in steps:
        start = begin
        for lap_end, name in laps:
            if start < lap_end <= end:
                parts.append((start, lap_end, name))
                start = lap_end
        parts.append((start, end, "between steps"))
    return parts


def _assign_keys(
    spans: Iterable[_Span], parts: Sequence[tuple[float, float, str]], makers: dict[int, str | None]
) -> None:
    """Assign a key to every span. A backward node belongs to the module whose call made it."""
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
            # Gradient accumulation runs right after the node that computed the gradient, and has no number.
            module = latest = latest if number is None else makers.get(number, module)
        elif number is not None and part != "backward":
            makers[number] = module  # the last span started with this number made the node
        if span.name == "[memory]" and span.around is not None:
            work = span.around.key[2]
        else:
            work = _kind_of_work(part, kind(span.name), is_optimizer=span.name.startswith(_OPTIMIZER))
        span.key = part, module, work


def _kind_of_work(part: str, kind: str = HOST, *, is_optimizer: bool = False) -> str:
    """Return the kind of work, which for some parts is that of the part."""
    return _OWN_WORK.get(part, "optimiser" if is_optimizer else kind)


def _host_micros(spans: Iterable[_Span], parts: Iterable[tuple[float, float, str]]) -> dict[Key, float]:
    """Sum host microseconds per key over all steps; time outside all spans is counted for its part."""
    micros: defaultdict[Key, float] = defaultdict(float)
    for start, end, part in parts:
        micros[part, None, _kind_of_work(part)] += end - start
    for span in spans:
        micros[span.key] += span.alone
        if span.around is None:
            micros[span.key[0], None, _kind_of_work(span.key[0])] -= span.end - span.start
    return micros


def _device_micros(
    spans: Iterable[_Span], parts: Iterable[tuple[float, float, str]], on_device: Mapping[int, float]
) -> dict[Key, float]:
    """Sum microseconds per key over all steps: host time of data loading, else the time of queued kernels."""
    micros: defaultdict[Key, float] = defaultdict(float)
    for start, end, part in parts:
        if part == "data":
            micros[part, None, _kind_of_work(part)] += end - start
    for span in spans:
        if span.key[0] != "data":
            micros[span.key] += on_device.get(span.args.get("External id", -1), 0.0)
    micros[WAITING, None, WAITING] = sum(end - start for start, end, _ in parts) - sum(micros.values())
    return micros


class _Memory:
    """Memory level over all steps: its peak, bytes alive at the peak by key, and levels per module and kind."""

    def __init__(self, spans: Iterable[_Span], *, has_gpu: bool, base: int) -> None:
        changes = [span for span in spans if span.name == "[memory]" and bool(span.args["Device Type"]) == has_gpu]
        changes.sort(key=lambda span: span.start)
        if has_gpu and changes:
            base = int(changes[0].args["Total Allocated"]) - int(changes[0].args["Bytes"])
        self.base = self.peak = level = base
        self.made: Counter[Key] = Counter()
        self.peaks: Counter[str] = Counter()
        self.kind_peaks: Counter[str] = Counter()
        alive: dict[int, Key] = {}
        since_peak: list[tuple[Key, int]] = []
        for span in changes:
            change, address = int(span.args["Bytes"]), span.args["Addr"]
            level += change
            if change > 0:
                alive[address] = span.key
                for path in _parent_paths(span.key[1]):
                    self.peaks[path] = max(self.peaks[path], level)
                self.kind_peaks[span.key[2]] = max(self.kind_peaks[span.key[2]], level)
            since_peak.append(
                (alive[address] if change > 0 else alive.pop(address, ("between steps", None, HOST)), change)
            )
            if level > self.peak:
                self.peak = level
                for key, size in since_peak:
                    self.made[key] += size
                since_peak.clear()


def _parent_paths(path: str | None) -> list[str]:
    """Return the path of a module and of its parents, up to the model's own, which is empty."""
    if path is None:
        return []
    names = path.split(".") if path else []
    return [".".join(names[:length]) for length in range(len(names) + 1)]
