"""The log of a training: `loss.csv`, a row per step, and `loss.png`, its curve.

Both are put whole, since object stores do not append. Knows neither networks nor checkpoints.
"""

import csv
import io
from collections.abc import Sequence

import numpy as np

from segdatagen.images import encode_image
from segdatagen.storage import Folder
from segdatagen.training.pictures import loss_curve, smoothed
from segdatagen.training.speed import Speed

CSV_NAME = "loss.csv"
CURVE_NAME = "loss.png"
COLUMNS = ("step", "loss", "learning_rate", "seconds", "images_per_second", "peak_gib", "validation_loss")
Row = tuple[int, float, float, float, float, float]


class LossLog:
    """Loss, learning rate, time in training, speed and memory of every step, in memory and in a folder.

    `validation`: the loss on other sources after the steps at which it was measured, by step.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._rows: list[Row] = []
        self.validation: dict[int, float] = {}

    def resume(self, step: int) -> None:
        """Take over the rows of the first `step` steps; a log that is lost starts anew."""
        try:
            text = self._folder.read(CSV_NAME).decode()
        except FileNotFoundError:
            return
        for row in csv.DictReader(io.StringIO(text)):
            if int(row["step"]) <= step:
                loss, rate, seconds, speed, peak = (float(row[name]) for name in COLUMNS[1:-1])
                self._rows.append((int(row["step"]), loss, rate, seconds, speed, peak))
                if row.get("validation_loss"):
                    self.validation[int(row["step"])] = float(row["validation_loss"])

    def add(
        self, first_step: int, losses: Sequence[float], learning_rates: Sequence[float], seconds: float, speed: Speed
    ) -> None:
        """Rows for consecutive steps, counted from 1, that ended after `seconds` of training, with this speed."""
        pace, peak = round(speed.images_per_second, 2), round(speed.peak_bytes / 2**30, 3)
        for place, (loss, learning_rate) in enumerate(zip(losses, learning_rates, strict=True)):
            self._rows.append((first_step + place, loss, learning_rate, round(seconds, 1), pace, peak))

    @property
    def loss(self) -> float:
        """Exponential average of the losses up to now; NaN where there are none."""
        return float(smoothed(np.array([row[1] for row in self._rows]))[-1]) if self._rows else float("nan")

    def put(self) -> None:
        """Write both files."""
        if not self._rows:
            return
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows((*row, self.validation.get(row[0], "")) for row in self._rows)
        self._folder.put(CSV_NAME, text.getvalue().encode())
        curve = loss_curve([row[0] for row in self._rows], [row[1] for row in self._rows], self.validation)
        self._folder.put(CURVE_NAME, encode_image(curve, "png"))
