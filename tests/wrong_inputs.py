"""The table of `docs/wrong_input.md`: what a user does wrong, the line that it costs, and the exit status.

The table is what tests expect: a test names its row, and its command has to say exactly that.
"""

import functools
import re
from pathlib import Path

DOCUMENT = Path(__file__).parents[1] / "docs" / "wrong_input.md"
ANY_WORDS = re.compile(r"<[a-z ]+>")
"""In a line of the table: whatever stands there may be different next time."""


@functools.cache
def rows() -> dict[str, tuple[str, int]]:
    """Line and exit status by what was done. A row that stands twice is an error of the document."""
    found: dict[str, tuple[str, int]] = {}
    for text in DOCUMENT.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", text)[1:-1]]
        if len(cells) == 3 and cells[2].isdigit():
            assert cells[0] not in found, cells[0]
            found[cells[0]] = cells[1].strip("`").strip(), int(cells[2])
    return found


def require_row(row: str, line: str, status: int, folders: Path) -> None:
    """Fail unless the line is that of the row; below `folders`, each test has one, whose name is left out."""
    below = re.compile(re.escape(str(folders)) + r"/[^/\s,:;)']+(/?)")
    shown = below.sub(lambda found: "" if found[1] else ".", line.strip().removeprefix("segdatagen: "))
    assert row in rows(), f"docs/wrong_input.md needs the row | {row} | `{shown}` | {status} |"
    expected = ".+".join(map(re.escape, ANY_WORDS.split(rows()[row][0])))
    assert re.fullmatch(expected, shown), f"docs/wrong_input.md, {row}: {shown}"
    assert status == rows()[row][1], f"docs/wrong_input.md, {row}: exit status {status}"
