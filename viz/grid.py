"""A page with a grid of structures.

    python viz/grid.py samples --out samples.html

Reads structure files, folders of them, or corpora (their test split); writes one HTML file with the first 50 chains.
"""

import argparse
from pathlib import Path

from command import all_chains, options_of, run, viewer_option

from ophio.files import write_whole
from ophio.metrics.secondary_structure import helix_strand_content
from ophio.pages import SHOWN, Entry, check_viewer, grid_page
from ophio.protein import Protein


def main(options: argparse.Namespace) -> None:
    check_viewer(options.viewer_js)
    entries = [Entry(protein, protein.name, caption(protein)) for protein in all_chains(options.inputs, SHOWN)]
    page = grid_page(entries, options.title or f"{len(entries)} structures", viewer_js=options.viewer_js)
    write_whole(options.out, page.encode())


def caption(protein: Protein) -> str:
    helix, strand = helix_strand_content(protein)
    return f"{int(protein.residue_mask.sum())} residues, helix {helix:.2f}, strand {strand:.2f}"


if __name__ == "__main__":
    parser = options_of(__doc__, "HTML page")
    parser.add_argument("inputs", type=Path, nargs="+", metavar="IN", help="structure files, folders, corpora")
    parser.add_argument("--title", help="of the page")
    viewer_option(parser)
    run(main, parser)
