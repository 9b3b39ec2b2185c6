"""From predicted distances and orientations to a structure: gradient descent on the energy from several starts.

Starts come from multidimensional scaling of the predicted distances, which cannot tell a structure from its mirror
image: both are tried. Every residue is a rigid frame; peptide bonds are springs that stiffen. All starts of all
sequences move at once; after each round fewer of each sequence, those of lowest energy, go on.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from ophio.backbone import BackboneGeometry, ideal_cb
from ophio.constants import BACKBONE_ANGLE, BACKBONE_BOND_LENGTH, CA, CB, NUM_SLOTS, C, N
from ophio.evaluation.folding.potential import Frames, Potential, frames_of
from ophio.evaluation.folding.prediction import DISTANCES, PairPrediction

FAR = 24.0  # Å, stands for "farther than 20 Å"
NEIGHBOUR = 5.5  # Å between the CB atoms of consecutive residues
SPREAD = 0.6  # distances of a start are drawn from this central share of their distribution
# Å: distances across the peptide link, and the weight of their springs
LINKS = {(C, N): (1.331, 3.0), (CA, CA): (3.80, 1.0), (CA, N): (2.432, 1.0), (C, CA): (2.433, 1.0)}
CA_CONTACT = 4.0  # Å between CA atoms three or more residues apart, at least
FINAL_SWEEPS = 30  # of `BackboneGeometry`
# Axes of residue frames in axes along the CB trace (see `trace_axes`): the rotation nearest to the mean over designed
# chains of 200 clusters of the training split, 40-100 residues
TRACE_TO_FRAME = [[-0.7858, -0.2545, 0.5638], [-0.6167, 0.3925, -0.6823], [-0.0477, -0.8838, -0.4654]]


@dataclass(frozen=True)
class Stage:
    """A round of descent; pairs are values at its beginning and end, between which weights move linearly."""

    steps: int
    orientation: tuple[float, float]
    chain: tuple[float, float]
    clash: float
    rate: tuple[float, float]  # share of the full step; moves geometrically


SCREEN = Stage(30, (0.0, 0.3), (1.0, 2.0), 1.0, (1.0, 0.85))
SETTLE = Stage(30, (0.3, 0.5), (2.0, 3.0), 1.0, (0.85, 0.7))
REFINE = Stage(120, (0.5, 1.0), (3.0, 10.0), 3.0, (0.7, 0.03))
STEP, TURN = 0.3, 0.08  # Å, and quaternion units, of a full step of Adam
CHAIN_WEIGHT, CLASH_WEIGHT = 5.0, 3.0  # in the comparison of results


class Structures(NamedTuple):
    """Frames in descent: of which sequence, where, how turned, which residues exist."""

    sequence: Int[Tensor, "starts"]
    ca: Float[Tensor, "starts L 3"]
    quaternion: Float[Tensor, "starts L 4"]
    mask: Bool[Tensor, "starts L"]

    def frames(self) -> Frames:
        return place(axes_of(self.quaternion), self.ca)

    def take(self, index: Int[Tensor, "chosen"]) -> "Structures":
        return Structures(*(tensor[index] for tensor in self))


def fold(
    predictions: Sequence[PairPrediction], seed: int = 0, starts: int = 4, keep: int = 2
) -> list[Float[Tensor, "_ 14 3"]]:
    """N, CA, C, O and CB (in atom14 order, the others 0) of the structure of lowest energy found for each prediction.

    Args:
        starts: of each hand; the first is the median of the distances, others are random, the same for any batch.
        keep: starts of each sequence that are refined; the first round halves their number, the second leaves these.
    """
    potential = Potential(predictions)
    state = initial(predictions, potential.longest, seed, starts)
    for stage, kept in ((SCREEN, max(starts, keep)), (SETTLE, keep), (REFINE, 1)):
        state = _best(descend(state, potential, stage), potential, kept)
    lengths = [prediction.num_residues for prediction in predictions]
    with torch.no_grad():
        backbones = finish(state.frames(), state.mask)
    return [backbone[:length] for backbone, length in zip(backbones, lengths, strict=True)]


@torch.no_grad()
def _best(state: Structures, potential: Potential, keep: int) -> Structures:
    """The structures of lowest energy of each sequence, sequences in order."""
    frames, curve = state.frames(), potential.curve_index(state.sequence)
    energy = potential.energy(frames, curve)
    energy = energy + CHAIN_WEIGHT * chain_strain(frames, state.mask) + CLASH_WEIGHT * clash(frames, state.mask)
    order = energy.nan_to_num(nan=torch.inf).argsort(stable=True)
    ranked = [order[state.sequence[order] == number][:keep] for number in state.sequence.unique().tolist()]
    return state.take(torch.cat(ranked))


@torch.enable_grad()
def descend(state: Structures, potential: Potential, stage: Stage) -> Structures:
    """Adam on the energy, chain and clash terms."""
    ca = state.ca.clone().requires_grad_()
    quaternion = functional.normalize(state.quaternion, dim=-1).requires_grad_()
    parameters = [{"params": [ca], "lr": STEP}, {"params": [quaternion], "lr": TURN}]
    optimizer = torch.optim.Adam(parameters, betas=(0.8, 0.95))
    curve = potential.curve_index(state.sequence)
    for step in range(stage.steps):
        done = step / stage.steps
        rate = stage.rate[0] * (stage.rate[1] / stage.rate[0]) ** done
        for group, full in zip(optimizer.param_groups, (STEP, TURN), strict=True):
            group["lr"] = full * rate
        orientation, chain = (first + (last - first) * done for first, last in (stage.orientation, stage.chain))
        frames = place(axes_of(quaternion), ca)
        energy = potential.energy(frames, curve, orientation)
        energy = energy + chain * chain_strain(frames, state.mask) + stage.clash * clash(frames, state.mask)
        optimizer.zero_grad()
        energy.sum().backward()
        optimizer.step()
    return state._replace(ca=ca.detach(), quaternion=quaternion.detach())


def chain_strain(frames: Frames, mask: Bool[Tensor, "starts L"]) -> Float[Tensor, "starts"]:
    """Springs of the peptide links, Å²."""
    atoms = backbone_of(frames)
    linked = mask[:, 1:] & mask[:, :-1]
    strain = 0.0
    for (before, after), (length, weight) in LINKS.items():
        gap = atoms[:, :-1, before] - atoms[:, 1:, after]
        strain = strain + weight * ((gap.square().sum(-1) + 1e-6).sqrt() - length).square()
    return (strain * linked).sum(-1)


def clash(frames: Frames, mask: Bool[Tensor, "starts L"]) -> Float[Tensor, "starts"]:
    """Overlap of CA atoms, Å²."""
    index = torch.arange(mask.shape[1], device=mask.device)
    apart = (index[:, None] - index >= 3) & mask[:, :, None] & mask[:, None]
    overlap = (CA_CONTACT - torch.cdist(frames.ca, frames.ca)).clamp(min=0)
    return (overlap.square() * apart).sum((1, 2))


def initial(predictions: Sequence[PairPrediction], longest: int, seed: int, starts: int) -> Structures:
    """Starts of both hands for every prediction."""
    sequence, traces, axes, masks = [], [], [], []
    for number, prediction in enumerate(predictions):
        generator = torch.Generator().manual_seed(seed)
        length = prediction.num_residues
        for start in range(starts):
            trace = scale(plausible_distances(prediction, SPREAD if start else 0.0, generator))
            for hand in (trace, -trace):
                sequence.append(number)
                traces.append(functional.pad(hand, (0, 0, 0, longest - length)))
                identity = torch.eye(3).to(hand).expand(longest - length, 3, 3)
                axes.append(torch.cat([trace_axes(hand), identity]))
                masks.append(torch.arange(longest, device=hand.device) < length)
    device = traces[0].device
    return Structures(
        torch.tensor(sequence, device=device), torch.stack(traces), quaternion_of(torch.stack(axes)), torch.stack(masks)
    )


def plausible_distances(prediction: PairPrediction, spread: float, generator: torch.Generator) -> Float[Tensor, "L L"]:
    """Distances drawn from the central share `spread` of their distributions, made to obey the triangle inequality."""
    length = prediction.num_residues
    uniform = torch.rand(length, length, generator=generator).triu(1)
    quantile = 0.5 + spread * (uniform + uniform.T - 0.5)
    classes = prediction.distance
    cumulative = torch.cat([classes[..., 1:], classes[..., :1]], -1).cumsum(-1)
    chosen = (cumulative < quantile.to(classes)[..., None]).sum(-1).clamp(max=len(DISTANCES))
    distance = torch.cat([DISTANCES, DISTANCES.new_tensor([FAR])]).to(classes)[chosen]
    distance = (distance + distance.T) / 2
    distance.diagonal(1).fill_(NEIGHBOUR)
    distance.diagonal(-1).fill_(NEIGHBOUR)
    distance.diagonal().zero_()
    for via in range(length):
        distance = torch.minimum(distance, distance[:, via, None] + distance[via])
    return distance


def scale(distance: Float[Tensor, "L L"]) -> Float[Tensor, "L 3"]:
    """Classical multidimensional scaling: the points in space whose distances come closest."""
    square = distance.double().square()
    centred = square - square.mean(0) - square.mean(1, keepdim=True) + square.mean()
    values, vectors = torch.linalg.eigh(-0.5 * centred)
    return (vectors[:, -3:] * values[-3:].clamp(min=1e-3).sqrt()).to(distance)


def trace_axes(trace: Float[Tensor, "L 3"]) -> Float[Tensor, "L 3 3"]:
    """Likely axes of residue frames, from the directions along the trace and away from the neighbours."""
    before, after = trace[:-2], trace[2:]
    along = functional.normalize(after - before, dim=-1)
    away = 2 * trace[1:-1] - before - after
    away = functional.normalize(away - (away * along).sum(-1, keepdim=True) * along, dim=-1)
    local = torch.stack([along, away, torch.linalg.cross(along, away)], -2)
    inner = torch.tensor(TRACE_TO_FRAME).to(trace) @ local
    return torch.cat([inner[:1], inner, inner[-1:]])


def _ideal_residue() -> Float[Tensor, "4 3"]:
    """N, CA, C and CB in their own frame, CA at the origin."""
    angle = math.radians(BACKBONE_ANGLE["N-CA-C"])
    c = BACKBONE_BOND_LENGTH["CA-C"] * torch.tensor([math.cos(angle), math.sin(angle), 0.0])
    backbone = torch.stack([torch.tensor([BACKBONE_BOND_LENGTH["N-CA"], 0.0, 0.0]), torch.zeros(3), c])
    return torch.cat([backbone, ideal_cb(backbone)[None]]) @ frames_of(backbone).axes.T


_IDEAL = _ideal_residue()


def place(axes: Float[Tensor, "*batch 3 3"], ca: Float[Tensor, "*batch 3"]) -> Frames:
    """Frames of ideal residues."""
    return Frames(axes, ca, ca + _IDEAL[-1].to(ca) @ axes)


def backbone_of(frames: Frames) -> Float[Tensor, "*batch 3 3"]:
    """N, CA and C."""
    return frames.ca[..., None, :] + _IDEAL[:-1].to(frames.ca) @ frames.axes


def finish(frames: Frames, mask: Bool[Tensor, "starts L"]) -> Float[Tensor, "starts L 14 3"]:
    """N, CA, C, O and CB with sound bonds and angles, the other slots of atom14 at 0."""
    atoms = backbone_of(frames)
    n, ca, c = atoms.unbind(-2)
    to_ca = functional.normalize(ca - c, dim=-1)
    across = functional.normalize(n - ca - ((n - ca) * to_ca).sum(-1, keepdim=True) * to_ca, dim=-1)
    bend = math.radians(BACKBONE_ANGLE["CA-C-N"])
    to_next = math.cos(bend) * to_ca - math.sin(bend) * across  # for the last residue: psi 180 degrees
    to_next = torch.cat([functional.normalize(n[:, 1:] - c[:, :-1], dim=-1), to_next[:, -1:]], 1)
    o = c - BACKBONE_BOND_LENGTH["C-O"] * functional.normalize(to_ca + to_next, dim=-1)
    positions = functional.pad(torch.stack([n, ca, c, o, frames.cb], -2), (0, 0, 0, NUM_SLOTS - CB - 1))
    positions = BackboneGeometry(FINAL_SWEEPS).to(positions)(positions, mask)
    return positions * (torch.arange(NUM_SLOTS, device=mask.device) <= CB)[:, None]


def axes_of(quaternion: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 3 3"]:
    """Rows are the turned x, y and z axes; quaternions (w, x, y, z) of any length."""
    w, x, y, z = functional.normalize(quaternion, dim=-1).unbind(-1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)],
        [2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x)],
        [2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def quaternion_of(axes: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 4"]:
    """Unit quaternions whose `axes_of` are given: eigenvectors of largest eigenvalue (Bar-Itzhack 2000)."""
    (xx, yx, zx), (xy, yy, zy), (xz, yz, zz) = (row.unbind(-1) for row in axes.unbind(-2))
    rows = [
        [xx + yy + zz, zy - yz, xz - zx, yx - xy],
        [zy - yz, xx - yy - zz, yx + xy, xz + zx],
        [xz - zx, yx + xy, yy - xx - zz, zy + yz],
        [yx - xy, xz + zx, zy + yz, zz - xx - yy],
    ]
    return torch.linalg.eigh(torch.stack([torch.stack(row, -1) for row in rows], -2)).eigenvectors[..., -1]
