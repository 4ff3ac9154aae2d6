"""Images of many requests, decoded and classified in batches of what is waiting."""

import asyncio
import contextlib
import io
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vision_zoo.data.decode import UNREADABLE, decode
from vision_zoo.errors import one_line

Row = dict[str, Any]
Classify = Callable[[Tensor], list[Row]]


class RefusedError(Exception):
    """An image that is not classified, with the HTTP status that says why."""

    def __init__(self, status: int, problem: str) -> None:
        super().__init__(problem)
        self.status, self.problem = status, problem


class Batcher:
    """Classifies images that arrive at any time: those that wait make the next batch of the first thread that is free.

    There is a thread for each processor, which decodes its batch and computes it by itself: threads that share a batch
    wait for each other, and longer where the requests themselves take a processor. A batch has its share of the images
    on their way, so that no thread waits for the next ones to come, and an image that is alone has all processors.

    Args:
        classifiers: one for each thread: rows of a batch of pixels, uint8 (B, C, H, W).
        read: pixels, uint8 (C, H, W), of an open image file; called in several threads.
        batch_size: images of a batch, at most.
        most_waiting: images that may wait; one more is refused with the status 503.
        most_pixels: of an image as it comes; a larger one is refused with the status 413, before it is decoded.
    """

    def __init__(
        self,
        classifiers: Sequence[Classify],
        read: Callable[[io.BytesIO], Tensor],
        batch_size: int,
        most_waiting: int,
        most_pixels: float,
    ) -> None:
        self.classifiers, self.read, self.batch_size = classifiers, read, batch_size
        self.most_waiting, self.most_pixels = most_waiting, most_pixels
        self.images = self.batches = self.taken = 0  # classified, their batches, and images on their way now
        self.seconds = 0.0  # of decoding and computing, of all threads
        self._waiting: asyncio.Queue[tuple[bytes, asyncio.Future[Row | RefusedError]]] = asyncio.Queue()
        self._threads = ThreadPoolExecutor(len(classifiers), initializer=partial(torch.set_num_threads, 1))
        self._alone = ThreadPoolExecutor(1, initializer=partial(torch.set_num_threads, torch.get_num_threads()))

    async def row(self, content: bytes) -> Row | RefusedError:
        """What the network makes of the bytes of an image file, or the error of one that cannot be had.

        Raises:
            RefusedError: if too many wait.
        """
        with self._place():
            future: asyncio.Future[Row | RefusedError] = asyncio.get_running_loop().create_future()
            self._waiting.put_nowait((content, future))
            return await future

    async def made_of(self, content: bytes, make: Callable[[Tensor], bytes]) -> bytes:
        """What `make`, called in one thread, makes of the pixels of an image file; errors as of `row`."""
        with self._place():
            return await asyncio.get_running_loop().run_in_executor(self._alone, lambda: make(self._pixels(content)))

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
        except Image.DecompressionBombError as error:  # beyond what PIL opens
            raise RefusedError(413, one_line(error)) from error
        except UNREADABLE as error:
            raise RefusedError(415, f"this cannot be read as an image ({type(error).__name__})") from error

    def _rows(self, classify: Classify, contents: list[bytes]) -> list[Row | RefusedError]:
        """A row for each image of a batch; an error for one that cannot be had."""
        images: list[Tensor | RefusedError] = []
        for content in contents:
            try:
                images.append(self._pixels(content))
            except RefusedError as error:
                images.append(error)
        good = [image for image in images if isinstance(image, Tensor)]
        rows = iter(classify(torch.stack(good)) if good else ())
        return [next(rows) if isinstance(image, Tensor) else image for image in images]

    async def work(self) -> None:
        """Classify for ever; an error of the network is that of the images of its batch alone."""
        await asyncio.gather(*map(self._work, self.classifiers))

    async def _work(self, classify: Classify) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch, share = [await self._waiting.get()], self.taken / (len(self.classifiers) + 1)
            while len(batch) < min(self.batch_size, share) and not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
            batch = [(content, future) for content, future in batch if not future.done()]  # some have gone away
            if not batch:
                continue
            threads, began = self._alone if self.taken == 1 else self._threads, time.perf_counter()
            try:
                rows = await loop.run_in_executor(threads, self._rows, classify, [content for content, _ in batch])
            except Exception as error:
                rows = [RefusedError(500, f"the network failed: {error}") for _ in batch]
            good = sum(isinstance(row, dict) for row in rows)
            self.images, self.batches = self.images + good, self.batches + bool(good)
            self.seconds += time.perf_counter() - began
            for (_, future), row in zip(batch, rows, strict=True):
                if not future.done():
                    future.set_result(row)


def reader(image_shape: tuple[int, int, int], **options: Any) -> Callable[[io.BytesIO], Tensor]:
    """The `read` of a `Batcher`, with the options of `decode`."""
    return lambda file: torch.from_numpy(decode(file, image_shape, **options).copy())
