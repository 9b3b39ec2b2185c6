"""Paths between conformations of one chain: latent Clouds between two latent Clouds, decoded; and two simple baselines.

    frames = interpolate(read_structure("open.pdb"), read_structure("closed.pdb"), model, num=25)
    write_structure(frames, "path.pdb")

What lies between two Clouds is in `ophio.cloud_paths`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ophio.autoencoder import Autoencoder, Latent
from ophio.cloud import Cloud
from ophio.cloud_paths import PATHS, LatentPath
from ophio.constants import CA
from ophio.errors import UserError
from ophio.geometry import kabsch, transform
from ophio.idealize import idealize
from ophio.internal_coordinates import buildable, internal_coordinates, positions_of
from ophio.metrics.clashes import clashes
from ophio.metrics.core import core_superposition
from ophio.metrics.rmsd import best_order
from ophio.metrics.validity import angle_outliers, bond_outliers
from ophio.pairing import MIN_RESIDUES, common_links, common_residues
from ophio.protein import Protein, stack
from ophio.residue import atom_exists

MODEL = "monomer"  # released autoencoder that paths are made with unless another is named
METHOD = "blend"
RESIDUES_AT_ONCE = 4096  # decoded, or idealized, in one batch
FINISH_ROUNDS = 10
GEODESIC_STEPS, GEODESIC_RATE = 20, 0.02


def interpolate(
    protein_a: Protein,
    protein_b: Protein,
    model: Autoencoder,
    num: int = 25,
    method: str = METHOD,
    pin_ends: bool = False,
    finish: bool = True,
) -> list[Protein]:
    """`num` structures from the one chain to the other, both ends included, in the frame of the first.

    Chains of different sequences are aligned and cut to what they have in common, with a warning that says what was
    cut. Every frame has all atoms of the residue types of `protein_a`, whatever was missing.

    Args:
        method: a name in METHODS.
        pin_ends: start and end on the structures themselves (`pinned`), not on their reconstructions.
        finish: restore bonds and angles and undo clashes in every frame, by small moves (`ophio.idealize`).

    Raises:
        UserError: the two have too little in common, one is the mirror image of the other, `num` is below 2, the
            method does not exist, or it is neither "linear" nor "spherical" and the latent has scalars alone.
    """
    return path_through(superposed(common_residues([protein_a, protein_b])), model, num, method, pin_ends, finish)


def path_through(
    proteins: Sequence[Protein],
    model: Autoencoder,
    num: int = 25,
    method: str = METHOD,
    pin_ends: bool = False,
    finish: bool = True,
) -> list[Protein]:
    """The path through several conformations, `num` frames from each to the next: (k - 1)(num - 1) + 1 in all.

    The chains have the same residues (`common_residues`) and lie where they are meant to (`superposed`). The pieces
    between gaps of the chain (`common_links`) are encoded and decoded each by itself: models know no gaps. The other
    arguments, and what raises UserError: as for `interpolate`.
    """
    if num < 2:
        raise UserError(f"num={num}: a path has at least its 2 ends")
    if method not in METHODS:
        raise UserError(f"method {method}: not one of {', '.join(METHODS)}")
    linked, frames = common_links(proteins), []
    for a, b in pairwise(proteins):
        pieces = [_piece(a.crop(*ends), b.crop(*ends), model, num, method) for ends in unbroken(linked)]
        made = [_joined(parts) for parts in zip(*pieces, strict=True)]
        made = following(finished(made, linked) if finish else made, a)
        made = pinned(made, a, b) if pin_ends else made
        frames += made[1:] if frames else made
    return frames


def _piece(a: Protein, b: Protein, model: Autoencoder, num: int, method: str) -> list[Protein]:
    path = _along(PATHS.get(method, PATHS[METHOD]), *encode([a, b], model), num)
    path = shortened(path, model, a) if method == "geodesic" else path
    return decode(path, model, a)


def unbroken(linked: Bool[Tensor, "pairs"]) -> list[tuple[int, int]]:
    """First residue and end of each piece between gaps. One too short for a model stays with the next, the last with
    the one before."""
    gaps = [int(k) + 1 for k in (~linked).nonzero()[:, 0]]
    bounds = [0]
    for gap in gaps:
        if gap - bounds[-1] >= MIN_RESIDUES:
            bounds.append(gap)
    length = len(linked) + 1
    if len(bounds) > 1 and length - bounds[-1] < MIN_RESIDUES:
        bounds.pop()
    return list(pairwise([*bounds, length]))


def _joined(pieces: Sequence[Protein]) -> Protein:
    names = ("positions", "atom_mask", "residue_type", "residue_number", "insertion_code", "b_factor")
    return pieces[0].replace(**{name: torch.cat([getattr(piece, name) for piece in pieces]) for name in names})


# -------------------------------------------------------------------------------------------------- to latents and back


@torch.no_grad()
def encode(proteins: Sequence[Protein], model: Autoencoder) -> list[Latent]:
    """The latent of each."""
    device = next(model.parameters()).device
    return [model.encode(protein.to(device)) for protein in proteins]


@torch.no_grad()
def decode(latents: Latent, model: Autoencoder, like: Protein) -> list[Protein]:
    """The frames of a batch of latents, as the residues of `like` with all their atoms."""
    seen, frames = model.seen(like), []
    atom_mask = atom_exists()[seen.residue_type] & seen.residue_mask[:, None]
    for part in _parts(latents):
        types = seen.residue_type.to(part.residue_mask.device).expand(len(part.residue_mask), -1)
        positions = model.decode_atoms(part, types).positions.cpu()
        complete = seen.replace(atom_mask=atom_mask, b_factor=torch.zeros_like(positions[0, ..., 0]))
        frames += [complete.with_positions(frame) for frame in positions]
    return frames


def finished(frames: Sequence[Protein], linked: Bool[Tensor, "pairs"]) -> list[Protein]:
    """The frames idealized, bonded where the chain is; those that keep outliers or clashes again, a few times."""
    done, rough = list(frames), list(range(len(frames)))
    for _ in range(FINISH_ROUNDS):
        for part in _split(rough, frames[0].num_residues):
            batch = idealize(stack([done[k] for k in part]), linked.expand(len(part), -1))
            for k, positions in zip(part, batch.positions, strict=True):
                done[k] = frames[k].with_positions(positions)
        rough = [k for k in rough if not _sound(done[k], linked)]
    return done


def _sound(frame: Protein, linked: Bool[Tensor, "pairs"]) -> bool:
    """No outlier of bonds and angles and no clash."""
    atoms = frame.positions, frame.atom_mask
    outliers = bond_outliers(*atoms, linked) + angle_outliers(*atoms, linked)
    return bool(outliers == 0) and bool(clashes(*atoms, frame.residue_type) == 0)


def _split(items: Sequence[int], num_residues: int) -> Iterator[Sequence[int]]:
    """Frames that fit into one batch."""
    size = max(1, RESIDUES_AT_ONCE // num_residues)
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _parts(latents: Latent) -> Iterator[Latent]:
    for part in _split(range(len(latents.residue_mask)), latents.residue_mask.shape[-1]):
        yield latents.map(lambda t, part=part: t[part[0] : part[-1] + 1])


def _along(path: LatentPath, a: Latent, b: Latent, num: int) -> Latent:
    return _with_cloud(a, path(a.cloud, b.cloud, torch.linspace(0, 1, num).to(a.cloud.positions)))


def _with_cloud(latent: Latent, cloud: Cloud) -> Latent:
    names = (t.expand(len(cloud.mask), -1) for t in (latent.residue_mask, latent.residue_number, latent.insertion_code))
    return Latent(cloud, *names, latent.chain_id, latent.name)


def shortened(path: Latent, model: Autoencoder, like: Protein) -> Latent:
    """A path of smaller decoded length: a few gradient steps on the latents between its ends (a discrete geodesic).

    Minimised is the sum of squared distances of the CA atoms of consecutive frames; for even steps that is the squared
    length over the number of steps (Arvanitidis, Hansen, Hauberg 2018, arXiv:1710.11379, equation 8).
    """
    cloud = path.cloud
    types = model.seen(like).residue_type.to(path.residue_mask.device).expand(len(path.residue_mask), -1)
    inner = [t[1:-1].clone().requires_grad_() for t in (cloud.positions, cloud.features)]
    if not len(inner[0]):
        return path
    optimizer = torch.optim.Adam(inner, lr=GEODESIC_RATE)

    def whole() -> Latent:
        ends = zip((cloud.positions, cloud.features), inner, strict=True)
        return _with_cloud_of(path, *(torch.cat([t[:1], between, t[-1:]]) for t, between in ends))

    for _ in range(GEODESIC_STEPS):
        optimizer.zero_grad()
        parts = (model.decode_atoms(part, types[: len(part.residue_mask)]) for part in _parts(whole()))
        ca = torch.cat([part.positions[..., CA, :] for part in parts])
        ((ca[1:] - ca[:-1]).square().sum(-1) * path.residue_mask[:-1]).sum().backward()
        optimizer.step()
    return whole().map(lambda t: t.detach())


def _with_cloud_of(latents: Latent, positions: Tensor, features: Tensor) -> Latent:
    return replace(latents, cloud=Cloud(positions, features, latents.cloud.mask))


# ------------------------------------------------------------------------------------------------------------- the ends


def superposed(proteins: Sequence[Protein]) -> list[Protein]:
    """Each chain moved onto the one before it, by the part that moves least (`metrics.core_superposition`)."""
    placed = list(proteins[:1])
    for protein in proteins[1:]:
        core = core_superposition(protein.ca, placed[-1].ca, protein.residue_mask)
        placed.append(protein.with_positions(transform(protein.positions, core.rotation, core.translation)))
    return placed


def following(frames: Sequence[Protein], start: Protein) -> list[Protein]:
    """The frames with interchangeable atoms named so that they move least: from `start`, then from frame to frame."""
    named, before = [], start
    for frame in frames:
        shared = frame.atom_mask & before.atom_mask
        positions = best_order(frame.positions, before.positions, shared, frame.residue_type, superimpose=False)
        before = frame.with_positions(positions)
        named.append(before)
    return named


def pinned(frames: Sequence[Protein], start: Protein, end: Protein) -> list[Protein]:
    """The frames moved by what the first lacks to `start`, fading linearly along the path, and the last to `end`.

    Atoms that an end does not have move with their CA. The end's interchangeable atoms take the names that the path
    gives them.
    """
    (end,) = following([end], frames[-1])
    first, last = _residual(start, frames[0]), _residual(end, frames[-1])
    times = torch.linspace(0, 1, len(frames))
    return [f.with_positions(f.positions + (1 - t) * first + t * last) for f, t in zip(frames, times, strict=True)]


def _residual(true: Protein, frame: Protein) -> Float[Tensor, "L 14 3"]:
    difference = true.positions - frame.positions
    return torch.where(true.atom_mask[..., None], difference, difference[:, CA : CA + 1])


# ------------------------------------------------------------------------------------------------------------ baselines


def cartesian_line(a: Protein, b: Protein, num: int) -> list[Protein]:
    """Every atom that both have on a straight line."""
    (b,) = following([b], a)
    both = a.replace(atom_mask=a.atom_mask & b.atom_mask)
    return [
        both.with_positions(x)
        for x in torch.lerp(a.positions, b.positions, torch.linspace(0, 1, num)[:, None, None, None])
    ]


def torsion_path(a: Protein, b: Protein, num: int) -> list[Protein]:
    """Every bond length, angle and torsion on a straight line, the chain rebuilt from them, laid on the other line."""
    line = cartesian_line(a, b, num)
    (b,) = following([b], a)
    types, mask = a.residue_type, buildable(line[0].atom_mask, a.residue_type)
    here, there = (internal_coordinates(protein.positions, types) for protein in (a, b))
    built = positions_of(here.toward(there, torch.linspace(0, 1, num)), types)
    frames = []
    for positions, straight in zip(built, line, strict=True):
        motion = kabsch(positions[:, CA], straight.ca)
        frames.append(straight.replace(atom_mask=mask).with_positions(transform(positions, *motion)))
    return frames


METHODS = (*PATHS, "geodesic")
