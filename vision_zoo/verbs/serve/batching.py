"""Images of many requests, decoded and classified in batches of whatever is waiting."""

import asyncio
import contextlib
import io
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vision_zoo.data.decode import UNREADABLE, decode, decoding_threads

Row = dict[str, Any]
CHUNK = 4  # images that a thread decodes at a time


class RefusedError(Exception):
    """An image that is not classified, with the HTTP status that says why."""

    def __init__(self, status: int, problem: str) -> None:
        super().__init__(problem)
        self.status, self.problem = status, problem


class Batcher:
    """Classifies images that arrive at any time: those that wait while a batch is computed make the next one.

    A batch is decoded by all threads, then computed by all: the two would only take the processor from each other, and
    one hand-over for each batch, not for each image, halves the time of a small one.

    Args:
        classify: rows of a batch of pixels, uint8 (B, C, H, W); called in one thread.
        read: pixels, uint8 (C, H, W), of an open image file; called in several threads.
        batch_size: images of a batch, at most.
        most_waiting: images that may wait; one more is refused with the status 503.
        most_pixels: of an image as it comes; a larger one is refused with the status 413, before it is decoded.
    """

    def __init__(
        self,
        classify: Callable[[Tensor], list[Row]],
        read: Callable[[io.BytesIO], Tensor],
        batch_size: int,
        most_waiting: int,
        most_pixels: float,
    ) -> None:
        self.classify, self.read, self.batch_size = classify, read, batch_size
        self.most_waiting, self.most_pixels = most_waiting, most_pixels
        self.images = self.batches = self.taken = 0  # classified, their batches, and images on their way now
        self.seconds = 0.0  # of computing
        self._waiting: asyncio.Queue[tuple[bytes, asyncio.Future[Row]]] = asyncio.Queue()
        self._network, self._decoders = ThreadPoolExecutor(1), ThreadPoolExecutor(decoding_threads())

    async def row(self, content: bytes) -> Row:
        """What the network makes of the bytes of an image file; a RefusedError for one that cannot be had."""
        with self._place():
            future: asyncio.Future[Row] = asyncio.get_running_loop().create_future()
            self._waiting.put_nowait((content, future))
            return await future

    async def made_of(self, content: bytes, make: Callable[[Tensor], bytes]) -> bytes:
        """What `make`, called in the network's thread, makes of the pixels of an image file; errors as of `row`."""
        with self._place():
            loop = asyncio.get_running_loop()
            pixels = await loop.run_in_executor(self._decoders, self._pixels, content)
            return await loop.run_in_executor(self._network, make, pixels)

    @contextlib.contextmanager
    def _place(self) -> Iterator[None]:
        """Count an image as on its way; a RefusedError where there are too many."""
        if self.taken >= self.most_waiting:
            raise RefusedError(503, f"{self.taken} images are waiting already: try again later")
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1

    def _pixels(self, content: bytes) -> Tensor:
        try:
            with Image.open(io.BytesIO(content)) as opened:
                width, height = opened.size
            if width * height > self.most_pixels:
                most = f"{self.most_pixels / 1e6:g} megapixels are the limit"
                raise RefusedError(413, f"the image has {width} x {height} pixels, and {most}")
            return self.read(io.BytesIO(content))
        except UNREADABLE as error:
            raise RefusedError(415, f"this cannot be read as an image ({type(error).__name__})") from error

    def _rows(self, contents: list[bytes]) -> list[Row | RefusedError]:
        """A row for each image of a batch; an error for one that cannot be had."""

        def read(part: list[bytes]) -> list[Tensor | RefusedError]:
            found: list[Tensor | RefusedError] = []
            for content in part:
                try:
                    found.append(self._pixels(content))
                except RefusedError as error:
                    found.append(error)
            return found

        parts = [contents[start : start + CHUNK] for start in range(0, len(contents), CHUNK)]
        images = list(chain.from_iterable(self._decoders.map(read, parts)))
        good = [image for image in images if isinstance(image, Tensor)]
        began = time.perf_counter()
        rows = iter(self.classify(torch.stack(good)) if good else ())
        self.images, self.batches = self.images + len(good), self.batches + bool(good)
        self.seconds += time.perf_counter() - began
        return [next(rows) if isinstance(image, Tensor) else image for image in images]

    async def work(self) -> None:
        """Classify for ever; an error of the network is that of the images of its batch alone."""
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self._waiting.get()]
            while len(batch) < self.batch_size and not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
            batch = [(content, future) for content, future in batch if not future.done()]  # some have gone away
            if not batch:
                continue
            try:
                rows = await loop.run_in_executor(self._network, self._rows, [content for content, _ in batch])
            except Exception as error:
                rows = [RefusedError(500, f"the network failed: {error}") for _ in batch]
            for (_, future), row in zip(batch, rows, strict=True):
                if future.done():
                    continue
                if isinstance(row, RefusedError):
                    future.set_exception(row)
                else:
                    future.set_result(row)


def reader(image_shape: tuple[int, int, int], **options: Any) -> Callable[[io.BytesIO], Tensor]:
    """The `read` of a `Batcher`, with the options of `decode`."""

    def read(file: io.BytesIO) -> Tensor:
        return torch.from_numpy(decode(file, image_shape, **options).copy())

    return read
