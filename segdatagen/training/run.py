"""One training from its configuration file to its weights, in this process or on Ray.

The entry of the command line and of programs. It knows which kinds there are; it does not know how they train.
"""

import functools
import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from segdatagen.cluster import connect, spread
from segdatagen.config_files import read_config
from segdatagen.errors import UsageError
from segdatagen.lease import LEASE_NAME
from segdatagen.sources import open_store, read_arrays
from segdatagen.storage import Folder
from segdatagen.training.boards import FOLDER_NAME
from segdatagen.training.checkpoints import CHECKPOINTS_NAME, newest_facts, newest_step
from segdatagen.training.data import Share, TrainingArrays, TrainingData
from segdatagen.training.kind import Kind, Progress, TrainingResult
from segdatagen.training.latent_options import LatentTrainingOptions
from segdatagen.training.loop import SAMPLES_NAME, facts_of, require_same_training, train_loop
from segdatagen.training.loss_log import CSV_NAME, CURVE_NAME
from segdatagen.training.options import TrainingOptions
from segdatagen.training.ray_train import Worker, require_workers, train_on_ray
from segdatagen.training.stored import StoredSources

BEFORE_CHECKPOINTS = {CHECKPOINTS_NAME, SAMPLES_NAME, FOLDER_NAME, LEASE_NAME, CSV_NAME, CURVE_NAME}
"""What a training leaves in `out` that ended before its first checkpoint."""


class KindType(Protocol):
    """A class of KINDS: made from options of its own type and data: in memory unless its batches come from caches."""

    @property
    def options_type(self) -> type[TrainingOptions]:
        """The YAML of this kind."""
        ...

    def __call__(self, options: Any, data: Any) -> Kind:
        """A training of this kind."""
        ...


KINDS = {
    "vae": "vae:VaeTraining",
    "base": "base:BaseTraining",
    "text2mask": "text2mask:Text2MaskTraining",
    "controlnet": "controlnet:ControlNetTraining",
    "t2i_adapter": "t2i_adapter:AdapterTraining",
    "mask_ddpm": "mask_ddpm:MaskDDPMTraining",
    "segmenter": "segmenter:SegmenterTraining",
    "captioner": "captioner:CaptionerTraining",
    "clip": "clip:ClipTraining",
}
"""Module and class of every kind. Only the one that is trained is imported: some take seconds."""


@dataclass(frozen=True)
class TrainingRequest:
    """What a worker needs to know: a name in KINDS, the options, and the command for the model card."""

    kind: str
    options: TrainingOptions
    command: str


def train(kind: str, config_uri: str, local: bool, address: str | None, progress: Progress) -> TrainingResult:
    """Train what a configuration file says, going on from its last checkpoint, and return how it ended.

    `local` trains in this process, on one device and whatever `num_workers` is: the same loop on the same rows, so
    the same weights up to rounding, but of kinds that look at rows together: `clip`, which contrasts them, and
    `segmenter`, whose network normalises over them. Otherwise Ray Train runs `num_workers` workers on the cluster at
    `address`, or on a Ray that is started for it. Bitwise equality needs `torch_threads` to be set: sums depend on it.
    Raises UsageError for wrong options, for an unusable source store, where `out` holds another training, and where
    `use_gpu` finds none; SegdatagenError where the training fails. What lies in `out` and is no training's stays.
    """
    options = read_options(kind, config_uri)
    command = f"segdatagen train {kind} {config_uri}{' --local' if local else ''}"

    def worker_of(wanted: TrainingOptions) -> Worker:
        return functools.partial(train_share, TrainingRequest(kind, wanted, command))

    require_own(Folder(options.out))
    Folder(options.out).require_writable()
    if local:
        return worker_of(options)(Share(), local_device(options.use_gpu), progress)
    latent = isinstance(options, LatentTrainingOptions)  # of others the workers alone read the data
    caches = caches_to_fill(kind_type(kind)(options, read_data(options))) if latent else []
    with connect(address):
        require_workers(options)
        _fill_on_ray(caches, options)
        return train_on_ray(worker_of, options, address, progress)


def require_own(out: Folder) -> None:
    """Raise UsageError where a folder holds what is no training's, or weights without their checkpoints."""
    if newest_step(out.child(CHECKPOINTS_NAME)) is not None:
        return
    names = [entry.name for entry in out.entries()]
    foreign = [name for name in names if name.split("/")[0] not in BEFORE_CHECKPOINTS and not name.startswith(".")]
    if foreign:
        raise UsageError(
            f"{out.uri}: holds {foreign[0]} and no checkpoint of a training: choose an empty or a new folder"
        )


def read_options(kind: str, config_uri: str) -> TrainingOptions:
    """The options of a training from its file. Raises UsageError, also where there is no such kind."""
    found: TrainingOptions = read_config(kind_type(kind).options_type, config_uri)
    return found


def kind_type(name: str) -> KindType:
    """The class of a kind. Raises UsageError where there is none of this name."""
    if name not in KINDS:
        raise UsageError(f"unknown kind of training {name!r}: choose one of {', '.join(KINDS)}")
    module, _, class_name = KINDS[name].partition(":")
    found: KindType = getattr(importlib.import_module(f"segdatagen.training.{module}"), class_name)
    return found


def train_share(request: TrainingRequest, share: Share, device: torch.device, progress: Progress) -> TrainingResult:
    """One worker of a training: reads all data, trains its share of every batch."""
    kind = kind_type(request.kind)(request.options, read_data(request.options))
    if share.num_workers == 1 and (caches := caches_to_fill(kind)):
        from segdatagen.training.latents import fill, here

        fill(caches, device.type, here)  # they are whole already where Ray filled them
    return train_loop(kind, share, device, progress, request.command)


def read_data(options: TrainingOptions) -> TrainingData:
    """The sources of a training: in memory, or in their store where batches come from caches.

    Raises UsageError where the store cannot be used, or holds too few.
    """
    data: TrainingData
    if isinstance(options, LatentTrainingOptions):
        data = StoredSources(open_store(options.sources), options.geometry)
    else:
        data = TrainingArrays(*read_arrays(options.sources, options.geometry))
    if data.num_sources < options.batch_size:  # a batch would hold a source twice
        raise UsageError(
            f"{options.sources}: {data.num_sources:,} sources are fewer than a batch of {options.batch_size:,}: "
            "ingest more, or lower batch_size"
        )
    return data


def caches_to_fill(kind: Kind) -> list[Any]:
    """The caches of a kind of latent diffusion, whole or not. Raises UsageError where `out` holds another training."""
    if not isinstance(kind.options, LatentTrainingOptions):
        return []
    from segdatagen.training.latent_training import LatentTraining  # imports diffusers, which others do without

    assert isinstance(kind, LatentTraining)
    found = newest_facts(Folder(kind.options.out).child(CHECKPOINTS_NAME))
    if found is not None:
        require_same_training(found, facts_of(kind), kind.options.out)
    return kind.caches()


def _fill_on_ray(caches: list[Any], options: TrainingOptions) -> None:
    """Fill the caches of a kind by tasks of Ray Data, one per part of the store."""
    if not caches:
        return
    from segdatagen.training.latents import fill

    def spread_numbers(gpus: float, numbers: Sequence[int], work: Callable[[int], int]) -> Iterator[int]:
        failed = f"the cache of {options.sources} cannot be made"
        return (number for _, number in spread(failed, numbers, work, num_gpus=gpus))

    for cache in caches:
        gpu = options.use_gpu and cache.needs_device
        fill([cache], "cuda" if gpu else "cpu", functools.partial(spread_numbers, float(gpu)))


def local_device(use_gpu: bool) -> torch.device:
    """The CPU, or the first GPU. Raises UsageError where there is none."""
    if not use_gpu:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UsageError("use_gpu is true, but torch finds no GPU here: set use_gpu to false")
    return torch.device("cuda")
