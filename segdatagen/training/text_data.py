"""What the kinds have in common that learn from captions: checks, a tokenizer of the captions, folders of models.

The tokenizer follows from the texts alone, so that a resumed training has the same. Knows no network.
"""

import copy
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging

from segdatagen.errors import SegdatagenError, UsageError
from segdatagen.weights import StoreDtype

PAD, START, END, PICTURE = "<pad>", "<s>", "</s>", "<image>"


def require_captions(captions: Sequence[str | None], uri: str, kind: str, otherwise: str = "") -> list[str]:
    """The captions, each on one line. Raises UsageError, with what else helps, where a source has none."""
    found = [" ".join((caption or "").split()) for caption in captions]
    if missing := found.count(""):
        raise UsageError(
            f"{uri}: {missing} of {len(found)} sources have no caption, and {kind} learns from captions: "
            f"ingest with --captions, or choose a data set that has them{otherwise}"
        )
    return found


def decoder_tokenizer(texts: Sequence[str], size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of at most `size` tokens: any text can be said, frequent words are one token each."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    letters, special = sorted(pre_tokenizers.ByteLevel.alphabet()), [PAD, START, END, PICTURE]
    trainer = trainers.BpeTrainer(
        vocab_size=size, show_progress=False, special_tokens=special, initial_alphabet=letters
    )
    inner.train_from_iterator(sorted(set(texts)), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token=PAD, bos_token=START, eos_token=END)


@contextmanager
def model_folder(model: Any, store_dtype: StoreDtype, *others: Any) -> Iterator[Path]:
    """A folder of this machine with a model of transformers, cast on a copy, its processor and tokenizer."""
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch:
        try:
            copy.deepcopy(model).to("cpu", getattr(torch, store_dtype)).save_pretrained(scratch)
            for other in others:
                other.save_pretrained(scratch)
        except (OSError, SafetensorError) as error:
            raise SegdatagenError(f"{scratch}: the weights cannot be written there first ({error})") from error
        yield Path(scratch)
