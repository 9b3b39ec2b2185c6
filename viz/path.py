"""A page with a slider over the models of a file, and the curves of a path.

    python viz/path.py path.pdb --out path.html

Reads a structure file of several models and, where it is there, the report beside it (path.json) that `ophio interpolate` wrote.
Writes one HTML file.
"""

import argparse
import json
import warnings
from pathlib import Path

from command import options_of, run, viewer_option

from ophio.errors import UserError
from ophio.files import write_whole
from ophio.io import StructureWarning, read_models
from ophio.pages import check_viewer, path_page
from ophio.paths import beside, curves, summary_rows


def main(options: argparse.Namespace) -> None:
    check_viewer(options.viewer_js)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StructureWarning)
        frames = read_models(options.path)
    report = read_report(beside(options.path, ".json"), len(frames))
    plots, rows = (curves(report), summary_rows(report["paths"])) if report else ({}, [])
    title = f"{options.path.name}: {len(frames)} frames"
    write_whole(options.out, path_page(frames, title, plots, rows, options.viewer_js).encode())


def read_report(path: Path, frames: int) -> dict | None:
    """None where there is no report; raises UserError where it is of other frames, or no report of a path."""
    if not path.exists():
        return None
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        counts = {len(made["frames"]) for made in report["paths"].values()}
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path}: not a report of a path: move it away, or interpolate again") from None
    if counts != {frames}:
        raise UserError(f"{path}: a report of {counts} frames, the structure file has {frames}: move it away")
    return report


if __name__ == "__main__":
    parser = options_of(__doc__, "HTML page")
    parser.add_argument("path", type=Path, metavar="PATH", help="structure file of several models")
    viewer_option(parser)
    run(main, parser)
