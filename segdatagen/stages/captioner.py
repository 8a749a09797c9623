"""Captions as a stage: what a source shows, in words, once per source however many of its variants a batch holds.

It does not know what prompts are made of captions.
"""

import functools
from typing import Any, Literal

from segdatagen.captioners import MODEL_KINDS, Captioner, CaptionerOptions
from segdatagen.images import DecodeError, Image, decode_image
from segdatagen.labels import LabelSet
from segdatagen.prompts import class_sentence
from segdatagen.stages.stage import Batch, objects
from segdatagen.weights import Stamps, stamps_of

FROM_MODEL, FROM_DATA_SET, FROM_CLASSES = "model", "data set", "classes"
"""What `caption_from` says."""
ASKED_LATER = {
    name: CaptionerOptions.model_fields[name].default for name in ("question", "max_new_tokens", "batch_size")
}
"""Options that a model is not loaded by."""


class CaptionerStage:
    """`caption`, and `caption_from`: `model`, `data set`, or `classes`, a sentence of the names of the mask's classes.

    The sentence stands in for a caption that is empty, and for that of a source without an image. A source whose image
    cannot be read gives its rows a reason.
    """

    name = "caption"
    writes = ("caption", "caption_from", "reason")
    verdict: Literal["failed"] = "failed"

    def __init__(self, options: CaptionerOptions, label_set: LabelSet, device: str = "cpu") -> None:
        """Load the model, if `options` name one. Raises UsageError as `Captioner` does."""
        self._kind, self._label_set = options.kind, label_set
        self._captioner = captioner_of(options, device) if options.kind in MODEL_KINDS else None
        own = ("source_id", "source_image") if self._captioner else ("caption",) if options.kind == "data_set" else ()
        self.reads = (*own, "class_ids")

    def __call__(self, batch: Batch) -> Batch:
        """A caption for every row whose source can be read."""
        count = len(batch["class_ids"])
        captions, reasons = [""] * count, objects([None] * count)
        if self._captioner:
            captions, reasons = self._of_model(self._captioner, batch)
        elif self._kind == "data_set":
            captions = [(caption or "").strip() for caption in batch["caption"]]
        origin = FROM_MODEL if self._captioner else FROM_DATA_SET
        sentences = [class_sentence(class_ids, self._label_set) for class_ids in batch["class_ids"]]
        return {
            "caption": objects([caption or sentence for caption, sentence in zip(captions, sentences, strict=True)]),
            "caption_from": objects([origin if caption else FROM_CLASSES for caption in captions]),
            "reason": reasons,
        }

    def _of_model(self, captioner: Captioner, batch: Batch) -> tuple[list[str], Any]:
        """Captions of all rows, and why a row has none though it has an image."""
        encoded = dict(zip(batch["source_id"], batch["source_image"], strict=True))
        images: dict[str, Image] = {}
        problems: dict[str, str] = {}
        for source_id, data in encoded.items():
            if data is None:
                continue
            try:
                images[source_id] = decode_image(data)
            except DecodeError as error:
                problems[source_id] = f"unreadable source: {error}"
        found = dict(zip(images, captioner.captions(list(images.values())), strict=True))
        captions = [found.get(source_id, "") for source_id in batch["source_id"]]
        return captions, objects([problems.get(source_id) for source_id in batch["source_id"]])


def captioner_of(options: CaptionerOptions, device: str) -> Captioner:
    """The model of `options`, one per process whatever methods ask it. Raises UsageError as `Captioner` does."""
    return _asked(options, device, stamps_of(options.weights) if options.weights else ())


@functools.lru_cache(maxsize=2)
def _asked(options: CaptionerOptions, device: str, stamps: Stamps) -> Captioner:
    """What it said to these options is remembered. `stamps`: other weights at the same place are others."""
    loaded = _load(options.model_copy(update=ASKED_LATER), device, stamps)
    return loaded.asked_otherwise(options)


@functools.lru_cache(maxsize=1)
def _load(options: CaptionerOptions, device: str, stamps: Stamps) -> Captioner:
    return Captioner(options, device)
