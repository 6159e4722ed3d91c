"""MLflow observer into a folder, a database or a server, where a resumed run goes on in its own run."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sightline.config.plain_values import flatten
from sightline.config.yaml_writer import format_inline
from sightline.contract.errors import ConfigError, RunError, assert_installed
from sightline.contract.regular_files import read_regular_file
from sightline.draw.pictures import Picture
from sightline.engine.loggers.interval_logger import IntervalLogger, environment_variables
from sightline.instrument.random_state import preserve_random_state

_PROJECT = "sightline"
_NO_METRIC_NAME = re.compile(r"[^\w ./:-]", re.ASCII)
_BATCH, _MAX_VALUE = 100, 6000
"""Names that MLflow takes at once, and letters of a parameter."""


class Mlflow(IntervalLogger):
    """Observer that writes a run of MLflow at the tracking URI `uri`: `train/<number>`, `<split>/<metric>`, pictures.

    The config is its parameters, one for each value, and the artifact `config.yaml`, whose text is `text`. A resumed
    run goes on in the run whose identity lies in `directory`/mlflow_run_id, without the steps that this one has
    already; what is not finite is left out. The folder, database or server is opened after the first interval. No
    global state of MLflow changes, and it posts no usage data. `assert_own` raises, before anything is written, if the
    directory is another run's by now. Raises MissingExtraError without mlflow, ConfigError for a password in the URI.
    """

    def __init__(
        self,
        directory: Path,
        *,
        uri: str,
        name: str,
        config: Mapping[str, Any],
        text: str,
        every: int = 50,
        unwritten: Iterable[Mapping[str, Any]] = (),
        assert_own: Callable[[], None] = lambda: None,
    ) -> None:
        self.assert_installed(uri)
        super().__init__(every, unwritten)
        self._id_file = directory / "mlflow_run_id"
        self._assert_own = assert_own
        self._uri, self._name, self._config, self._text = uri, name, config, text
        self._client: Any = None
        self._run_id = ""
        self._last: dict[str, int] = {}

    @staticmethod
    def assert_installed(uri: str) -> None:
        """Raise MissingExtraError without mlflow, ConfigError for a URI that would put a password into the config."""
        assert_installed("mlflow", needed_by="log.mlflow")
        if urlsplit(uri).password is not None:
            raise ConfigError(
                "log.mlflow: the URI has a password, which the run's config would keep; leave it out and set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment"
            )

    def on_end(self, reason: str) -> None:
        if reason in ("done", "failed"):  # else a resumed run writes the open interval, which it gets as `unwritten`
            self._intervals.flush()
        if self._client is not None:
            status = {"done": "FINISHED", "failed": "FAILED"}.get(reason, "KILLED")
            with environment_variables(self._variables):
                self._client.set_terminated(self._run_id, status)

    @property
    def _variables(self) -> dict[str, str]:
        """Variables of MLflow: no usage data, folders are allowed, four retries where a server does not answer."""
        retries = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
        values = {"MLFLOW_DISABLE_TELEMETRY": "true", retries: os.environ.get(retries, "4")}
        return values | ({"MLFLOW_ALLOW_FILE_STORE": "true"} if urlsplit(self._uri).scheme in ("", "file") else {})

    def _write(self, step: int, split: str, numbers: Mapping[str, float], pictures: Sequence[Picture] = ()) -> None:
        self._assert_own()
        with preserve_random_state(), environment_variables(self._variables):
            if self._client is None:
                self._start()
            from mlflow.entities import Metric

            named = {_NO_METRIC_NAME.sub("_", f"{split}/{name}"): value for name, value in numbers.items()}
            new = {key: value for key, value in named.items() if step > self._last.get(key, -1)}
            now_ms = round(1000 * time.time())
            metrics = [Metric(key, value, now_ms, step) for key, value in new.items() if math.isfinite(value)]
            for start in range(0, len(metrics), _BATCH):
                self._client.log_batch(self._run_id, metrics=metrics[start : start + _BATCH])
            for picture in pictures if new else ():
                file = f"pictures/{split}/{_NO_METRIC_NAME.sub('_', picture.name).replace('/', '_')}_{step}.png"
                self._client.log_image(self._run_id, picture.pixels, artifact_file=file)

    def _start(self) -> None:
        """Open the run of this directory, or make it; its parameters are written once."""
        import mlflow
        from mlflow.entities import Param

        client = mlflow.MlflowClient(tracking_uri=self._uri)
        if self._id_file.exists():
            self._run_id = read_regular_file(self._id_file).decode("utf-8")
            client.update_run(self._run_id, status="RUNNING")
            for key in client.get_run(self._run_id).data.metrics:
                self._last[key] = max(metric.step for metric in client.get_metric_history(self._run_id, key))
        else:
            experiment = client.get_experiment_by_name(_PROJECT)
            if experiment is None:
                with suppress(mlflow.MlflowException):  # another run may have made it by now
                    client.create_experiment(_PROJECT)
                experiment = client.get_experiment_by_name(_PROJECT)
            if experiment is None:
                raise RunError(f"log.mlflow: {self._uri} has no experiment '{_PROJECT}' and lets none be made")
            self._run_id = client.create_run(experiment.experiment_id, run_name=self._name).info.run_id
            self._id_file.write_text(self._run_id, encoding="utf-8")
            values = {_NO_METRIC_NAME.sub("_", key): value for key, value in flatten(self._config).items()}
            texts = {key: value if isinstance(value, str) else format_inline(value) for key, value in values.items()}
            params = [Param(key, value[:_MAX_VALUE]) for key, value in texts.items()]
            for start in range(0, len(params), _BATCH):
                client.log_batch(self._run_id, params=params[start : start + _BATCH])
        client.log_text(self._run_id, self._text, "config.yaml")
        self._client = client
