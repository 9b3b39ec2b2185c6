"""Published figures to set a report beside, as their authors or a later comparison gave them.

Lengths, numbers of samples, training data and folding engines differ between the rows and from ours: read them as the range
of the field, not as a ranking. Shares of all samples.
"""

PEERS = [
    {"system": "FrameDiff", "of": "backbones, PDB", "designable": 0.17, "sctm_above_0.5": 0.81, "clusters_50": 0.42, "seconds_a_sample": 8.6},
    {"system": "RFdiffusion", "of": "backbones, PDB", "designable": 0.79, "sctm_above_0.5": 0.99, "clusters_50": 0.64, "seconds_a_sample": 50.0},
    {"system": "Ophiuchus-64", "of": "all atoms, miniproteins", "designable": 0.32, "sctm_above_0.5": 0.56, "clusters_50": 0.72, "seconds_a_sample": 0.15},
    {"system": "Ophiuchus-485", "of": "backbones, PDB", "designable": 0.18, "sctm_above_0.5": 0.36, "clusters_50": 0.39, "seconds_a_sample": 0.46},
    {"system": "FrameFlow, 500 steps", "of": "backbones, 60-128", "designable": 0.85, "sctm_above_0.5": None, "clusters_50": None, "seconds_a_sample": 16.0},
    {"system": "ReQFlow, 500 steps", "of": "backbones, 60-128", "designable": 0.97, "sctm_above_0.5": None, "clusters_50": None, "seconds_a_sample": 12.2},
]  # fmt: skip
"""The first four as compared in arXiv:2310.02508, the others in arXiv:2502.14637."""

PEER_ENGINE = "ESMFold or OmegaFold"
