"""Prompts: a caption and the classes of a mask as one text that all text encoders of a model see whole.

Class-Prompt Appending of SGA (section 3.2.1) and the kinds that it is compared with in Table 5. Knows neither networks
nor tokenizers, of which it is told how many tokens a text has, nor where captions come from.
"""

import re
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from segdatagen.config_files import shown
from segdatagen.errors import SegdatagenError, UsageError
from segdatagen.labels import LabelClass, LabelSet, Text
from segdatagen.records import derive_seed

PromptKind = Literal["appended", "simple", "caption", "template"]
PREFIX = "A photo of"
"""How SGA's simple prompt begins."""
CLIP_TOKENS = 77
"""What CLIP's text encoders see of a prompt, the tokens of start and end included."""

LOOSE_ENDS = " ,;:."
"""Characters that a caption does not keep at its end: others follow, or its next words are gone."""
_A_TEXT = "text on one line without spaces at its ends"
_PLURALS = {
    "person": "people",
    "man": "men",
    "woman": "women",
    "child": "children",
    "knife": "knives",
    "mouse": "mice",
    "shelf": "shelves",
}
"""Plurals that are not made with -s."""
_VARIATION_NAME = re.compile("[a-z][a-z0-9_]*")
_A_NAME = "lower-case letters, digits and underscores, the first a letter"


def _require_line(text: str) -> str:
    if text != text.strip() or len(text.splitlines()) > 1:
        raise ValueError(f"must be {_A_TEXT}, not {shown(text)}")
    return text


Line = Annotated[str, Field(strict=True), AfterValidator(_require_line)]

TokenCounter = Callable[[str], int]
"""Tokens of a text for one text encoder, start and end included, at least one for each of its words."""
Compose = Callable[[str, Sequence[str]], str]
"""A caption, which may be empty, and phrases of classes in; the prompt out."""


class PromptOptions(BaseModel):
    """What prompts say. All of it is content.

    Phrases stand in place of the prompt names of classes; of several one is drawn per sample. Of each list in
    `variations` a text is drawn per sample. A template that names the list gets the text there; otherwise it stands
    behind the caption.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: PromptKind = "appended"
    prefix: Text = Field(default=PREFIX, description=_A_TEXT)
    template: Text | None = Field(default=None, description=_A_TEXT)
    negative: Text | None = Field(default=None, description=_A_TEXT)
    phrases: dict[str, tuple[Line, ...]] = Field(default={}, description="a text, or a list of texts, per class")
    variations: dict[str, tuple[Line, ...]] = Field(default={}, description="a list of texts per name")

    @field_validator("phrases", mode="before")
    @classmethod
    def _one_is_a_list_of_one(cls, value: object) -> object:
        if not isinstance(value, Mapping):
            return value
        return {name: (found,) if isinstance(found, str) else found for name, found in value.items()}

    @model_validator(mode="after")
    def _lists_hold_texts(self) -> "PromptOptions":
        for name, texts in self.phrases.items():
            if not texts or "" in texts:
                raise ValueError(f"phrases.{name}: give a text, or a list of texts, none of them empty")
        for name, texts in self.variations.items():
            if not _VARIATION_NAME.fullmatch(name):
                raise ValueError(f"variations: a name must be {_A_NAME}, not {shown(name)}")
            if not texts:
                raise ValueError(f"variations.{name}: give a list of at least one text; an empty text adds nothing")
        return self

    @model_validator(mode="after")
    def _template_fits(self) -> "PromptOptions":
        reserved = [name for name in ("caption", "classes") if name in self.variations]
        if reserved:
            raise ValueError(f"variations: {reserved[0]} is a field of templates already; give another name")
        if (self.kind == "template") != (self.template is not None):
            raise ValueError("template: belongs to kind template, and to no other")
        if self.template is not None:
            parse_template(self.template, self.fields)
        return self

    @property
    def fields(self) -> tuple[str, ...]:
        """What a template may name."""
        return ("caption", "classes", *self.variations)

    def phrases_by_id(self, label_set: LabelSet) -> dict[int, tuple[str, ...]]:
        """Phrases of every class that prompts name, by class id in label order: background is none of them.

        Raises UsageError that names a class which the label set does not have, or never names, or which stands twice.
        """
        named: dict[int, tuple[str, ...]] = {label.id: (label.prompt,) for label in named_classes(label_set)}
        given: dict[int, str] = {}
        for name, phrases in self.phrases.items():
            label = label_set.classes[label_set.channel_of(name)]
            if label.id not in named:
                raise UsageError(f"phrases: {name} is background in {label_set.name}, which no prompt names")
            if label.id in given:
                raise UsageError(
                    f"phrases: two names mean the same class of {label_set.name}: {given[label.id]}, {name}"
                )
            given[label.id], named[label.id] = name, phrases
        return named


@dataclass(frozen=True)
class TokenBudget:
    """How long a prompt may be: at most `limit` tokens for each of the tokenizers, start and end included."""

    tokenizers: Sequence[TokenCounter]
    limit: int = CLIP_TOKENS

    def tokens(self, text: str) -> int:
        """Tokens of a text, of the tokenizer that makes most of it."""
        return max(count(text) for count in self.tokenizers)

    def fits(self, text: str) -> bool:
        """Whether every text encoder sees the whole text."""
        return self.tokens(text) <= self.limit


@dataclass(frozen=True)
class FittedPrompt:
    """A prompt, and what of its caption and its classes it has no room for."""

    text: str
    caption_words: tuple[int, int]
    """Words of the caption that are in it, and all of them."""
    dropped: tuple[str, ...]
    """Phrases of classes, those with fewest pixels first."""

    @property
    def caption_is_shortened(self) -> bool:
        """Whether words of the caption are missing."""
        return self.caption_words[0] < self.caption_words[1]

    @property
    def notes(self) -> str | None:
        """What a row should say of it; None where everything is as it was asked for."""
        kept, all_words = self.caption_words
        found = [
            f"caption shortened to {kept} of {all_words} words" if self.caption_is_shortened else "",
            f"no room for {', '.join(self.dropped)}" if self.dropped else "",
            "" if self.text else "the prompt is empty",
        ]
        return "; ".join(filter(None, found)) or None


def named_classes(label_set: LabelSet) -> list[LabelClass]:
    """The classes that a prompt may name, in label order: all but background."""
    return [label for label in label_set.classes if label.id not in label_set.background_ids]


def class_sentence(class_ids: Iterable[int], label_set: LabelSet) -> str:
    """A caption for a source that has none, SGA's simple prompt: "A photo of sofa, chair"; empty without a class."""
    in_mask = set(class_ids)
    names = [label.prompt for label in named_classes(label_set) if label.id in in_mask]
    return f"{PREFIX} {', '.join(dict.fromkeys(names))}" if names else ""


class ClassFinder:
    """Finds the classes of a label set that a text names, by name, prompt name or alias, in the singular or the plural.

    Of names that overlap the longest counts: "traffic light" is no "light". Background is never found.
    """

    def __init__(self, label_set: LabelSet) -> None:
        self._ids: dict[str, int] = {}
        for label in named_classes(label_set):
            for word in (label.name, label.prompt, *label.aliases):
                singular = " ".join(word.casefold().split())
                self._ids.setdefault(singular, label.id)
                self._ids.setdefault(_plural(singular), label.id)
        longest_first = sorted(self._ids, key=lambda word: (-len(word), word))
        self._words = re.compile(rf"(?<!\w)({'|'.join(map(re.escape, longest_first))})(?:e?s)?(?!\w)")

    def find(self, text: str) -> list[int]:
        """Ids of the classes that are named, ascending, each once."""
        return sorted({self._ids[found[1]] for found in self._words.finditer(" ".join(text.casefold().split()))})


def _plural(name: str) -> str:
    """The plural of a name where -s is not enough: "people", "lorries"; otherwise the name."""
    *before, last = name.split(" ")
    if last.endswith("y") and last[-2:-1] not in ("", "a", "e", "o", "u"):
        return " ".join([*before, f"{last[:-1]}ies"])
    return " ".join([*before, _PLURALS.get(last, last)])


def append_classes(caption: str, classes: Sequence[str]) -> str:
    """Class-Prompt Appending (SGA, section 3.2.1): "a pink plane on the tarmac; aeroplane, person"."""
    return _joined("; ", caption, ", ".join(classes))


def fit_prompt(
    caption: str, classes: Mapping[str, int], budget: TokenBudget, compose: Compose = append_classes
) -> FittedPrompt:
    """The prompt of a caption and of classes (phrase: pixels, in the order in which they stand) within the budget.

    As many classes as fit without a caption, those with fewest pixels left out first and of equal ones the last; with
    them as many words of the caption, from its first, as fit. Raises SegdatagenError if what `compose` makes of no
    caption and no class is too long.
    """
    kept, dropped = dict(classes), []
    while not budget.fits(compose("", list(kept))):
        if not kept:
            text = compose("", [])
            raise SegdatagenError(f"the prompt {text!r} takes {budget.tokens(text)} tokens, more than {budget.limit}")
        dropped.append(min(reversed(kept), key=kept.__getitem__))
        del kept[dropped[-1]]
    # What prints nothing has no token, and what has none cannot be counted on to end.
    words = [word for word in caption.split() if any(letter.isprintable() for letter in word)]
    while words and not words[-1].strip(LOOSE_ENDS):
        words.pop()
    most = min(len(words), budget.limit)  # a word is a token at least
    candidates = ((count, " ".join(words[:count]).rstrip(LOOSE_ENDS)) for count in range(most, 0, -1))
    prompts = ((count, compose(text, list(kept))) for count, text in candidates)
    found = next(((count, text) for count, text in prompts if budget.fits(text)), (0, compose("", list(kept))))
    return FittedPrompt(found[1], (found[0], len(words)), tuple(dropped))


class PromptWriter:
    """Writes the prompts of samples of one label set."""

    def __init__(self, options: PromptOptions, label_set: LabelSet, budget: TokenBudget) -> None:
        """Raises UsageError where `phrases` do not fit the label set, or what is never shortened is too long."""
        self._options, self._label_set, self._budget = options, label_set, budget
        self._phrases = options.phrases_by_id(label_set)
        self._parts = parse_template(options.template or "", options.fields)
        in_template = {field for _, field in self._parts}
        self._names_classes = options.kind in ("appended", "simple") or "classes" in in_template
        self._has_caption = options.kind in ("appended", "caption") or "caption" in in_template
        longest = {name: max(texts, key=budget.tokens) for name, texts in options.variations.items()}
        for name, text in (("negative", options.negative or ""), ("prompt", self._compose("", (), longest))):
            if not budget.fits(text):
                raise UsageError(
                    f"{name}: {text!r} takes {budget.tokens(text)} tokens, and a text encoder sees {budget.limit}: "
                    "shorten it"
                )

    def write(self, caption: str | None, class_pixels: Mapping[int, int], seed: int) -> FittedPrompt:
        """The prompt of a sample: caption, pixels by class id of its mask, seed.

        Depends on these alone. A caption that is the sentence of the classes says no more than they do, and counts as
        none; without a caption, `appended` and `caption` are `simple`.
        """
        drawn = {name: texts[_draw(seed, len(texts), name)] for name, texts in self._options.variations.items()}
        sentence = class_sentence(class_pixels, self._label_set)
        kind, text = self._options.kind, " ".join((caption or "").split())
        if text in ("", sentence):
            kind = "simple" if kind in ("appended", "caption") else kind
            text = "" if self._names_classes else sentence
        if kind == "simple" or not self._has_caption:
            text = ""
        classes = self._classes(class_pixels, seed) if self._names_classes or kind == "simple" else {}

        def compose(shortened: str, phrases: Sequence[str]) -> str:
            return self._compose(shortened, phrases, drawn, kind)

        return fit_prompt(text, classes, self._budget, compose)

    def _classes(self, class_pixels: Mapping[int, int], seed: int) -> dict[str, int]:
        """Pixels by phrase in label order; classes that share a phrase are named once."""
        found: dict[str, int] = {}
        for class_id, phrases in self._phrases.items():
            if class_id in class_pixels:
                phrase = phrases[_draw(seed, len(phrases), "phrase", class_id)]
                found[phrase] = found.get(phrase, 0) + int(class_pixels[class_id])
        return found

    def _compose(
        self, caption: str, classes: Sequence[str], drawn: Mapping[str, str], kind: PromptKind | None = None
    ) -> str:
        kind, listed = kind or self._options.kind, ", ".join(classes)
        if kind == "template":
            fields = {"caption": caption, "classes": listed, **drawn}
            filled = "".join(literal + (fields[field] if field else "") for literal, field in self._parts)
            in_template = {field for _, field in self._parts}
            tidy = filled if all(fields[field] for field in in_template if field) else _without_gaps(filled)
            return _joined(", ", tidy, *(text for name, text in drawn.items() if name not in in_template))
        if kind == "simple":
            return _joined(", ", f"{self._options.prefix} {listed}" if listed else "", *drawn.values())
        described = _joined(", ", caption, *drawn.values())
        return append_classes(described, classes) if kind == "appended" else described


def _draw(seed: int, count: int, *scope: int | str) -> int:
    """Which of `count` texts a sample gets: of its seed and what is drawn, and of nothing else."""
    return derive_seed(int(seed), "prompt", *scope) % count


def _joined(separator: str, *texts: str) -> str:
    return separator.join(filter(None, texts))


def _without_gaps(text: str) -> str:
    """A text some of whose fields were empty, without the separators that stood around them."""
    closed = re.sub(r"\s+(?=[,;.])", "", " ".join(text.split()))
    return re.sub(r"[,;]\s*(?=[,;.])", "", closed).strip(" ,;:")


def parse_template(template: str, fields: Sequence[str]) -> list[tuple[str, str | None]]:
    """Literal texts, each with the field that follows it, if one does. ValueError names what is wrong."""
    allowed = ", ".join(f"{{{field}}}" for field in fields)
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"template: {error} (allowed are {allowed}; a brace itself is written twice)") from None
    for _, field, specification, conversion in parts:
        if field is not None and (field not in fields or specification or conversion):
            written = field + (f"!{conversion}" if conversion else "") + (f":{specification}" if specification else "")
            raise ValueError(f"template: unknown field {{{written}}}; allowed are {allowed}")
    return [(literal, field) for literal, field, _, _ in parts]
