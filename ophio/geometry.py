"""Distances, angles, torsions and superposition of points. Å and radians; any leading batch dimensions.

Norms, angles and torsions have finite gradients everywhere; at coincident or collinear points, where they have none, it
is 0.
"""

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ophio.constants import CA, CHI_SLOTS, RESIDUE_NAMES, C, N
from ophio.slots import slot_table, take

MIN_LENGTH = 1e-8  # Å; its square is still a normal float32
MIN_SQUARE = 1e-12  # below it, sine and cosine times the lengths of the sides do not define an angle


def safe_norm(
    x: Float[Tensor, "..."], dim: int = -1, eps: float = MIN_LENGTH, keepdim: bool = False
) -> Float[Tensor, "..."]:
    """Euclidean norm, at least `eps`: the gradient is 0 (not NaN) at the origin."""
    return x.square().sum(dim, keepdim=keepdim).clamp(min=eps**2).sqrt()


def pairwise_vectors(positions: Float[Tensor, "*batch n 3"]) -> Float[Tensor, "*batch n n 3"]:
    """Vector [i, j] points from i to j."""
    return positions[..., None, :, :] - positions[..., :, None, :]


def angle(
    a: Float[Tensor, "*#batch 3"], b: Float[Tensor, "*#batch 3"], c: Float[Tensor, "*#batch 3"]
) -> Float[Tensor, "..."]:
    """Angle a-b-c at `b`, from 0 to pi, accurate near both ends; 0 where `b` coincides with `a` or `c`."""
    u, v = torch.broadcast_tensors(a - b, c - b)
    return _safe_atan2(safe_norm(torch.linalg.cross(u, v)), (u * v).sum(-1))


def dihedral(
    a: Float[Tensor, "*#batch 3"],
    b: Float[Tensor, "*#batch 3"],
    c: Float[Tensor, "*#batch 3"],
    d: Float[Tensor, "*#batch 3"],
) -> Float[Tensor, "..."]:
    """Torsion about b-c, from -pi to pi, positive where `d` is clockwise from `a` seen along b -> c (IUPAC).

    0 where three of the points are collinear and the torsion is undefined.
    """
    u, v, w = torch.broadcast_tensors(b - a, c - b, d - c)
    left, right = torch.linalg.cross(u, v), torch.linalg.cross(v, w)
    return _safe_atan2(safe_norm(v) * (u * right).sum(-1), (left * right).sum(-1))


def _safe_atan2(y: Float[Tensor, "..."], x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """atan2(y, x), but 0 with zero gradient where both are 0."""
    undefined = y.square() + x.square() < MIN_SQUARE
    return torch.atan2(y.masked_fill(undefined, 0.0), x.masked_fill(undefined, 1.0))


@torch.no_grad()
def kabsch(
    mobile: Float[Tensor, "*batch n 3"],
    target: Float[Tensor, "*batch n 3"],
    weight: Float[Tensor, "*batch n"] | Bool[Tensor, "*batch n"] | None = None,
) -> tuple[Float[Tensor, "*batch 3 3"], Float[Tensor, "*batch 3"]]:
    """Proper rotation R (det +1) and translation t that bring R x + t of `mobile` closest to `target`.

    Minimises the weighted sum of squared distances (Kabsch 1978). Both are constants to autograd: at the optimum the
    RMSD has the same gradient with and without that of R and t, and the gradient of an SVD may explode. Too few points,
    collinear points or no weight yield one of the optimal rotations; non-finite coordinates, a NaN translation.
    """
    with torch.autocast(mobile.device.type, enabled=False):
        precision = torch.promote_types(mobile.dtype, torch.float32)  # there is no SVD in half precision
        x, y = mobile.to(precision), target.to(precision)
        w = x.new_ones(x.shape[:-1]) if weight is None else weight.to(precision)
        w = rearrange(w / w.sum(-1, keepdim=True).clamp(min=torch.finfo(precision).tiny), "... n -> ... n 1")
        x_mean, y_mean = (w * x).sum(-2), (w * y).sum(-2)
        covariance = (w * (y - y_mean[..., None, :])).mT @ (x - x_mean[..., None, :])
        u, _, vh = torch.linalg.svd(covariance.nan_to_num(0.0, 0.0, 0.0))
        sign = torch.ones_like(x_mean)
        sign[..., -1] = torch.det(u @ vh).sign()
        rotation = (u * sign[..., None, :]) @ vh
        translation = y_mean - (rotation @ x_mean[..., None]).squeeze(-1)
        return rotation.to(mobile.dtype), translation.to(mobile.dtype)


def superimpose(
    mobile: Float[Tensor, "*batch n 3"],
    target: Float[Tensor, "*batch n 3"],
    weight: Float[Tensor, "*batch n"] | Bool[Tensor, "*batch n"] | None = None,
) -> Float[Tensor, "*batch n 3"]:
    """All of `mobile`, moved as a rigid body so that its weighted points fit `target` best (see `kabsch`)."""
    return transform(mobile, *kabsch(mobile, target, weight))


def transform(
    positions: Float[Tensor, "*#batch n 3"],
    rotation: Float[Tensor, "*#batch 3 3"],
    translation: Float[Tensor, "*#batch 3"],
) -> Float[Tensor, "*#batch n 3"]:
    """R x + t for every point, in the precision of `positions` even under autocast."""
    with torch.autocast(positions.device.type, enabled=False):
        return positions @ rotation.mT + translation[..., None, :]


def random_rotation(
    shape: tuple[int, ...] = (),
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Float[Tensor, "*batch 3 3"]:
    """Proper rotations [*shape, 3, 3], uniform over SO(3): matrices of normally distributed quaternions."""
    quaternion = torch.randn((*shape, 4), generator=generator, dtype=dtype, device=device)
    w, x, y, z = (quaternion / safe_norm(quaternion, keepdim=True)).unbind(-1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def backbone_torsions(
    positions: Float[Tensor, "*batch L 14 3"],
    atom_mask: Bool[Tensor, "*batch L 14"],
    linked: Bool[Tensor, "*batch L-1"] | None = None,
) -> tuple[Float[Tensor, "*batch L 3"], Bool[Tensor, "*batch L 3"]]:
    """phi, psi, omega of every residue (radians), and which of them exist.

    phi: C(i-1)-N-CA-C, psi: N-CA-C-N(i+1), omega: CA-C-N(i+1)-CA(i+1), the bond that *follows* residue i. `linked[i]`
    says whether residues i and i+1 are bonded (default: all are). Torsions that lack an atom are 0 and masked.
    """
    n, ca, c = (positions[..., slot, :] for slot in (N, CA, C))
    has_n, has_ca, has_c = (atom_mask[..., slot] for slot in (N, CA, C))
    bonded = has_c[..., :-1] & has_n[..., 1:]
    bonded = bonded if linked is None else bonded & linked
    complete = has_n & has_ca & has_c
    phi = dihedral(c[..., :-1, :], n[..., 1:, :], ca[..., 1:, :], c[..., 1:, :])
    psi = dihedral(n[..., :-1, :], ca[..., :-1, :], c[..., :-1, :], n[..., 1:, :])
    omega = dihedral(ca[..., :-1, :], c[..., :-1, :], n[..., 1:, :], ca[..., 1:, :])
    angles = torch.stack([_pad_start(phi), _pad_end(psi), _pad_end(omega)], -1)
    planar = bonded & has_ca[..., :-1] & has_ca[..., 1:]
    mask = torch.stack(
        [_pad_start(bonded & complete[..., 1:]), _pad_end(bonded & complete[..., :-1]), _pad_end(planar)], -1
    )
    return angles * mask, mask


def _pad_start(x: Tensor) -> Tensor:
    return torch.nn.functional.pad(x, (1, 0))


def _pad_end(x: Tensor) -> Tensor:
    return torch.nn.functional.pad(x, (0, 1))


_CHI_SLOTS, _CHI_EXISTS = slot_table([CHI_SLOTS[name] for name in RESIDUE_NAMES])


def chi_angles(
    positions: Float[Tensor, "*batch L 14 3"],
    atom_mask: Bool[Tensor, "*batch L 14"],
    residue_type: Int[Tensor, "*batch L"],
) -> tuple[Float[Tensor, "*batch L 4"], Bool[Tensor, "*batch L 4"]]:
    """Side-chain torsions chi1..chi4 (`constants.CHI_ATOMS`), radians, and which of them exist; the others are 0.

    The atom names are taken as they are: chi2 of ASP, PHE, TYR and chi3 of GLU are defined up to pi only.
    """
    slots = _CHI_SLOTS.to(residue_type.device)[residue_type]
    flat = rearrange(slots, "... chi atom -> ... (chi atom)")
    atoms = rearrange(take(positions, flat), "... (chi atom) xyz -> atom ... chi xyz", atom=4)
    present = rearrange(torch.gather(atom_mask, -1, flat), "... (chi atom) -> ... chi atom", atom=4).all(-1)
    mask = present & _CHI_EXISTS.to(residue_type.device)[residue_type]
    return dihedral(*atoms) * mask, mask
