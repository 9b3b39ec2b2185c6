"""Diffusion over Clouds: process, schedules, denoiser, samplers, units."""

import math

import pytest
import torch

from ophio.cloud import Cloud
from ophio.diffusion import DDPM, EDM, Conditions, Denoiser, Flow, LatentDiffusion, Process
from ophio.diffusion.process import centred_noise
from ophio.diffusion.samplers import SAMPLERS, ddim, ddpm, dpm_solver, euler_flow, heun
from ophio.diffusion.standardize import Standardizer, latent_statistics
from ophio.geometry import random_rotation
from ophio.irreps import expand_degrees, split
from ophio.testing import assert_equivariant, assert_padding_invariant, random_cloud, rotate_features

SCHEDULES = [EDM(), DDPM(), Flow()]


def small_denoiser(lmax=1, latent_lmax=1, seed=0, channels=16):
    torch.manual_seed(seed)
    points = 3 if latent_lmax else 0
    denoiser = Denoiser(
        6, latent_lmax, channels, lmax, 2, heads=4, pair_channels=8, points=points, compactness=True, origin=True
    )
    for block in denoiser.blocks if latent_lmax else ():  # a fresh model's points have no effect, these do
        for weight in block.contact.out.weights:
            torch.nn.init.normal_(weight)
    return denoiser


def blank(count=4, num_nodes=6, lmax=1, channels=3, dtype=torch.float32):
    mask = torch.ones(count, num_nodes, dtype=torch.bool)
    shape = (count, num_nodes)
    return Cloud(torch.zeros(*shape, 3, dtype=dtype), torch.zeros(*shape, (lmax + 1) ** 2, channels, dtype=dtype), mask)


def turned(cloud, rotation):
    return Cloud(cloud.positions @ rotation.T, rotate_features(cloud.features, rotation), cloud.mask)


def assert_same_cloud(one, other, tolerance):
    torch.testing.assert_close(one.positions, other.positions, atol=tolerance, rtol=0)
    torch.testing.assert_close(one.features, other.features, atol=tolerance, rtol=0)


# schedules


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_sigmas_fall_to_zero_and_training_covers_them(schedule):
    torch.manual_seed(0)
    sigmas, drawn = schedule.sigmas(20), schedule.draw(20_000)
    assert len(sigmas) == 21 and sigmas[-1] == 0 and (sigmas.diff() < 0).all()
    assert drawn.min() > 0 and drawn.median() < sigmas[0]
    assert drawn.max() > 0.2 * sigmas[0]  # no level of sampling is far from those of training


def test_ddpm_levels_are_those_of_linear_beta():
    levels = DDPM(num_levels=1000).levels
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    kept = torch.prod(1 - betas)
    assert levels[0] == pytest.approx(math.sqrt(1e-4 / (1 - 1e-4)))
    assert levels[-1] == pytest.approx(float(((1 - kept) / kept).sqrt()))


def test_flow_times_are_equally_spaced():
    sigmas = Flow(t_max=0.9).sigmas(9)
    torch.testing.assert_close(sigmas / (1 + sigmas), torch.linspace(0.9, 0, 10))


# process


@pytest.mark.parametrize("prediction", ["x0", "epsilon", "v"])
def test_the_target_gives_back_the_clean_cloud(prediction):
    process = Process(EDM(), prediction, position_spread=2.0)
    torch.manual_seed(0)
    clean, noise = centred_noise(blank(dtype=torch.float64)), centred_noise(blank(dtype=torch.float64))
    sigma = torch.tensor([0.05, 0.4, 3.0, 20.0], dtype=torch.float64)
    noisy = process.noisy(clean, noise, sigma)
    target = process.target(clean, noisy, sigma)
    assert_same_cloud(process.denoised(target, noisy, sigma), clean, 1e-9)
    if prediction == "epsilon":
        assert_same_cloud(target, noise, 1e-9)
    if prediction == "x0":
        torch.testing.assert_close(target.features, clean.features)


def test_v_is_of_unit_variance_and_input_too_at_every_level():
    process, generator = Process(EDM(), position_spread=2.0), [torch.Generator().manual_seed(k) for k in range(4)]
    clean = centred_noise(blank(num_nodes=4000), generator)
    clean = Cloud(clean.positions * 2.0, clean.features, clean.mask)
    sigma = torch.tensor([0.05, 0.4, 3.0, 20.0])
    noisy = process.noisy(clean, centred_noise(clean, generator), sigma)
    for cloud in (process.network_input(noisy, sigma), process.target(clean, noisy, sigma)):
        torch.testing.assert_close(cloud.features.std((1, 2, 3)), torch.ones(4), atol=0.03, rtol=0)
        torch.testing.assert_close(cloud.positions.std((1, 2)), torch.ones(4), atol=0.03, rtol=0)


@pytest.mark.parametrize(("weighting", "expected"), [("uniform", 1), ("epsilon", 4), ("min_snr", 4), ("v", 5)])
def test_weights_at_half_noise(weighting, expected):
    process = Process(EDM(), weighting=weighting, position_spread=1.0, position_weight=1.0)
    clean = blank()
    off = Cloud(clean.positions + 1, clean.features + 1, clean.mask)
    loss = process.loss(off, clean, torch.full((4,), 0.5))
    torch.testing.assert_close(loss, torch.full((4,), float(expected)))


def test_loss_ignores_masked_nodes():
    clean = random_cloud(lmax=1, channels=3)
    wrong = Cloud(clean.positions, clean.features + 7.0 * ~clean.mask[..., None, None], clean.mask)
    assert (Process(EDM()).loss(wrong, clean, torch.ones(3, dtype=torch.float64)) == 0).all()


def test_unknown_prediction_is_refused():
    with pytest.raises(ValueError, match="x0, epsilon, v"):
        Process(EDM(), prediction="noise")


def test_noise_is_centred_isotropic_and_does_not_depend_on_companions():
    like = random_cloud(num_nodes=12, lmax=1, channels=4, dtype=torch.float32)
    generators = [torch.Generator().manual_seed(k) for k in (5, 6, 7)]
    noise = centred_noise(like, generators)
    assert noise.positions.sum(1).abs().max() < 1e-5
    assert (noise.features[~like.mask] == 0).all() and (noise.positions[~like.mask] == 0).all()
    alone = like.replace(positions=like.positions[1:2], features=like.features[1:2], mask=like.mask[1:2])
    again = centred_noise(alone, [torch.Generator().manual_seed(6)])
    assert torch.equal(again.features[0], noise.features[1]) and torch.equal(again.positions[0], noise.positions[1])


# samplers


GAUSSIAN_MEAN, GAUSSIAN_STD = 0.7, 0.5


def exact(x, sigma):
    """The denoiser of features N(0.7 in one scalar channel, 0.25) and positions N(0, 4)."""
    mean = torch.zeros_like(x.features)
    mean[..., 0, 0] = GAUSSIAN_MEAN
    keep_f, keep_p = (v / (v + sigma**2) for v in (GAUSSIAN_STD**2, 4.0))
    return Cloud(x.positions * keep_p, mean + (x.features - mean) * keep_f, x.mask)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize(
    ("sampler", "steps", "options"),
    [
        (ddpm, 300, {}),
        (dpm_solver, 200, {}),
        (dpm_solver, 200, {"tau2": 0.0}),
        (dpm_solver, 300, {"tau2": 2.0}),
        (dpm_solver, 300, {"tau2": 0.5, "late": 1.0, "late_tau2": 2.0}),
        (ddim, 100, {}),
        (ddim, 300, {"eta": 1.0}),
        (heun, 40, {}),
        (heun, 60, {"churn": 20.0}),
        (euler_flow, 100, {}),
    ],
)
def test_samplers_recover_a_gaussian_from_its_exact_score(schedule, sampler, steps, options):
    torch.manual_seed(1)
    like = blank(count=1500, num_nodes=5, channels=2)
    sigmas = schedule.sigmas(steps)
    found = sampler(exact, centred_noise(like) * float(sigmas[0]), sigmas, lambda: centred_noise(like), **options)
    scalars, vectors = split(found.features)
    assert scalars[..., 0].mean() == pytest.approx(GAUSSIAN_MEAN, abs=0.03)
    assert scalars[..., 1].mean() == pytest.approx(0, abs=0.03)
    assert scalars.std((0, 1, 2)).tolist() == pytest.approx([GAUSSIAN_STD] * 2, rel=0.06)
    assert vectors.std() == pytest.approx(GAUSSIAN_STD, rel=0.04)
    spread = 2.0 * math.sqrt(1 - 1 / 5)  # centring takes a degree of freedom
    assert found.positions.std() == pytest.approx(spread, rel=0.04)


def test_noise_scale_narrows_the_samples():
    torch.manual_seed(1)
    like, sigmas = blank(count=500), EDM().sigmas(100)
    spreads = [
        ddpm(exact, centred_noise(like) * float(sigmas[0]), sigmas, lambda: centred_noise(like), scale).features.std()
        for scale in (1.0, 0.5)
    ]
    assert spreads[1] < 0.8 * spreads[0]


def test_dpm_solver_without_fresh_noise_is_deterministic():
    like, sigmas = blank(count=3), EDM().sigmas(10)
    start = centred_noise(like) * float(sigmas[0])
    ends = [dpm_solver(exact, start, sigmas, lambda: centred_noise(like), tau2=tau2) for tau2 in (0.0, 0.0, 1.0, 1.0)]
    assert torch.equal(ends[0].features, ends[1].features) and not torch.equal(ends[2].features, ends[3].features)


def test_late_steps_have_a_temperature_of_their_own():
    like, sigmas = blank(count=500), EDM().sigmas(60)

    def end(scale: float, **options: float) -> Cloud:
        torch.manual_seed(1)
        start = centred_noise(like) * (float(sigmas[0]) * scale)
        return dpm_solver(exact, start, sigmas, lambda: centred_noise(like), scale, **options)

    cold, hot = end(0.4, tau2=2.0), end(1.0)
    as_cold = end(0.8, late=math.inf, late_noise_scale=0.5, late_tau2=2.0)
    assert torch.allclose(end(1.0, late=1e-6, late_noise_scale=0.1, late_tau2=9.0).features, hot.features)
    assert torch.allclose(as_cold.features, cold.features, atol=0.05)  # but for the first noise, long forgotten
    spread = [float(c.features.std()) for c in (cold, end(1.0, late=0.3, late_noise_scale=0.4, late_tau2=2.0), hot)]
    assert spread[0] < spread[1] - 0.02 and spread[1] < spread[2] - 0.02


@pytest.mark.parametrize("name", SAMPLERS)
def test_samples_rotate_with_the_noise(name):
    model = LatentDiffusion(small_denoiser(), Process(EDM())).double().eval()
    like = random_cloud(num_nodes=7, lmax=1, channels=6)
    rotation = random_rotation(dtype=torch.float64)
    conditions = Conditions.of_lengths(torch.tensor([50, 40, 30]), helix=0.4)
    outcomes = []
    for turn in (torch.eye(3, dtype=torch.float64), rotation):
        torch.manual_seed(0)
        level = torch.ones(3, dtype=torch.float64)

        def draw(turn=turn):
            return turned(centred_noise(like), turn)

        sigmas = model.process.schedule.sigmas(5)
        with torch.no_grad():
            outcomes.append(
                SAMPLERS[name](
                    lambda x, sigma: model.denoise(x, level * sigma, conditions),
                    draw() * float(sigmas[0]),
                    sigmas,
                    draw,
                )
            )
    assert outcomes[0].features.std() > 0.1
    assert_same_cloud(turned(outcomes[0], rotation), outcomes[1], 1e-8)


# denoiser


@pytest.mark.parametrize(("lmax", "latent_lmax"), [(1, 0), (1, 1), (2, 1), (2, 2)])
@pytest.mark.parametrize("self_conditioned", [False, True])
def test_denoiser_is_equivariant_and_blind_to_padding(lmax, latent_lmax, self_conditioned):
    denoiser = small_denoiser(lmax, latent_lmax).double().eval()
    conditions = Conditions.of_lengths(torch.tensor([120, 90, 60]), helix=0.3)
    level = torch.tensor([-0.5, 0.1, 0.6], dtype=torch.float64)

    def layer(cloud):
        centred = cloud.center()
        middle = (cloud.positions * cloud.mask[..., None]).sum(1, keepdim=True) / cloud.mask.sum(1)[:, None, None]
        previous = centred * 0.5 if self_conditioned else None
        out = denoiser(centred, level, conditions, previous)
        return out.replace(positions=out.positions + middle)

    cloud = random_cloud(num_nodes=12, lmax=latent_lmax, channels=6)
    assert_equivariant(layer, cloud)
    assert_padding_invariant(layer, cloud)


def test_denoiser_sees_its_conditions():
    denoiser = small_denoiser().eval()
    cloud = random_cloud(num_nodes=8, lmax=1, channels=6, dtype=torch.float32).center()
    level, lengths = torch.zeros(3), torch.tensor([60, 60, 60])
    outs = [
        denoiser(cloud, level + shift, Conditions.of_lengths(length, *content)).features
        for shift, length, content in [
            (0, lengths, ()),
            (0.5, lengths, ()),
            (0, lengths + 30, ()),
            (0, lengths, (0.0, math.nan, math.nan)),
            (0, lengths, (math.nan, 0.0, math.nan)),
            (0, lengths, (math.nan, math.nan, 2.2)),
            (0, lengths, (math.nan, math.nan, math.nan, 1.0)),
        ]
    ]
    for other in outs[1:]:
        assert (outs[0] - other).abs().max() > 1e-4


def test_denoiser_tells_a_mirror_image():
    """A model blind to chirality would make as many left-handed helices as right-handed ones."""
    denoiser = small_denoiser().double().eval()
    cloud = random_cloud(num_nodes=8, lmax=1, channels=6).center()
    flip = expand_degrees(torch.tensor([[1.0], [-1.0]], dtype=torch.float64))
    mirrored = Cloud(-cloud.positions, cloud.features * flip, cloud.mask)  # inversion: vectors change sign
    level, conditions = torch.zeros(3, dtype=torch.float64), Conditions.of_lengths(torch.tensor([60, 60, 60]))
    one, other = denoiser(cloud, level, conditions), denoiser(mirrored, level, conditions)
    assert (one.features * flip - other.features).abs().max() > 1e-3 * one.features.abs().max()


def test_denoiser_needs_the_degrees_of_its_latent():
    with pytest.raises(ValueError, match="lmax 1"):
        Denoiser(latent_channels=4, latent_lmax=2, lmax=1)


def test_points_need_vectors_in_the_latent():
    with pytest.raises(ValueError, match="points=4"):
        Denoiser(latent_channels=4, latent_lmax=0, points=4)


def test_points_change_nothing_before_training_and_much_after():
    torch.manual_seed(0)
    without = Denoiser(6, 1, 16, 1, depth=2, heads=4, pair_channels=8, compactness=True, origin=True)
    fresh = Denoiser(6, 1, 16, 1, depth=2, heads=4, pair_channels=8, points=3, compactness=True, origin=True)
    fresh.load_state_dict(without.state_dict(), strict=False)
    trained = small_denoiser()
    trained.load_state_dict(without.state_dict(), strict=False)
    cloud = centred_noise(blank(channels=6))
    outs = [d(cloud, torch.zeros(4), Conditions.of_lengths(torch.full((4,), 60))) for d in (without, fresh, trained)]
    assert_same_cloud(outs[0], outs[1], 1e-6)
    assert (outs[0].features - outs[2].features).abs().max() > 0.01


def test_gradients_are_finite_where_nodes_coincide():
    denoiser = small_denoiser()
    cloud = blank(count=3, channels=6)
    out = denoiser(cloud, torch.zeros(3), Conditions.of_lengths(torch.tensor([40, 50, 60])))
    (out.features.square().sum() + out.positions.square().sum()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in denoiser.parameters())


def test_one_batch_is_learnt():
    torch.manual_seed(0)
    model = LatentDiffusion(small_denoiser(channels=48), Process(EDM()))
    latent = centred_noise(blank(count=2, channels=6))
    conditions = Conditions.of_lengths(torch.tensor([40, 100]))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(150):
        loss = model.loss(latent, conditions, torch.full((2,), 1.0)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-20:]) < 0.4 * sum(losses[:20])


# conditions and units


def test_forgetting_leaves_content_open():
    torch.manual_seed(0)
    conditions = Conditions(torch.full((4000,), 60), torch.tensor([[0.3, 0.2, 2.2, 1.0]]).expand(4000, 4))
    kept = conditions.forget(0.2).content.isfinite()
    assert kept.float().mean(0).tolist() == pytest.approx([0.64] * 4, abs=0.03)
    assert conditions.forget(0.0).asks_content and not conditions.without_content().asks_content


def test_standardizer_gives_units_commutes_with_rotations_and_returns():
    cloud = random_cloud(num_nodes=30, lmax=1, channels=5)
    cloud = cloud.replace(features=cloud.features * torch.arange(1, 6) + 3 * (torch.arange(4) == 0)[:, None]).center()
    statistics = latent_statistics(cloud.positions[cloud.mask], cloud.features[cloud.mask])
    unit = Standardizer(1, 5).double()
    unit.set_statistics(statistics, position_spread=2.0)
    standard = unit(cloud)
    scalars, vectors = split(standard.features[cloud.mask])
    torch.testing.assert_close(scalars.mean(0), torch.zeros(1, 5, dtype=torch.float64), atol=1e-5, rtol=0)
    torch.testing.assert_close(vectors.square().mean((0, 1)), torch.ones(5, dtype=torch.float64), atol=1e-5, rtol=0)
    assert standard.positions[cloud.mask].square().mean().sqrt() == pytest.approx(2.0, abs=1e-4)
    assert_same_cloud(unit.inverse(standard), cloud, 1e-5)
    rotation = random_rotation(dtype=torch.float64)
    assert_same_cloud(unit(turned(cloud, rotation)), turned(standard, rotation), 1e-9)
