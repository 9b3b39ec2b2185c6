"""Samples that start from structures: how near they stay, in what order, and what is refused."""

import numpy as np
import pytest
import torch

from ophio.cli import main
from ophio.evaluation.structures import generation_records
from ophio.io import read_structure, write_structure
from ophio.pretrained import load_diffusion
from ophio.protein import Protein
from ophio.samples import read_start
from ophio.sampling import SamplerSettings, _conditions, generate

LENGTHS = [42, 50, 46]
QUICK = SamplerSettings(sampler="dpm_solver", steps=8, noise_scale=0.8)


@pytest.fixture(scope="module")
def starts() -> list[Protein]:
    proteins = [sample.protein for sample in generate(*load_diffusion("mini_diffusion"), LENGTHS, [1, 2, 3], QUICK)]
    assert None not in proteins
    return proteins


@pytest.fixture(scope="module")
def folder(starts, tmp_path_factory):
    path = tmp_path_factory.mktemp("starts")
    for name, protein in zip("abc", starts, strict=True):
        write_structure(protein, path / f"{name}.pdb")
    return path


def variants(start, out, *options):
    return main(["sample", "--start", str(start), "--steps", "8", "--workers", "1", "--out", str(out), *options])


def test_the_less_noise_the_nearer(folder, tmp_path):
    near = []
    for sigma in ("0.2", "1", "4"):
        assert variants(folder, tmp_path / sigma, "--num", "3", "--start-sigma", sigma) == 0
        near.append(np.mean([record["tm_to_start"] for record in generation_records(tmp_path / sigma)]))
    assert near[0] > 0.85 and near[0] > near[1] + 0.05 and near[1] > near[2] + 0.1


def test_structures_take_turns(folder, tmp_path, capsys):
    assert variants(folder, tmp_path / "out", "--num", "5") == 0
    made = generation_records(tmp_path / "out")
    assert [record["start"] for record in made] == ["a.pdb", "b.pdb", "c.pdb", "a.pdb", "b.pdb"]
    lengths = [*LENGTHS, *LENGTHS[:2]]
    assert [record["length"] for record in made] == lengths
    assert [read_structure(tmp_path / "out" / record["file"]).num_residues for record in made] == lengths
    assert made[0]["sequence"] != made[3]["sequence"]  # two variants of one structure
    assert "TM-score to what they are variants of" in capsys.readouterr().out


def test_a_variant_does_not_depend_on_how_its_start_lies(starts):
    diffusion, autoencoder = load_diffusion("mini_diffusion")
    turn = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    moved = starts[0].with_positions(starts[0].positions @ turn.T + 30.0)
    settings = SamplerSettings(sampler="ddim", steps=8, noise_scale=1.0, start_sigma=0.05)

    def distances(start: Protein) -> torch.Tensor:
        (made,) = generate(diffusion, autoencoder, [start.num_residues], [7], settings, starts=[start])
        return torch.cdist(made.protein.ca, made.protein.ca)

    # the noise does not turn with it, but there is hardly any
    assert (distances(starts[0]) - distances(moved)).abs().mean() < 0.3


def test_content_is_that_of_the_start(starts):
    told = _conditions(SamplerSettings(typical=[[40, 0.9, 0.0, 1]]), LENGTHS, [0, 1, 2], starts).content
    assert not (told[:, 0] == 0.9).any() and told[:, :2].isfinite().all()
    asked = _conditions(SamplerSettings(helix=0.25), LENGTHS, [0, 1, 2], starts).content
    assert (asked[:, 0] == 0.25).all() and asked[:, 1].isnan().all()


def test_a_folder_holds_variants_of_the_same_structures(folder, starts, tmp_path, capsys):
    assert variants(folder / "a.pdb", tmp_path / "out", "--num", "2") == 0
    first = (tmp_path / "out" / "sample_00001.pdb").read_bytes()
    assert variants(folder / "a.pdb", tmp_path / "out", "--num", "3") == 0  # goes on
    assert (tmp_path / "out" / "sample_00001.pdb").read_bytes() == first and len(
        generation_records(tmp_path / "out")
    ) == 3
    assert variants(folder / "b.pdb", tmp_path / "out", "--num", "3") == 2
    assert "holds samples made otherwise (start " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--length", "60"], "length 60: variants are as long as what they start from"),
        (["--drafts", "3"], "drafts 3: variants are not drafted"),
        (["--start-sigma", "0.001"], "start sigma 0.001: the lowest noise level in 8 steps is"),
        (["--start-sigma", "-1"], "start sigma -1.0: give the noise level to start from, above 0"),
    ],
)
def test_what_makes_no_variants_is_told(folder, tmp_path, capsys, options, said):
    assert variants(folder, tmp_path / "out", *options) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_starts_that_cannot_be_are_named(starts, tmp_path, capsys):
    gap = starts[0].replace(atom_mask=starts[0].atom_mask.clone())
    gap.atom_mask[4, 1] = False  # a residue without CA
    write_structure(gap, tmp_path / "gap.pdb")
    assert variants(tmp_path / "gap.pdb", tmp_path / "out") == 2
    assert f"{tmp_path / 'gap.pdb'}: residue 5 has no CA (1 such residues)" in capsys.readouterr().err
    write_structure(starts[0].map(lambda t: t[:6]), tmp_path / "short.pdb")
    assert variants(tmp_path / "short.pdb", tmp_path / "out") == 2
    assert "short.pdb: 6 residues; variants are made of 10 to 5000" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert variants(tmp_path / "empty", tmp_path / "out") == 2
    assert "empty: no " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_backbone_is_enough(starts, tmp_path):
    backbone = starts[0].replace(atom_mask=starts[0].atom_mask & (torch.arange(14) < 4))
    write_structure(backbone, tmp_path / "backbone.pdb")
    assert read_start(tmp_path / "backbone.pdb").protein.num_residues == LENGTHS[0]
    assert variants(tmp_path / "backbone.pdb", tmp_path / "out", "--num", "1", "--start-sigma", "0.5") == 0
    assert generation_records(tmp_path / "out")[0]["tm_to_start"] > 0.6
