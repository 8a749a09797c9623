"""Whether captions name the classes of their images: counts per class, which add up over shards.

A caption names a class by its name, prompt name or alias, in the singular or the plural (`ClassFinder`). Knows neither
captioners nor stores.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from segdatagen.labels import LabelSet
from segdatagen.prompts import ClassFinder, named_classes


@dataclass(frozen=True)
class ClassMentions:
    """Images per class, int64 `[C]` each, in the order of channels; background counts nowhere.

    `named`: the caption names it; `right`: and the mask shows it. `shown`: the mask shows it. `told`: the mask shows it
    and a caption of the data set names it, too; `repeated`: and so does the caption.
    """

    named: np.ndarray
    right: np.ndarray
    shown: np.ndarray
    told: np.ndarray
    repeated: np.ndarray

    @property
    def named_are_there(self) -> float:
        """Share of the classes named that are there, over all images; NaN where none is named."""
        return _share(self.right, self.named)

    @property
    def there_are_named(self) -> float:
        """Share of the classes there that are named. People do not name all either: compare with `told_of_there`."""
        return _share(self.right, self.shown)

    @property
    def told_of_there(self) -> float:
        """Share of the classes there that the captions of the data set name."""
        return _share(self.told, self.shown)

    @property
    def told_are_named(self) -> float:
        """Share of the classes there, and named by the caption of the data set, that are named."""
        return _share(self.repeated, self.told)


def class_mentions(
    captions: Sequence[str], channels: np.ndarray, references: Sequence[str], label_set: LabelSet
) -> ClassMentions:
    """Count what captions name of masks.

    `channels` int `[N, H, W]`, below 0 where ignored; `references` are the captions of the data set.
    Raises ValueError unless there are as many captions of both kinds as masks.
    """
    if not len(captions) == len(channels) == len(references):
        raise ValueError(f"{len(captions)} captions and {len(references)} references for {len(channels)} masks")
    can_be_named = np.isin(label_set.ids, [label.id for label in named_classes(label_set)])
    shown = np.zeros((len(channels), label_set.num_classes), np.bool_)
    for row, mask in enumerate(channels):
        present = np.unique(mask)
        shown[row, present[present >= 0]] = True
    shown &= can_be_named
    named, told = named_channels(captions, label_set), named_channels(references, label_set) & shown
    counted = (named, named & shown, shown, told, told & named)
    return ClassMentions(*(rows.sum(axis=0, dtype=np.int64) for rows in counted))


def named_channels(texts: Sequence[str], label_set: LabelSet) -> np.ndarray:
    """Which classes each text names, bool `[N, C]`, in the order of channels."""
    finder, table = ClassFinder(label_set), label_set.channel_table()
    found = np.zeros((len(texts), label_set.num_classes), np.bool_)
    for row, text in enumerate(texts):
        found[row, table[finder.find(text)]] = True
    return found


def _share(part: np.ndarray, whole: np.ndarray) -> float:
    total = int(whole.sum())
    return int(part.sum()) / total if total else float("nan")
