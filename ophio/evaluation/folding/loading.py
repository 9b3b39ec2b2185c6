"""Folding engines by name."""

from typing import Any

import torch

from ophio.errors import UserError
from ophio.evaluation.folding.engine import FoldingEngine
from ophio.evaluation.folding.esmfold import EsmFold
from ophio.evaluation.folding.trrosetta import TrRosetta


def load_engine(
    name: str,
    device: torch.device | str = "cpu",
    weights: str | None = None,
    networks: int | None = None,
    starts: int | None = None,
) -> FoldingEngine:
    """A folding engine, ready to use.

    Args:
        name: "trrosetta" or "esmfold".
        weights: of esmfold: a folder, or a name on the Hugging Face hub; None for its own.
        networks, starts: of trrosetta, see there; None for its own.

    Raises UserError for another name, for options that the engine does not have, and where weights are missing.
    """
    options = {"weights": weights, "networks": networks, "starts": starts}
    given: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
    engines = {"trrosetta": (TrRosetta, {"networks", "starts"}), "esmfold": (EsmFold, {"weights"})}
    if name not in engines:
        raise UserError(f"folding engine {name}: not known; choose one of {', '.join(engines)}")
    engine, known = engines[name]
    odd = sorted(set(given) - known)
    if odd:
        raise UserError(f"{odd[0]}: not an option of {name}, which has {', '.join(sorted(known))}")
    return engine(device=device, **given)
