"""Plots the latents of many chains, a point a chain, on their first two principal components.

    python viz/latents.py corpus --colour fold --out latents.png

Reads a corpus (its test split), or structure files and folders; writes a PNG image. A chain's point is made of numbers that do
not turn with it: mean and spread over its nodes of scalars, and of the lengths of higher degrees. Coloured by helix and strand
content, or by length.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from command import all_chains, need_matplotlib, options_of, run

from ophio.errors import UserError
from ophio.files import write_whole
from ophio.latent_map import fold_class, invariants, principal_components
from ophio.plots import latent_map
from ophio.pretrained import load

LEAST = 3  # points


@torch.no_grad()
def main(options: argparse.Namespace) -> None:
    need_matplotlib()
    model = load(options.model)
    proteins = all_chains(options.inputs, options.num)
    if len(proteins) < LEAST:
        raise UserError(f"{len(proteins)} chains: a map needs at least {LEAST}")
    points = np.stack([invariants(model.encode(protein)).numpy() for protein in proteins])
    if options.colour == "fold":
        colour, title = [fold_class(protein) for protein in proteins], "residues in"
    else:
        colour, title = [int(protein.residue_mask.sum()) for protein in proteins], "residues"
    write_whole(options.out, latent_map(*principal_components(points), colour, title))


if __name__ == "__main__":
    parser = options_of(__doc__, "PNG image")
    parser.add_argument("inputs", type=Path, nargs="+", metavar="IN", help="a corpus, structure files, folders")
    parser.add_argument("--colour", choices=["fold", "length"], default="fold", help="(default: fold)")
    parser.add_argument(
        "--model", default="mini_latent", metavar="NAME|PATH", help="autoencoder (default: mini_latent)"
    )
    parser.add_argument("--num", type=int, default=500, metavar="N", help="chains at most (default: 500)")
    run(main, parser)
