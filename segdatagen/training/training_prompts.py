"""The prompts of a training: several forms of each source's, so that whatever a job writes was seen.

They are written by what writes those of jobs, within the same budget of tokens. It does not know what encodes them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from segdatagen.errors import UsageError
from segdatagen.prompts import PromptOptions, PromptWriter, TokenBudget
from segdatagen.training.data import Batch, TrainingData
from segdatagen.training.latent_options import LatentTrainingOptions

NO_PROMPT = ""
FEWEST_CAPTIONS = 0.5
"""Share of sources with a caption, below which a training on captions is refused."""


@dataclass(frozen=True)
class TrainingPrompts:
    """`texts[source]` are its prompts, one for each of the forms, some of them equal."""

    texts: tuple[tuple[str, ...], ...]
    drop_prompt: float

    @property
    def distinct(self) -> list[str]:
        """Every prompt that a batch may have, each once; that of no prompt is the first."""
        return list(dict.fromkeys((NO_PROMPT, *(text for texts in self.texts for text in texts))))

    def of(self, batch: Batch) -> list[str]:
        """A prompt for every row, drawn from the row's chance: none with `drop_prompt`, else one of the forms."""
        found = []
        for source, generator in zip(batch.sources, batch.row_chance, strict=True):
            dropped, form = torch.rand(2, generator=generator).tolist()
            texts = self.texts[source]
            found.append(NO_PROMPT if dropped < self.drop_prompt else texts[int(form * len(texts))])
        return found

    def first(self, sources: Sequence[int]) -> list[str]:
        """The prompts of sources in the last of the forms, for pictures."""
        return [self.texts[source][-1] for source in sources]


def write_prompts(options: LatentTrainingOptions, data: TrainingData, budget: TokenBudget) -> TrainingPrompts:
    """The prompts of all sources. What a prompt says of classes is what the mask holds at the training's size."""
    require_enough_captions(options, data)
    labels = data.label_set
    writers = [PromptWriter(PromptOptions(kind=form), labels, budget) for form in options.prompts]
    ids = labels.ids.tolist()
    texts = []
    for caption, counts in zip(data.captions, data.class_pixels.tolist(), strict=True):
        classes = {ids[channel]: count for channel, count in enumerate(counts) if count}
        texts.append(tuple(writer.write(caption, classes, 0).text for writer in writers))
    return TrainingPrompts(tuple(texts), options.drop_prompt)


def require_enough_captions(options: LatentTrainingOptions, data: TrainingData) -> None:
    """Raise UsageError where a form of the prompts needs captions that the sources do not have."""
    needing = [form for form in options.prompts if form != "simple"]
    captioned = sum(bool(caption) for caption in data.captions)
    if needing and captioned < FEWEST_CAPTIONS * len(data.captions):
        raise UsageError(
            f"{options.sources}: {captioned:,} of {len(data.captions):,} sources have a caption, and prompts of the "
            f"form {needing[0]} need one: ingest with --captions, or give prompts: [simple]"
        )
