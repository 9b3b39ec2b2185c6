"""Residues a second that the data module reads from 100,000 entries, against what a training step takes.

    OMP_NUM_THREADS=1 python benchmarks/data_loading.py CORPUS [MODEL] > benchmarks/data_loading.md

The entries are those of CORPUS (made by pipelines/prepare_data.py), repeated: its index is, its shards stay.
 Memory that grows with what was read would show as private memory gained; mapped files do not count. One thread each.
"""

import argparse
import platform
import time
from pathlib import Path

import numpy as np
import torch
import yaml

from ophio.autoencoder import Autoencoder
from ophio.config import CONFIG_DIR
from ophio.data.corpus import Corpus
from ophio.data.datamodule import BUCKET_EDGES, BatchedCorpus, BatchLoader
from ophio.data.sampling import LengthBucketBatchSampler
from ophio.losses import ReconstructionLoss
from ophio.protein import Protein
from ophio.tables import markdown

ENTRIES = 100_000
RESIDUES = 1024  # in a batch
LONGEST = 128
STEPS = 5
GAINED = "MB gained from 10 % to 100 %"
WEIGHTS = yaml.safe_load((CONFIG_DIR / "loss" / "reconstruction.yaml").read_text())["weights"]


class Repeated(Corpus):
    """A corpus whose index is repeated to `ENTRIES` chains."""

    def __init__(self, path: Path):
        super().__init__(path, "train", max_length=LONGEST)
        for name in ("lengths", "clusters", "_shard", "_row"):
            setattr(self, name, np.resize(getattr(self, name), ENTRIES))


def loader(path: Path, workers: int) -> BatchLoader:
    dataset = BatchedCorpus(Repeated(path), BUCKET_EDGES, None)
    sampler = LengthBucketBatchSampler(dataset.lengths, list(BUCKET_EDGES), RESIDUES, None, shuffle=True)
    return BatchLoader(dataset, sampler, workers)


def read(path: Path, workers: int) -> dict:
    """One epoch, each entry once."""
    batches = loader(path, workers)
    samples = residues = 0
    memory, start = [private_megabytes()], time.perf_counter()
    for batch in batches:
        samples, residues = samples + len(batch.residue_type), residues + int(batch.residue_mask.sum())
        if samples > len(memory) * ENTRIES // 10:
            memory.append(private_megabytes())
    seconds = time.perf_counter() - start
    return {
        "what": f"loader, {workers or 'no'} processes of its own",
        "samples/s": samples / seconds,
        "residues/s": residues / seconds,
        GAINED: memory[-1] - memory[1],
    }


def consume(path: Path, model_name: str) -> dict:
    """Forward and backward passes of training, without loading."""
    model, loss = Autoencoder.from_pretrained(model_name).train(), ReconstructionLoss(WEIGHTS)
    batches = [batch for batch, _ in zip(loader(path, 0), range(STEPS + 1), strict=False)]

    def step(protein: Protein) -> None:
        decoded, kl = model(protein)
        loss(decoded, kl, protein)[0].backward()

    step(batches[0])
    start = time.perf_counter()
    for batch in batches[1:]:
        step(batch)
    seconds = time.perf_counter() - start
    samples = sum(len(batch.residue_type) for batch in batches[1:])
    residues = sum(int(batch.residue_mask.sum()) for batch in batches[1:])
    what = f"training of `{model_name}`, {torch.get_num_threads()} thread"
    return {"what": what, "samples/s": samples / seconds, "residues/s": residues / seconds, GAINED: 0.0}


def private_megabytes() -> float:
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("model", nargs="?", default="mini")
    options = parser.parse_args()
    rows = [read(options.corpus, 0), consume(options.corpus, options.model)]
    title = f"{ENTRIES:,} entries, batches of {RESIDUES} residues, {platform.machine()}, torch {torch.__version__}"
    print(f"{title}; made by `benchmarks/data_loading.py`\n\n{markdown(rows)}")


if __name__ == "__main__":
    main()
