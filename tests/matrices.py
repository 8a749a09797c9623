"""Which class stands in which source, as tests like to write it: a boolean matrix."""

from collections.abc import Iterable, Sequence

import numpy as np

from segdatagen.balance import Presence


def presence_of_matrix(
    source_ids: Iterable[str], class_names: Sequence[str], matrix: np.ndarray, excluded: Sequence[int] = ()
) -> Presence:
    """Presence from bool [num_sources, num_classes]."""
    source_index, channel = np.nonzero(matrix)
    return Presence.from_pairs(source_ids, class_names, source_index, channel, excluded)
