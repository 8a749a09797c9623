"""Images encoded on a thread of their own while the device makes the next ones.

A device waits for nothing while an image becomes JPEG or PNG. It does not know how images are drawn, nor which of
several images of a row is taken.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import numpy as np

from segdatagen.diffusion.microbatch import Made
from segdatagen.images import Image, ImageFormat, encode_image


class EncodingThread:
    """A thread that encodes what `collect` is given; it ends with the block."""

    def __init__(self, image_format: ImageFormat) -> None:
        self._format: ImageFormat = image_format
        self._thread = ThreadPoolExecutor(1)
        self._encoded: dict[tuple[int, int], Future[bytes]] = {}

    def __enter__(self) -> "EncodingThread":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(cancel_futures=True)

    def collect(
        self,
        rows: Sequence[int],
        seeds: Sequence[int],
        batches: Iterable[Made],
        finished: Callable[[int, Image], Image] = lambda row, image: image,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What a `Draw` returns of these rows and seeds, whose images come in `batches`.

        `finished` makes of a row and its image the one that is stored.
        """
        images, finite, microbatch = [], [], []
        for made in batches:
            for number, image in enumerate(made.images, start=made.start):
                row = int(rows[number])
                images.append(finished(row, image))
                self._encoded[row, seeds[number]] = self._thread.submit(encode_image, images[-1], self._format)
            finite.append(made.finite)
            microbatch += [made.microbatch] * len(made.images)
        return np.stack(images), np.concatenate(finite), np.array(microbatch, np.int32)

    def stored(self, row: int, seed: int) -> bytes:
        """The image of a row that was drawn with a seed."""
        return self._encoded[row, seed].result()

    def encoded(self, seeds: Iterable[int]) -> list[bytes]:
        """The images of rows 0, 1 and so on that were drawn with these seeds."""
        return [self.stored(row, seed) for row, seed in enumerate(seeds)]
