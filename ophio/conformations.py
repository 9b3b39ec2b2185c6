"""Paths between the known conformations of many proteins: how often they stay physical, and what they pass by."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ophio.autoencoder import Autoencoder
from ophio.data.corpus import Corpus
from ophio.interpolation import encode, superposed
from ophio.metrics.rmsd import rmsd
from ophio.pairing import common_residues
from ophio.path_report import CARTESIAN, LATENT, baselines, closest_approach, path_report
from ophio.protein import Protein

TAIL = 5  # residues at either end that the core leaves out
OUTLIERS = ("bond_outliers", "angle_outliers")
OF_ENDS, OF_LINE, CLASHES = 1.5, 1 / 3, 1.5  # limits of the middle of a path
BACKBONES = "crystal_backbone"
SIMULATED = "md"


@dataclass(frozen=True)
class Group:
    """Conformations of one sequence."""

    number: int
    proteins: list[Protein]
    kinds: list[str]
    distance: Float[np.ndarray, "k k"]  # CA RMSD, Å
    core: float  # Å: the largest CA RMSD without the tails

    @property
    def extremes(self) -> tuple[int, int]:
        """The two that are farthest apart."""
        i, j = divmod(int(np.argmax(self.distance)), len(self.proteins))
        return min(i, j), max(i, j)


def groups(corpus: Corpus) -> Iterator[Group]:
    """The groups of a corpus with two or more conformations that hold side chains, by number."""
    members: dict[int, list[int]] = {}
    for k in range(len(corpus)):
        about = corpus.metadata(k)
        if about["group"] >= 0 and about["kind"] != BACKBONES:
            members.setdefault(about["group"], []).append(k)
    for number in sorted(members):
        if len(members[number]) > 1:
            kinds = [corpus.metadata(k)["kind"] for k in members[number]]
            proteins = common_residues([corpus[k] for k in members[number]])
            ca = torch.stack([protein.ca for protein in proteins])
            core = float(_distances(ca[:, TAIL:-TAIL]).max())
            yield Group(number, proteins, kinds, _distances(ca).numpy(), core)


def _distances(ca: Float[Tensor, "k n 3"]) -> Float[Tensor, "k k"]:
    i, j = torch.triu_indices(len(ca), len(ca), 1)
    distance = torch.zeros(len(ca), len(ca))
    distance[i, j] = rmsd(ca[i], ca[j], torch.ones(ca.shape[1], dtype=torch.bool).expand(len(i), -1))
    return distance + distance.T


@dataclass(frozen=True)
class Journey:
    """The two most different conformations of a group, superposed, and the baselines between them."""

    group: Group
    ends: list[Protein]
    num: int  # frames
    frames: dict[str, list[Protein]]  # by baseline
    reports: dict[str, dict]  # their `path_report`

    @classmethod
    def of(cls, group: Group, num: int) -> "Journey":
        """With paths of `num` frames."""
        ends = superposed([group.proteins[k] for k in group.extremes])
        frames = baselines(ends, num)
        reports = {name: path_report(path, ends, num)["path"] for name, path in frames.items()}
        return cls(group, ends, num, frames, reports)

    def rows(self, frames: list[Protein]) -> tuple[dict, dict]:
        """Of a latent path: `pair_row`, and `approach_row` (empty without simulated conformations in between)."""
        return pair_row(self, path_report(frames, self.ends, self.num)["path"]), approach_row(self, frames)


def pair_row(journey: Journey, latent: dict) -> dict:
    """A path, given as its `path_report`, and which limits its middle keeps.

    The middle third's bond and angle outliers are at most 1.5 times those of the end reconstructions, and a third of
    those of the Cartesian line; no frame has a chain break; the middle has at most 1.5 times the clashes of the ends.
    """
    group, ends, line = journey.group, journey.ends, journey.reports[CARTESIAN]
    row: dict[str, Any] = {
        "group": group.number,
        "from": ends[0].name,
        "to": ends[1].name,
        "residues": ends[0].num_residues,
    }
    row |= {"core_rmsd": group.core, "ca_rmsd": float(group.distance.max())}
    row |= {key: latent[key] for key in ("end_rmsd", "arc_length", "monotonicity")}
    for name in (*OUTLIERS, "omega_outliers", "rama_outliers", "clashes"):
        row |= {f"{name}_ends": latent["ends"][name], f"{name}_middle": latent["middle"][name]}
        row |= {f"{name}_{other}": report["middle"][name] for other, report in journey.reports.items()}
    row["chain_breaks"] = latent["worst"]["chain_breaks"]
    passed = {f"{name}_like_ends": latent["middle"][name] <= OF_ENDS * latent["ends"][name] for name in OUTLIERS}
    passed |= {f"{name}_below_line": latent["middle"][name] <= OF_LINE * line["middle"][name] for name in OUTLIERS}
    passed["no_break"] = latent["worst"]["chain_breaks"] == 0
    passed["no_more_clashes"] = latent["middle"]["clashes"] <= CLASHES * latent["ends"]["clashes"]
    return row | passed | {"all": all(passed.values())}


def approach_row(journey: Journey, frames: list[Protein]) -> dict:
    """How near each path comes to the simulated conformations other than its ends: mean closest CA RMSD, Å."""
    group, ends = journey.group, journey.ends
    between = [k for k, kind in enumerate(group.kinds) if kind == SIMULATED and k not in group.extremes]
    if not between:
        return {}
    row = {"group": group.number, "residues": ends[0].num_residues, "ca_rmsd": float(group.distance.max())}
    row["intermediates"] = len(between)
    for name, path in {LATENT: frames, **journey.frames}.items():
        row[name] = float(np.mean([closest_approach(path, ends[0], group.proteins[k])["ca_rmsd"] for k in between]))
    return row


def smoothness_row(group: Group, model: Autoencoder) -> dict:
    """Rank correlation (Spearman) of latent distance and CA RMSD over the pairs of a group."""
    pairs = list(combinations(range(len(group.proteins)), 2))
    latent = [latent_distance(*(group.proteins[k] for k in pair), model) for pair in pairs]
    distance = [group.distance[pair] for pair in pairs]
    row = {"group": group.number, "residues": group.proteins[0].num_residues, "conformations": len(group.proteins)}
    return row | {"rank_correlation": rank_correlation(latent, distance)}


def latent_distance(a: Protein, b: Protein, model: Autoencoder) -> float:
    """Root mean squared difference of the latent features of two superposed conformations."""
    clouds = [latent.cloud for latent in encode(superposed([a, b]), model)]
    return float((clouds[0].features - clouds[1].features)[clouds[0].mask].square().mean().sqrt())


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's, for values without ties."""
    rank_x, rank_y = (np.argsort(np.argsort(values)) for values in (x, y))
    return float(np.corrcoef(rank_x, rank_y)[0, 1])


def pair_summary(rows: Sequence[dict]) -> dict:
    """Means of the numbers, and shares of the pairs that keep each limit."""
    numbers = [key for key, value in rows[0].items() if not isinstance(value, str) and key != "group"]
    return {"pairs": len(rows), **{key: float(np.mean([row[key] for row in rows])) for key in numbers}}
