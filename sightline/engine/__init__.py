"""Training engine: the step, the loop, evaluation, processes, optimisers and schedules.

A step passes through three records. `step.Step` is prepared: the micro-batches of a process, and what the task counts
over all of them. `queued_step.QueuedStep` holds the numbers of the step, on the device and then as the host has read
them. `records.StepRecord` is what is logged. `loop.train` calls `train.queue_step`, on a GPU by a graph of
`step_graph`; `train.read_steps` reads the numbers of one step or of several, and observers get the records.
"""

from __future__ import annotations

from collections.abc import Mapping

PARTS: Mapping[str, Mapping[str, str]] = {
    "optimizers": {"optimizers": "adam adamw rmsprop sgd"},
    "public": {"optimizers": "OptimizerSpec", "run_loading": "TrainedRun", "schedules": "Schedule"},
    "schedules": {"schedules": "constant cosine exponential one_cycle polynomial step"},
}
"""Kind of part -> module of this folder -> names that it registers (`contract/catalogue.py`)."""
