"""`judged.json` of a run: what the segmenter of its `adherence` finds in real images, for the report to set beside.

It knows neither sources nor networks.
"""

from pydantic import BaseModel, ConfigDict

from segdatagen.config_files import read_stored
from segdatagen.records import FORMAT_VERSION, FormatVersion
from segdatagen.storage import Folder

JUDGED_NAME = "judged.json"
PERCENTILES = (1, 10, 50, 90, 99)


class IouSummary(BaseModel):
    """IoU in [0, 1] of a class, or mIoU of whole masks: `iou` of all pixels, the others of the `images` that show it.

    `percentiles` are at PERCENTILES.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    images: int
    iou: float
    mean: float
    percentiles: tuple[float, ...]


class JudgedSources(BaseModel):
    """What is found of the masks of images, of those of other images (which is chance), and of each class shown.

    `sources` and `segmenter` are where the images and the weights were, `fingerprint` is that of the weights, which the
    scores of the run have to come from to be compared.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    format_version: FormatVersion = FORMAT_VERSION
    sources: str
    segmenter: str
    fingerprint: str = ""
    masks: IouSummary
    other_masks: IouSummary
    classes: dict[str, IouSummary]


def keep_judged(run: Folder, found: JudgedSources) -> None:
    """Put it into a run, in place of an earlier one."""
    run.put(JUDGED_NAME, found.model_dump_json(indent=1).encode())


def read_judged(run: Folder) -> JudgedSources | None:
    """What was last kept in a run, None where nothing was. Raises SegdatagenError where it is damaged."""
    return read_stored(run, JUDGED_NAME, JudgedSources) if run.exists(JUDGED_NAME) else None
