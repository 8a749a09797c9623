"""What can be wrong with an experiment, found before anything is written or trained.

Reads every store and every run once, and remembers what they hold: a cell that was trained on other data would be
compared with the others in vain. It does not train.
"""

import contextlib
import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from segdatagen.config_files import read_stored
from segdatagen.errors import UsageError
from segdatagen.experiment.options import ExperimentOptions
from segdatagen.geometry import Geometry
from segdatagen.images import DecodeError, decode_image
from segdatagen.labels import LabelSet
from segdatagen.reader import open_sources_of
from segdatagen.records import FORMAT_VERSION, FormatVersion
from segdatagen.run_folder import open_run
from segdatagen.sources import SourceStore, open_store, read_arrays
from segdatagen.storage import Folder
from segdatagen.tables import read_part
from segdatagen.training.data import TrainingArrays
from segdatagen.training.mixture import read_mixture
from segdatagen.training.segmenter import SegmenterTraining
from segdatagen.weights import fingerprint_of

FACTS_NAME = "experiment.json"


class Facts(BaseModel):
    """`experiment.json`: what the cells of an experiment have in common, by name. Written first.

    `settings` are values of options, `data` hashes of all pixels of the stores and of the published samples.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    format_version: FormatVersion = FORMAT_VERSION
    settings: dict[str, Any]
    data: dict[str, str]


@dataclass(frozen=True)
class SyntheticData:
    """Published samples of a set of real images: how many, and whether their masks are those of these images."""

    num_images: int
    of_these_sources: bool


@dataclass(frozen=True)
class Checked:
    """What an experiment is about: classes, of which the test images show some, and the numbers of images."""

    label_set: LabelSet
    shown: tuple[int, ...]
    rare: tuple[int, ...]
    num_test: int
    num_real: dict[str, int]
    synthetic: dict[tuple[str, str], SyntheticData]
    facts: Facts


def check(options: ExperimentOptions) -> Checked:
    """Read everything that the experiment needs. Raises UsageError, in one line, for what cannot be compared.

    The facts are those of `out`, if it holds some, with what is new.
    """
    Folder(options.out).require_writable()
    first = next(options.cells())
    geometry = first.options.geometry
    test = _arrays(options.test, geometry)
    pixels = np.bincount(test.channels[test.channels >= 0], minlength=test.label_set.num_classes)
    reals = {real: _arrays(wanted.sources, geometry) for real, wanted in options.real.items()}
    settings = {f"training.{name}": value for name, value in options.shared().items()}
    data, synthetic = {"test": test.fingerprint()}, {}
    if first.options.init_weights is not None:
        data["training.init_weights"] = fingerprint_of(first.options.init_weights)
    compared: set[str] = set()
    for real, wanted in options.real.items():
        _require_apart(reals[real], test, wanted.sources, options.test)
        data[f"real.{real}"] = reals[real].fingerprint()
        for name, one in wanted.synthetic.items():
            mixture = read_mixture(one, geometry, test.label_set)
            of_these = _masks_are_of(one.runs, wanted.sources, options.test)
            if not of_these:
                for store in map(open_sources_of, map(open_run, one.runs)):
                    if store.folder.uri not in compared:
                        _require_unseen(_image_hashes(store, geometry), test, store.folder.uri, options.test)
                        compared.add(store.folder.uri)
            synthetic[real, name] = SyntheticData(len(mixture.images), of_these)
            data[f"real.{real}.{name}"] = mixture.fingerprint()
            settings[f"real.{real}.{name}.p_aug"] = one.p_aug
    SegmenterTraining(first.options, reals[first.real])  # it refuses `init_weights` that do not fit
    return Checked(
        label_set=test.label_set,
        shown=tuple(np.flatnonzero(pixels).tolist()),
        rare=tuple(_rare_channel(name, test.label_set, pixels, options.test) for name in options.rare),
        num_test=len(test.images),
        num_real={real: len(arrays.images) for real, arrays in reals.items()},
        synthetic=synthetic,
        facts=_brought_together(options.out, Facts(settings=settings, data=data)),
    )


def _arrays(uri: str, geometry: Geometry) -> TrainingArrays:
    return TrainingArrays(*read_arrays(uri, geometry))


def _require_apart(arrays: TrainingArrays, test: TrainingArrays, uri: str, test_uri: str) -> None:
    """Raise UsageError unless images can be tested on the others: the same label set, and no image in both."""
    if arrays.label_set != test.label_set:
        raise UsageError(f"test: {test_uri} has other labels than {uri}")
    _require_unseen({_hash_of(image) for image in arrays.images}, test, uri, test_uri)


def _require_unseen(known: set[bytes], test: TrainingArrays, uri: str, test_uri: str) -> None:
    """Raise UsageError where one of the test images is known."""
    seen = sum(_hash_of(image) in known for image in test.images)
    if seen:
        raise UsageError(
            f"test: {seen} of {len(test.images)} images of {test_uri} are in {uri}, too: test on images that nothing "
            "was trained on"
        )


def _masks_are_of(runs: tuple[str, ...], sources: str, test: str) -> bool:
    """Whether all runs started from these sources. Raises UsageError where one started from the test store."""
    mine, forbidden = (open_store(uri).info.fingerprint for uri in (sources, test))
    started_from = set()
    for uri in runs:
        found = {recipe.get("sources") for recipe in open_run(uri).info.recipes.values()}
        if forbidden in found:
            raise UsageError(f"synthetic: {uri} was made from the test store {test}: give runs of other sources")
        started_from |= found
    return started_from == {mine}


def _image_hashes(store: SourceStore, geometry: Geometry) -> set[bytes]:
    """Hashes of all images of a store, part by part: it may be larger than what an experiment trains on."""
    hashes = set()
    for part in store.info.parts:
        for data in read_part(store.folder, part.name, ["image"])["image"].to_pylist():
            with contextlib.suppress(DecodeError):  # nothing was made of what cannot be read
                if data is not None:
                    hashes.add(_hash_of(geometry.apply_image(decode_image(data))))
    return hashes


def _rare_channel(name: str, label_set: LabelSet, pixels: np.ndarray, test: str) -> int:
    channel = label_set.channel_of(name)
    if not pixels[channel]:
        raise UsageError(f"rare: no image of {test} shows {name}: leave it out, or test on more images")
    return channel


def _brought_together(out: str, wanted: Facts) -> Facts:
    """The facts of `out` and the wanted ones. Raises UsageError where they contradict each other."""
    folder = Folder(out)
    if not folder.exists(FACTS_NAME):
        return wanted
    found = read_stored(folder, FACTS_NAME, Facts, UsageError)
    differences = [
        f"its {name} was {found.settings[name]}, not {value}"
        for name, value in wanted.settings.items()
        if found.settings.get(name, value) != value
    ]
    differences += [
        f"its data {name} were others" for name, value in wanted.data.items() if found.data.get(name, value) != value
    ]
    if differences:
        raise UsageError(
            f"{out}: another experiment is here ({'; '.join(differences)}): choose another out, or set it back"
        )
    return Facts(settings=found.settings | wanted.settings, data=found.data | wanted.data)


def _hash_of(image: np.ndarray) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()
