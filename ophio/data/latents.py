"""The latents of a corpus on disk: encoded once, read by the training of the diffusion model.

    LATENTS/SPLIT.safetensors    nodes of all chains one after another, and what is known of each chain
    LATENTS/latents.json         format, which autoencoder and corpus made them, statistics of the training split

Latents of another autoencoder or corpus than a run asks for are refused.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Int
from safetensors import SafetensorError
from safetensors.torch import load as parse
from safetensors.torch import save as serialise
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from ophio.autoencoder import Autoencoder
from ophio.cloud import Cloud
from ophio.data.corpus import Corpus
from ophio.data.sampling import Batch, one_per_cluster
from ophio.diffusion.conditions import DESIGNED, Conditions
from ophio.diffusion.standardize import latent_statistics
from ophio.errors import UserError
from ophio.files import write_whole
from ophio.metrics import COMPACT_EXPONENT, helix_strand_content, radius_of_gyration
from ophio.protein import Protein, stack

FORMAT = 3
INDEX = "latents.json"
MOST_TYPICAL = 512  # chains of an origin whose content is kept to sample by


@dataclass(frozen=True)
class LatentBatch:
    """Padded latents of a batch of chains, what they are examples of, and which were sampled by a model."""

    cloud: Cloud
    conditions: Conditions
    sampled: Bool[Tensor, "batch"]

    def to(self, device: torch.device | str, **options) -> "LatentBatch":
        return LatentBatch(self.cloud.to(device), self.conditions.to(device), self.sampled.to(device))


class LatentCorpus(Dataset):
    """The latents of one split, in memory. `corpus[k]` is (Cloud of one chain, residues, `Conditions.content`).

    Raises UserError where the folder holds none, or damaged ones.
    """

    def __init__(self, path: str | Path, split: str):
        self.path, self.info = Path(path), read_info(path)
        file = self.path / f"{split}.safetensors"
        if split not in self.info["splits"]:
            raise UserError(f"{path}: no split {split!r}; encoded are {', '.join(self.info['splits'])}")
        try:
            data = file.read_bytes()
            self.columns = parse(data)
            self.offsets = self.columns["offsets"].tolist()
        except (OSError, SafetensorError, KeyError) as error:
            raise UserError(f"{file}: damaged or missing ({error}): encode the corpus again") from None
        if self.info.get("sha256", {}).get(split) not in (None, hashlib.sha256(data).hexdigest()):
            raise UserError(f"{file}: damaged, its checksum is another: encode the corpus again")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> tuple[Cloud, int, Tensor]:
        start, stop = self.offsets[index : index + 2]
        positions, features = self.columns["positions"][start:stop], self.columns["features"][start:stop]
        num_residues = int(self.columns["num_residues"][index])
        compactness = self.columns["radius_of_gyration"][index] / num_residues**COMPACT_EXPONENT
        content = torch.cat([self.columns["content"][index], compactness[None], self.columns["designed"][index, None]])
        mask = torch.ones(stop - start, dtype=torch.bool)
        return Cloud(positions, features, mask), num_residues, content

    @property
    def num_nodes(self) -> Int[np.ndarray, "n"]:
        return np.diff(self.offsets)

    def batch(self, indices: Sequence[int], num_nodes: int) -> LatentBatch:
        """Some chains, padded to `num_nodes`."""
        clouds, lengths, content = zip(*(self[k] for k in indices), strict=True)
        shape = (len(indices), num_nodes)
        padded = Cloud(
            torch.zeros(*shape, 3),
            torch.zeros(*shape, *clouds[0].features.shape[1:]),
            torch.zeros(shape, dtype=torch.bool),
        )
        for k, cloud in enumerate(clouds):
            for target, source in zip(
                (padded.positions, padded.features, padded.mask),
                (cloud.positions, cloud.features, cloud.mask),
                strict=True,
            ):
                target[k, : cloud.num_nodes] = source
        sampled = self.columns["cluster30"][list(indices)] < 0  # see `mixed`
        return LatentBatch(padded, Conditions(torch.tensor(lengths), torch.stack(content)), sampled)


class BatchedLatents(Dataset):
    """`batches[batch]` is a padded `LatentBatch`."""

    def __init__(self, corpus: LatentCorpus, edges: Sequence[int]):
        self.corpus, self.edges = corpus, edges

    def __getitem__(self, index: Batch) -> LatentBatch:
        longest = self.corpus.num_nodes[index.indices].max()
        return self.corpus.batch(index.indices, self.edges[np.searchsorted(self.edges, longest)])


def read_info(path: str | Path) -> dict:
    """What latents.json says. Raises UserError where there is none, a damaged one, or one of another format."""
    file = Path(path) / INDEX
    if not file.is_file():
        raise UserError(f"{path}: no latents here; make them with pipelines/encode_latents.py")
    try:
        info = json.loads(file.read_text())
        info["splits"], info["statistics"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: damaged ({error}): encode the corpus again") from None
    if info["format"] != FORMAT:
        raise UserError(
            f"{path}: latents of format {info['format']}, this ophio reads {FORMAT}: encode the corpus again"
        )
    return info


def statistics_of(info: dict) -> dict[str, Tensor]:
    """`latent_statistics` of the training split."""
    return {name: torch.tensor(values) for name, values in info["statistics"].items()}


def check_fresh(path: str | Path, source: dict) -> None:
    """Raises UserError, by name, where the latents come from another autoencoder, corpus or choice of chains."""
    info = read_info(path)
    for key, value in source.items():
        if info.get(key) != value:
            raise UserError(
                f"{path}: stale: its {key} is {info.get(key)!r}, asked for is {value!r}; "
                "remove the folder and encode again, or give another one"
            )


@torch.no_grad()
def encode_corpus(
    model: Autoencoder, corpus: Corpus, progress: bool = True, batch_residues: int = 4096
) -> dict[str, Tensor]:
    """The columns of one split: positions [nodes, 3] (Å, centred chain by chain), features, offsets, facts of chains.

    Chains with masked residues are left out: a generator should not learn gaps.
    """
    parts: list[dict[str, Tensor]] = []
    with tqdm(total=len(corpus), unit="chain", disable=None if progress else True) as bar:
        for batch in _batches(corpus.lengths, batch_residues):
            bar.update(len(batch))
            whole = {k: protein for k in batch if bool((protein := corpus[k].center()).residue_mask.all())}
            if whole:
                designed = [DESIGNED.get(corpus.metadata(k)["origin"], math.nan) for k in whole]
                parts.append(_encode_batch(model, [*whole.values()], designed, corpus.clusters[[*whole]]))
    return _joined(parts)


@torch.no_grad()
def encode_samples(model: Autoencoder, proteins: Sequence[Protein], batch_residues: int = 4096) -> dict[str, Tensor]:
    """The columns, as of `encode_corpus`, of chains to learn from beside a corpus: as designed ones, each a cluster."""
    batches = _batches(np.array([protein.num_residues for protein in proteins]), batch_residues)
    return _joined(
        [
            _encode_batch(model, [proteins[k].center() for k in batch], [1.0] * len(batch), np.array(batch))
            for batch in batches
        ]
    )


def mixed(columns: dict[str, Tensor], samples: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """Chains of a corpus with samples, repeated until they are about `share` of an epoch's draws, one a cluster."""
    clusters, count = len(columns["cluster30"].unique()), len(samples["num_residues"])
    repeats = max(1, round(share / (1 - share) * clusters / count))
    repeated = {name: values.repeat(repeats, *[1] * (values.ndim - 1)) for name, values in samples.items()}
    repeated["cluster30"] = -1 - torch.arange(repeats * count)  # those of a corpus are not negative
    starts = samples["offsets"][-1] * torch.arange(repeats)[:, None] + columns["offsets"][-1]
    repeated["offsets"] = (starts + samples["offsets"][1:]).flatten()
    return {name: torch.cat([values, repeated[name].to(values.dtype)]) for name, values in columns.items()}


def write_latents(
    output: Path,
    source: dict,
    splits: dict[str, dict[str, Tensor]],
    samples: dict[str, Tensor] | None = None,
    share: float = 0.0,
) -> dict:
    """Writes every split, and latents.json last: a folder without it is unfinished. Returns its content.

    `samples` become part of the training split (`mixed`), but not of the statistics, bands and typical chains.
    """
    output.mkdir(parents=True, exist_ok=True)
    train = splits["train"]
    if samples is not None:
        splits = {**splits, "train": mixed(train, samples, share)}
    files = {split: serialise(columns) for split, columns in splits.items()}
    for split, data in files.items():
        write_whole(output / f"{split}.safetensors", data)
    bands = _bands(train)
    statistics = latent_statistics(train["positions"], train["features"])
    info = {
        "format": FORMAT,
        **source,
        "splits": {split: len(columns["num_residues"]) for split, columns in splits.items()},
        "statistics": {name: value.tolist() for name, value in statistics.items()},
        "bands": bands,
        "typical": _typical(train, bands),
        "lengths": [int(train["num_residues"].min()), int(train["num_residues"].max())],
        "sha256": {split: hashlib.sha256(data).hexdigest() for split, data in files.items()},
    }
    write_whole(output / INDEX, (json.dumps(info, indent=1) + "\n").encode())
    return info


def _batches(lengths: np.ndarray, batch_residues: int) -> Iterator[list[int]]:
    """Chains of similar length, the shortest first."""
    batch: list[int] = []
    for k in np.argsort(lengths, kind="stable").tolist():
        if batch and (len(batch) + 1) * int(lengths[k]) > batch_residues:
            yield batch
            batch = []
        batch.append(k)
    if batch:
        yield batch


def _encode_batch(
    model: Autoencoder, proteins: Sequence[Protein], designed: Sequence[float], clusters: Int[np.ndarray, "batch"]
) -> dict[str, Tensor]:
    device = next(model.parameters()).device
    batch = stack(proteins)
    cloud = model.encode(batch.to(device)).map(lambda t: t.cpu()).cloud.center()
    return {
        "positions": cloud.positions[cloud.mask],
        "features": cloud.features[cloud.mask],
        "num_nodes": cloud.mask.sum(-1),
        "num_residues": torch.tensor([protein.num_residues for protein in proteins]),
        "content": torch.tensor([helix_strand_content(protein) for protein in proteins]),
        "radius_of_gyration": radius_of_gyration(batch.positions, batch.atom_mask),
        "designed": torch.tensor(designed),
        "cluster30": torch.from_numpy(clusters.astype(np.int64)),
    }


def _joined(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    columns = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    count = columns.pop("num_nodes")
    return columns | {"offsets": torch.cat([count.new_zeros(1), count.cumsum(0)])}


def _contents(columns: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of each chain: helix and strand content, and the radius of gyration over N^0.38 (Å)."""
    helix, strand = columns["content"].unbind(-1)
    compactness = columns["radius_of_gyration"] / columns["num_residues"] ** COMPACT_EXPONENT
    return {"helix": helix, "strand": strand, "compactness": compactness}


def _bands(columns: dict[str, Tensor]) -> dict[str, list[float]]:
    """10, 50 and 90 % quantiles of `_contents`."""
    levels = torch.tensor([0.1, 0.5, 0.9])
    return {name: value.quantile(levels).tolist() for name, value in _contents(columns).items()}


def _typical(columns: dict[str, Tensor], bands: Mapping[str, Sequence[float]]) -> list[list[float | int | None]]:
    """Residues, helix and strand content, and `designed` (None: unknown), of chains, one a cluster, within all bands.

    Up to 512 of each origin.
    """
    facts = torch.cat([columns["num_residues"][:, None], columns["content"], columns["designed"][:, None]], dim=-1)
    contents = _contents(columns)
    values = torch.stack(list(contents.values()), dim=-1)
    low, _, high = torch.tensor([bands[name] for name in contents]).T
    inside = ((values >= low) & (values <= high)).all(-1)
    designed, generator = columns["designed"], np.random.default_rng(0)
    chosen = []
    for origin in (designed.isnan(), designed == 0, designed == 1):
        members = (inside & origin).nonzero()[:, 0].numpy()
        chosen.append(members[one_per_cluster(columns["cluster30"].numpy()[members], generator)][:MOST_TYPICAL])
    return [
        [int(count), round(helix, 3), round(strand, 3), None if math.isnan(origin) else int(origin)]
        for count, helix, strand, origin in facts[np.sort(np.concatenate(chosen))].tolist()
    ]
