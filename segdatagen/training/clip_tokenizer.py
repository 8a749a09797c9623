"""A CLIP tokenizer of one's own captions: byte-level BPE in CLIP's layout, trained by the tokenizers library.

The same texts make the same tokenizer. It does not know what reads the tokens.
"""

import json
from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTokenizer

from segdatagen.prompts import CLIP_TOKENS

START, END, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"


def train_tokenizer(texts: Sequence[str], vocabulary: int) -> CLIPTokenizer:
    """A tokenizer of at most `vocabulary` tokens, or as many more as there are bytes: unseen words fall apart."""
    letters = sorted(ByteLevel.alphabet())
    ends = [f"{letter}{WORD_END}" for letter in letters]
    blank = _tokenizer([*letters, *ends], []).backend_tokenizer
    inner = Tokenizer(BPE(continuing_subword_prefix="", end_of_word_suffix=WORD_END))
    inner.normalizer, inner.pre_tokenizer = blank.normalizer, blank.pre_tokenizer
    room = max(vocabulary - len(letters) - len(ends) - 2, 0)
    trainer = BpeTrainer(
        vocab_size=len(letters) + len(ends) + 2 + room,
        show_progress=False,
        # Letters at the end of a word would be numbered in the order of a hash table, and ties of merges go by number.
        special_tokens=[START, END, *ends],
        initial_alphabet=letters,
        end_of_word_suffix=WORD_END,
    )
    inner.train_from_iterator(sorted(set(texts)), trainer)
    merges = [tuple(pair) for pair in json.loads(inner.to_str())["model"]["merges"]]
    return _tokenizer([*letters, *ends], merges[:room])


def _tokenizer(bytes_alone: Sequence[str], merges: Sequence[tuple[str, ...]]) -> CLIPTokenizer:
    tokens = [*bytes_alone, *("".join(pair) for pair in merges), START, END]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=list(merges), model_max_length=CLIP_TOKENS)
