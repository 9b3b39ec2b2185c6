"""Structures from sequences: one interface, several engines."""

from ophio.evaluation.folding.engine import Fold, FoldingEngine
from ophio.evaluation.folding.loading import load_engine

__all__ = ["Fold", "FoldingEngine", "load_engine"]
