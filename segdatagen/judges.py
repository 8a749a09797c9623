"""The networks that judge images: loaded once per process, whatever methods and filters use them.

Knows where their weights lie and what can be checked of them; it does not know what is done with their scores.
"""

import functools

from segdatagen.clip_scores import ClipOptions, ClipScorer
from segdatagen.job import Execution
from segdatagen.labels import LabelSet
from segdatagen.segmenters import Segmenter
from segdatagen.weights import fingerprint_of


def segmenter_of(uri: str, label_set: LabelSet, execution: Execution) -> Segmenter:
    """The segmenter at `uri`. Raises UsageError where it is none of these classes."""
    pinned, threads = fingerprint_of(uri), execution.torch_threads
    return _load_segmenter(uri, pinned, label_set.names, execution.device, threads)


def clip_of(options: ClipOptions, label_set: LabelSet, execution: Execution) -> ClipScorer:
    """The CLIP model of `options` with the texts of the classes. Raises UsageError where it cannot be loaded."""
    pinned, threads = fingerprint_of(options.weights), execution.torch_threads
    return _load_clip(options.scoring(), pinned, label_set, execution.device, threads)


def execution_here(execution: Execution) -> Execution:
    """For what runs in this process, without Ray: as in the job, but on the CPU where torch finds no GPU."""
    import torch

    return execution if torch.cuda.is_available() else execution.model_copy(update={"gpus_per_actor": 0.0})


@functools.lru_cache(maxsize=2)
def _load_segmenter(uri: str, pinned: str, label_names: tuple[str, ...], device: str, torch_threads: int) -> Segmenter:
    """Images are judged one at a time, so that neighbours change nothing: that is cheap beside making them."""
    import torch

    torch.set_num_threads(torch_threads)
    return Segmenter(uri, label_names, device, batch_size=1)


@functools.lru_cache(maxsize=2)
def _load_clip(options: ClipOptions, pinned: str, label_set: LabelSet, device: str, torch_threads: int) -> ClipScorer:
    """`pinned` is here so that other weights at the same place are others."""
    import torch

    torch.set_num_threads(torch_threads)
    return ClipScorer(options, label_set, device)
