"""The hourglass: residues -> fewer, wider nodes -> latent -> residues. No skip connections: all passes the latent."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ophio.backbone import BackboneGeometry
from ophio.cloud import Cloud
from ophio.constants import UNKNOWN
from ophio.errors import UserError
from ophio.irreps import Linear, dim, expand_degrees, pad_degrees, split
from ophio.layers import (
    EquivariantNorm,
    SelfInteraction,
    SequenceConvolution,
    SpatialConvolution,
    TransposedSequenceConvolution,
)
from ophio.layers.egnn import EGNNBlock, EGNNConvolution, fold_pairs, unfold_pairs
from ophio.layers.sequence import num_windows, window_mask
from ophio.protein import Protein
from ophio.residue import ResidueDecoding, ResidueEncoding, atom_exists, name_pairs


@dataclass(frozen=True)
class Latent:
    """What the encoder leaves of a chain: a short Cloud, which residues to decode from it, and what they are called."""

    cloud: Cloud
    residue_mask: Bool[Tensor, "*batch L"]
    residue_number: Int[Tensor, "*batch L"]
    insertion_code: Int[Tensor, "*batch L"]
    chain_id: str = "A"
    name: str = "protein"

    @property
    def numbers_per_residue(self) -> float:
        """Real numbers stored (features and positions of real nodes) for each real residue."""
        return float(self.cloud.mask.sum() * self.cloud.numbers_per_node / self.residue_mask.sum())

    def map(self, function: Callable[[Tensor], Tensor]) -> "Latent":
        """Applies `function` to every tensor."""
        cloud = Cloud(*(function(t) for t in (self.cloud.positions, self.cloud.features, self.cloud.mask)))
        tensors = (function(t) for t in (self.residue_mask, self.residue_number, self.insertion_code))
        return Latent(cloud, *tensors, self.chain_id, self.name)


@dataclass(frozen=True)
class Decoded:
    """What the decoder makes of a latent: atoms of the residue types it was told or predicted."""

    logits: Float[Tensor, "batch L 20"]
    residue_type: Int[Tensor, "batch L"]
    positions: Float[Tensor, "batch L 14 3"]  # Å


class Block(nn.Module):
    """Mixing at constant length: along the chain, in space (optional), within each node."""

    def __init__(self, lmax: int, channels: int, kernel: int, length_scale: float, neighbours: int = 0):
        super().__init__()
        self.norm = EquivariantNorm(lmax, channels)
        self.sequence = SequenceConvolution(lmax, channels, channels, kernel, length_scale=length_scale)
        self.spatial = SpatialConvolution(lmax, channels, neighbours, length_scale) if neighbours else None
        self.interaction = SelfInteraction(lmax, channels)

    def forward(self, cloud: Cloud) -> Cloud:
        cloud = self.sequence(cloud, self.norm(cloud.features))
        if self.spatial is not None:
            cloud = self.spatial(cloud)
        return self.interaction(cloud)


class Bottleneck(nn.Module):
    """Features to the latent's degrees and channels, at unit RMS; optionally noisy or variational.

    Args:
        lmax, channels: of the encoder's last level.
        latent_lmax, latent_channels: of the latent.
        noise: noise added to latent features in training (they have unit RMS) has a standard deviation drawn for each
            chain from 0 to this, so that the decoder forgives what a generator of latents gets slightly wrong.
        position_noise: the same for latent positions, Å; one draw sets both.
        variational: learn a mean and a variance instead (Kingma & Welling 2014, arXiv:1312.6114).
    """

    def __init__(
        self,
        lmax: int,
        channels: int,
        latent_lmax: int,
        latent_channels: int,
        noise: float = 0.0,
        position_noise: float = 0.0,
        variational: bool = False,
    ):
        super().__init__()
        self.noise, self.position_noise = noise, position_noise
        self.norm = EquivariantNorm(lmax, channels)
        self.linear = Linear([channels] * (lmax + 1), latent_channels, out_lmax=latent_lmax)
        self.unit = nn.Identity() if variational else EquivariantNorm(latent_lmax, latent_channels, affine=False)
        self.log_variance = nn.Linear(channels, (latent_lmax + 1) * latent_channels) if variational else None

    def forward(self, cloud: Cloud) -> tuple[Cloud, Float[Tensor, "batch"]]:
        """The latent, and its divergence from a unit Gaussian summed over nodes, in nats (0 unless variational)."""
        features = self.norm(cloud.features)
        mean = self.linear(split(features))
        kl = mean.new_zeros(mean.shape[0])
        if self.log_variance is None:
            level = torch.rand(mean.shape[0], 1, 1, 1, device=mean.device)
            mean, spread = self.unit(mean), self.noise * level
        else:
            log_variance = self.log_variance(split(features)[0].squeeze(-2)).clamp(-14, 4)
            log_variance = expand_degrees(log_variance.unflatten(-1, (-1, mean.shape[-1])))
            level = mean.new_ones(1, 1, 1, 1)
            terms = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
            kl, spread = (terms.sum((-1, -2)) * cloud.mask).sum(-1), (0.5 * log_variance).exp()
        positions = cloud.positions
        if self.training:
            mean = mean + spread * torch.randn_like(mean)
            positions = positions + self.position_noise * level.squeeze(-1) * torch.randn_like(positions)
        return Cloud(positions, mean * cloud.mask[..., None, None], cloud.mask), kl


class Autoencoder(nn.Module):
    """All-atom proteins to latent Clouds and back (Ophiuchus, figure 1).

        model = Autoencoder.from_pretrained("mini")
        with torch.no_grad():
            latent = model.encode(read_structure("1abc.cif"))
            protein = model.decode(latent)
        write_structure(protein, "again.pdb")

    Masked residues (without CA, or not among the 20) stay masked: they are neither encoded nor made up.

    Args:
        channels: width of each level, residues first; one more than there are strided convolutions.
        strides: step of the convolution from each level to the next; a stride of 1 keeps the length.
        kernel: window of the strided convolutions.
        mix_kernel: window of the convolutions at constant length.
        depth: blocks at each level of the encoder; the decoder has as many.
        lmax: highest degree inside.
        latent_channels, latent_lmax: width and highest degree of the latent.
        latent_noise, latent_position_noise, variational: see `Bottleneck`.
        neighbours: nearest nodes of a spatial convolution in every block; 0 for none, which keeps cost linear in length.
        contacts: the same for the decoder's block of residues alone, so that side chains that meet see each other.
        geometry_sweeps, limit_tau: corrections of the backbone's geometry after decoding; see `BackboneGeometry`.
        backbone_only: the model knows N, CA, C and O alone and gives poly-glycine, as the paper's model of 485 residues.
        architecture: "ophio", or "egnn" for the baseline: the same hourglass with the layers of `ophio.layers.egnn`, which
            know scalars and vectors alone. Its `lmax` is that of the residues' encoding and decoding; it has neither
            `neighbours` nor `contacts`.

    Raises ValueError for widths and strides that do not match, another architecture, and what "egnn" has not.
    """

    ENCODER = ("encoding", "encoder_blocks", "down", "bottleneck")  # the modules that decide what a latent means

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        kernel: int = 5,
        mix_kernel: int = 3,
        depth: int = 1,
        lmax: int = 2,
        latent_channels: int = 32,
        latent_lmax: int = 1,
        latent_noise: float = 0.0,
        latent_position_noise: float = 0.0,
        variational: bool = False,
        neighbours: int = 0,
        contacts: int = 0,
        geometry_sweeps: int = 10,
        limit_tau: bool = False,
        backbone_only: bool = False,
        architecture: str = "ophio",
    ):
        super().__init__()
        if len(channels) != len(strides) + 1:
            raise ValueError(f"{len(strides)} strides need {len(strides) + 1} channel widths, not {len(channels)}")
        if architecture not in ("ophio", "egnn"):
            raise ValueError(f"architecture {architecture}: there are ophio and egnn")
        self.egnn = architecture == "egnn"
        if self.egnn and (neighbours or contacts or latent_lmax > 1):
            raise ValueError("architecture egnn: has no neighbours, no contacts, and a latent_lmax of at most 1")
        self.lmax = inside = 1 if self.egnn else lmax
        self.kernel, self.strides, self.backbone_only = kernel, tuple(strides), backbone_only
        spacing = [1]
        for stride in strides:
            spacing.append(spacing[-1] * stride)
        scales = [4.0 * step**0.6 for step in spacing]  # Å: how far apart nodes of a compact chain lie

        def block(level: int, nearest: int) -> nn.Module:
            if self.egnn:
                return EGNNBlock(channels[level], mix_kernel, scales[level])
            return Block(lmax, channels[level], mix_kernel, scales[level], nearest)

        def blocks(level: int, nearest: int = neighbours) -> nn.Sequential:
            return nn.Sequential(*(block(level, nearest) for _ in range(depth)))

        levels = range(len(strides))
        self.encoding = ResidueEncoding(lmax, channels[0])
        self.encoder_blocks = nn.ModuleList(blocks(level) for level in range(len(channels)))
        self.down = nn.ModuleList(
            self._down(channels[level], channels[level + 1], strides[level], scales[level]) for level in levels
        )
        self.bottleneck = Bottleneck(
            inside, channels[-1], latent_lmax, latent_channels, latent_noise, latent_position_noise, variational
        )
        self.widen = Linear([latent_channels] * (latent_lmax + 1), channels[-1])
        self.decoder_blocks = nn.ModuleList(
            blocks(level, contacts if contacts and level == 0 else neighbours) for level in range(len(channels))
        )
        self.up = nn.ModuleList(
            TransposedSequenceConvolution(
                inside, channels[level + 1], channels[level], kernel, strides[level], scales[level]
            )
            for level in levels
        )
        self.decoding = ResidueDecoding(lmax, channels[0])
        self.geometry = BackboneGeometry(geometry_sweeps, limit_tau=limit_tau)

    def _down(self, narrow: int, wide: int, stride: int, scale: float) -> nn.Module:
        if stride == 1:
            return Widen(self.lmax, narrow, wide)
        if self.egnn:
            return EGNNConvolution(narrow, wide, self.kernel, stride, scale)
        return SequenceConvolution(self.lmax, narrow, wide, self.kernel, stride, scale)

    @classmethod
    def from_pretrained(cls, model: str | Path) -> "Autoencoder":
        """A released model by name (`ophio models` lists them), or a folder or file that training wrote."""
        from ophio.pretrained import load

        return load(model)

    def freeze_encoder(self) -> None:
        """From now on training changes the decoder alone: latents, and what was learnt of them, stay valid."""
        for part in self.ENCODER:
            getattr(self, part).requires_grad_(False)

    def masks(self, residue_mask: Bool[Tensor, "batch L"]) -> list[Tensor]:
        """Which nodes are real at every level, residues first."""
        masks = [residue_mask]
        for stride in self.strides:
            masks.append(window_mask(masks[-1], self.kernel, stride))
        return masks

    def seen(self, protein: Protein) -> Protein:
        """What the model represents of a protein: all of it, or its backbone as poly-glycine."""
        return protein.backbone() if self.backbone_only else protein

    def encode(self, protein: Protein) -> Latent:
        """A chain [L], or a padded batch [B, L], to its latent."""
        if protein.residue_type.dim() == 1:
            return self.encode(protein.map(lambda t: t[None])).map(lambda t: t[0])
        return self._encode(protein)[0]

    def _encode(self, protein: Protein) -> tuple[Latent, Float[Tensor, "batch"]]:
        cloud = self.encoding(self.seen(protein))
        cloud = fold_pairs(cloud) if self.egnn else cloud
        for blocks, down in zip(self.encoder_blocks, [*self.down, nn.Identity()], strict=True):
            cloud = down(blocks(cloud))
        cloud, kl = self.bottleneck(cloud)
        naming = (protein.residue_number, protein.insertion_code, protein.chain_id, protein.name)
        return Latent(cloud, protein.residue_mask, *naming), kl

    def decode(self, latent: Latent) -> Protein:
        """The chain or batch of a latent: residue types as predicted, all of their atoms.

        Raises UserError for a latent of another shape than this model encodes chains of its length to.
        """
        self._check_latent(latent)
        if latent.residue_mask.dim() == 1:
            return self.decode(latent.map(lambda t: t[None])).map(lambda t: t[0])
        decoded = self.decode_atoms(latent)
        residue_type = decoded.residue_type.masked_fill(~latent.residue_mask, UNKNOWN)
        atom_mask = atom_exists().to(residue_type.device)[residue_type]
        positions = name_pairs(decoded.positions, residue_type) * atom_mask[..., None]
        b_factor = torch.zeros_like(positions[..., 0])
        naming = (latent.residue_number, latent.insertion_code, b_factor, latent.chain_id, latent.name)
        return Protein(positions, atom_mask, residue_type, *naming)

    def _check_latent(self, latent: Latent) -> None:
        num_nodes = latent.residue_mask.shape[-1]
        for stride in self.strides:
            num_nodes = num_windows(num_nodes, self.kernel, stride)
        expected = (num_nodes, dim(len(self.widen.weights) - 1), self.widen.weights[0].shape[0])
        if latent.cloud.features.shape[-3:] != expected:
            found, wanted = ("x".join(map(str, shape)) for shape in (latent.cloud.features.shape[-3:], expected))
            length = latent.residue_mask.shape[-1]
            raise UserError(
                f"latent {latent.name}: features {found}, but this model has {wanted} for {length} residues: "
                "decode it with the model that encoded it"
            )

    def decode_atoms(self, latent: Latent, residue_type: Int[Tensor, "batch L"] | None = None) -> Decoded:
        """A batch [B, L] of latents to atoms of the given residue types, or of the most probable ones."""
        cloud = latent.cloud.replace(features=pad_degrees(self.widen(split(latent.cloud.features)), self.lmax))
        masks = self.masks(latent.residue_mask)
        for level in reversed(range(len(masks))):
            cloud = self.decoder_blocks[level](cloud)
            if level > 0:
                cloud = self.up[level - 1](cloud, masks[level - 1])
        cloud = unfold_pairs(cloud) if self.egnn else cloud
        logits = self.decoding.residue_logits(cloud)
        residue_type = logits.argmax(-1) if residue_type is None else residue_type
        positions = self.geometry(self.decoding(cloud, residue_type), latent.residue_mask)
        return Decoded(logits, residue_type, positions)

    def forward(self, protein: Protein) -> tuple[Decoded, Float[Tensor, "batch"]]:
        """The training pass: reconstruction with the true residue types, and the latent's divergence, in nats."""
        latent, kl = self._encode(protein)
        return self.decode_atoms(latent, self.seen(protein).residue_type), kl


class Widen(nn.Module):
    """More channels, same nodes: the step between levels of a model without down-sampling."""

    def __init__(self, lmax: int, in_channels: int, out_channels: int):
        super().__init__()
        self.linear = Linear([in_channels] * (lmax + 1), out_channels)

    def forward(self, cloud: Cloud) -> Cloud:
        return cloud.replace(features=self.linear(split(cloud.features)))
