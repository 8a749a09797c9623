"""Prompts as a stage: what the text encoders are told of each sample, all of which they see.

It does not know where captions come from, nor networks; of a model it opens the tokenizers alone.
"""

from typing import Any, Literal

from segdatagen.clip_tokenizer import load_clip_tokenizer
from segdatagen.errors import UsageError
from segdatagen.labels import LabelSet
from segdatagen.prompts import CLIP_TOKENS, PromptOptions, PromptWriter, TokenBudget, TokenCounter
from segdatagen.stages.stage import Batch, objects
from segdatagen.weights import local_weights

TOKENIZER_FOLDERS = ("tokenizer", "tokenizer_2")
"""Where a pipeline of diffusers keeps its tokenizers: one (SD 1.5) or two (SDXL)."""

VOCABULARIES = ("tokenizer.json", "vocab.json")


class PromptStage:
    """`prompt`, `negative_prompt`, and in `prompt_notes` what had no room (null: nothing)."""

    name = "prompt"
    writes = ("prompt", "negative_prompt", "prompt_notes")
    verdict: Literal["failed"] = "failed"

    def __init__(
        self, options: PromptOptions, label_set: LabelSet, budget: TokenBudget, seed_column: str = "seed"
    ) -> None:
        """Raises UsageError where `options` do not fit label set or budget."""
        self.reads = ("caption", "class_ids", "class_pixels", seed_column)
        self._writer, self._negative = PromptWriter(options, label_set, budget), options.negative

    def __call__(self, batch: Batch) -> Batch:
        """The prompt of every row, of its own columns alone."""
        found = [
            self._writer.write(caption, dict(zip(class_ids, class_pixels, strict=True)), seed)
            for caption, class_ids, class_pixels, seed in zip(*(batch[name] for name in self.reads), strict=True)
        ]
        return {
            "prompt": objects([prompt.text for prompt in found]),
            "negative_prompt": objects([self._negative] * len(found)),
            "prompt_notes": objects([prompt.notes for prompt in found]),
        }


def budget_of(uri: str) -> TokenBudget:
    """The budget of a latent diffusion model in diffusers' layout: the counts of its tokenizers, and their length.

    Raises UsageError where it has no tokenizer, or one that cannot be loaded.
    """
    folder = local_weights(uri)
    places = [folder / name for name in TOKENIZER_FOLDERS if (folder / name).is_dir()]
    if not places:
        raise UsageError(f"{uri} has no folder {TOKENIZER_FOLDERS[0]}: give a pipeline as diffusers saves it")
    tokenizers = []
    for place in places:
        if not any((place / name).is_file() for name in VOCABULARIES):  # transformers would make one without words
            raise UsageError(f"{place} holds none of {', '.join(VOCABULARIES)}: fetch the tokenizer again")
        tokenizers.append(load_clip_tokenizer(place))
    limit = min(CLIP_TOKENS, *(int(tokenizer.model_max_length) for tokenizer in tokenizers))
    return TokenBudget([counter_of(tokenizer) for tokenizer in tokenizers], limit)


def counter_of(tokenizer: Any) -> TokenCounter:
    """Tokens that a tokenizer of transformers makes of a text, start and end included, nothing cut off."""
    return lambda text: len(tokenizer(text, truncation=False, verbose=False).input_ids)
