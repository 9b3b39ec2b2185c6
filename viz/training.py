"""Plots what training logged.

    python viz/training.py runs/mine --out training.png

Reads RUN/logs/version_N/metrics.csv of one run or several, the starts of a run joined; writes a PNG image with a panel for
each quantity: training dashed, validation solid, dotted lines where a run was started again.
"""

import argparse
from pathlib import Path

from command import need_matplotlib, options_of, run

from ophio.files import write_whole
from ophio.plots import read_training, training_curves


def main(options: argparse.Namespace) -> None:
    need_matplotlib()
    runs = {path.absolute().name: read_training(path) for path in options.runs}
    write_whole(options.out, training_curves(runs, options.only))


if __name__ == "__main__":
    parser = options_of(__doc__, "PNG image")
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folders that training wrote")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="loss, ca_rmsd, ... (default: all)")
    run(main, parser)
