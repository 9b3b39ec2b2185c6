"""From a diffusion model to a folder of proteins: lengths, seeds, divergence, resuming, files, the command."""

import json
import math
import os
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ophio.autoencoder import Autoencoder
from ophio.cli import main
from ophio.diffusion import EDM, Conditions, Denoiser, LatentDiffusion, Process
from ophio.diffusion.samplers import SAMPLERS
from ophio.errors import UserError
from ophio.evaluation.structures import generation_records
from ophio.foldability import Foldability, LinearMap, seen_in
from ophio.forks import each_forked
from ophio.io import read_structure
from ophio.latents import encoder_fingerprint
from ophio.pretrained import load_diffusion, save
from ophio.samples import Run, check_settings, collect, length_range, plan, prepare, released_settings
from ophio.sampling import DivergedSample, SamplerSettings, _best_draft, _conditions, generate

ROOT = Path(__file__).parents[1]
AUTOENCODER = {"channels": [8, 8, 8, 8], "strides": [2, 2, 2], "latent_channels": 4, "latent_lmax": 1}
DENOISER = {"latent_channels": 4, "latent_lmax": 1, "channels": 8, "depth": 1, "heads": 2, "pair_channels": 4}
QUICK = SamplerSettings(steps=3)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder as training writes it, untrained: autoencoder inside, diffusion model beside it."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    autoencoder = Autoencoder(**AUTOENCODER)
    save(autoencoder, AUTOENCODER, folder / "autoencoder", {"name": "tiny"})
    diffusion = LatentDiffusion(Denoiser(**DENOISER), Process(EDM()))
    arguments = {
        "_target_": "ophio.diffusion.LatentDiffusion",
        "denoiser": {"_target_": "ophio.diffusion.Denoiser", **DENOISER},
        "process": {"_target_": "ophio.diffusion.Process", "schedule": {"_target_": "ophio.diffusion.EDM"}},
    }
    card = {
        "name": "tiny",
        "autoencoder": "autoencoder",
        "encoder": encoder_fingerprint(autoencoder),
        "lengths": [20, 60],
        "sampling": {"steps": 3},
    }
    save(diffusion, arguments, folder, card)
    return folder


@pytest.fixture
def pair(model):
    return load_diffusion(model)


def run(model, out, *options):
    return main(["sample", "--model", str(model), "--out", str(out), "--num", "3", "--length", "24-30", *options])


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.pdb"))}


# what to make


def test_a_plan_is_the_same_for_any_number_of_samples():
    few, many = plan(5, 50, 100, seed=3), plan(50, 50, 100, seed=3)
    assert many[:5] == few and few != plan(5, 50, 100, seed=4)
    lengths = [item.length for item in plan(600, 50, 60, seed=0)]
    assert set(lengths) == set(range(50, 61)) and len({item.seed for item in many}) == 50


@pytest.mark.parametrize(("text", "expected"), [("64", (64, 64)), ("50-100", (50, 100)), (64, (64, 64))])
def test_length_ranges(text, expected):
    assert length_range(text) == expected


@pytest.mark.parametrize("text", ["x", "50-", "-50", "50-100-150", "6.5", ""])
def test_other_texts_are_no_lengths(text):
    with pytest.raises(UserError, match="length"):
        length_range(text)


@pytest.mark.parametrize(("shortest", "longest"), [(0, 0), (9, 9), (100, 50), (64, 6000)])
def test_impossible_lengths_are_refused(shortest, longest):
    with pytest.raises(UserError, match="10-5000"):
        plan(1, shortest, longest, seed=0)


# samples


def test_samples_have_their_lengths_and_all_atoms(pair):
    samples = generate(*pair, [24, 41, 30], [1, 2, 3], QUICK)
    assert [sample.protein.num_residues for sample in samples] == [24, 41, 30]
    for sample in samples:
        assert sample.protein.residue_mask.all() and sample.attempts == 1 and sample.seconds > 0
        assert sample.protein.positions.isfinite().all()


def test_a_sample_depends_on_its_seed_and_not_on_its_companions(pair):
    together = generate(*pair, [24, 41], [1, 2], QUICK)
    alone, other = generate(*pair, [24], [1], QUICK)[0], generate(*pair, [24], [9], QUICK)[0]
    torch.testing.assert_close(alone.protein.ca, together[0].protein.ca, atol=1e-3, rtol=0)
    assert (alone.protein.ca - other.protein.ca).abs().max() > 0.1


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_is_reproducible(pair, sampler):
    settings = SamplerSettings(sampler=sampler, steps=4, noise_scale=0.9)
    one, two = (generate(*pair, [24], [5], settings)[0].protein for _ in range(2))
    assert torch.equal(one.positions, two.positions)


def test_guidance_moves_samples(pair):
    free = generate(*pair, [24], [5], SamplerSettings(steps=3))[0].protein
    asked = generate(*pair, [24], [5], SamplerSettings(steps=3, helix=0.8))[0].protein
    pushed = generate(*pair, [24], [5], SamplerSettings(steps=3, helix=0.8, guidance=3.0))[0].protein
    assert not torch.equal(free.positions, asked.positions) and not torch.equal(asked.positions, pushed.positions)


def test_content_is_that_of_chains_of_about_the_length():
    """64 nearest chains; other samples draw others; what is asked for is told through the calibration."""
    typical = [[50, 0.9, 0.0]] * 64 + [[100, 0.0, 0.4]] * 64 + [[100, 0.2, 0.4]]
    settings = SamplerSettings(typical=typical, calibration=[[0.1, 0.5], [-0.3, 1.0]], compactness=2.2)
    told = _conditions(settings, [48, 99], [3, 4]).content
    expected = torch.tensor([[0.55, 0.0, 2.2, math.nan], [0.1, 0.1, 2.2, math.nan]])
    torch.testing.assert_close(told, expected, equal_nan=True)
    mixed = SamplerSettings(typical=[[60, k / 64, 0.0] for k in range(64)])
    drawn = [_conditions(mixed, [60], [seed]).content[0, 0].item() for seed in range(20)]
    assert len(set(drawn)) > 10 and drawn[7] == _conditions(mixed, [60, 60], [1, 7]).content[1, 0].item()


def test_content_asked_for_is_not_drawn():
    settings = SamplerSettings(typical=[[60, 0.9, 0.0]], helix=0.5, calibration=[[0.1, 0.5], [0.0, 1.0]])
    helix, strand, compactness, designed = _conditions(settings, [60], [0]).content[0]
    assert helix == pytest.approx(0.35) and strand.isnan() and compactness.isnan() and designed.isnan()


def test_content_is_that_of_chains_of_the_origin_asked_for():
    typical = [[60, 0.1, 0.1, 0]] * 70 + [[60, 0.5, 0.2, 1]] * 3 + [[60, 0.9, 0.0, None]] * 70
    for origin, expected in (("natural", [0.1, 0.1, 0.0]), ("designed", [0.5, 0.2, 1.0])):
        settings = SamplerSettings(typical=typical, origin=origin)
        told = _conditions(settings, [60] * 5, range(5)).content[:, [0, 1, 3]]
        torch.testing.assert_close(told, torch.tensor([expected] * 5))
    asked = _conditions(SamplerSettings(typical=typical[:70], origin="designed"), [60], [0]).content[0, :2]
    assert asked.isnan().all()  # no chain of that origin: any content


def test_batches_leave_work_for_two_processes(pair, tmp_path, monkeypatch):
    sizes = []
    monkeypatch.setattr(Run, "_make", lambda self, done, rank, batch: sizes.append(len(batch)) or len(batch))
    for num, length, expected in ((16, 24, [8, 8]), (100, 24, [32, 32, 32, 4]), (1, 24, [1]), (8, 3000, [2, 2, 2, 2])):
        Run(tmp_path, plan(num, length, length, 0), *pair, SamplerSettings()).fill()
        assert sizes == expected
        sizes.clear()


def test_options_are_those_of_the_sampler():
    card = {"sampling": {"sampler": "dpm_solver", "options": {"tau2": 4.0}}}
    assert released_settings(card, {}).options == {"tau2": 4.0}
    assert released_settings(card, {"sampler": "dpm_solver"}).options == {"tau2": 4.0}
    assert released_settings(card, {"sampler": "ddpm"}).options == {}
    for options, message in (({"eta": 1.0}, "options eta: the sampler dpm_solver has tau2"), ({"tau2": -1}, "tau2=-1")):
        with pytest.raises(UserError, match=message):
            check_settings(SamplerSettings(sampler="dpm_solver", options=options))


def test_released_settings_give_way_to_what_is_asked():
    card = {"sampling": {"steps": 7, "typical": True, "noise_scale": 0.5}, "typical": [[60, 0.9, 0.0]]}
    settings = released_settings(card, {"steps": 5, "noise_scale": None})
    assert (settings.steps, settings.noise_scale, list(settings.typical)) == (5, 0.5, card["typical"])
    assert released_settings(card, {"typical": False}).typical == ()


def test_without_the_finish_no_torsions_are_held():
    card = {"sampling": {"idealize": True, "hold_torsions": True}}
    assert released_settings(card, {}).hold_torsions and not released_settings(card, {"idealize": False}).hold_torsions
    with pytest.raises(UserError, match="hold torsions: it is the finish"):
        released_settings(card, {"idealize": False, "hold_torsions": True})


class Unsteady(Denoiser):
    """A denoiser whose first `failures` uses give NaN for the first sample of the batch."""

    def __init__(self, failures):
        super().__init__(**DENOISER)
        self.failures = failures

    def forward(self, *inputs):
        out = super().forward(*inputs)
        if self.failures > 0:
            self.failures -= 1
            out.features[0] = torch.nan
        return out


def test_a_diverging_sample_is_drawn_again_and_counted(pair):
    diffusion, autoencoder = pair
    unsteady = LatentDiffusion(Unsteady(failures=1), diffusion.process).eval()
    with pytest.warns(DivergedSample, match="24 residues, seed 1: diverged in attempt 1"):
        first, second = generate(unsteady, autoencoder, [24, 24], [1, 2], QUICK)
    assert (first.attempts, second.attempts) == (2, 1)
    assert first.protein.positions.isfinite().all()


DRAFTED = SamplerSettings(steps=3, drafts=4, draft_steps=2, rarity=0.5)


@pytest.fixture
def judge(pair):
    """Maps to two other sums of what a denoiser sees."""
    diffusion, _ = pair
    mask = torch.ones(1, 4, dtype=torch.bool)
    cloud = diffusion.sample(mask, Conditions.of_lengths(torch.tensor([30])), [torch.Generator()], steps=2)
    width = seen_in(diffusion, cloud, np.array([30])).shape[-1]
    maps = [LinearMap(np.zeros(width), np.ones(width), np.sin(k * np.arange(width)), 0.0) for k in (1, 2)]
    return Foldability(maps[0], np.zeros(3), maps[1])


def drafts_of(pair, judge, settings=DRAFTED, num=6):
    """The chosen drafts of six samples of 24 residues, and their scores."""
    diffusion, autoencoder = pair
    mask = autoencoder.masks(torch.ones(num, 24, dtype=torch.bool))[-1]
    lengths = torch.full((num,), 24)
    streams = [torch.Generator().manual_seed(seed) for seed in range(num)]
    best = _best_draft(diffusion, judge, mask, Conditions.of_lengths(lengths), streams, settings)
    seen = seen_in(diffusion, best, lengths.numpy())
    return best, judge.told(seen) + (settings.rarity * judge.common(seen) if judge.common else 0)


def test_the_draft_of_lowest_energy_and_commonness_is_worked_out(pair, judge):
    best, scores = drafts_of(pair, judge)
    turned = Foldability(replace(judge.told, weights=-judge.told.weights), judge.usual, None)
    _, one = drafts_of(pair, judge, replace(DRAFTED, drafts=1))
    worst, _ = drafts_of(pair, turned)
    assert (scores <= one + 1e-6).all() and (scores < one - 1e-6).sum() >= 3  # the first of 4 is the best of 1 in 4
    told = [judge.told(seen_in(pair[0], c, np.full(6, 24))) for c in (best, worst)]
    assert told[0].mean() < told[1].mean()
    more, _ = drafts_of(pair, judge, num=3)  # whatever else is drafted
    torch.testing.assert_close(more.positions, best.positions[:3], atol=1e-3, rtol=0)


def test_a_sample_is_like_the_draft_that_was_chosen_for_it(pair, judge):
    """Reworked from almost no noise, a sample is the draft; drafts of another judge give another sample."""
    settings = replace(DRAFTED, rework=0.03)
    sample = generate(*pair, [24], [5], settings, judge)[0].protein
    assert torch.equal(sample.ca, generate(*pair, [24], [5], settings, judge)[0].protein.ca)
    together = generate(*pair, [24, 41], [5, 2], settings, judge)[0].protein
    torch.testing.assert_close(together.ca, sample.ca, atol=1e-3, rtol=0)
    turned = Foldability(replace(judge.told, weights=-judge.told.weights), judge.usual, None)
    other = generate(*pair, [24], [5], settings, turned)[0].protein
    assert (sample.ca - other.ca).abs().max() > 0.1


def test_drafts_need_a_judge_and_sensible_settings(pair, model, tmp_path, capsys):
    assert run(model, tmp_path / "none", "--drafts", "2") == 2 and "fit_foldability.py" in capsys.readouterr().err
    with pytest.raises(UserError, match="drafts 4: cannot choose"):
        generate(*pair, [24], [5], DRAFTED)
    with pytest.raises(UserError, match="cannot tell what folds"):
        prepare(str(model), 1, 24, 0, tmp_path / "none", {"drafts": 2})
    assert not (tmp_path / "none").exists()
    for changes, message in (
        ({"drafts": 0}, "drafts 0"),
        ({"draft_steps": 1}, "draft steps 1"),
        ({"rework": 0.0}, "rework 0"),
        ({"rarity": -1.0}, "rarity -1"),
    ):
        with pytest.raises(UserError, match=message):
            check_settings(SamplerSettings(**changes))


def test_a_draft_that_diverged_is_not_chosen(pair, judge):
    diffusion, autoencoder = pair
    unsteady = LatentDiffusion(Unsteady(failures=1), diffusion.process).eval()
    (sample,) = generate(unsteady, autoencoder, [24], [1], DRAFTED, judge)
    assert sample.attempts == 1 and sample.protein.positions.isfinite().all()


class Blind(Denoiser):
    """A denoiser whose first use gives NaN for the whole batch."""

    used = False

    def forward(self, *inputs):
        out = super().forward(*inputs)
        if not self.used:
            self.used = True
            out.features[:] = torch.nan
        return out


def test_where_all_drafts_diverged_they_are_drawn_again(pair, judge):
    diffusion, autoencoder = pair
    blind = LatentDiffusion(Blind(**DENOISER), diffusion.process).eval()
    with pytest.warns(DivergedSample, match="diverged in attempt 1"):
        (sample,) = generate(blind, autoencoder, [24], [1], DRAFTED, judge)
    assert sample.attempts == 2 and sample.protein.positions.isfinite().all()


def test_a_sample_that_always_diverges_is_given_up(pair):
    diffusion, autoencoder = pair
    broken = LatentDiffusion(Unsteady(failures=10**6), diffusion.process).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DivergedSample)
        (sample,) = generate(broken, autoencoder, [24], [1], QUICK)
    assert sample.protein is None and sample.attempts == 5


# folders


def test_the_command_writes_what_it_promises(model, tmp_path, capsys):
    assert run(model, tmp_path / "out") == 0
    out = tmp_path / "out"
    records = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert [r["name"] for r in records] == ["sample_00001", "sample_00002", "sample_00003"]
    fasta = (out / "samples.fasta").read_text()
    for record in records:
        protein = read_structure(out / record["file"])
        assert protein.num_residues == record["length"] and 24 <= record["length"] <= 30
        assert protein.sequence == record["sequence"] and f"\n{record['sequence']}\n" in fasta
        assert {"seed", "seconds", "attempts", "valid_residues", "clashes", "helix", "strand"} <= record.keys()
    page = (out / "index.html").read_text()
    assert page.count('class="card"') == 3 and "sample_00003" in page and "3Dmol" in page
    assert "3 samples" in capsys.readouterr().out
    assert not list(out.glob("*.part*"))


def test_same_seed_same_files_and_another_seed_others(model, tmp_path):
    for name, seed in [("a", "7"), ("b", "7"), ("c", "8")]:
        assert run(model, tmp_path / name, "--seed", seed) == 0
    assert content(tmp_path / "a") == content(tmp_path / "b") != content(tmp_path / "c")


def test_an_interrupted_run_goes_on_and_ends_the_same(model, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(model, whole, "--batch-size", "2")
    run(model, broken, "--batch-size", "2")
    # as after a crash: one sample not made, its line in the log cut off
    (broken / "sample_00002.pdb").unlink()
    lines = (broken / "samples.jsonl").read_text().splitlines()
    (broken / "samples.jsonl").unlink()
    (broken / "samples.jsonl.part0").write_text(f"{lines[0]}\n{lines[2]}\n{lines[1][:40]}")
    kept = (broken / "sample_00001.pdb").stat().st_mtime_ns
    assert run(model, broken, "--batch-size", "2") == 0
    assert content(broken) == content(whole)
    assert (broken / "sample_00001.pdb").stat().st_mtime_ns == kept
    names = [json.loads(line)["name"] for line in (broken / "samples.jsonl").read_text().splitlines()]
    assert names == ["sample_00001", "sample_00002", "sample_00003"]


def test_more_samples_are_added_to_those_that_are_there(model, tmp_path):
    run(model, tmp_path)
    before = content(tmp_path)
    assert run(model, tmp_path, "--num", "5") == 0
    after = content(tmp_path)
    assert len(after) == 5 and before.items() <= after.items()


def test_ranks_share_the_work(model, tmp_path):
    parts = [prepare(str(model), 5, "24-30", 0, tmp_path, {}) for _ in range(2)]
    for rank, part in enumerate(parts):
        part.fill(batch_size=2, rank=rank, world_size=2)
        assert len(list(tmp_path.glob("*.pdb"))) == (3, 5)[rank]
    assert len(collect(tmp_path, parts[0].items)) == 5


def test_forked_workers_make_what_one_process_makes(model, tmp_path):
    whole, shared = (prepare(str(model), 5, "24-30", 0, tmp_path / name, {}) for name in ("whole", "shared"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as workers have: the last digit depends on it
    try:
        whole.fill(batch_size=2)
    finally:
        torch.set_num_threads(threads)
    shared.fill(batch_size=2, num_workers=2)
    makers = {path.name for path in shared.folder.glob("*.part*")}
    assert makers and f"samples.jsonl.part0.{os.getpid()}" not in makers
    collect(whole.folder, whole.items), collect(shared.folder, shared.items)
    assert content(whole.folder) == content(shared.folder)


def test_an_error_in_a_forked_worker_is_raised_here():
    def fails(job):
        if job == 1:  # of several that fail, any may be the first to end
            raise UserError(f"job {job}")

    with pytest.raises(UserError, match="job 1"):
        list(each_forked(fails, [1, 2, 3], num_workers=2))


def test_a_forked_worker_that_dies_is_told():
    with pytest.raises(UserError, match="worker process died"):
        list(each_forked(lambda job: os._exit(3), [1, 2], num_workers=2))


def test_two_real_processes(model, tmp_path):
    options = [
        f"weights={model}",
        "num=4",
        "length=24",
        f"output={tmp_path / 'out'}",
        "batch_size=1",
        "accelerator=cpu",
    ]
    command = [sys.executable, str(ROOT / "pipelines" / "sample.py"), *options, "devices=2"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "out").glob("*.pdb"))) == 4
    assert run(model, tmp_path / "one", "--num", "4", "--length", "24", "--batch-size", "1") == 0
    assert content(tmp_path / "one") == content(tmp_path / "out")


def test_other_settings_need_another_folder(model, tmp_path, capsys):
    run(model, tmp_path)
    before = content(tmp_path)
    assert run(model, tmp_path, "--steps", "4") == 2
    assert "steps 3 there, 4 now" in capsys.readouterr().err
    assert content(tmp_path) == before


def test_a_setting_given_once_is_not_forgotten(model, tmp_path, capsys):
    run(model, tmp_path, "--idealize", "--hold-torsions")
    assert run(model, tmp_path, "--idealize") == 2
    assert "hold_torsions True there, None now" in capsys.readouterr().err


def test_idealize_moves_atoms_into_shape(model, tmp_path):
    run(model, tmp_path / "raw")
    assert run(model, tmp_path / "ideal", "--idealize") == 0
    raw, ideal = (
        [json.loads(line)["valid_residues"] for line in (tmp_path / name / "samples.jsonl").read_text().splitlines()]
        for name in ("raw", "ideal")
    )
    assert sum(ideal) > sum(raw)


def test_torsions_are_held_where_asked_for(tmp_path):
    favoured = []
    for name, hold in (("free", "--no-hold-torsions"), ("held", "--hold-torsions")):
        options = ["--num", "4", "--length", "60", "--steps", "12", "--workers", "1", hold]
        assert main(["sample", "--out", str(tmp_path / name), *options]) == 0
        records = generation_records(tmp_path / name)
        favoured.append(np.mean([record["rama_favoured"] for record in records]))
        assert min(record["valid_residues"] for record in records) > 0.95
        assert ("hold_torsions" in json.loads((tmp_path / name / "settings.json").read_text())) == (name == "held")
    assert favoured[1] > 0.92 and favoured[1] > favoured[0] + 0.01


def test_lengths_outside_the_trained_range_warn(model, tmp_path, capsys):
    assert run(model, tmp_path, "--length", "70", "--num", "1") == 0
    assert "trained on 20-60 residues" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--length", "5"], "length 5"),
        (["--length", "abc"], "length abc"),
        (["--num", "0"], "num=0"),
        (["--steps", "1"], "steps 1"),
        (["--helix", "1.5"], "helix 1.5"),
        (["--helix", "0.7", "--strand", "0.7"], "whole chain"),
        (["--compactness", "0.2"], "compactness 0.2"),
        (["--compactness", "2.2"], "not trained to follow it"),
        (["--noise-scale", "0"], "noise scale"),
        (["--batch-size", "0"], "batch size"),
        (["--workers", "0"], "workers 0"),
        (["--origin", "designed"], "not trained to follow it"),
        (["--hold-torsions"], "hold torsions: it is the finish that would move them"),
        (["--device", "tpu"], "--device tpu"),
    ],
)
def test_bad_options_are_named(model, tmp_path, capsys, options, said):
    assert run(model, tmp_path / "out", *options) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) == 1
    assert not list(tmp_path.glob("out/*.pdb"))


def test_an_autoencoder_is_no_diffusion_model_and_the_reverse(model, tmp_path, capsys):
    assert run(model / "autoencoder", tmp_path / "out") == 2
    assert "an autoencoder, where a diffusion model is needed" in capsys.readouterr().err
    assert main(["reconstruct", str(ROOT / "examples"), "--model", str(model), "--out", str(tmp_path / "r")]) == 2
    assert "a diffusion model, where an autoencoder is needed" in capsys.readouterr().err


def test_a_diffusion_model_refuses_another_autoencoder(model, tmp_path):
    shutil.copytree(model, tmp_path / "copy")
    torch.manual_seed(1)
    save(Autoencoder(**AUTOENCODER), AUTOENCODER, tmp_path / "copy" / "autoencoder", {"name": "tiny"})
    with pytest.raises(UserError, match="another encoder than that of autoencoder"):
        load_diffusion(tmp_path / "copy")


def test_a_card_cannot_construct_anything_else(model, tmp_path):
    shutil.copytree(model, tmp_path / "copy")
    path = tmp_path / "copy" / "model.json"
    card = json.loads(path.read_text())
    card["arguments"]["process"] = {"_target_": "os.system", "command": f"touch {tmp_path / 'ran'}"}
    path.write_text(json.dumps(card))
    with pytest.raises(UserError, match="no model that this ophio knows"):
        load_diffusion(tmp_path / "copy")
    assert not (tmp_path / "ran").exists()


def test_conditions_reach_a_device_and_keep_their_values():
    conditions = Conditions.of_lengths(torch.tensor([50, 60]), helix=0.5).to("cpu")
    assert conditions.content[:, 0].tolist() == [0.5, 0.5] and conditions.content[:, 1].isnan().all()
