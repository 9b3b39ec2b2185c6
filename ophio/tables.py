"""Small tables: CSV files, and text for terminals and Markdown."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ophio.files import write_whole


def write_csv(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """One line a row, of at least one; the columns are the keys of the first row. Raises UserError (`write_whole`)."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, buffer.getvalue().encode())


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table of at least one row, padded so that it reads well as text; cells as `text_of` has them."""
    header = list(rows[0])
    cells = [header] + [[text_of(row[key]) for key in header] for row in rows]
    widths = [max(len(line[column]) for line in cells) for column in range(len(header))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in cells
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def text_of(value: Any) -> str:
    """As tables show it: floats to four significant digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
