"""Rule of several processes: ranks that are remembered from before there were any."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from sightline.doctor.finding import Fault, FindingLocation
from sightline.doctor.objects import find_read_values
from sightline.doctor.rules import rule
from sightline.parts.tasks.distillation import unwrap_distillation
from sightline.workbench.check.context import Context

_WORDS = frozenset({"get_rank", "get_world_size", "is_initialized", "get_node_local_rank", "environ", "getenv"})


@rule(
    "remembered-rank",
    "error",
    "dist.device dist.logging dist.seed",
    holds="the rank and the world size of this process, each time a function with a cache is asked",
    do="take the cache off the function, or call it for the first time after init_process_group",
)
def remembered_rank(run: Context) -> Iterator[Fault]:
    """Ask functions without arguments, which the model, the losses or the data set name, past their caches."""
    bound = getattr(unwrap_distillation(run.built.job.task), "bound_losses", {})
    losses = [getattr(forward.function, "__self__", None) for forward, _ in bound.values()]
    parts = (run.built.data.train.dataset, *run.built.job.model.modules(), *losses)
    classes = {type(part) for part in parts if not type(part).__module__.startswith(("torch.", "sightline."))}
    seen: dict[int, tuple[str, Any]] = {}
    for function in (value for cls in classes for value in vars(cls).values()):
        seen |= {id(value): (name, value) for name, value in find_read_values(function) if _asks_for_rank(value)}
    for name, function in seen.values():
        kept, now = function(), function.__wrapped__()
        if kept != now:
            code = function.__wrapped__.__code__
            yield Fault(
                f"'{name}' remembers {kept!r}, and would return {now!r} now: it was called before there were ranks",
                where=FindingLocation(file=code.co_filename, line=code.co_firstlineno),
                measured=f"{kept!r} from its cache, {now!r} computed anew",
            )


def _asks_for_rank(value: Any) -> bool:
    """Return True for a function with a filled cache and no arguments that asks for the rank."""
    function = getattr(value, "__wrapped__", None)
    if not hasattr(value, "cache_info") or not inspect.isfunction(function):
        return False
    is_filled = value.cache_info().currsize > 0 and not inspect.signature(function).parameters
    return is_filled and not _WORDS.isdisjoint(function.__code__.co_names)
