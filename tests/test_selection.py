"""Which structures are worth folding or learning from: told energies, the choice, and how it comes into the latents."""

import csv
import json
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from adk import CLOSED, OPEN, read
from inprocess import run_pipeline

from ophio.autoencoder import Autoencoder
from ophio.cli import main
from ophio.cloud import Cloud
from ophio.data.latents import LatentBatch, LatentCorpus, encode_samples, mixed, write_latents
from ophio.data.sampling import one_per_cluster
from ophio.diffusion import EDM, Conditions, Denoiser, LatentDiffusion, Process
from ophio.errors import UserError
from ophio.evaluation import shortlist as shortlists
from ophio.evaluation.commonness import commonness
from ophio.evaluation.folding import load_engine
from ophio.evaluation.inverse_folding import ProteinMPNN
from ophio.evaluation.selection import best_samples
from ophio.evaluation.self_consistency import Protocol, self_consistency
from ophio.evaluation.shortlist import TABLE, shortlist, within
from ophio.foldability import (
    FOLDABILITY,
    Foldability,
    LinearMap,
    attach,
    correlation,
    foldability_of,
    invariants,
)
from ophio.geometry import random_rotation
from ophio.io import read_structure, write_structure
from ophio.lightning.diffusion import DiffusionModule, corpus_below_level
from ophio.metrics import helix_strand_content
from ophio.pretrained import find, load_diffusion, read_card

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
    """The noise does not turn with the chain, so turned they agree only as far as any two looks through noise do."""
    diffusion, autoencoder = load_diffusion("mini_diffusion")
    chain = read(CLOSED)[1]
    chains = [chain.crop(0, 60), chain.crop(100, 180), chain.crop(20, 90)]
    seen = invariants(diffusion, autoencoder, chains)
    assert seen.shape[0] == 3 and np.isfinite(seen).all()
    turned = invariants(diffusion, autoencoder, [c.rotate(random_rotation()) for c in chains])
    again = invariants(diffusion, autoencoder, [c.rotate(random_rotation()) for c in chains])
    apart = np.linalg.norm(seen[0] - seen[1])
    assert np.linalg.norm(seen - turned, axis=1).max() < 2 * np.linalg.norm(turned - again, axis=1).max() < apart
    for k, chain in enumerate(chains):  # by itself, it is noised as it is in company
        assert np.allclose(seen[k], invariants(diffusion, autoencoder, [chain])[0], rtol=1e-3, atol=1e-3)


def test_those_chosen_are_good_and_unlike():
    """Of five near copies of the best and five others, the copies come first only where likeness costs nothing."""
    chain = read(CLOSED)[1].ca
    copies = [chain[:60] + 0.1 * torch.randn(60, 3) for _ in range(5)]
    others = [chain[k : k + 60] for k in (70, 100, 130)] + [read(OPEN)[1].ca[30:90], chain[150:210]]
    scores = [-1.0, -0.99, -0.98, -0.97, -0.96, -0.8, -0.79, -0.78, -0.77, 5.0]
    assert shortlist(scores, copies + others, 5, 0.0)[0] == [0, 1, 2, 3, 4]
    chosen, before = shortlist(scores, copies + others, 5, 0.4)
    assert chosen == [0, 5, 6, 7, 8] and before == [0] * 5
    chosen, before = shortlist(scores, copies + others, 7, 0.4)
    assert chosen[5:] == [1, 2] and before[5:] == [1, 2]
    assert len(shortlist(scores, copies + others, 50, 0.4)[0]) == 10  # all there are
    for num, diversity in ((0, 0.4), (2, -1.0), (2, float("nan"))):
        with pytest.raises(UserError, match=f"num {num}" if num == 0 else "diversity"):
            shortlist(scores, copies + others, num, diversity)


def test_content_can_be_kept_like_that_of_chains(tmp_path, capsys):
    """AdK's helices and its strands are judged; those out of the band of helix are not chosen, however good."""
    chain, samples = read(CLOSED)[1], tmp_path / "samples"
    samples.mkdir()
    for k in range(8):
        write_structure(chain.crop(20 * k, 20 * k + 50), samples / f"{k}.pdb")
    judged = shortlists.candidates(samples, "mini_diffusion")[0]
    helices = {c.path.name: helix_strand_content(read_structure(c.path))[0] for c in judged}
    assert {c.path.name: c.shape["helix"] for c in judged} == helices
    bands = {"helix": [0.0, 0.4, 0.5], "strand": [0.0, 0.2, 0.2], "compactness": [0.0, 2.2, 9.0]}
    kept = {c.path.name for c in within(judged, bands, ["helix"])}
    assert kept == {name for name, helix in helices.items() if helix <= 0.5} and 0 < len(kept) < 8
    assert len(within(judged, bands, ["helix", "strand"])) < len(kept)
    assert within(judged, bands, []) == judged
    with pytest.raises(UserError, match="no structure of 8 lies within the bands of strand"):
        within(judged, bands | {"strand": [0.9, 0.95, 1.0]}, ["strand"])

    arguments = ["select", str(samples), "--num", "8", "--out", str(tmp_path / "best")]
    assert main([*arguments, "--banded", "helix", "coil"]) == 2
    assert "banded: no coil; there are helix, strand, compactness" in capsys.readouterr().err
    assert main([*arguments, "--banded", "helix", "compactness"]) == 0
    rows = list(csv.DictReader((tmp_path / "best" / TABLE).read_text().splitlines()))
    kept = within(judged, read_card("mini_diffusion")["bands"], ["helix", "compactness"])
    assert {row["file"] for row in rows} == {c.path.name for c in kept} and 0 < len(rows) < 8
    assert [float(row["helix"]) for row in rows] == [round(helices[row["file"]], 3) for row in rows]


def test_what_a_model_can_tell_is_kept_beside_it(tmp_path):
    for suffix in (".json", ".safetensors", FOLDABILITY):
        shutil.copy(find("mini_diffusion").with_suffix(suffix), tmp_path / f"model{suffix}")
    rng = np.random.default_rng(0)
    seen, lengths = rng.normal(size=(80, 6)), rng.integers(50, 100, 80)
    energies = -5 + lengths / 25 + seen[:, 0]
    known = np.column_stack([seen, lengths / 100, (lengths / 100) ** 2])
    made = Foldability.fit(known, lengths, energies, LinearMap.fit(known, seen[:, 1], 0.0))
    assert np.abs(made.beyond_usual(energies, lengths) - seen[:, 0]).max() < 0.5
    assert abs(made.beyond_usual(energies, lengths).mean()) < 1e-6
    attach(tmp_path, made, {"structures": 80})
    assert read_card(tmp_path)["foldability"]["structures"] == 80
    again = foldability_of(tmp_path)
    assert np.allclose(again.told.weights, made.told.weights, atol=1e-6) and np.allclose(again.usual, made.usual)
    assert again.common is not None and np.allclose(again.common(known), seen[:, 1], atol=1e-5)
    attach(tmp_path, Foldability.fit(known, lengths, energies), {})
    assert foldability_of(tmp_path).common is None  # rarity was not counted

    path = tmp_path / f"model{FOLDABILITY}"
    shutil.copy(find("mini_diffusion").with_suffix(FOLDABILITY), path)
    with pytest.raises(UserError, match="not the map that the card"):
        foldability_of(tmp_path)
    path.write_bytes(b"not weights")
    with pytest.raises(UserError, match="no map of energies can be read"):
        foldability_of(tmp_path)
    with pytest.raises(UserError, match="backbone_diffusion: cannot tell what folds"):
        foldability_of("backbone_diffusion")


def test_energies_told_of_samples_are_like_measured_ones(tmp_path):
    """The released map, on samples that it was not fitted to: real ProteinMPNN, real network, no folding."""
    assert main(["sample", "--num", "7", "--length", "50-99", "--seed", "9", "--out", str(tmp_path / "samples")]) == 0
    judged, complaints = shortlists.candidates(tmp_path / "samples", "mini_diffusion")
    assert not complaints
    designer, engine = ProteinMPNN("vanilla"), load_engine("trrosetta", networks=1)
    protocol = Protocol(sequences=3, networks=1, fast=True)
    measured = [
        self_consistency(c.protein, designer, engine, protocol)["energy"] / c.protein.num_residues for c in judged
    ]
    told = [c.energy for c in judged]
    assert np.corrcoef(told, measured)[0, 1] > 0.5
    assert abs(np.mean(told) - np.mean(measured)) < 0.4  # of a deviation of 0.8


def test_the_command_chooses_copies_and_names_what_cannot_be_judged(tmp_path, capsys):
    samples, best = tmp_path / "samples", tmp_path / "best"
    samples.mkdir()
    chain = read(CLOSED)[1]
    for k in range(6):
        write_structure(chain.crop(20 * k, 20 * k + 50 + k), samples / f"{k}.pdb")
    write_structure(chain.crop(0, 150), samples / "long.pdb")
    (samples / "empty.pdb").write_text("REMARK\n")
    arguments = ["select", str(samples), "--out", str(best), "--num", "4", "--diversity", "0"]
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert "4 structures in" in said.out
    assert "long.pdb: 150 residues, mini_diffusion was trained on 40-128" in said.err and "empty.pdb" in said.err
    rows = list(csv.DictReader((best / TABLE).read_text().splitlines()))
    assert [row["rank"] for row in rows] == ["1", "2", "3", "4"] and (best / "index.html").exists()
    assert {row["file"] for row in rows} == {path.name for path in best.glob("*.pdb")}
    for row in rows:
        assert (best / row["file"]).read_bytes() == (samples / row["file"]).read_bytes()
    judged = shortlists.candidates(samples, "mini_diffusion")[0]
    order = sorted(judged, key=lambda c: c.beyond_usual)[:4]
    assert [row["file"] for row in rows] == [c.path.name for c in order]

    assert main(arguments) == 2 and "not an empty folder" in capsys.readouterr().err
    assert main(["select", str(samples), "--out", str(tmp_path / "none"), "--num", "0"]) == 2
    assert "num 0" in capsys.readouterr().err and not (tmp_path / "none").exists()
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(samples / "long.pdb", alone)
    assert main(["select", str(alone), "--num", "1", "--out", str(tmp_path / "none")]) == 2
    assert not (tmp_path / "none").exists()


def test_a_map_is_fitted_to_reports_and_released_with_its_model(tmp_path, capsys):
    samples, report, run, few = (tmp_path / name for name in ("samples", "report", "run", "few"))
    for folder in (samples, report, run, few):
        folder.mkdir()
    for suffix in (".json", ".safetensors"):
        shutil.copy(find("mini_diffusion").with_suffix(suffix), run / f"model{suffix}")
    chain, lines = read(CLOSED)[1], []
    for k in range(40):
        write_structure(chain.crop(3 * k, 3 * k + 60 + k), samples / f"{k}.pdb")
        record = {"group": "samples", "name": f"{k}.pdb", "content": "", "length": 60 + k, "energy": -100.0 - k % 7}
        lines.append(json.dumps(record) + "\n")
        if k < 5:
            shutil.copy(samples / f"{k}.pdb", few)
    (report / "records.jsonl").write_text("".join(lines))
    fit = runpy.run_path(str(ROOT / "pipelines" / "fit_foldability.py"))["main"]
    fitting = (f"weights={run}", f"samples={samples}")
    assert run_pipeline(fit, "fit_foldability", *fitting, f"reports=[{report},{report}]") == 2
    assert run_pipeline(fit, "fit_foldability", *fitting, f"reports={report}", f"fresh={few}") == 2
    assert "5 structures; give 32 or more" in capsys.readouterr().err
    assert run_pipeline(fit, "fit_foldability", *fitting, f"reports={report}", f"fresh={samples}") == 0
    card = read_card(run)
    assert card["foldability"]["structures"] == card["foldability"]["counted"] == 40
    first = read_structure(samples / "0.pdb")
    seen = invariants(*load_diffusion(run), [first])
    assert -4 < foldability_of(run).told(seen)[0] < 0
    fitted = foldability_of(run).common
    assert fitted is not None and 0 < fitted(seen)[0] < np.log(40)  # its neighbours along the chain are alike

    release = runpy.run_path(str(ROOT / "pipelines" / "release.py"))["main"]
    output = tmp_path / "released"
    options = (f"run={run}", "name=mine", "autoencoder=mini_latent", f"output={output}")
    assert run_pipeline(release, "release", *options) == 0
    assert read_card(output / "mine.json")["foldability"] == card["foldability"]
    assert np.allclose(foldability_of(output / "mine.json").usual, foldability_of(run).usual)
    (report / "records.jsonl").write_text("".join(lines[:20]))
    assert run_pipeline(fit, "fit_foldability", *fitting, f"reports=[{report}]") == 2


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
    assert after.batch([11, 12, 17], 40).sampled.tolist() == [False, True, True]
    assert not before.batch(range(12), 40).sampled.any()


def test_a_corpus_is_learned_from_below_a_level_and_samples_at_all():
    sigma, sampled = torch.tensor([0.1, 1.5, 3.0, 6.0, 0.1, 6.0]), torch.tensor([False] * 4 + [True] * 2)
    levels = corpus_below_level(sigma, sampled, 1.5)
    assert torch.allclose(levels, torch.tensor([0.1, 1.5, 0.75, 0.375, 0.1, 6.0]))  # as far below 1.5 as above it


def test_training_shows_a_corpus_below_the_level_alone(model, monkeypatch):
    seen = []
    monkeypatch.setattr(LatentDiffusion, "loss", lambda _self, _latent, _told, sigma: seen.append(sigma) or sigma)
    diffusion = LatentDiffusion(Denoiser(4, channels=8, depth=1, heads=2), Process(EDM(log_mean=0.5, log_std=1.2)))
    torch.manual_seed(0)
    cloud = Cloud(torch.zeros(256, 1, 3), torch.zeros(256, 1, 4, 4), torch.ones(256, 1, dtype=torch.bool))
    sampled = torch.arange(256) % 2 == 0
    batch = LatentBatch(cloud, Conditions.of_lengths(torch.full((256,), 60)), sampled)
    for level in (1.5, None):
        module = DiffusionModule(diffusion, model, torch.optim.SGD, corpus_below=level)
        monkeypatch.setattr(module, "log", lambda *_, **__: None)
        module.training_step(batch, 0)
    below, anywhere = seen
    assert below[~sampled].max() <= 1.5 and below[sampled].max() > 4
    assert anywhere[~sampled].max() > 4


def test_from_a_report_to_latents(tmp_path, capsys):
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

    train = runpy.run_path(str(ROOT / "pipelines" / "train_diffusion.py"))["main"]
    alone = (f"corpus={tmp_path / 'corpus'}", f"output={tmp_path / 'alone'}", "splits=[train]")
    assert run_pipeline(encode, "encode_latents", *alone) == 0
    for latents, level in (("alone", 1.5), ("latents", 0)):  # no samples; no level
        capsys.readouterr()
        options_of = (f"data.path={tmp_path / latents}", f"corpus_below={level}", "output=x")
        assert run_pipeline(train, "train_diffusion", *options_of) == 2
        assert f"train_diffusion: corpus_below={level}: " in capsys.readouterr().err

    several = (f"samples=[{tmp_path / 'best'},{tmp_path / 'best'}]", "samples_share=0.8", f"output={tmp_path / 'more'}")
    assert run_pipeline(encode, "encode_latents", *options[:1], *several, "splits=[train]") == 0
    assert len(LatentCorpus(tmp_path / "more", "train")) == 10 + 2 * 20
