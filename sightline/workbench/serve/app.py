"""Application of FastAPI: health, info and predictions of a run, with limits of size, time and number."""

from __future__ import annotations

import asyncio
import logging
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from email.message import Message
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from sightline.contract.errors import summarise_error
from sightline.engine.distributed import World
from sightline.engine.run_loading import TrainedRun
from sightline.workbench.predict.prediction import build_predictor
from sightline.workbench.serve.batching import MicroBatcher
from sightline.workbench.serve.inputs import InputStore, RequestError, StoredInput

logger = logging.getLogger(__name__)

T = TypeVar("T")

_MAX_DRAINED = 16
"""Maximum of bytes that are read and dropped, in times of what a body may have: a client that still sends its body, and
whose connection is closed, sees "connection reset" in place of the answer."""


@dataclass(frozen=True)
class Limits:
    """Limits of requests: bytes, seconds for all of one, and requests at a time."""

    max_bytes: int = 32 * 2**20
    max_seconds: float = 30.0
    max_requests: int = 64

    @property
    def max_json_bytes(self) -> int:
        """Bytes that a document of JSON may have: lists and numbers of Python take many times their text."""
        return self.max_bytes // 8


class _Failure(NamedTuple):
    """Status of HTTP and sentence of a request that failed."""

    status: int
    message: str


@contextmanager
def open_app(
    run: TrainedRun,
    world: World,
    *,
    limits: Limits | None = None,
    batch_size: int | None = None,
    wait_ms: float = 5.0,
    options: Mapping[str, Any] | None = None,
) -> Iterator[FastAPI]:
    """Open the application of a run, with a folder of its own for inputs, which is deleted at the end.

    Raises ConfigError for a task without a predictor and for unknown options.
    """
    predictor = build_predictor(run, world=world, **(options or {}))
    size = batch_size or min(run.config.evaluate.batch_size, 32)
    batcher = MicroBatcher(predictor, world, batch_size=size, wait_ms=wait_ms)
    with tempfile.TemporaryDirectory(prefix="sightline-serve-") as folder:
        store = InputStore(predictor)
        info = {
            "run": run.config.name,
            "task": run.config.task.name,
            "model": run.config.model.name,
            "class_names": list(run.class_names),
            "input": store.describe((options or {}).get("columns")),
            **predictor.about(),
        }
        yield _make_app(batcher, store, info, limits or Limits(), Path(folder))


def _make_app(batcher: MicroBatcher, store: InputStore, info: dict[str, Any], limits: Limits, folder: Path) -> FastAPI:
    """Make the application; its life begins and ends with that of the batcher's thread.

    Its state has the `slots` of requests that threads work for, and the `folder` of their inputs.
    """
    storing = ThreadPoolExecutor(1, "sightline-store")  # one at a time: a document takes many times its text
    slots: set[RequestSlot] = set()

    @asynccontextmanager
    async def live(_: FastAPI) -> AsyncIterator[None]:
        batcher.start()
        yield
        storing.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(batcher.stop)

    app = FastAPI(
        title="sightline",
        description="Predictions of a trained run.",
        version="1",
        lifespan=live,
        docs_url=None,  # FastAPI's own pages load scripts from a public address
        redoc_url=None,
    )
    app.state.slots, app.state.folder = slots, folder

    @app.get("/health")
    async def health() -> dict[str, Any]:
        """Return that the server is up, and its number of predictions and batches."""
        return {"status": "ok", "predicted": batcher.num_predicted, "batches": batcher.num_batches}

    @app.get("/info")
    async def describe() -> dict[str, Any]:
        """Return task, classes, the kinds of input and the limits."""
        return {**info, "limits": asdict(limits)}

    @app.post("/predict")
    async def predict(request: Request) -> JSONResponse:
        """Predict one file (form field `file`), or the numbers of a JSON document."""
        if len(slots) >= limits.max_requests:
            return _make_error(503, "the server is busy; try again")
        slot = RequestSlot(folder / secrets.token_hex(16))
        slots.add(slot)
        try:
            async with asyncio.timeout(limits.max_seconds):
                stored = await _receive(request, slot, store, storing, limits)
                reply = await slot.wait_for(batcher.submit(stored.path, stored.draw_name))
        except TimeoutError:
            return _make_error(504, f"the request took more than {limits.max_seconds:g} s")
        except asyncio.CancelledError:
            return _make_error(503, "the server stops, and did not finish the request in time")
        except RequestError as error:
            return _make_error(error.status, str(error))
        except HTTPException:
            raise
        except Exception as failure:  # noqa: BLE001 - the last place: every failure becomes one sentence
            return _make_error(*_report(failure))
        finally:
            slot.leave(slots)
        if reply.document is None:
            return _make_error(422, reply.reason)
        return JSONResponse({"input": stored.name, **reply.document})

    @app.exception_handler(HTTPException)
    async def refuse_address(request: Request, error: HTTPException) -> JSONResponse:
        address = f"{request.method} {request.url.path[:100]}"
        text = {404: "there is no such address", 405: "is not allowed"}.get(error.status_code, "the body is malformed")
        return _make_error(error.status_code, f"{address}: {text}; /info states what there is")

    return app


async def _receive(
    request: Request, slot: RequestSlot, store: InputStore, storing: ThreadPoolExecutor, limits: Limits
) -> StoredInput:
    """Receive and store the input of a request. Raises RequestError for a body that is neither a form nor JSON."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        text = await _receive_body(request, most=limits.max_json_bytes)
        return await _store(slot, storing, store.store_json, text)
    if kind != "multipart/form-data":
        raise RequestError(415, "body: send a form with the field 'file', or JSON, and say so in Content-Type")
    body = await _receive_body(request, most=limits.max_bytes)
    if not _is_ended(body, request.headers["content-type"]):
        raise RequestError(400, "form: is cut, its last line is no closing boundary; send all of it")

    async def replay() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async with Request(request.scope, replay).form(max_files=1, max_fields=2, max_part_size=4096) as form:
        file, category = form.get("file"), form.get("category")
        if not isinstance(file, UploadFile) or not isinstance(category, str | None):
            raise RequestError(422, "form: the field 'file' with a file is needed")
        content, name = await file.read(), file.filename or ""
    return await _store(slot, storing, store.store_upload, name, content, category)


async def _store(
    slot: RequestSlot, storing: ThreadPoolExecutor, work: Callable[..., StoredInput], *inputs: Any
) -> StoredInput:
    """Store an input in the thread of the store. Raises RequestError with the status and the sentence of a failure.

    The error is made here and nothing keeps it: one that a future held would keep, by its traceback and in a cycle, the
    frames of the thread and the document that they had parsed.
    """
    outcome = await slot.wait_for(storing.submit(_run_detached, work, slot.folder, *inputs))
    if isinstance(outcome, _Failure):
        raise RequestError(outcome.status, outcome.message)
    return outcome


def _run_detached(work: Callable[..., T], *inputs: Any) -> T | _Failure:
    """Return what the work returns, or what a client may know of its failure: text alone, without the exception."""
    try:
        return work(*inputs)
    except RequestError as error:
        return _Failure(error.status, str(error))
    except Exception as failure:  # noqa: BLE001 - no exception leaves the thread
        return _report(failure)


def _report(failure: Exception) -> _Failure:
    """Log an unexpected failure, and return what a client may know of it."""
    logger.error("a request failed: %s", summarise_error(failure))
    return _Failure(500, "the server failed; its log has the reason")


async def _receive_body(request: Request, *, most: int) -> bytes:
    """Receive a body of at most so many bytes. Raises RequestError for more, after some that are read and dropped."""
    content, num_bytes = bytearray(), 0
    async for part in request.stream():
        num_bytes += len(part)
        if num_bytes <= most:
            content += part
        elif num_bytes > _MAX_DRAINED * most:
            break
    if num_bytes > most:
        raise RequestError(413, f"body: has more than {most:,} bytes, the limit for {_describe_kind(request)}")
    return bytes(content)


def _is_ended(body: bytes, content_type: str) -> bool:
    """Return False for a form without its closing boundary: Starlette's parser would leave its last file open."""
    header = Message()
    header["Content-Type"] = content_type
    boundary = header.get_boundary()
    if boundary is None:
        return True  # what the parser refuses
    closing = b"--" + boundary.encode("latin-1", "replace") + b"--"
    return body.startswith(closing) or b"\r\n" + closing in body


def _describe_kind(request: Request) -> str:
    return "JSON; send a file" if "json" in request.headers.get("content-type", "") else "a form"


def _make_error(status: int, message: str) -> JSONResponse:
    headers = {"Retry-After": "1"} if status == 503 else None
    return JSONResponse({"error": message}, status_code=status, headers=headers)


class RequestSlot:
    """Place of a request among those that the server works on, and the folder of its input."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._work: Future[Any] = Future()
        self._work.cancel()

    async def wait_for(self, work: Future[T]) -> T:
        """Wait for the work of a thread, which keeps the place until it ends, also if nobody waits any more."""
        self._work = work
        return await asyncio.wrap_future(work)

    def leave(self, slots: set[RequestSlot]) -> None:
        """Free the place, and delete the folder, now or when the work has ended: a thread cannot be cancelled."""

        def free(_: Any) -> None:
            shutil.rmtree(self.folder, ignore_errors=True)
            slots.discard(self)

        self._work.add_done_callback(free)
