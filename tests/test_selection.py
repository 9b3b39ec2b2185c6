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
from ophio.evaluation.foldability import LinearMap, commonness, correlation, invariants
from ophio.evaluation.selection import best_samples
from ophio.geometry import random_rotation
from ophio.io import write_structure
from ophio.pretrained import load_diffusion
from ophio.sampling import report_of

ROOT = Path(__file__).parents[1]
BANDS = {"helix": [0.0, 0.3, 0.7], "strand": [0.0, 0.2, 0.45], "compactness": [2.1, 2.2, 2.5]}


def columns(count: int = 300) -> dict[str, np.ndarray]:
    """Energies that rise with length, and a part of each sample's own, `better`; half of the folds are common ones."""
    rng = np.random.default_rng(0)
    length, better = rng.integers(50, 110, count), rng.normal(size=count)
    common = np.where(np.arange(count) % 2, 4.0, 0.0)
    energy = -2 + length / 100 - 0.5 * better - 0.1 * common
    content = {"helix": rng.uniform(0, 0.5, count), "strand": rng.uniform(0, 0.4, count)}
    whole = {"compactness": np.full(count, 2.2), "valid_residues": np.ones(count)}
    return {"length": length, "energy": energy, "commonness": common, "better": better} | content | whole


def test_the_chosen_are_better_than_usual_for_their_length_and_common_folds_are_marked_down():
    every = columns()
    chosen = best_samples(every, 0.2, BANDS, weight=0.1)  # takes away what common folds are ahead by
    assert len(chosen) == 60
    assert np.mean(every["better"][chosen] >= np.sort(every["better"])[-60]) > 0.8
    assert np.corrcoef(every["better"][chosen], np.arange(60))[0, 1] < -0.89  # the best first
    assert abs(every["length"][chosen].mean() - every["length"].mean()) < 5
    shares = [np.mean(every["commonness"][best_samples(every, 0.2, BANDS, weight=w)] > 0) for w in (0.0, 0.1, 0.3)]
    assert shares[0] > shares[1] + 0.1 > shares[2] + 0.2


def test_what_is_broken_or_unusual_is_not_chosen():
    every = columns()
    for name, bad in (("valid_residues", 0.9), ("helix", 0.8), ("compactness", 2.0)):
        changed = every | {name: every[name].copy(), "energy": every["energy"].copy()}
        changed[name][:50], changed["energy"][:50] = bad, -100.0
        assert min(best_samples(changed, 1.0, BANDS, ["helix", "compactness"])) == 50
        assert (min(best_samples(changed, 1.0, BANDS, [])) == 50) == (name == "valid_residues")
    with pytest.raises(UserError, match="none of the samples"):
        best_samples(every, 0.5, BANDS | {"compactness": [9.0, 9.0, 9.0]})
    with pytest.raises(UserError, match="no colour; there are helix"):
        best_samples(every, 0.5, BANDS, ["colour"])
    with pytest.raises(UserError, match="share=0.0"):
        best_samples(every, 0.0, BANDS)


def test_a_linear_map_tells_values_it_was_not_fitted_to():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 120))
    y = 3 + x[:, :5].sum(1)
    told = LinearMap.fit(x[:150], y[:150], shrinkage=10.0)(x[150:])
    assert np.corrcoef(told, y[150:])[0, 1] > 0.5 and abs(told.mean() - y[150:].mean()) < 1
    assert correlation(x, y) > 0.4
    assert abs(correlation(x, rng.normal(size=200))) < 0.25


def test_common_folds_are_those_with_many_alike():
    chain, other = read(CLOSED)[1], read(OPEN)[1]
    alike = [chain.ca[k : k + 60] + 0.1 * torch.randn(60, 3) for k in (0, 0, 1, 1)]
    traces = [*alike, other.ca[100:160], chain.ca[:150]]
    assert np.allclose(commonness(traces), np.log1p([3, 3, 3, 3, 0, 0]))
    assert commonness(traces[:1]).tolist() == [0.0]


def test_invariants_do_not_turn_with_the_chain_nor_depend_on_its_company():
    """The noise does not turn with the chain, so they agree only as far as they do for another noise."""
    diffusion, autoencoder = load_diffusion("mini_diffusion")
    chain = read(CLOSED)[1]
    chains = [chain.crop(0, 60), chain.crop(100, 180), chain.crop(20, 90)]
    reports = [report_of(c) for c in chains]
    seen = invariants(diffusion, autoencoder, chains, reports)
    assert seen.shape[0] == 3 and np.isfinite(seen).all()
    turned = invariants(diffusion, autoencoder, [c.rotate(random_rotation()) for c in chains], reports)
    noised = invariants(diffusion, autoencoder, chains, reports, seed=1)
    apart = np.linalg.norm(seen[0] - seen[1])
    assert np.linalg.norm(seen - turned, axis=1).max() < 2 * np.linalg.norm(seen - noised, axis=1).max() < apart
    swapped = invariants(diffusion, autoencoder, chains[::-1], reports[::-1])[::-1]
    assert np.allclose(seen, swapped, rtol=1e-3, atol=1e-3)


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
    chain, records = read(CLOSED)[1], []
    for k in range(50):
        write_structure(chain.crop(2 * k, 2 * k + 60 + k), samples / f"{k}.pdb")
        energy = {"energy": -100.0 - (100 if k in (5, 6) else k % 7)} if k < 40 else {}
        records.append({"group": "samples", "name": f"{k}.pdb", "content": "", "length": 60 + k} | energy)
    lines = [json.dumps(record) + "\n" for record in [*records, {"group": "noised", "name": "0.pdb", "content": ""}]]
    (report / "records.jsonl").write_text("".join(lines))

    select = runpy.run_path(str(ROOT / "pipelines" / "select_samples.py"))["main"]
    options = (f"samples={samples}", f"report={report}", f"output={tmp_path / 'best'}", "share=0.2", "banded=[]")
    assert run_pipeline(select, "select_samples", *options) == 0
    chosen = {path.name for path in (tmp_path / "best").iterdir()}
    assert len(chosen) == 10 and {"5.pdb", "6.pdb"} < chosen
    assert run_pipeline(select, "select_samples", *options) == 2  # would be mixed with what is there
    assert run_pipeline(select, "select_samples", f"samples={samples}", f"report={tmp_path}", "output=x") == 2
    (report / "records.jsonl").write_text("".join(lines[:31]))
    assert run_pipeline(select, "select_samples", *options[:2], f"output={tmp_path / 'few'}") == 2

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
    several = (f"samples=[{tmp_path / 'best'},{tmp_path / 'best'}]", "samples_share=0.8", f"output={tmp_path / 'more'}")
    assert run_pipeline(encode, "encode_latents", *options[:1], *several, "splits=[train]") == 0
    assert len(LatentCorpus(tmp_path / "more", "train")) == 10 + 2 * 20
