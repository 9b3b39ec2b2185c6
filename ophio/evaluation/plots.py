"""Plots of a report, as PNG images (see `ophio.plots`)."""

from collections.abc import Mapping, Sequence

import numpy as np

from ophio.evaluation.structures import GROUPS, MIRRORS, NATIVES, NOISED, SAMPLES
from ophio.plots import available, figure, png, ramachandran
from ophio.protein import Protein

__all__ = ["available", "draw_all", "scores"]

COLOURS = {SAMPLES: "tab:blue", NATIVES: "tab:green", MIRRORS: "tab:red", NOISED: "tab:orange"}
Records = Mapping[str, Sequence[Mapping]]  # of each group, those that were evaluated


def draw_all(records: Records, proteins: Mapping[str, Sequence[Protein]]) -> dict[str, bytes]:
    """Every plot for which there are values, by name.

    `records` need `max_tm` for the plot of novelty; `proteins` are the structures of samples and natives.
    """
    drawn = {
        "scores": scores(records),
        "secondary_structure": _secondary_structure(records),
        "ramachandran": ramachandran(proteins),
        "novelty": _novelty(records[SAMPLES]),
    }
    return {name: image for name, image in drawn.items() if image is not None}


def scores(records: Records) -> bytes | None:
    """Histograms of scRMSD and scTM, or of the energies of the fast mode, a line a group."""
    panels = {
        "scrmsd": ("scRMSD (Å)", np.linspace(0, 20, 41), 2.0),
        "sctm": ("scTM", np.linspace(0, 1, 41), 0.5),
        "energy": ("energy of the backbone under the predicted distances", None, None),
    }
    found = {key for group in records.values() for record in group for key in panels if record.get(key) is not None}
    shown = [key for key in panels if key in found and (key != "energy" or found == {"energy"})]
    if not shown:
        return None
    drawn, axes = figure(len(shown))
    for key, axis in zip(shown, axes, strict=True):
        label, edges, threshold = panels[key]
        values = {name: _column(records.get(name, ()), key) for name in GROUPS}
        if edges is None:
            edges = np.histogram_bin_edges(np.concatenate(list(values.values())), 30)
        for name, column in values.items():
            if len(column):
                weights = np.full(len(column), 1 / len(column))
                style = {"histtype": "step", "color": COLOURS[name], "linewidth": 2 if name == SAMPLES else 1}
                axis.hist(
                    column.clip(edges[0], edges[-1]), edges, weights=weights, label=f"{name} ({len(column)})", **style
                )
        if threshold is not None:
            axis.axvline(threshold, color="0.6", linestyle=":")
        axis.set(xlabel=label, ylabel="share")
    axes[0].legend()
    return png(drawn)


def _secondary_structure(records: Records) -> bytes | None:
    drawn, (axis,) = figure(1)
    for name in (NATIVES, SAMPLES):
        group = records.get(name, ())
        axis.plot(
            _column(group, "helix"),
            _column(group, "strand"),
            "o",
            markersize=4,
            alpha=0.6,
            color=COLOURS[name],
            label=name,
        )
    axis.plot([0, 1], [1, 0], color="0.8")
    axis.set(xlabel="helix", ylabel="strand", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    axis.legend()
    return png(drawn)


def _novelty(samples: Sequence[Mapping]) -> bytes | None:
    known = [record for record in samples if record.get("max_tm") is not None and record.get("sctm") is not None]
    if not known:
        return None
    drawn, (axis,) = figure(1)
    good = np.array([record["scrmsd"] < 2.0 for record in known])
    x, y = _column(known, "max_tm"), _column(known, "sctm")
    for passed, label, colour in ((True, "scRMSD < 2 Å", "tab:green"), (False, "others", "0.5")):
        axis.plot(x[good == passed], y[good == passed], "o", markersize=4, alpha=0.7, color=colour, label=label)
    axis.axhline(0.5, color="0.6", linestyle=":")
    axis.set(xlabel="highest TM-score to the reference (left: new)", ylabel="scTM", xlim=(0, 1), ylim=(0, 1))
    axis.legend()
    return png(drawn)


def _column(records: Sequence[Mapping], key: str) -> np.ndarray:
    values = [record.get(key) for record in records]
    return np.array([value for value in values if value is not None], dtype=float)
