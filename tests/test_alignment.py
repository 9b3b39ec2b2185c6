import itertools

import biotite.structure as struc
import numpy as np
import pytest
import torch
from adk import CLOSED, COBROTOXIN, OPEN, read

from ophio import metrics
from ophio.errors import UserError
from ophio.geometry import transform
from ophio.metrics import alignment
from ophio.metrics.alignment import (
    best_sums,
    coarse_tm,
    environments,
    in_batches,
    pad_chains,
    pairwise_tm,
    tm_align,
    tm_scores,
)
from ophio.testing import random_motion

MIRROR = torch.tensor([1.0, 1.0, -1.0])
PAIRS = ((OPEN, CLOSED), (OPEN, COBROTOXIN), (COBROTOXIN, CLOSED))


def ca(name: str) -> torch.Tensor:
    return read(name)[1].ca.float()


def moved(chain: torch.Tensor, seed: int = 0) -> torch.Tensor:
    return transform(chain, *random_motion(seed, torch.float32))


def aligned(query: torch.Tensor, target: torch.Tensor) -> alignment.Alignment:
    """One pair."""
    return alignment.Alignment(*(values[0] for values in tm_align(query[None], target[None])))


# What must hold for any structure


@pytest.mark.parametrize("name", [OPEN, COBROTOXIN])
def test_a_chain_is_like_itself_wherever_it_lies(name):
    chain = ca(name)
    found = aligned(chain, moved(chain))
    assert found.query_tm.item() == pytest.approx(1, abs=1e-4)
    assert found.target_tm.item() == pytest.approx(1, abs=1e-4)
    assert torch.equal(found.target_index, torch.arange(len(chain)))
    rotation, translation = random_motion(0, torch.float32)
    assert torch.allclose(found.rotation, rotation, atol=1e-3)
    assert torch.allclose(found.translation, translation, atol=0.05)


@pytest.mark.parametrize(("start", "stop"), [(0, 60), (70, 150), (154, 214)])
def test_a_part_is_found_in_the_whole(start, stop):
    chain = ca(OPEN)
    found = aligned(moved(chain)[start:stop], chain)
    assert found.query_tm.item() == pytest.approx(1, abs=1e-4)
    assert found.target_tm.item() == pytest.approx((stop - start) / len(chain), abs=2e-3)
    assert torch.equal(found.target_index, torch.arange(start, stop))


def test_a_missing_piece_is_jumped_over():
    chain = ca(OPEN)
    kept = torch.cat([torch.arange(60), torch.arange(75, 214)])
    found = aligned(moved(chain[kept]), chain)
    assert found.query_tm.item() == pytest.approx(1, abs=1e-4)
    assert (found.target_index == kept).float().mean() > 0.99


def test_mirror_images_are_less_alike():
    for name in (OPEN, COBROTOXIN):
        found = aligned(ca(name) * MIRROR, ca(name))
        assert found.query_tm < 0.5
    assert coarse_tm((ca(OPEN) * MIRROR)[None], ca(OPEN)[None]) < 0.8 * coarse_tm(ca(OPEN)[None], ca(OPEN)[None])


def test_pairs_keep_the_order_of_both_chains():
    for query, target in PAIRS:
        partners = aligned(ca(query), moved(ca(target))).target_index
        partners = partners[partners >= 0]
        assert len(partners) > 40
        assert (partners.diff() > 0).all()
        assert partners.max() < len(ca(target))


@pytest.mark.parametrize(("query", "target"), PAIRS)
def test_query_and_target_may_be_exchanged(query, target):
    there, back = aligned(ca(query), ca(target)), aligned(ca(target), ca(query))
    assert there.query_tm.item() == pytest.approx(back.target_tm.item(), abs=0.01)
    assert there.target_tm.item() == pytest.approx(back.query_tm.item(), abs=0.01)


# Other tools


def test_sequence_order_gives_a_lower_bound():
    """The same residues paired one to one: 0.6889 by the TMscore program, see test_metrics."""
    opened, closed = read(OPEN)[1], read(CLOSED)[1]
    one_to_one = metrics.tm_score(opened.positions, closed.positions, opened.atom_mask & closed.atom_mask)
    assert aligned(ca(OPEN), ca(CLOSED)).query_tm > one_to_one - 1e-3


@pytest.mark.parametrize(("query", "target"), PAIRS)
@pytest.mark.filterwarnings("ignore")
def test_scores_are_no_lower_than_those_of_biotite(query, target):
    """Biotite's search is that of TM-align with a structural alphabet: 0.690 for the two states of adenylate kinase."""
    fixed, mobile = read(target)[0], read(query)[0]
    fitted, _, fixed_index, mobile_index = struc.superimpose_structural_homologs(fixed, mobile)
    shorter = min(len(ca(query)), len(ca(target)))
    theirs = struc.tm_score(fixed, fitted, fixed_index, mobile_index, reference_length=shorter)
    ours = torch.maximum(*aligned(ca(query), ca(target))[:2])  # the greater is that of the shorter
    assert ours > theirs - 1e-3
    if (query, target) == (OPEN, CLOSED):
        assert ours.item() == pytest.approx(theirs, abs=0.015)


@pytest.mark.parametrize(("query", "target"), PAIRS)
def test_biotite_finds_the_same_score_for_the_same_pairs(query, target):
    found = aligned(ca(query), ca(target))
    fixed, fitted = (read(name)[0][read(name)[0].atom_name == "CA"] for name in (target, query))
    fitted.coord = transform(ca(query), found.rotation, found.translation).numpy()
    paired = found.target_index >= 0
    indices = found.target_index[paired].numpy(), paired.nonzero().flatten().numpy()
    theirs = struc.tm_score(fixed, fitted, *indices, reference_length=len(ca(query)))
    assert found.query_tm.item() == pytest.approx(theirs, abs=1e-4)


# Batches


def test_padding_and_batching_change_nothing():
    pairs = [(ca(OPEN), ca(CLOSED)), (ca(COBROTOXIN), ca(OPEN)[:90]), (ca(CLOSED)[40:100], ca(COBROTOXIN))]
    queries, targets = zip(*pairs, strict=True)
    (x, x_mask), (y, y_mask) = pad_chains(queries), pad_chains(targets)
    x = torch.where(x_mask[..., None], x, torch.tensor(torch.nan))
    found = tm_align(x, torch.where(y_mask[..., None], y, 77.0), x_mask, y_mask)
    for k, (query, target) in enumerate(pairs):
        alone = aligned(query, target)
        assert found.query_tm[k].item() == pytest.approx(alone.query_tm.item(), abs=5e-3)
        assert found.target_tm[k].item() == pytest.approx(alone.target_tm.item(), abs=5e-3)
        assert (found.target_index[k, len(query) :] == -1).all()
        assert found.target_index[k].max() < len(target)


def test_masked_residues_do_not_count():
    chain = ca(COBROTOXIN)
    mask = torch.ones(1, len(chain), dtype=torch.bool)
    mask[0, 20:25] = mask[0, 0] = False
    spoiled = torch.where(mask[0, :, None], chain, 1e6)
    found = tm_align(moved(chain)[None], spoiled[None], None, mask)
    assert found.target_tm.item() == pytest.approx(1, abs=1e-3)
    assert found.query_tm.item() == pytest.approx(mask.sum().item() / len(chain), abs=0.02)
    assert not set(found.target_index[0].tolist()) & {0, 20, 21, 22, 23, 24}
    found = tm_align(spoiled[None], moved(chain)[None], mask)
    assert found.query_tm.item() == pytest.approx(1, abs=1e-3)
    assert (found.target_index[0][~mask[0]] == -1).all()


def test_memory_chunks_change_nothing(monkeypatch):
    pair = ca(OPEN)[:60], ca(COBROTOXIN)
    found = aligned(*pair)
    monkeypatch.setattr(alignment, "CELLS", 10)
    assert aligned(*pair).query_tm.item() == pytest.approx(found.query_tm.item(), abs=1e-3)


def test_scores_come_in_the_order_of_the_pairs(monkeypatch):
    monkeypatch.setattr(alignment, "PAIRS", 2)
    chains = [ca(OPEN)[:60], ca(COBROTOXIN)[:40], ca(OPEN)[100:135]]
    pairs = torch.tensor([[0, 1], [2, 2], [1, 0]])
    found = tm_scores(chains, chains, pairs)
    for row, (i, j) in zip(found, pairs.tolist(), strict=True):
        alone = aligned(chains[i], chains[j])
        assert row.tolist() == pytest.approx([alone.query_tm.item(), alone.target_tm.item()], abs=5e-3)


def test_matrix_of_all_pairs():
    chains = [ca(OPEN)[:70], ca(COBROTOXIN), ca(OPEN)[:40]]
    matrix = pairwise_tm(chains)
    assert matrix.diagonal().tolist() == [1, 1, 1]
    assert matrix[2, 0].item() == pytest.approx(1, abs=1e-4)
    assert matrix[0, 2].item() == pytest.approx(40 / 70, abs=0.02)
    assert max(matrix[0, 1], matrix[1, 0]) < 0.5


# Parts of the search


def test_best_sums_and_their_pairs_are_those_of_an_exhaustive_search():
    terms = torch.rand(4, 5, 3, generator=torch.Generator().manual_seed(0))
    sums = best_sums(terms)
    index = alignment._traceback(sums)
    for k in range(3):
        best = 0.0
        for size in range(1, 5):
            for rows, columns in itertools.product(
                itertools.combinations(range(4), size), itertools.combinations(range(5), size)
            ):
                best = max(best, terms[list(rows), list(columns), k].sum().item())
        assert sums[-1, -1, k].item() == pytest.approx(best, abs=1e-6)
        paired = index[k] >= 0
        assert terms[paired.nonzero().flatten(), index[k][paired], k].sum().item() == pytest.approx(best, abs=1e-6)


def test_environments_are_alike_where_chains_are():
    chain = ca(OPEN)
    here, there, flipped = (environments(x[None]) for x in (chain, moved(chain), chain * MIRROR))
    alike = (here.query @ there.target.mT).exp()[0]
    assert alike.shape == (54, 54)  # 53 blocks of four residues and two residues, which are none
    assert torch.allclose(alike.diagonal()[:53], torch.ones(53), atol=1e-3)
    assert alike.max() < 1 + 1e-3
    assert alike[:, 53].max() == alike[53].max() == 0
    assert (here.query @ flipped.target.mT).exp()[0].diagonal()[:53].mean() < 0.7


def test_coarse_scores_tell_relatives_from_others():
    chains = [ca(CLOSED), ca(COBROTOXIN), ca(OPEN) * MIRROR, ca(CLOSED)[100:]]
    pairs = torch.tensor([[0, k] for k in range(4)])
    scores = in_batches(coarse_tm, [ca(OPEN)], chains, pairs)
    assert scores.argmax() == 0
    assert scores[0] > 0.5 > scores[1:3].max()


# Bad input


def test_fewer_than_three_residues_have_no_score():
    chain = ca(COBROTOXIN)[None]
    assert tm_align(chain[:, :2], chain).query_tm.isnan().all()
    assert tm_align(chain, chain[:, :2]).target_tm.isnan().all()
    assert coarse_tm(chain[:, :2], chain).isnan().all()
    assert aligned(chain[0, :3], chain[0]).query_tm > 0


def test_straight_and_coincident_points_are_finite():
    line = torch.arange(12.0)[:, None] * torch.tensor([3.8, 0, 0])
    for odd in (line, torch.zeros(12, 3)):
        found = aligned(odd, ca(COBROTOXIN))
        assert found.query_tm.isfinite()
        assert 0 <= found.query_tm <= 1


def test_unfit_chains_are_named():
    chain = ca(COBROTOXIN)
    pair = torch.tensor([[0, 0]])
    with pytest.raises(UserError, match=r"query 1: expected CA positions \[3 or more, 3\], got \[2, 3\]"):
        tm_scores([chain, chain[:2]], [chain], pair)
    with pytest.raises(UserError, match="target 0: a CA position is not finite"):
        tm_scores([chain], [chain * np.inf], pair)
    with pytest.raises(UserError, match="no pair of structures"):
        tm_scores([chain], [chain], pair[:0])
