"""Reconstruction losses: each term a function that returns one value for each protein; weights live in configs."""

from ophio.losses.chemistry import Chemistry
from ophio.losses.clash import clash
from ophio.losses.reconstruction import ReconstructionLoss, match_pairs
from ophio.losses.residue_type import residue_type_cross_entropy
from ophio.losses.vector_map import local_vector_map, sampled_vector_map

__all__ = [
    "Chemistry",
    "ReconstructionLoss",
    "clash",
    "local_vector_map",
    "match_pairs",
    "residue_type_cross_entropy",
    "sampled_vector_map",
]
