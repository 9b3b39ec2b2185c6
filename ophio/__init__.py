"""ophio: protein structures in a compressed, SO(3)-equivariant latent space (Ophiuchus, arXiv:2310.02508)."""

__version__ = "0.1.0"
