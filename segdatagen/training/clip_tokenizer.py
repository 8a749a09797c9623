"""A CLIP tokenizer of one's own captions: byte-level BPE in CLIP's layout, trained by the tokenizers library.

The same texts make the same tokenizer. It does not know what reads the tokens.
"""

import json
from collections.abc import Sequence

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

from segdatagen.prompts import CLIP_TOKENS

START, END = "<|startoftext|>", "<|endoftext|>"


def train_tokenizer(texts: Sequence[str], vocabulary: int) -> CLIPTokenizer:
    """A tokenizer of at most `vocabulary` tokens, or as many more as there are bytes: unseen words fall apart."""
    letters = sorted(ByteLevel.alphabet())
    bytes_alone = [*letters, *(f"{letter}</w>" for letter in letters)]
    blank = _tokenizer(bytes_alone, [])
    room = max(vocabulary - len(bytes_alone) - 2, 0)
    trained = blank.train_new_from_iterator([sorted(set(texts))], len(bytes_alone) + 2 + room, show_progress=False)
    model = json.loads(trained.backend_tokenizer.to_str())["model"]
    merges = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]]
    return _tokenizer(bytes_alone, merges[:room])


def _tokenizer(bytes_alone: Sequence[str], merges: Sequence[tuple[str, ...]]) -> CLIPTokenizer:
    tokens = [*bytes_alone, *("".join(pair) for pair in merges), START, END]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=list(merges), model_max_length=CLIP_TOKENS)
