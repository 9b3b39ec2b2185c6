"""A page with one structure over another of the same protein, coloured by how far their CA are apart.

    python viz/overlay.py reconstructed.pdb original.pdb --out overlay.html

Reads two structure files; where their residues differ, they are cut to what both have, with a message. Writes one HTML file.
"""

import argparse
from pathlib import Path

from command import options_of, run, viewer_option

from ophio.evaluation.structures import read_chain
from ophio.files import write_whole
from ophio.metrics.rmsd import rmsd
from ophio.pages import check_viewer, grid_page, overlay
from ophio.pairing import common_residues


def main(options: argparse.Namespace) -> None:
    check_viewer(options.viewer_js)
    shown, original = common_residues([read_chain(options.structure), read_chain(options.original)])
    distance = float(rmsd(shown.ca, original.ca, shown.residue_mask))
    entry = overlay(shown, original, options.structure.name, f"{shown.num_residues} residues, CA RMSD {distance:.3f} Å")
    title = f"{options.structure.name} over {options.original.name}"
    write_whole(options.out, grid_page([entry], title, viewer_js=options.viewer_js).encode())


if __name__ == "__main__":
    parser = options_of(__doc__, "HTML page")
    parser.add_argument("structure", type=Path, metavar="STRUCTURE", help="shown in colour")
    parser.add_argument("original", type=Path, metavar="ORIGINAL", help="shown in grey, superposed")
    viewer_option(parser)
    run(main, parser)
