"""Probe of one run in this process: its features against those of random weights, for Python and notebooks."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from sightline.contract.plugins import load_plugins
from sightline.engine.device.numerics import set_backends
from sightline.engine.distributed import start_world
from sightline.workbench.probe.measure import Comparison, compare_with_random
from sightline.workbench.probe.methods import assert_fits, build_probes, split_words
from sightline.workbench.probe.probed_run import extract_with_random, open_probed

logger = logging.getLogger(__name__)


def probe_run(
    path: Path,
    methods: Sequence[str],
    *,
    checkpoint: str,
    data: Path | None,
    overrides: Sequence[str],
    plugins: Sequence[Path],
    device: str | torch.device,
) -> Comparison:
    """Probe the frozen features of a run by some methods, beside random weights and guessing; notes are logged.

    `overrides` are those of the config and arguments of the methods ("C=0.1"). Features are saved by digests, as the
    command saves them. Raises UserError for what is no run, for an unknown method or argument, and for data that cannot
    be probed.
    """
    config_words, arguments = split_words(overrides)
    load_plugins(plugins)  # one of them may hold the method
    probes = build_probes(methods, arguments)
    probed = open_probed(path, checkpoint=checkpoint, data=data, overrides=config_words, plugins=plugins)
    for method in probes.values():
        assert_fits(method, len(probed.data.train.indices))
    set_backends(probed.config.train)
    with start_world(device=device, timeout_s=probed.config.distributed.timeout_s) as world:
        for line in probed.notes:
            logger.info("%s", line)
        trained, random = extract_with_random(probed, world, note=logger.info)
    return compare_with_random(probes, probed, trained, random)
