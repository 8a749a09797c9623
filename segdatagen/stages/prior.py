"""Visual priors as a stage: of each source's image, of its mask, or of both and blended (SGA, section 3.2.2).

Each picture is drawn once in a batch, however many variants share it. It does not know what is generated from a prior.
"""

import functools
from typing import Literal

from pydantic import BaseModel, ConfigDict

from segdatagen.images import Image, decode_image, decode_mask, encode_image
from segdatagen.labels import LabelSet
from segdatagen.priors import Prior, PriorOptions, blend
from segdatagen.stages.stage import Batch, objects


class PriorStageOptions(BaseModel):
    """What the stage needs to know: content first, then where it is executed."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    prior: PriorOptions
    label_set: LabelSet
    column: str = "prior"
    torch_threads: int = 1
    device: str = "cpu"


class PriorStage:
    """`prior`, or the column that the options name: a PNG of H x W x 3, of the size of image and mask.

    A row that lacks what it is drawn of gets a reason.

    Images belong to sources; a mask may be a variant's own.
    """

    name = "prior"
    verdict: Literal["failed"] = "failed"

    def __init__(self, options: PriorStageOptions) -> None:
        """Load. Raises UsageError as `Prior` does."""
        import torch

        torch.set_num_threads(options.torch_threads)
        pictures = {"image": ("source_image",), "mask": ("mask",), "both": ("source_image", "mask")}
        self.writes = (options.column, "reason")
        self._options = options.prior
        self._prior = Prior(options.prior, options.label_set, options.device)
        self.reads = ("source_id", *pictures[options.prior.of], *["segment_map"] * self._prior.outlines)

    def __call__(self, batch: Batch) -> Batch:
        """PNG bytes of every row, and for rows without them the reason."""
        of_image = functools.cache(lambda data: self._prior.of_image(decode_image(data)))
        options = self._options

        @functools.cache
        def of_mask(mask: bytes, segment_map: bytes | None) -> Image:
            return self._prior.of_mask(decode_mask(mask), None if segment_map is None else decode_mask(segment_map))

        @functools.cache
        def row(
            source_id: str, image: bytes | None, mask: bytes | None, segment_map: bytes | None
        ) -> tuple[bytes | None, str | None]:
            drawn: list[Image] = []
            for kind, data in (("image", image), ("mask", mask)):
                if options.of not in (kind, "both"):
                    continue
                if data is None:
                    return None, f"source {source_id} has no {kind}, and the prior {options.name} is drawn of it"
                drawn.append(of_image(data) if kind == "image" else of_mask(data, segment_map))
            if len({picture.shape for picture in drawn}) > 1:
                return None, f"the image has {_size(drawn[0])} pixels, its mask {_size(drawn[1])}"
            picture = drawn[0] if len(drawn) == 1 else blend(drawn[0], drawn[1], options.w1, options.w2)
            return encode_image(picture, "png"), None

        absent = [None] * len(batch["source_id"])
        columns = (batch.get(name, absent) for name in ("source_image", "mask", "segment_map"))
        rows = list(map(row, batch["source_id"], *columns))
        drawn, reasons = (objects(list(column)) for column in zip(*rows, strict=True))
        return {self.writes[0]: drawn, "reason": reasons}


def _size(picture: Image) -> str:
    height, width = picture.shape[:2]
    return f"{width} x {height}"
