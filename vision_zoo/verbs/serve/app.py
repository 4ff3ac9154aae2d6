"""The web application: a page, POST /predict, POST /explain, GET /health and GET /metrics."""

import asyncio
import contextlib
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Message, Receive
from torch import Tensor

from vision_zoo.verbs.serve.batching import Batcher, RefusedError, Row

T = TypeVar("T")
JSON = "application/json"  # in ASCII, for names of classes may be any bytes
MOST_FILES = 64  # of one request
_TOO_MANY = f"more than {MOST_FILES} images came, which are the limit of a request"
# The page asks its own server alone; it holds its style, its program and what it shows.
POLICY = (
    "default-src 'none'; img-src 'self' blob: data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def make_app(
    batcher: Batcher, look: Callable[[Tensor], bytes] | None, page: bytes, facts: Row, most_bytes: int, seconds: float
) -> Starlette:
    """The application around a batcher.

    Args:
        batcher: classifies images.
        look: draws as PNG where the network looked in an image, uint8 (C, H, W), for POST /explain; None if it cannot.
        page: HTML of the page, in UTF-8.
        facts: what GET /health says besides the status.
        most_bytes: of a request; a larger one is answered with the status 413.
        seconds: that a request may take; a slower upload is answered with the status 408, slower work with 503.
    """
    counts: Counter[int] = Counter()
    spent = [0.0]

    async def counted(request: Request) -> Response:
        began = time.perf_counter()
        try:
            response = await (explain if request.scope["path"] == "/explain" else predict)(request)
        except RefusedError as error:
            wait = {"Retry-After": "1"} if error.status == 503 else {}
            response = JSONResponse({"error": error.problem}, error.status, headers=wait)
        except ClientDisconnect:
            response = Response(status_code=400)
        except asyncio.CancelledError:  # uvicorn waits for nobody longer than a few seconds
            response = JSONResponse({"error": "the server ends"}, 503)
        counts[response.status_code] += 1
        spent[0] += time.perf_counter() - began
        return response

    async def in_time(work: Awaitable[T], status: int = 503, what: str = "it") -> T:
        try:
            async with asyncio.timeout(seconds):
                return await work
        except TimeoutError:
            raise RefusedError(status, f"{what} took longer than {seconds:g} s: try again later") from None

    async def sent(request: Request) -> list[tuple[str, bytes]]:
        files = await in_time(_files(request, most_bytes), 408, "the upload")
        if not files:
            raise RefusedError(400, "no image came: send the bytes of one, or a form with files")
        if len(files) > MOST_FILES:
            raise RefusedError(413, _TOO_MANY)
        return files

    async def predict(request: Request) -> Response:
        files = await sent(request)
        answers = asyncio.gather(*[batcher.row(body) for _, body in files], return_exceptions=True)
        results = await in_time(answers)
        rows: list[Row] = []
        for (name, _), result in zip(files, results, strict=True):
            if isinstance(result, RefusedError):
                rows.append({"file": name, "error": result.problem})
            elif isinstance(result, BaseException):
                raise result
            else:
                rows.append({"file": name, **result})
        refused = [result for result in results if isinstance(result, RefusedError)]
        if len(refused) == len(files):
            raise refused[0]  # whose status says it, for none could be answered
        return Response(json.dumps({"predictions": rows}), media_type=JSON)

    async def explain(request: Request) -> Response:
        if look is None:
            raise RefusedError(501, "this needs captum where the server runs: pip install 'vision_zoo[explain]'")
        (_, body), *others = await sent(request)
        if others:
            raise RefusedError(400, "several images came: send one, for the answer is its picture")
        return Response(await in_time(batcher.made_of(body, look)), media_type="image/png")

    async def show(_: Request) -> Response:
        return HTMLResponse(page, headers={"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff"})

    async def health(_: Request) -> Response:
        return Response(json.dumps({"status": "ok", **facts}), media_type=JSON)

    async def metrics(_: Request) -> Response:
        lines = ["# TYPE vision_zoo_requests_total counter"]
        lines += [f'vision_zoo_requests_total{{status="{status}"}} {n}' for status, n in sorted(counts.items())]
        numbers: dict[str, tuple[str, float]] = {
            "request_seconds_total": ("counter", spent[0]),
            "images_total": ("counter", batcher.images),
            "batches_total": ("counter", batcher.batches),
            "batch_seconds_total": ("counter", batcher.seconds),
            "images_in_progress": ("gauge", batcher.taken),
        }
        for name, (kind, value) in numbers.items():
            lines += [f"# TYPE vision_zoo_{name} {kind}", f"vision_zoo_{name} {value}"]
        return PlainTextResponse("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4")

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        worker = asyncio.create_task(batcher.work())
        yield
        worker.cancel()

    routes = [
        Route("/", show),
        Route("/predict", counted, methods=["POST"]),
        Route("/explain", counted, methods=["POST"]),
        Route("/health", health),
        Route("/metrics", metrics),
    ]
    return Starlette(routes=routes, lifespan=lifespan)


async def _files(request: Request, most_bytes: int) -> list[tuple[str, bytes]]:
    """The images of a request, with the names that a form gives them: nothing is looked for under these."""
    too_large = RefusedError(413, f"the request has more than {most_bytes / 2**20:g} MB")
    limited = Request(request.scope, _limited(request.receive, most_bytes, too_large))
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        content = await limited.body()
        return [("", content)] if content else []
    try:
        async with limited.form(max_files=MOST_FILES + 1, max_fields=MOST_FILES) as form:
            uploads = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
            return [(upload.filename or "", await upload.read()) for upload in uploads]
    except HTTPException as error:  # of starlette's parser, which leaves the rest unread
        with contextlib.suppress(RuntimeError):  # all has been
            async for _ in limited.stream():
                pass
        told = (400, f"the form cannot be read: {error.detail}")
        raise RefusedError(*((413, _TOO_MANY) if error.detail.startswith("Too many files") else told)) from error


def _limited(receive: Receive, most_bytes: int, error: Exception) -> Receive:
    """Messages of a request up to so many bytes; then the others are thrown away, and an error is raised.

    Who still sends would not read an answer, so that nothing is answered before the end.
    """
    taken = 0

    async def counted() -> Message:
        nonlocal taken
        message: Message = await receive()
        taken += len(message.get("body", b""))
        while taken > most_bytes:
            if not message.get("more_body"):
                raise error
            message = await receive()
        return message

    return counted
