"""The curve of reconstruction against compression, from the table that pipelines/reconstruct.py wrote.

    python viz/curve.py TABLE.csv CURVE.png

Left: median RMSD of CA and of all atoms; right: residue accuracy; a point a model, numbers stored per residue on the x axis.
"""

import csv
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402  (the backend comes first)


def main(table: Path, image: Path) -> None:
    rows = list(csv.DictReader(table.open()))
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    factors = sorted({int(row["stride"]) for row in rows})
    colours = dict(zip(factors, pyplot.cm.viridis([k / max(1, len(factors) - 1) for k in range(len(factors))]), strict=True))
    for row in rows:
        numbers, factor = float(row["numbers_per_residue"]), int(row["stride"])
        style = {"color": colours[factor], "linestyle": "none"}
        left.plot(numbers, float(row["ca_rmsd_median"]), "o", **style)
        left.plot(numbers, float(row["all_atom_rmsd_median"]), "s", markerfacecolor="none", **style)
        right.plot(numbers, float(row["residue_accuracy"]), "o", **style)
    for factor, colour in colours.items():
        right.plot([], [], "o", color=colour, label="no down-sampling" if factor == 1 else f"stride {factor}")
    left.plot([], [], "ko", label="CA", linestyle="none")
    left.plot([], [], "ks", markerfacecolor="none", label="all atoms", linestyle="none")
    left.set(xlabel="latent numbers per residue", ylabel="median RMSD (Å)", yscale="log")
    right.set(xlabel="latent numbers per residue", ylabel="residue accuracy")
    left.legend()
    right.legend()
    figure.savefig(image, dpi=120)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python viz/curve.py TABLE.csv CURVE.png")
    main(*map(Path, sys.argv[1:]))
