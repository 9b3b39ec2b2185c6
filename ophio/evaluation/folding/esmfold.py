"""Folding with ESMFold (Lin et al. 2023, Science 379, 1123), as Hugging Face's transformers implements it."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ophio.backbone import ideal_cb
from ophio.constants import ATOM14, CA, NUM_SLOTS, RESIDUE_LETTERS, RESIDUE_NAMES
from ophio.errors import UserError
from ophio.evaluation.folding.engine import Fold, check_sequences, check_structures
from ophio.evaluation.folding.potential import MIN_PROBABILITY, REFERENCE_EXPONENT
from ophio.protein import Protein

WEIGHTS = "facebook/esmfold_v1"
INSTALL = "pip install 'ophio[esmfold]'"
LONGEST = 1024  # residues
FIRST_EDGE, LAST_EDGE = 2.3125, 21.6875  # Å, between the first two and the last two of the 64 classes of CB distance

_ATOMS = torch.tensor([len(ATOM14[name]) for name in RESIDUE_NAMES])


class EsmFold:
    """ESMFold. Folds have all atoms; sequences are folded one by one.

    The confidence of a residue is its predicted lDDT (of CA). The energy of a structure is the sum over pairs of
    residues of -log of the predicted probability of their CB distance over that of the farthest class, scaled as in
    `potential.energy_curves`, divided by the number of residues.

    Args:
        weights: a name on the Hugging Face hub, which is downloaded at first use, or a folder with config.json and
            weights. Code that comes with weights is never executed.

    Raises:
        UserError: where transformers is not installed, and for weights that do not exist or are none of ESMFold.
    """

    name = "esmfold"
    all_atom = True

    def __init__(self, weights: str = WEIGHTS, device: torch.device | str = "cpu"):
        self.device = torch.device(device)
        self.model: Any = load_model(weights)
        if self.device.type == "cpu":
            self.model = self.model.float()  # the language model is stored in half precision, which a CPU lacks
        self.model = self.model.to(self.device).eval().requires_grad_(False)

    def fold(self, sequences: Sequence[str], seed: int = 0) -> list[Fold]:
        """All atoms of `sequences` of 10 to 1024 residues; deterministic whatever the seed."""
        check_sequences(sequences, LONGEST, self.name)
        return [self._fold(sequence) for sequence in sequences]

    def energy(self, sequences: Sequence[str], proteins: Sequence[Protein]) -> list[float]:
        """Of given structures, per residue; residues must have N, CA and C."""
        check_sequences(sequences, LONGEST, self.name)
        check_structures(sequences, proteins)
        pairs = zip(sequences, proteins, strict=True)
        return [distance_energy(self._predict(s)["distogram_logits"][0].float().cpu(), p.positions) for s, p in pairs]

    def _fold(self, sequence: str) -> Fold:
        output = self._predict(sequence)
        residue_type = torch.tensor([RESIDUE_LETTERS.index(letter) for letter in sequence])
        mask = torch.arange(NUM_SLOTS) < _ATOMS[residue_type][:, None]
        positions = output["positions"][-1, 0].float().cpu() * mask[..., None]
        confidence = output["plddt"][0, :, CA].float().cpu().clamp(0, 1)
        energy = distance_energy(output["distogram_logits"][0].float().cpu(), positions)
        return Fold(Protein.from_atoms(positions, mask, residue_type, "ESMFold fold"), confidence, energy)

    def _predict(self, sequence: str) -> Mapping[str, Any]:
        return self.model.infer([sequence])


def distance_energy(logits: Float[Tensor, "L L 64"], positions: Float[Tensor, "L atoms 3"]) -> float:
    """Mean over residues of the energy that the predicted classes of CB distance give to N, CA and C."""
    cb = ideal_cb(positions)
    edges = torch.linspace(FIRST_EDGE, LAST_EDGE, logits.shape[-1] - 1)
    width = float(edges[1] - edges[0])
    middles = torch.cat([edges - width / 2, edges[-1:] + width / 2])
    p = logits.softmax(-1) + MIN_PROBABILITY
    # the last class is open: the one before it is the farthest with a width
    curve = -(p / p[..., -2, None]).log() + REFERENCE_EXPONENT * (middles / middles[-2]).log()
    curve[..., -1] = 0
    found = torch.bucketize(torch.cdist(cb, cb), edges)
    energy = curve.gather(-1, found[..., None])[..., 0]
    return float(energy.triu(1).sum()) / len(cb)


def load_model(weights: str) -> nn.Module:
    """From a folder or the hub. Safetensors are preferred; other files are read without executing anything in them.

    Raises UserError as `EsmFold` does.
    """
    try:
        from transformers import AutoConfig, EsmForProteinFolding
    except ImportError:
        raise UserError(f"esmfold needs the package transformers; install it with: {INSTALL}") from None
    advice = "give a folder with config.json and model.safetensors, or a name on the Hugging Face hub"
    try:
        config = AutoConfig.from_pretrained(weights, trust_remote_code=False)
        if not getattr(config, "is_folding_model", False):
            raise UserError(f"{weights}: a model of type {config.model_type}, not ESMFold; {advice}")
        loaded: Any = EsmForProteinFolding.from_pretrained(weights, config=config, output_loading_info=True)
        model, info = loaded
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{weights}: no weights of ESMFold ({str(error).splitlines()[0]}); {advice}") from None
    absent = sorted(name for name in info["missing_keys"] if "position_ids" not in name)
    if absent:
        raise UserError(f"{weights}: lacks {len(absent)} tensors of ESMFold, the first is {absent[0]}; {advice}")
    return model
