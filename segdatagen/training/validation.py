"""Sources that a training is judged by, and which it must not have seen: a store of their own.

It does not know what is judged, nor how.
"""

from segdatagen.errors import UsageError
from segdatagen.sources import arrays_of, open_store
from segdatagen.training.data import TrainingArrays
from segdatagen.training.options import TrainingOptions


def read_validation(uri: str, options: TrainingOptions, arrays: TrainingArrays) -> TrainingArrays:
    """The sources of a store to judge by. Raises UsageError where its labels are others, or it is that of the training.

    Stores are compared whole: a single source that both hold is not found.
    """
    store = open_store(uri)
    if store.label_set != arrays.label_set:
        raise UsageError(f"validation: {uri} has other labels than {options.sources}")
    if store.info.fingerprint == open_store(options.sources).info.fingerprint:
        raise UsageError(f"validation: {uri} holds the sources of the training: give a store of others")
    return TrainingArrays(*arrays_of(store, options.geometry))
