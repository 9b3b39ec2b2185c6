"""New proteins: noise -> latent -> atoms."""

import math
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ophio.autoencoder import Autoencoder, Latent
from ophio.backbone import BackboneGeometry
from ophio.cloud import Cloud
from ophio.diffusion import DESIGNED, Conditions, LatentDiffusion
from ophio.errors import UserError
from ophio.foldability import Foldability, seen_in
from ophio.idealize import idealize
from ophio.metrics import (
    COMPACT_EXPONENT,
    ca_rmsd,
    helix_strand_content,
    radius_of_gyration,
    valid_residues,
    validity_report,
)
from ophio.protein import NO_INSERTION, Protein, stack

ATTEMPTS = 5  # draws before a sample is given up
FINISH_SWEEPS, BACKBONE_SWEEPS = 120, 100  # of the finish: all atoms, then the backbone alone
NEAREST = 64  # training chains of about the length of a sample, to take its content from
FARTHEST = 1000.0  # Å from the origin: a sample that reaches there has diverged


class DivergedSample(UserWarning):
    """A sample was not finite and has been drawn again."""


@dataclass(frozen=True)
class SamplerSettings:
    """How to sample.

    Args:
        sampler: a name in `ophio.diffusion.samplers.SAMPLERS`; `options` are its own further arguments.
        steps: of the sampler; "heun" evaluates the network twice a step.
        noise_scale: below 1 for fewer surprises.
        helix, strand: fractions asked for; NaN for any.
        compactness: radius of gyration / N^0.38 (Å) asked for, where the model knows it; NaN for any.
        origin: "designed" or "natural", where the model knows them; None for any.
        typical: chains that the model learned from (residues, helix, strand, 1 for designed and 0 for natural ones or None).
            Where neither helix nor strand is asked for, every sample is asked for those of one of that origin that is
            about as long: a low noise scale alone drifts to what is commonest. Where there are none, nothing is asked.
        calibration: offset and slope for helix and for strand. Samples at a low noise scale overdo what they are asked
            for; the model is told offset + slope * fraction, at least 0, so that they come out as asked.
        guidance: how far to follow them, 1 as trained.
        idealize: bring bonds, angles and contacts into their ranges after decoding (`ophio.idealize`).
        hold_torsions: keep usual backbone torsions while doing so, and make unusual ones usual.
        drafts: with more than 1, each sample is drafted that often, in `draft_steps`; the draft that is told to fold
            best (`ophio.foldability`) is noised to sigma `rework` and goes on from there, in what `steps` have below.
        rarity: weight of how common the fold of a draft is, beside its energy of a residue.
        start_sigma: noise level that structures to start from are noised to, where there are any.
    """

    sampler: str = "heun"
    steps: int = 20
    noise_scale: float = 1.0
    helix: float = float("nan")
    strand: float = float("nan")
    compactness: float = float("nan")
    origin: str | None = None
    typical: Sequence[Sequence[float | int | None]] = ()
    calibration: Sequence[Sequence[float]] = ((0.0, 1.0), (0.0, 1.0))
    guidance: float = 1.0
    idealize: bool = False
    hold_torsions: bool = False
    drafts: int = 1
    draft_steps: int = 7
    rework: float = 1.6
    rarity: float = 0.5
    start_sigma: float = 1.5
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """One generated protein, or None where every attempt diverged, and how it came about."""

    protein: Protein | None
    length: int
    seed: int
    attempts: int
    seconds: float  # of its batch, divided by the samples in it
    idealized: float  # how far the finish moved its CA (Å, root mean square, superposed); NaN without one


def generate(
    diffusion: LatentDiffusion,
    autoencoder: Autoencoder,
    lengths: Sequence[int],
    seeds: Iterable[int],
    settings: SamplerSettings,
    foldability: Foldability | None = None,
    starts: Sequence[Protein] = (),
) -> list[Sample]:
    """One batch of samples of the given lengths (residues), with all their atoms.

    A sample depends on its seed and, through rounding alone, on what shares its batch. One that is not finite, or ends
    farther than 1000 Å away, is drawn again with a `DivergedSample` warning, up to five times in all.

    `foldability`: of the model (`ophio.foldability.foldability_of`), to choose among drafts by. Raises UserError where
    it is missing and there are several drafts.

    `starts`: a chain for each sample, of its length, which it is a variant of; none for samples from nothing. Its latent, noised
    to `settings.start_sigma`, takes the place of the first noise, and its helix and strand content that of a typical chain.
    """
    if settings.drafts > 1 and foldability is None:
        raise UserError(f"drafts {settings.drafts}: cannot choose among them without a map of what folds; ask for 1")
    lengths, seeds = list(lengths), list(seeds)
    started = time.perf_counter()
    samples: list[Protein | None] = [None] * len(lengths)
    waiting, attempt = list(range(len(lengths))), 0
    attempts = [0] * len(lengths)
    while waiting and attempt < ATTEMPTS:
        generators = [_generator(seeds[k], attempt) for k in waiting]
        begun = [starts[k] for k in waiting] if starts else []
        conditions = _conditions(settings, [lengths[k] for k in waiting], [seeds[k] for k in waiting], begun)
        proteins = _draw(diffusion, autoencoder, conditions, generators, settings, foldability, begun)
        attempt += 1
        again = []
        for k, protein in zip(waiting, proteins, strict=True):
            attempts[k] = attempt
            if protein is not None:
                samples[k] = protein.replace(name=f"sample with seed {seeds[k]}")
            else:
                again.append(k)
                warnings.warn(
                    f"sample of {lengths[k]} residues, seed {seeds[k]}: diverged in attempt {attempt}",
                    DivergedSample,
                    2,
                )
        waiting = again
    moved = [math.nan] * len(samples)
    if settings.idealize:
        samples, moved = finished(samples, settings.hold_torsions)
    seconds = (time.perf_counter() - started) / max(1, len(lengths))
    each = zip(samples, lengths, seeds, attempts, moved, strict=True)
    return [Sample(protein, length, seed, tries, seconds, shift) for protein, length, seed, tries, shift in each]


def finished(
    samples: Sequence[Protein | None], hold_torsions: bool = False
) -> tuple[list[Protein | None], list[float]]:
    """The samples idealized, as one batch, and how far the CA of each moved (Å, root mean square, superposed)."""
    finished, moved = list(samples), [math.nan] * len(samples)
    made = {k: protein for k, protein in enumerate(samples) if protein is not None}
    if made:
        raw = stack(list(made.values()))
        # it leaves a few links strained, which the backbone's own layer mends
        ideal = idealize(raw, sweeps=FINISH_SWEEPS, hold_torsions=hold_torsions)
        backbone = BackboneGeometry(BACKBONE_SWEEPS, limit_tau=True)
        ideal = ideal.replace(positions=backbone(ideal.positions, ideal.residue_mask))
        shifts = ca_rmsd(ideal.positions, raw.positions, raw.atom_mask).tolist()
        chains = ideal.unstack([protein.num_residues for protein in made.values()])
        for (k, protein), chain, shift in zip(made.items(), chains, shifts, strict=True):
            finished[k], moved[k] = chain.replace(name=protein.name), shift
    return finished, moved


def latent_of(cloud: Cloud, residue_mask: Bool[Tensor, "batch L"]) -> Latent:
    """A latent Cloud with residues numbered from 1."""
    numbers = torch.arange(1, residue_mask.shape[-1] + 1, device=residue_mask.device).expand(residue_mask.shape)
    return Latent(cloud, residue_mask, numbers, torch.full_like(numbers, NO_INSERTION))


@torch.no_grad()
def _draw(
    diffusion: LatentDiffusion,
    autoencoder: Autoencoder,
    conditions: Conditions,
    generators: list[torch.Generator],
    settings: SamplerSettings,
    foldability: Foldability | None,
    starts: Sequence[Protein],
) -> list[Protein | None]:
    """A protein for each generator, None where it diverged."""
    device = next(diffusion.parameters()).device
    conditions, lengths = conditions.to(device), conditions.num_residues.tolist()
    residue_mask = torch.arange(max(lengths), device=device) < conditions.num_residues[:, None]
    node_mask = autoencoder.masks(residue_mask)[-1]
    if starts:
        batch = stack([start.center() for start in starts]).to(device)
        start = autoencoder.encode(batch).cloud.center()
        cloud = sampled(diffusion, node_mask, conditions, generators, settings, start, settings.start_sigma)
    elif settings.drafts > 1 and foldability is not None:
        draft = _best_draft(diffusion, foldability, node_mask, conditions, generators, settings)
        cloud = sampled(diffusion, node_mask, conditions, generators, settings, draft, settings.rework)
    else:
        cloud = sampled(diffusion, node_mask, conditions, generators, settings)
    cloud, finite = _finite(cloud)
    chains = autoencoder.decode(latent_of(cloud, residue_mask)).map(lambda t: t.cpu()).unstack(lengths)
    return [chain if ok and _sound(chain) else None for chain, ok in zip(chains, finite.tolist(), strict=True)]


def sampled(
    diffusion: LatentDiffusion,
    node_mask: Bool[Tensor, "batch n"],
    conditions: Conditions,
    generators: list[torch.Generator],
    settings: SamplerSettings,
    start: Cloud | None = None,
    start_sigma: float = math.inf,
) -> Cloud:
    """`LatentDiffusion.sample` as `settings` say: latents (Å) for the real nodes of `node_mask`."""
    return diffusion.sample(
        node_mask,
        conditions,
        generators,
        settings.sampler,
        settings.steps,
        settings.noise_scale,
        settings.guidance,
        settings.options,
        start,
        start_sigma,
    )


def _best_draft(
    diffusion: LatentDiffusion,
    foldability: Foldability,
    node_mask: Bool[Tensor, "batch n"],
    conditions: Conditions,
    generators: list[torch.Generator],
    settings: SamplerSettings,
) -> Cloud:
    """Of several latents (Å) for each generator, drawn in few steps, the one of lowest energy, common folds marked down.

    Not finite where none of them is, so that the sample is drawn again. All drafts are one batch: small proteins leave a
    processor idle. Each has a random stream of its own.
    """
    many = settings.drafts
    seeds = [torch.randint(2**62, (many,), generator=generator).tolist() for generator in generators]
    streams = [torch.Generator().manual_seed(seed) for drafts in seeds for seed in drafts]
    rows = torch.arange(len(generators), device=node_mask.device).repeat_interleave(many)
    told = Conditions(conditions.num_residues[rows], conditions.content[rows])
    drafting = replace(settings, steps=settings.draft_steps)
    drafts = sampled(diffusion, node_mask[rows], told, streams, drafting)
    readable, finite = _finite(drafts)
    seen = seen_in(diffusion, readable, told.num_residues.cpu().numpy())
    score = foldability.told(seen)
    if foldability.common is not None:
        score = score + settings.rarity * foldability.common(seen)
    score = np.where(finite.numpy() & np.isfinite(score), score, np.inf).reshape(-1, many)
    best = torch.from_numpy(np.arange(len(score)) * many + score.argmin(1)).to(node_mask.device)
    return Cloud(drafts.positions[best], drafts.features[best], drafts.mask[best])


def _finite(cloud: Cloud) -> tuple[Cloud, Bool[Tensor, "batch"]]:
    """0 where a number is none, and, on the CPU, which clouds had no such number."""
    finite = cloud.positions.isfinite().all((-1, -2)) & cloud.features.isfinite().all((-1, -2, -3))
    positions, features = (values.nan_to_num(0.0, 0.0, 0.0) for values in (cloud.positions, cloud.features))
    return Cloud(positions, features, cloud.mask), finite.cpu()


def _conditions(
    settings: SamplerSettings, lengths: Sequence[int], seeds: Sequence[int], starts: Sequence[Protein] = ()
) -> Conditions:
    """What the model is told each sample should be; it depends on the sample's length and seed, or its start, alone."""
    fractions = torch.tensor([[settings.helix, settings.strand]]).repeat(len(lengths), 1)
    origin = DESIGNED.get(settings.origin)
    chains = [chain[:3] for chain in settings.typical if origin is None or chain[3] == origin]
    if starts and bool(fractions.isnan().all()):
        fractions = torch.tensor([helix_strand_content(start) for start in starts])
    elif chains and bool(fractions.isnan().all()):
        contents = torch.tensor(chains)
        for k, (length, seed) in enumerate(zip(lengths, seeds, strict=True)):
            nearest = (contents[:, 0] - length).abs().argsort(stable=True)[:NEAREST]
            drawn = np.random.default_rng((seed, ATTEMPTS)).integers(len(nearest))  # a stream that no attempt uses
            fractions[k] = contents[nearest[drawn], 1:]
    return told(settings, lengths, fractions)


def told(settings: SamplerSettings, lengths: Sequence[int], fractions: Float[Tensor, "batch 2"]) -> Conditions:
    """What the model is told for samples to come out with these fractions of helix and strand, and as `settings` ask."""
    offset, slope = torch.tensor(settings.calibration).T
    helix_strand = (offset + slope * fractions).clamp(min=0)
    others = torch.tensor([settings.compactness, DESIGNED.get(settings.origin, math.nan)])
    return Conditions(torch.tensor(lengths), torch.cat([helix_strand, others.expand(len(lengths), 2)], dim=-1))


def _generator(seed: int, attempt: int) -> torch.Generator:
    stream = np.random.SeedSequence((seed, attempt)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(stream[0]) >> 1)


def _sound(protein: Protein) -> bool:
    return bool((protein.positions.abs() < FARTHEST).all())  # False for NaN too


def report_of(protein: Protein) -> dict[str, float]:
    """What a sample looks like by itself: validity, secondary structure, size. Lengths in Å, fractions in 0..1."""
    batch = protein.map(lambda t: t[None])
    values = {name: float(value) for name, value in validity_report(batch).items()}
    values["valid_residues"] = float(valid_residues(batch.positions, batch.atom_mask))
    clashing = values["clashes"] * int(protein.atom_mask.sum()) / 10
    values["clashes_per_100_residues"] = clashing / protein.num_residues
    return values | shape_of(protein)


def shape_of(protein: Protein) -> dict[str, float]:
    """Radius of gyration (Å), compactness (that over N^0.38), and fractions of helix and strand of one chain."""
    radius = float(radius_of_gyration(protein.positions, protein.atom_mask))
    helix, strand = helix_strand_content(protein)
    compactness = radius / protein.num_residues**COMPACT_EXPONENT
    return {"radius_of_gyration": radius, "compactness": compactness, "helix": helix, "strand": strand}


def sample_statistics(proteins: Sequence[Protein]) -> dict[str, float]:
    """Means of `report_of` over samples, and the share of samples with strand."""
    reports = [report_of(protein) for protein in proteins]
    if not reports:
        return {}
    means = {name: float(np.mean([report[name] for report in reports])) for name in reports[0]}
    return means | {"with_strand": float(np.mean([report["strand"] >= 0.2 for report in reports]))}
