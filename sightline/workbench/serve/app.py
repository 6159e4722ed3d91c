"""Application of FastAPI: health, info and predictions, with limits of size, time and concurrency."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from sightline.contract.errors import summarise_error
from sightline.workbench.serve.address_page import describe_bodies, render_addresses
from sightline.workbench.serve.batching import Answer, MicroBatcher
from sightline.workbench.serve.inputs import InputStore, RequestError, StoredInput

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """Limits of requests: bytes, seconds for all of one, and requests at a time."""

    max_bytes: int = 32 * 2**20
    max_seconds: float = 30.0
    max_requests: int = 64


def make_app(batcher: MicroBatcher, store: InputStore, info: dict[str, Any], limits: Limits) -> LimitedApp:
    """Make the application; its life begins and ends with that of the batcher's thread."""

    @asynccontextmanager
    async def live(_: FastAPI) -> AsyncIterator[None]:
        batcher.start()
        yield
        await asyncio.to_thread(batcher.stop)

    app = FastAPI(
        title="sightline",
        description="Predictions of a trained run.",
        version="1",
        lifespan=live,
        docs_url=None,  # FastAPI's own pages load scripts from a public address
        redoc_url=None,
    )
    bodies = {"requestBody": {"required": True, "content": describe_bodies(info["input"])}}

    @app.get("/health")
    async def health() -> dict[str, Any]:
        """Return that the server is up, and its number of predictions and batches."""
        return {"status": "ok", "predicted": batcher.num_predicted, "batches": batcher.num_batches}

    @app.get("/info")
    async def describe() -> dict[str, Any]:
        """Return task, classes, the kinds of input and the limits."""
        return {**info, "limits": asdict(limits)}

    @app.get("/docs", include_in_schema=False)
    @app.get("/", include_in_schema=False)
    async def show_addresses(request: Request) -> HTMLResponse:
        """Return the page of addresses."""
        page = render_addresses(app.openapi(), await describe(), str(request.base_url))
        return HTMLResponse(page)

    @app.post("/predict", openapi_extra=bodies)
    async def predict(request: Request) -> JSONResponse:
        """Predict one file (form field `file`), or the numbers of a JSON document."""
        stored = await _store(request, store)
        waiting = batcher.submit(stored.path)
        try:
            answer: Answer = await asyncio.wrap_future(waiting)
        finally:
            waiting.add_done_callback(lambda _: store.discard(stored))
        if answer.document is None:
            raise RequestError(422, answer.reason)
        return JSONResponse({"input": stored.name, **answer.document})

    @app.exception_handler(RequestError)
    async def refuse(_: Request, error: RequestError) -> JSONResponse:
        return _make_error(error.status, str(error))

    @app.exception_handler(HTTPException)
    async def refuse_address(request: Request, error: HTTPException) -> JSONResponse:
        found = f"{request.method} {request.url.path[:100]}"
        text = {404: "there is no such address", 405: "is not allowed"}.get(error.status_code, "the body is malformed")
        return _make_error(error.status_code, f"{found}: {text}; /docs lists what there is")

    return LimitedApp(app, limits, store.folder)


async def _store(request: Request, store: InputStore) -> StoredInput:
    """Store the input of a request. Raises RequestError for a body that is neither a form nor JSON."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        return await asyncio.to_thread(store.store_json, await request.body())
    if kind != "multipart/form-data":
        raise RequestError(415, "body: send a form with the field 'file', or JSON, and say so in Content-Type")
    async with request.form(max_files=1, max_fields=2, max_part_size=4096) as form:
        file, category = form.get("file"), form.get("category")
        if not isinstance(file, UploadFile) or not isinstance(category, str | None):
            raise RequestError(422, "form: the field 'file' with a file is needed")
        content = await file.read()
        return await asyncio.to_thread(store.store_upload, file.filename or "", content, category)


def _make_error(status: int, message: str) -> JSONResponse:
    headers = {"Retry-After": "1"} if status == 503 else None
    return JSONResponse({"error": message}, status_code=status, headers=headers)


class LimitedApp:
    """Application around another that holds its limits, and answers its failures with one sentence.

    `folder` has the inputs of requests that are not answered yet.
    """

    def __init__(self, app: Any, limits: Limits, folder: Path) -> None:
        self.folder = folder
        self._app, self._limits = app, limits
        self._num_requests = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        error: tuple[int, str]
        if self._num_requests >= self._limits.max_requests:
            await _make_error(503, "the server is busy; try again")(scope, receive, send)
            return
        self._num_requests += 1
        is_started = False

        async def send_noted(message: Any) -> None:
            nonlocal is_started
            is_started = is_started or message["type"] == "http.response.start"
            await send(message)

        try:
            async with asyncio.timeout(self._limits.max_seconds):
                await self._app(scope, self._count(scope, receive), send_noted)
            return
        except TimeoutError:
            error = 504, f"the request took more than {self._limits.max_seconds:g} s"
        except RequestError as refused:
            error = refused.status, str(refused)
        except Exception as failure:  # noqa: BLE001 - the last place: every failure becomes one sentence
            logger.error("a request failed: %s", summarise_error(failure))
            error = 500, "the server failed; its log has the reason"
        finally:
            self._num_requests -= 1
        if not is_started:
            await _make_error(*error)(scope, receive, send)

    def _count(self, scope: Any, receive: Callable[[], Awaitable[Any]]) -> Callable[[], Awaitable[Any]]:
        """Return `receive` that raises RequestError once a body is too large."""
        limit, num_bytes = self._limits.max_bytes, 0
        stated = dict(scope["headers"]).get(b"content-length", b"0")

        async def receive_counted() -> Any:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > limit or (stated.isdigit() and int(stated[:20]) > limit):
                raise RequestError(413, f"body: has more than {limit:,} bytes, the limit")
            return message

        return receive_counted
