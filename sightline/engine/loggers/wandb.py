"""Weights & Biases observer of numbers and pictures; offline it needs no network and no account."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from sightline.contract.errors import assert_installed
from sightline.contract.regular_files import read_regular_file
from sightline.draw.pictures import Picture
from sightline.engine.loggers.interval_logger import IntervalLogger, environment_variables
from sightline.instrument.random_state import preserve_random_state

_FINISH_S = 120.0


class Wandb(IntervalLogger):
    """Observer that writes a wandb run in `directory`/wandb: `train/<number>`, `<split>/<metric>`, the pictures.

    It receives numbers alone: no hooks on the model, no capture of the console, no copy of the code. All its files,
    including caches, are in that folder. A resumed run keeps the identity stored there: one curve online, and offline
    parts that `wandb sync` joins. The global random states are left alone. `assert_own` raises, before anything is
    written, if the directory is another run's by now. Raises MissingExtraError without wandb.
    """

    def __init__(
        self,
        directory: Path,
        *,
        project: str,
        name: str,
        mode: Literal["offline", "online"] = "offline",
        config: Mapping[str, Any] | None = None,
        every: int = 50,
        assert_own: Callable[[], None] = lambda: None,
    ) -> None:
        self.assert_installed()
        super().__init__(every)
        self._directory = directory
        self._assert_own = assert_own
        self._about: dict[str, Any] = {"project": project, "name": name, "mode": mode, "config": dict(config or {})}
        self._run: Any = None

    @staticmethod
    def assert_installed() -> None:
        """Raise MissingExtraError without wandb."""
        assert_installed("wandb", needed_by="log.wandb")

    def on_end(self, reason: str) -> None:
        self._intervals.flush()
        if self._run is not None:
            self._run.finish(exit_code=int(reason == "failed"))

    def _write(self, step: int, split: str, numbers: Mapping[str, float], pictures: Sequence[Picture] = ()) -> None:
        self._assert_own()
        with preserve_random_state():
            if self._run is None:
                self._run = self._start()
            values: dict[str, Any] = {f"{split}/{name}": value for name, value in numbers.items()}
            self._run.log(values | {f"{split}/{p.name}": _make_image(p) for p in pictures}, step=step)

    def _start(self) -> Any:
        folder = str(self._directory / "wandb" / "cache")
        caches = dict.fromkeys(("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"), folder)
        with environment_variables(
            caches | {"WANDB_ERROR_REPORTING": "false"}
        ):  # an offline run would post errors, too
            import wandb

            settings = wandb.Settings(
                console="off", silent=True, disable_code=True, disable_git=True, finish_timeout=_FINISH_S
            )
            # Offline there is nothing to resume from; wandb would only warn that it ignores the wish.
            resume: Literal["allow", False] = "allow" if self._about["mode"] == "online" else False
            identity = _read_or_create_id(self._directory / "wandb" / "run_id")
            return wandb.init(dir=self._directory, settings=settings, id=identity, resume=resume, **self._about)


def _read_or_create_id(path: Path) -> str:
    """Return the run's id in wandb, created by its first start."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(uuid.uuid4().hex[:12], encoding="utf-8")
    return read_regular_file(path).decode("utf-8")


def _make_image(picture: Picture) -> Any:
    import wandb

    return wandb.Image(picture.pixels, caption=picture.caption or None)
