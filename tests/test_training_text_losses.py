"""Losses of the kinds `captioner` and `clip` by hand and by their bounds, and the tokenizers that they train."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segdatagen.training.captioner import (
    NOT_LEARNED,
    caption_loss,
    patch_loss,
)
from segdatagen.training.clip import contrastive_loss
from segdatagen.training.clip_tokenizer import train_tokenizer
from segdatagen.training.text_data import decoder_tokenizer


def test_the_loss_of_captions_by_hand() -> None:
    logits = torch.zeros(2, 4, 5)
    labels = torch.tensor([[NOT_LEARNED, NOT_LEARNED, 3, 4], [NOT_LEARNED, NOT_LEARNED, NOT_LEARNED, 1]])
    assert float(caption_loss(logits, labels)) == pytest.approx(3 * math.log(5) / 2)
    logits[0, 1, 3] = logits[0, 2, 4] = logits[1, 2, 1] = math.log(16)  # 16 / (16 + 4) for the right one
    assert float(caption_loss(logits, labels)) == pytest.approx(-3 * math.log(16 / 20) / 2)
    assert float(caption_loss(logits.roll(1, dims=1), labels)) > float(caption_loss(logits, labels))


def test_the_loss_of_patches_by_hand() -> None:
    channels = torch.tensor([[[0, 0, 1, 1], [0, 0, 1, -1], [0, 1, 2, 2], [1, 1, 2, 2]]])
    shares = torch.tensor([[[1.0, 0, 0], [0, 0.75, 0], [0.25, 0.75, 0], [0, 0, 1.0]]])
    assert float(patch_loss(torch.zeros(1, 4, 3), channels)) == pytest.approx(float(shares.sum()) * math.log(3) / 4)
    logits = torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(0))
    expected = -(shares * logits.log_softmax(-1)).sum() / 4
    assert float(patch_loss(logits, channels)) == pytest.approx(float(expected))


def test_the_contrastive_loss_by_hand() -> None:
    distinct = torch.arange(3)
    assert float(contrastive_loss(torch.zeros(3, 3), distinct)) == pytest.approx(math.log(3))
    assert float(contrastive_loss(100 * torch.eye(3), distinct)) == pytest.approx(0, abs=1e-6)
    twice = torch.tensor([0, 0, 1])
    same = (twice[:, None] == twice[None, :]).float()
    assert float(contrastive_loss(100 * same, twice)) == pytest.approx(2 * math.log(2) / 3, abs=1e-6)
    assert float(contrastive_loss(100 * torch.eye(3), twice)) > 30, "the twin of a row is no wrong answer"


@settings(max_examples=40)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=8), st.integers(0, 2**31))
def test_the_contrastive_loss_is_lowest_where_texts_agree(which: list[int], seed: int) -> None:
    chance = torch.Generator().manual_seed(seed)
    numbers = torch.tensor(which)
    logits = torch.randn(len(which), len(which), generator=chance)
    same = (numbers[:, None] == numbers[None, :]).float()
    entropy = float(same.sum(1).log().mean())
    assert float(contrastive_loss(logits, numbers)) >= entropy - 1e-5
    assert float(contrastive_loss(50 * same, numbers)) == pytest.approx(entropy, abs=1e-5)
    order = torch.randperm(len(which), generator=chance)
    turned = contrastive_loss(logits[order][:, order], numbers[order])
    assert float(turned) == pytest.approx(float(contrastive_loss(logits, numbers)), rel=1e-5)


@settings(max_examples=20)
@given(st.text(max_size=30))
def test_tokenizers_say_any_text(text: str) -> None:
    taught = ["a red square on grey ground", "two blue squares"]
    tokenizer = decoder_tokenizer(taught, 600)
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text
    clip = train_tokenizer(taught, 1024)
    assert clip.unk_token_id not in clip(text, add_special_tokens=False).input_ids
    assert len(clip("red square").input_ids) == 4, "a frequent word is one token"


def test_tokenizers_follow_from_the_texts() -> None:
    """Ties between merges are frequent in few words: trained often, the order of a hash table would show."""
    words = ["a red square on grey ground", "a blue square", "two green squares on brown sand"]
    made = [(decoder_tokenizer(words, 600), train_tokenizer(words[::-1], 1024)) for _ in range(12)]
    for one, two in made[1:]:
        assert one.backend_tokenizer.to_str() == made[0][0].backend_tokenizer.to_str()
        assert two.backend_tokenizer.to_str() == made[0][1].backend_tokenizer.to_str()
