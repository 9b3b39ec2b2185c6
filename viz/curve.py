"""Plots reconstruction against compression.

    python viz/curve.py TABLE.csv --out curve.png

Reads the table that pipelines/reconstruct.py wrote; writes a PNG image. Left: median RMSD of CA and of all atoms; right:
residue accuracy; a point a model, numbers stored per residue on the x axis; marks tell architectures apart.
"""

import argparse
from pathlib import Path

from command import need_matplotlib, options_of, run

from ophio.files import write_whole
from ophio.plots import CURVE, compression_curve, read_table


def main(options: argparse.Namespace) -> None:
    need_matplotlib()
    write_whole(options.out, compression_curve(read_table(options.table, CURVE)))


if __name__ == "__main__":
    parser = options_of(__doc__, "PNG image")
    parser.add_argument("table", type=Path, metavar="TABLE", help="table.csv")
    run(main, parser)
