"""Tables of atom14 slots by residue type, and atoms taken by them."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor


def slot_table(rows: Sequence[Sequence[tuple[int, ...]]]) -> tuple[Int[Tensor, "21 n k"], Bool[Tensor, "21 n"]]:
    """k slots each of up to n bonds, torsions, ... for the 20 residue types (none for unknown), and which exist."""
    rows = [*rows, []]
    longest, arity = max(map(len, rows)), len(next(row for row in rows if row)[0])
    slots = torch.zeros(len(rows), longest, arity, dtype=torch.long)
    exists = torch.zeros(len(rows), longest, dtype=torch.bool)
    for kind, row in enumerate(rows):
        if row:
            slots[kind, : len(row)] = torch.tensor(row)
            exists[kind, : len(row)] = True
    return slots, exists


def take(atoms: Shaped[Tensor, "*batch A X"], slots: Int[Tensor, "*batch K"]) -> Shaped[Tensor, "*batch K X"]:
    """Atoms at the given slots."""
    return atoms.gather(-2, slots[..., None].expand(*slots.shape, atoms.shape[-1]))
