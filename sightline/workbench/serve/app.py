"""Application of FastAPI: health, info and predictions of a run, with limits of size, time and number."""

from __future__ import annotations

import asyncio
import logging
import secrets
import shutil
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
from starlette.requests import ClientDisconnect

from sightline.contract.errors import summarise_error
from sightline.engine.distributed import World
from sightline.engine.run_loading import TrainedRun
from sightline.runs.process_folder import process_folder
from sightline.workbench.predict.prediction import build_predictor
from sightline.workbench.serve.batching import MicroBatcher
from sightline.workbench.serve.bodies import Bodies, Body
from sightline.workbench.serve.inputs import InputStore, RequestError, StoredInput

logger = logging.getLogger(__name__)

T = TypeVar("T")

_MAX_DRAINED = 16
"""Maximum of bytes that are read and dropped, in times of what a body may have: a client that still sends its body, and
whose connection is closed, sees "connection reset" in place of the answer."""


_NUM_UNFINISHED = 4
"""Bodies of the largest size that unfinished bodies may have together."""


@dataclass(frozen=True)
class Limits:
    """Limits of requests: bytes, seconds for all of one, requests at a time, and pixels of an image."""

    max_bytes: int = 32 * 2**20
    max_seconds: float = 30.0
    max_requests: int = 64
    max_pixels: int = 24_000_000

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
    with process_folder("serve") as folder:
        limits = limits or Limits()
        store, inputs = InputStore(predictor, max_pixels=limits.max_pixels), folder / "inputs"
        inputs.mkdir()
        info = {
            "run": run.config.name,
            "task": run.config.task.name,
            "model": run.config.model.name,
            "class_names": list(run.class_names),
            "input": store.describe((options or {}).get("columns")),
            **predictor.about(),
        }
        yield _make_app(batcher, store, info, limits, inputs)


def _make_app(batcher: MicroBatcher, store: InputStore, info: dict[str, Any], limits: Limits, folder: Path) -> FastAPI:
    """Make the application; its life begins and ends with that of the batcher's thread.

    Its state has the `bodies` that are being received, the `slots` of requests that threads work for, and the `folder`
    of their inputs.
    """
    storing = ThreadPoolExecutor(1, "sightline-store")  # one at a time: a document takes many times its text
    slots: set[RequestSlot] = set()
    bodies = Bodies(_NUM_UNFINISHED * limits.max_bytes)

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
    app.state.slots, app.state.bodies, app.state.folder = slots, bodies, folder

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
        slot = RequestSlot(folder / secrets.token_hex(16), slots)
        body = bodies.open()
        try:
            async with asyncio.timeout(limits.max_seconds):
                content = await _receive(request, body, limits)
                if len(slots) >= limits.max_requests:
                    return _make_error(503, "the server is busy; try again")
                slot.take()
                stored = await _store(slot, storing, store, content)
                del content
                reply = await slot.wait_for(batcher.submit(stored.path, stored.draw_name))
        except TimeoutError:
            return _make_error(504, f"the request took more than {limits.max_seconds:g} s")
        except asyncio.CancelledError:
            if not body.is_dropped:
                return _make_error(503, "the server stops, and did not finish the request in time")
            body.resume()
            return _make_error(503, "the server receives too much at once, and this body stood longest; try again")
        except ClientDisconnect:
            logger.info("a client left before its request was whole")
            return _make_error(400, "body: is cut")
        except RequestError as error:
            return _make_error(error.status, str(error))
        except HTTPException:
            raise
        except Exception as failure:  # noqa: BLE001 - the last place: every failure becomes one sentence
            return _make_error(*_report(failure))
        finally:
            body.close()
            slot.leave()
        if reply.document is None:
            return _make_error(422, reply.reason)
        return JSONResponse({"input": stored.name, **reply.document})

    @app.exception_handler(HTTPException)
    async def refuse_address(request: Request, error: HTTPException) -> JSONResponse:
        address = f"{request.method} {request.url.path[:100]}"
        text = {404: "there is no such address", 405: "is not allowed"}.get(error.status_code, "the body is malformed")
        return _make_error(error.status_code, f"{address}: {text}; /info states what there is")

    return app


class _Content(NamedTuple):
    """Whole content of a request: the text of a document of JSON, or a file with its name and category."""

    data: bytes
    name: str | None = None
    category: str | None = None


async def _receive(request: Request, body: Body, limits: Limits) -> _Content:
    """Receive the content of a request. Raises RequestError for a body that is neither a form nor JSON."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        return _Content(await _receive_body(request, body, most=limits.max_json_bytes))
    if kind != "multipart/form-data":
        raise RequestError(415, "body: send a form with the field 'file', or JSON, and say so in Content-Type")
    text = await _receive_body(request, body, most=limits.max_bytes)
    if not _is_ended(text, request.headers["content-type"]):
        raise RequestError(400, "form: is cut, its last line is no closing boundary; send all of it")

    async def replay() -> dict[str, Any]:
        return {"type": "http.request", "body": text, "more_body": False}

    async with Request(request.scope, replay).form(max_files=1, max_fields=2, max_part_size=4096) as form:
        file, category = form.get("file"), form.get("category")
        if not isinstance(file, UploadFile) or not isinstance(category, str | None):
            raise RequestError(422, "form: the field 'file' with a file is needed")
        return _Content(await file.read(), file.filename or "", category)


async def _store(slot: RequestSlot, storing: ThreadPoolExecutor, store: InputStore, content: _Content) -> StoredInput:
    """Store an input in the thread of the store. Raises RequestError with the status and the sentence of a failure.

    The error is made here and nothing keeps it: one that a future held would keep, by its traceback and in a cycle, the
    frames of the thread and the document that they had parsed.
    """
    if content.name is None:
        work = storing.submit(_run_detached, store.store_json, slot.folder, content.data)
    else:
        name, data, category = content.name, content.data, content.category
        work = storing.submit(_run_detached, store.store_upload, slot.folder, name, data, category)
    outcome = await slot.wait_for(work)
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


async def _receive_body(request: Request, body: Body, *, most: int) -> bytes:
    """Receive a body of at most so many bytes. Raises RequestError for more, after some that are read and dropped."""
    num_bytes = 0
    async for part in request.stream():
        num_bytes += len(part)
        if num_bytes <= most:
            body.add(part)
        elif num_bytes > _MAX_DRAINED * most:
            break
        else:
            body.close()
    if num_bytes > most:
        raise RequestError(413, f"body: has more than {most:,} bytes, the limit for {_describe_kind(request)}")
    return body.finish()


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

    def __init__(self, folder: Path, slots: set[RequestSlot]) -> None:
        self.folder = folder
        self._slots = slots
        self._work: Future[Any] = Future()
        self._work.cancel()

    def take(self) -> None:
        """Take the place."""
        self._slots.add(self)

    async def wait_for(self, work: Future[T]) -> T:
        """Wait for the work of a thread, which keeps the place until it ends, also if nobody waits any more."""
        self._work = work
        return await asyncio.wrap_future(work)

    def leave(self) -> None:
        """Free the place, and delete the folder, now or when the work has ended: a thread cannot be cancelled."""

        def free(_: Any) -> None:
            shutil.rmtree(self.folder, ignore_errors=True)
            self._slots.discard(self)

        self._work.add_done_callback(free)
