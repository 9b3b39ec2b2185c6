"""Published figures to set a report beside, as their authors or a later comparison gave them.

Lengths, numbers of samples, training data and folding engines differ between the rows and from ours: read them as the
range of the field, not as a ranking. Shares are of all samples.
"""

from typing import NamedTuple


class Peer(NamedTuple):
    """A published method; None for what was not given."""

    system: str
    of: str
    designable: float  # share with scRMSD < 2 Å
    folded: float | None  # share with scTM > 0.5
    clusters: float | None  # clusters / samples
    seconds: float  # a sample, on the authors' hardware


PEERS = [
    Peer("FrameDiff", "backbones, PDB", 0.17, 0.81, 0.42, 8.6),
    Peer("RFdiffusion", "backbones, PDB", 0.79, 0.99, 0.64, 50.0),
    Peer("Ophiuchus-64", "all atoms, miniproteins", 0.32, 0.56, 0.72, 0.15),
    Peer("Ophiuchus-485", "backbones, PDB", 0.18, 0.36, 0.39, 0.46),
    Peer("FrameFlow, 500 steps", "backbones, 60-128 residues", 0.85, None, None, 16.0),
    Peer("ReQFlow, 500 steps", "backbones, 60-128 residues", 0.97, None, None, 12.2),
]
"""The first four as compared in arXiv:2310.02508, the others in arXiv:2502.14637."""

PEER_ENGINE = "ESMFold or OmegaFold"
