"""Scalars of a training for TensorBoard, where it is installed and `out` lies on a disk.

`loss.csv` holds the same and is what a resumed training goes on with; nothing reads these files back.
"""

import importlib.util
from collections.abc import Mapping

from segdatagen.storage import Folder

FOLDER_NAME = "tensorboard"


class Boards:
    """Writers of TensorBoard's events: one, or none where it is not installed or `out` is an object store."""

    def __init__(self, folder: Folder, step: int) -> None:
        """What a killed process wrote past `step` is hidden by the board."""
        self._writers = []
        if folder.is_local and importlib.util.find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._writers = [SummaryWriter(folder.child(FOLDER_NAME).absolute_uri, purge_step=step + 1)]

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Values after `step` steps."""
        for writer in self._writers:
            for name, value in values.items():
                writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is left."""
        for writer in self._writers:
            writer.close()
