"""What an export takes of a run: the good samples that count, in order, with their pixels a few at a time.

Of all samples it keeps what is in the columns without pixels, under a kilobyte each. It does not know in which layout
they are written.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from segdatagen.errors import SegdatagenError, UsageError
from segdatagen.publish import slices_of, without_image
from segdatagen.records import bytes_hash
from segdatagen.run_folder import Run
from segdatagen.samples import read_ledger
from segdatagen.tables import read_part, read_parts

COLUMNS = [
    *("source_id", "method", "variant", "sample_id", "round", "seed"),
    *("class_ids", "image_hash", "mask_hash", "segments"),
]
"""What is known of every sample at once; `part` and `row` say where its pixels lie."""
ROWS_AT_ONCE = 256
"""Samples whose images are in memory together."""


class Pixels(NamedTuple):
    """What is encoded of a sample, as it is stored; a mask without a segment map is semantic."""

    image: bytes
    mask: bytes
    segment_map: bytes | None


@dataclass(frozen=True)
class Selection:
    """Samples of a run, `COLUMNS` with `part` and `row`, in order of source, method and variant.

    `left_out` counts the samples that are not good, by their status.
    """

    run: Run
    index: pa.Table
    parts: tuple[str, ...]
    left_out: dict[str, int]

    def pixels(self, chosen: pa.Table) -> Iterator[Pixels]:
        """The pixels of some rows of `index`, in their order.

        Raises SegdatagenError where a part is gone or its bytes are not those that were made.
        """
        for start in range(0, chosen.num_rows, ROWS_AT_ONCE):
            rows = chosen.slice(start, ROWS_AT_ONCE)
            numbers = rows["part"].to_numpy()
            found: dict[int, Pixels] = {}
            for number in np.unique(numbers).tolist():
                places = np.flatnonzero(numbers == number)
                found |= zip(places.tolist(), self._read(self.parts[number], rows.take(places)), strict=True)
            yield from (found[place] for place in range(rows.num_rows))

    def _read(self, part: str, rows: pa.Table) -> list[Pixels]:
        stored = read_part(self.run.folder, part, list(Pixels._fields)).take(rows["row"]).to_pylist()
        for row, pixels in zip(rows.to_pylist(), stored, strict=True):
            for name in ("image", "mask"):
                if bytes_hash(pixels[name]) != row[f"{name}_hash"]:
                    raise SegdatagenError(
                        f"{self.run.folder.uri_of(part)}: the {name} of sample {row['sample_id']} is damaged: delete "
                        "that file, make its samples again with `segdatagen run`, then export"
                    )
        return [Pixels(**pixels) for pixels in stored]


def select_good(run: Run) -> Selection:
    """All samples of a run that are `ok`, each id once: what `publish` would publish.

    Raises SegdatagenError where a part is unreadable or a sample has no image, UsageError where no sample is good.
    """
    ledger = read_ledger(run.folder)
    good = ledger.ids_with("ok")
    slices = slices_of(ledger, good) if len(good) else []
    tables, unreadable = read_parts(run.folder, [piece.part for piece in slices], COLUMNS)
    for sentence in (*ledger.unreadable.values(), *unreadable.values()):
        raise SegdatagenError(f"{sentence}: make its samples again with `segdatagen run`, then export")
    if not slices:
        raise UsageError(f"{run.folder.uri}: has no good sample yet, there is nothing to export")
    rows = [
        tables[piece.part]
        .take(piece.rows)
        .append_column("part", pa.array(np.full(len(piece.rows), number, np.int32)))
        .append_column("row", pa.array(piece.rows))
        for number, piece in enumerate(slices)
    ]
    order = [("source_id", "ascending"), ("method", "ascending"), ("variant", "ascending")]
    index = pa.concat_tables(rows).combine_chunks().sort_by(order)
    without = index.filter(pc.is_null(index["image_hash"]))["sample_id"]
    if len(without):
        raise without_image(run.folder, without[0].as_py())
    left_out = {status: count for status, count in ledger.counts.items() if status != "ok"}
    return Selection(run, index, tuple(piece.part for piece in slices), left_out)
