import copy

import torch
from torch import nn
from torch.optim import Muon

from ophio.lightning.optimizer import BatchedMuon, MuonAdamW, orthogonalise

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def test_singular_values_become_what_the_polynomial_makes_of_them():
    torch.manual_seed(0)
    matrices = torch.randn(3, 8, 20, dtype=torch.float64)
    u, values, vh = torch.linalg.svd(matrices, full_matrices=False)
    values = values / values.norm(dim=-1, keepdim=True)
    for _ in range(5):
        values = sum(c * values ** (2 * k + 1) for k, c in enumerate(COEFFICIENTS))
    torch.testing.assert_close(orthogonalise(matrices, COEFFICIENTS, 5), u * values[:, None] @ vh)


def test_batched_muon_is_muon():
    """Within the bfloat16 in which torch's own orthogonalises: 3 digits of the step."""
    torch.manual_seed(0)
    layers = nn.ModuleList(nn.Linear(*shape, bias=False) for shape in ((8, 20), (20, 8), (8, 20), (16, 16)))
    others = copy.deepcopy(layers)
    options = {"lr": 0.1, "weight_decay": 0.3, "momentum": 0.9, "adjust_lr_fn": "match_rms_adamw"}
    ours, torchs = BatchedMuon(layers.parameters(), **options), Muon(others.parameters(), **options)
    for _ in range(3):
        for one, two in zip(layers.parameters(), others.parameters(), strict=True):
            one.grad = torch.randn_like(one)
            two.grad = one.grad.clone()
        ours.step()
        torchs.step()
    for one, two in zip(layers.parameters(), others.parameters(), strict=True):
        assert (one - two).abs().max() < 0.005


def test_weights_without_a_gradient_stay():
    weights = [nn.Parameter(torch.ones(9, 9)), nn.Parameter(torch.ones(9, 9)), nn.Parameter(torch.ones(3))]
    weights[0].grad = torch.randn(9, 9)
    MuonAdamW(weights).step()
    assert not torch.equal(weights[0], torch.ones(9, 9))
    assert torch.equal(weights[1], torch.ones(9, 9)) and torch.equal(weights[2], torch.ones(3))
