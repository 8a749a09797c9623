"""Prompts as the embeddings that latent diffusion models are conditioned on: of one CLIP (SD 1.5) or of two (SDXL).

It does not know what prompts say, nor how they are kept short enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from segdatagen.diffusion.conditions import TextCondition
from segdatagen.prompts import CLIP_TOKENS


def token_ids(tokenizer: Any, prompts: Sequence[str]) -> Tensor:
    """Ids int64 `[N, L]` of prompts by a tokenizer of CLIP, all padded, or cut off, to the length that it sees.

    A tokenizer that does not say its length says 1e30.
    """
    length = min(CLIP_TOKENS, int(tokenizer.model_max_length))
    found = tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    ids: Tensor = found.input_ids
    return ids


@dataclass(frozen=True)
class TextEncoder:
    """Tokenizers and text encoders of transformers, in the order of the model; two of them: SDXL.

    `zeros_for_no_prompt`: a negative prompt that is absent is not that of the empty string, but all zeros.
    """

    tokenizers: Sequence[Any]
    encoders: Sequence[Any]
    zeros_for_no_prompt: bool

    @torch.inference_mode()
    def encode(self, prompts: Sequence[str]) -> TextCondition:
        """Embeddings of prompts, once for those that are equal; what is past a tokenizer's length is cut off.

        Each alone: in a batch its last bits would depend on the others, and with them a pixel of a mask.
        """
        unique = sorted(set(prompts))
        place = torch.tensor([unique.index(prompt) for prompt in prompts], device=self.encoders[0].device)
        hidden, pooled = [], None
        for tokenizer, encoder in zip(self.tokenizers, self.encoders, strict=True):
            ids = token_ids(tokenizer, unique).to(encoder.device)
            if len(self.encoders) == 1:
                hidden.append(torch.cat([encoder(row)[0] for row in torch.split(ids, 1)]))
                continue
            found = [encoder(row, output_hidden_states=True) for row in torch.split(ids, 1)]
            hidden.append(torch.cat([one.hidden_states[-2] for one in found]))
            pooled = torch.cat([one[0] for one in found]) if found[0][0].ndim == 2 else pooled
        return TextCondition(torch.cat(hidden, dim=-1), pooled).at(place)

    def encode_negative(self, prompts: Sequence[str | None], like: TextCondition) -> TextCondition:
        """Embeddings of negative prompts, of the shape of `like`; None: of no prompt."""
        found = self.encode([prompt or "" for prompt in prompts])
        if not self.zeros_for_no_prompt:
            return found
        return found.with_zeros(torch.tensor([prompt is None for prompt in prompts], device=like.hidden.device))
