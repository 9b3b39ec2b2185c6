"""Learning from a model's own best samples: which are chosen, and how they come into the latents."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from adk import CLOSED, OPEN, read
from inprocess import run_pipeline

from ophio.autoencoder import Autoencoder
from ophio.data.latents import LatentCorpus, encode_samples, mixed, write_latents
from ophio.data.sampling import one_per_cluster
from ophio.errors import UserError
from ophio.evaluation.selection import best_samples
from ophio.io import write_structure
from ophio.pretrained import read_card

ROOT = Path(__file__).parents[1]
BANDS = {"helix": [0.0, 0.3, 0.7], "strand": [0.0, 0.2, 0.45], "compactness": [2.1, 2.2, 2.5]}


def records(count: int = 300) -> list[dict]:
    """Energies that fall with strand content and rise with length, and a part of each sample's own, `better`."""
    rng = np.random.default_rng(0)
    made = []
    for k in range(count):
        length, helix = int(rng.integers(50, 110)), float(rng.uniform(0, 0.5))
        strand, better = float(rng.uniform(0, 0.4)), float(rng.normal())
        energy = length * (-2 + length / 100 - 2 * strand - 0.5 * better)
        one = {"name": f"{k}.pdb", "length": length, "helix": helix, "strand": strand, "compactness": 2.2}
        made.append(one | {"energy": energy, "valid_residues": 1.0, "better": better})
    return made


def test_the_chosen_are_better_than_usual_for_their_length_and_content():
    every = records()
    chosen = {name for name in best_samples(every, 0.2, BANDS, absolute=0.0)}
    assert len(chosen) == 60
    better = {record["name"]: record["better"] for record in every}
    threshold = sorted(better.values())[-60]
    assert np.mean([better[name] >= threshold for name in chosen]) > 0.9
    strand = [record["strand"] for record in every if record["name"] in chosen]
    assert abs(np.mean(strand) - 0.2) < 0.05  # of the cheap strand no more than there was
    by_energy = best_samples(every, 0.2, BANDS, absolute=1.0)
    assert np.mean([record["strand"] for record in every if record["name"] in by_energy]) > np.mean(strand) + 0.03


def test_what_is_broken_or_unusual_is_not_chosen():
    every = records()
    for record, change in zip(
        every, [{"valid_residues": 0.9}, {"helix": 0.8}, {"compactness": 2.0}] * 50, strict=False
    ):
        record |= change | {"energy": record["energy"] - 1000}
    assert not {record["name"] for record in every[:150]} & set(best_samples(every, 1.0, BANDS))
    with pytest.raises(UserError, match="none of the samples"):
        best_samples(every, 0.5, BANDS | {"compactness": [9.0, 9.0, 9.0]})
    with pytest.raises(UserError, match="31 evaluated samples"):
        best_samples(every[:31], 0.5)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Autoencoder(channels=[4, 4], strides=[2], latent_channels=4, latent_lmax=1).eval()


def test_samples_are_their_share_of_an_epoch_and_leave_the_statistics_alone(model, tmp_path):
    chain, other = read(CLOSED)[1], read(OPEN)[1]
    real = encode_samples(model, [chain.crop(k, k + 60 + k) for k in range(12)])
    real |= {"cluster30": torch.arange(12) // 2, "designed": torch.zeros(12)}
    own = encode_samples(model, [other.crop(0, 70), other.crop(50, 110)])
    both = mixed(real, own, 0.5)
    assert len(both["num_residues"]) == 12 + 3 * 2  # six clusters, two samples three times
    draw = one_per_cluster(both["cluster30"].numpy(), np.random.default_rng(0))
    assert len(draw) == 12 and (draw >= 12).sum() == 6

    source = {"autoencoder": "x", "corpus": "y", "corpus_name": "z", "chains": [1, None]}
    plain = write_latents(tmp_path / "plain", source, {"train": real})
    info = write_latents(tmp_path / "both", source, {"train": real}, own, 0.5)
    for key in ("statistics", "bands", "typical"):
        assert info[key] == plain[key]
    before, after = LatentCorpus(tmp_path / "plain", "train"), LatentCorpus(tmp_path / "both", "train")
    for k in range(12):
        assert torch.equal(before[k][0].features, after[k][0].features)
    for k in range(12, 18):
        cloud, residues, content = after[k]
        start, stop = own["offsets"][k % 2 : k % 2 + 2]
        assert torch.equal(cloud.features, own["features"][start:stop]) and residues == [60, 70][k % 2]
        assert content[3] == 1


def test_from_a_report_to_latents(tmp_path):
    """select_samples.py copies the best of a folder; encode_latents.py tells latents with them from those without."""
    samples, report = tmp_path / "samples", tmp_path / "report"
    samples.mkdir()
    report.mkdir()
    chain, every = read(CLOSED)[1], records(40)
    bands = read_card("mini_diffusion")["bands"]
    for record in every:
        write_structure(chain.crop(0, 60), samples / record["name"])
        record |= {"group": "samples", "content": "", "compactness": bands["compactness"][1]}
    lines = [json.dumps(record) + "\n" for record in [*every, {"group": "noised", "name": "0.pdb", "content": ""}]]
    (report / "records.jsonl").write_text("".join(lines))

    select = runpy.run_path(str(ROOT / "pipelines" / "select_samples.py"))["main"]
    options = (f"samples={samples}", f"report={report}", f"output={tmp_path / 'best'}", "share=0.25")
    assert run_pipeline(select, "select_samples", *options) == 0
    chosen = sorted(path.name for path in (tmp_path / "best").iterdir())
    assert chosen == sorted(best_samples(every, 0.25, bands)) and len(chosen) == 10
    assert run_pipeline(select, "select_samples", *options) == 2  # would be mixed with what is there
    assert run_pipeline(select, "select_samples", f"samples={samples}", f"report={tmp_path}", "output=x") == 2

    prepare = runpy.run_path(str(ROOT / "pipelines" / "prepare_data.py"))["main"]
    corpus = ("folder.split={train:1}", "filters.min_length=40", "num_workers=1", f"output={tmp_path / 'corpus'}")
    assert run_pipeline(prepare, "prepare_data", f"input={tmp_path / 'best'}", *corpus) == 0
    encode = runpy.run_path(str(ROOT / "pipelines" / "encode_latents.py"))["main"]
    options = (f"corpus={tmp_path / 'corpus'}", f"output={tmp_path / 'latents'}", "splits=[train]")
    with_samples = f"samples={tmp_path / 'best'}"
    assert run_pipeline(encode, "encode_latents", *options, with_samples, "samples_share=1") == 2
    assert run_pipeline(encode, "encode_latents", *options, with_samples, "samples_share=0.5") == 0
    assert len(LatentCorpus(tmp_path / "latents", "train")) == 20
    assert run_pipeline(encode, "encode_latents", *options, with_samples, "samples_share=0.5") == 0
    assert run_pipeline(encode, "encode_latents", *options, with_samples, "samples_share=0.4") == 2
    assert run_pipeline(encode, "encode_latents", *options) == 2
