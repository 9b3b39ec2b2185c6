import math

import numpy as np
import pytest
import torch
from adk import COBROTOXIN, OPEN, read

from ophio.errors import UserError
from ophio.evaluation import sets
from ophio.evaluation.sets import designability, diversity, is_designable, novelty
from ophio.metrics.alignment import pairwise_tm
from ophio.metrics.novelty import cluster

NAN = float("nan")


def families(copies: int = 4, seed: int = 0) -> list[torch.Tensor]:
    """Three folds of 45 to 60 residues with little in common, each in `copies` slightly different versions."""
    adk, toxin = read(OPEN)[1].ca.float(), read(COBROTOXIN)[1].ca.float()
    generator = torch.Generator().manual_seed(seed)
    bases = (adk[:55], adk[110:155], toxin[:60])
    return [base + 0.6 * torch.randn(base.shape, generator=generator) for base in bases for _ in range(copies)]


# Designability


def test_shares_are_of_all_samples_failed_ones_too():
    row = designability([1.0, 1.99, 2.0, 5.0, None, NAN], [0.9, 0.5, 0.6, 0.51, None, NAN])
    assert (row["samples"], row["scored"]) == (6, 4)
    assert row["designable"] == pytest.approx(2 / 6)
    assert row["sctm_above_0.5"] == pytest.approx(3 / 6)
    assert row["scrmsd_median"] == pytest.approx(3.5)  # of 1, 1.99, 2, 5, inf, inf
    assert row["sctm_median"] == pytest.approx(0.505)  # of 0, 0, 0.5, 0.51, 0.6, 0.9
    assert is_designable([1.0, 1.99, 2.0, 5.0, None, NAN]).tolist() == [True, True, False, False, False, False]


def test_a_sample_may_have_one_value_without_the_other():
    row = designability([None, 1.0], [0.8, None])
    assert (row["scored"], row["designable"], row["sctm_above_0.5"]) == (0, 0.5, 0.5)


def test_intervals_are_those_of_a_share():
    """A share p of n has a standard error of sqrt(p (1 - p) / n)."""
    scrmsd = np.where(np.arange(400) % 4 == 0, 1.0, 3.0)
    row = designability(scrmsd, np.full(400, 0.3))
    error = 1.96 * math.sqrt(0.25 * 0.75 / 400)
    assert row["designable_low"] == pytest.approx(0.25 - error, abs=0.01)
    assert row["designable_high"] == pytest.approx(0.25 + error, abs=0.01)
    assert (row["sctm_above_0.5_low"], row["sctm_above_0.5_high"]) == (0, 0)
    assert designability(scrmsd, np.full(400, 0.3)) == row
    assert designability(scrmsd, np.full(400, 0.3), seed=1) != row


def test_nothing_designable_when_all_failed():
    row = designability([None] * 3, [None] * 3)
    assert (row["samples"], row["designable"], row["sctm_median"], row["scrmsd_median"]) == (3, 0, 0, math.inf)


# Diversity


def test_diversity_is_what_the_matrix_of_tm_scores_says():
    structures = families()
    designable = np.arange(12) >= 8  # one family
    row = diversity(structures, designable)
    matrix = pairwise_tm(structures)
    off_diagonal = ~torch.eye(12, dtype=torch.bool)
    assert row["pairs"] == 66
    assert row["mean_tm"] == pytest.approx(matrix[off_diagonal].mean().item(), abs=1e-4)
    assert row["clusters_50"] == row["clusters_60"] == pytest.approx(3 / 12)
    assert len(cluster(matrix, 0.5).unique()) == 3
    assert row["pairs_designable"] == 6
    assert row["mean_tm_designable"] == pytest.approx(matrix[8:, 8:][off_diagonal[8:, 8:]].mean().item(), abs=1e-4)
    assert row["clusters_50_designable"] == pytest.approx(1 / 4)
    assert row["mean_tm"] < row["mean_tm_designable"]


def test_failed_samples_lower_the_share_of_clusters_and_nothing_else():
    structures, designable = families(2), np.arange(6) < 3
    row = diversity(structures, designable)
    with_failed = [None, *structures[:4], None, *structures[4:], None]
    found = diversity(with_failed, np.insert(designable, [0, 4, 6], False))
    assert found["clusters_50"] == pytest.approx(row["clusters_50"] * 6 / 9)
    shares = {"clusters_50", "clusters_60"}
    assert {k: v for k, v in found.items() if k not in shares} == {k: v for k, v in row.items() if k not in shares}


def test_of_many_pairs_some_are_drawn_and_links_are_still_found():
    structures, designable = families(6), np.arange(18) < 9
    every = diversity(structures, designable)
    some = diversity(structures, designable, max_pairs=40)
    assert (every["pairs"], every["pairs_designable"]) == (153, 36)
    assert (some["pairs"], some["pairs_designable"]) == (40, 36)
    assert some["mean_tm_designable"] == pytest.approx(every["mean_tm_designable"], abs=1e-4)
    assert some["mean_tm"] != every["mean_tm"]
    assert some["mean_tm"] == pytest.approx(every["mean_tm"], abs=0.15)
    for key in ("clusters_50", "clusters_60", "clusters_50_designable"):
        assert some[key] == every[key]
    assert diversity(structures, designable, max_pairs=40) == some
    assert diversity(structures, designable, max_pairs=40, seed=1) != some


@pytest.fixture
def aligned(monkeypatch) -> list[int]:
    """Numbers of pairs that were aligned by residues."""
    counts, scores = [], sets.tm_scores

    def counted(queries, targets, pairs):
        counts.append(len(pairs))
        return scores(queries, targets, pairs)

    monkeypatch.setattr(sets, "tm_scores", counted)
    return counts


def test_unlike_pairs_are_not_aligned_to_find_links(aligned):
    diversity(families(6), np.zeros(18, dtype=bool), max_pairs=5)
    assert 45 <= aligned[0] < 100  # 45 pairs within families, of 153


def test_a_fragment_is_not_linked_with_what_contains_it(aligned):
    chain = read(OPEN)[1].ca.float()
    structures = [chain[:60], chain, read(COBROTOXIN)[1].ca.float()]
    assert diversity(structures, np.zeros(3, dtype=bool), max_pairs=1)["clusters_50"] == 1
    assert aligned == [1]  # the one drawn


def test_too_few_samples_for_pairs():
    (structure,) = families(1)[:1]
    row = diversity([structure, None], np.array([True, False]))
    assert math.isnan(row["mean_tm"])
    assert (row["pairs"], row["clusters_50"], row["clusters_50_designable"]) == (0, 0.5, 1)
    nothing = diversity([None], np.array([False]))
    assert (nothing["pairs"], nothing["clusters_50"]) == (0, 0)
    assert math.isnan(nothing["clusters_50_designable"])
    assert math.isnan(nothing["mean_tm_designable"])


# Novelty


def test_novelty_is_that_of_designable_samples_and_copies_are_of_all():
    row = novelty([0.95, 0.4, None, 0.9, 0.6], np.array([True, True, False, False, False]))
    assert row["compared"] == 4
    assert row["max_tm_designable"] == pytest.approx(0.675)
    assert row["max_tm_median"] == pytest.approx(0.75)
    assert row["copies"] == pytest.approx(1 / 5)


def test_novelty_without_designable_samples_or_without_any():
    row = novelty([0.5, NAN], np.array([False, False]))
    assert math.isnan(row["max_tm_designable"])
    assert (row["max_tm_median"], row["copies"]) == (0.5, 0)
    assert math.isnan(novelty([], np.zeros(0, dtype=bool))["copies"])


# All of them


def test_what_does_not_fit_is_named():
    with pytest.raises(UserError, match="no samples to score"):
        designability([], [])
    with pytest.raises(ValueError, match="2 scrmsd, 1 sctm"):
        designability([1.0, 2.0], [0.5])
    with pytest.raises(ValueError, match="3 structures, 2 designable"):
        diversity(families(1), np.ones(2, dtype=bool))
    with pytest.raises(UserError, match="query 1: expected CA positions"):
        diversity([families(1)[0], torch.zeros(2, 3)], np.zeros(2, dtype=bool))
