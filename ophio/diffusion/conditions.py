"""What a sample is asked to be."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

DESIGNED = {"designed": 1.0, "natural": 0.0, "predicted": 0.0}  # of an origin; a model of a natural sequence is natural


@dataclass(frozen=True)
class Conditions:
    """Of a batch of proteins: how long they are and, where asked for, how much helix and strand they have, how compact
    they are, whether designed or natural."""

    num_residues: Int[Tensor, "batch"]
    # fraction of residues in helix and in strand, radius of gyration / N^0.38 (Å), 1 for designed and 0 for natural
    # proteins; NaN where nothing is asked
    content: Float[Tensor, "batch 4"]

    @classmethod
    def of_lengths(
        cls,
        num_residues: Int[Tensor, "batch"],
        helix: float = torch.nan,
        strand: float = torch.nan,
        compactness: float = torch.nan,
        designed: float = torch.nan,
    ) -> "Conditions":
        """The same content, NaN for any, for proteins of the given lengths."""
        content = torch.tensor([helix, strand, compactness, designed], device=num_residues.device)
        return cls(num_residues, content.expand(len(num_residues), len(content)))

    def to(self, device: torch.device | str) -> "Conditions":
        return Conditions(self.num_residues.to(device), self.content.to(device))

    def forget(self, probability: float) -> "Conditions":
        """Content is left open: all of it with this probability, and each part with as much again."""
        draws = torch.rand(len(self.content), 1 + self.content.shape[1], device=self.content.device) < probability
        return Conditions(self.num_residues, self.content.masked_fill(draws[:, :1] | draws[:, 1:], torch.nan))

    def without_content(self) -> "Conditions":
        """The same lengths, all content left open."""
        return Conditions(self.num_residues, torch.full_like(self.content, torch.nan))

    @property
    def asks_content(self) -> bool:
        return bool(self.content.isfinite().any())
