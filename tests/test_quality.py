"""Stages between natives and samples, with the released weights on adenylate kinase."""

from dataclasses import replace

import pytest
from adk import CLOSED, OPEN, read

from ophio.foldability import foldability_of
from ophio.metrics import ca_rmsd
from ophio.pretrained import load_diffusion, read_card
from ophio.protein import stack
from ophio.quality import NATIVE, RECONSTRUCTION, SAMPLES, stages
from ophio.samples import released_settings


@pytest.fixture(scope="module")
def natives():
    return [read(OPEN)[1].crop(0, 72), read(CLOSED)[1].crop(110, 190)]


@pytest.fixture(scope="module")
def found(natives):
    diffusion, autoencoder = load_diffusion("mini_diffusion")
    settings = replace(released_settings(read_card("mini_diffusion"), {}), steps=10, idealize=False)
    judge = foldability_of("mini_diffusion")
    return dict(stages(natives, diffusion, autoencoder, settings, [0.0, 0.3], [0.3, 3.0], foldability=judge))


def moved(natives, chains):
    one, other = stack(natives), stack(chains)
    return ca_rmsd(one.positions, other.positions, one.atom_mask & other.atom_mask)


def test_every_stage_has_a_chain_for_every_native(natives, found):
    assert list(found) == [
        NATIVE, RECONSTRUCTION, "latent noise 0", "latent noise 0.3", "noise 0.3, denoised", "noise 3, denoised", SAMPLES
    ]  # fmt: skip
    for chains in found.values():
        assert [chain.num_residues for chain in chains] == [72, 80]
        assert all(chain.positions.isfinite().all() for chain in chains)


def test_a_latent_without_noise_is_the_reconstruction(natives, found):
    assert moved(found[RECONSTRUCTION], found["latent noise 0"]).max() < 1e-3
    assert moved(natives, found[RECONSTRUCTION]).max() < 0.6


def test_the_more_noise_the_farther_from_the_native(natives, found):
    order = [RECONSTRUCTION, "latent noise 0.3", "noise 3, denoised"]
    distances = [moved(natives, found[stage]) for stage in order]
    assert all((near < far).all() for near, far in zip(distances, distances[1:]))
    assert (moved(natives, found["noise 0.3, denoised"]) < distances[2]).all()
    assert moved(natives, found[SAMPLES]).min() > 3.0
