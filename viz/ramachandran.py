"""Plots the density of backbone torsions.

    python viz/ramachandran.py samples natives --out ramachandran.png

Reads structure files, folders of them, or corpora (their test split); writes a PNG image with a panel for each.
"""

import argparse
from pathlib import Path

from command import chains, need_matplotlib, options_of, run

from ophio.errors import UserError
from ophio.files import write_whole
from ophio.plots import ramachandran


def main(options: argparse.Namespace) -> None:
    need_matplotlib()
    image = ramachandran({path.absolute().name: chains(path, options.num) for path in options.inputs})
    if image is None:
        raise UserError(f"{', '.join(map(str, options.inputs))}: no structures to plot")
    write_whole(options.out, image)


if __name__ == "__main__":
    parser = options_of(__doc__, "PNG image")
    parser.add_argument("inputs", type=Path, nargs="+", metavar="IN", help="structure files, folders, corpora")
    parser.add_argument("--num", type=int, default=1000, metavar="N", help="chains of each at most (default: 1000)")
    run(main, parser)
