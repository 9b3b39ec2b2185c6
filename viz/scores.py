"""Plots histograms of scRMSD and scTM, or of the energies of the fast mode.

    python viz/scores.py report --out scores.png

Reads records.jsonl in the folder that `ophio evaluate` wrote; writes a PNG image, a line for samples and each control.
"""

import argparse
import json
from pathlib import Path

from command import need_matplotlib, options_of, run

from ophio.errors import UserError
from ophio.evaluation.plots import scores
from ophio.evaluation.structures import GROUPS
from ophio.files import write_whole


def main(options: argparse.Namespace) -> None:
    need_matplotlib()
    records = [record for record in read_records(options.report / "records.jsonl") if "failed" not in record]
    image = scores({group: [record for record in records if record["group"] == group] for group in GROUPS})
    if image is None:
        raise UserError(f"{options.report}: no structure with a score")
    write_whole(options.out, image)


def read_records(path: Path) -> list[dict]:
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}): name a folder that `ophio evaluate` wrote"
        ) from None
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}): run `ophio evaluate` again") from None


if __name__ == "__main__":
    parser = options_of(__doc__, "PNG image")
    parser.add_argument("report", type=Path, metavar="REPORT", help="folder of an evaluation")
    run(main, parser)
