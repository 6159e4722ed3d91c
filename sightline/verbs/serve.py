"""`sightline serve`: predictions of a run over HTTP."""

from __future__ import annotations

import contextlib
from typing import Any

from sightline.commands.run import ServeOptions
from sightline.contract.errors import assert_installed
from sightline.engine.device.numerics import set_backends
from sightline.engine.distributed import start_world
from sightline.engine.failures import exit_process
from sightline.store.files.cloud_files import check_columns
from sightline.verbs.output import print_note
from sightline.workbench.export.onnx_file import open_run_or_file
from sightline.workbench.predict.predictor import CommandLine, parse_options, predictor_class

_LOOPBACK = ("127.0.0.1", "::1", "localhost")


def serve(options: ServeOptions) -> int:
    """Serve until a signal ends it; return 0."""
    assert_installed("fastapi", "uvicorn", "python_multipart", needed_by="serve")
    from sightline.workbench.serve.app import Limits, open_app
    from sightline.workbench.serve.server import open_listener, serve_forever

    flags: dict[str, Any] = {} if options.columns is None else {"columns": check_columns(options.columns.split(","))}
    flags |= {"to_sphere": True} if options.to_sphere else {}
    run = open_run_or_file(
        options.run_path, checkpoint=options.checkpoint, plugins=options.plugins, max_seconds=options.max_seconds
    )
    words = parse_options(predictor_class(run), run, CommandLine(flags, options.words, options.plugins))
    limits = Limits(
        int(options.max_mb * 1e6), options.max_seconds, options.max_requests, int(options.max_megapixels * 1e6)
    )
    set_backends(run.config.train)
    with (
        contextlib.closing(open_listener(options.host, options.port)) as listener,
        start_world(device=options.device) as world,
        open_app(
            run, world, limits=limits, batch_size=options.batch_size, wait_ms=options.wait_ms, options=words
        ) as app,
    ):
        if options.host not in _LOOPBACK:
            print_note(f"warning: {options.host} may be reached by other machines, and the server knows no passwords")
        print_note(f"serving {options.run_path} at http://{options.host}:{options.port}; /info states what it takes")
        serve_forever(app, listener)
    print_note("stopped")
    if app.state.slots:  # a thread that cannot be ended would keep the process
        exit_process(0)
    return 0
