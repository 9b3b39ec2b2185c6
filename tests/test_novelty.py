import pytest
import torch
import torch.nn.functional as F
from adk import CLOSED, COBROTOXIN, OPEN, read

from ophio.errors import UserError
from ophio.geometry import transform
from ophio.metrics import novelty
from ophio.metrics.alignment import tm_scores
from ophio.metrics.novelty import StructureIndex, cluster, max_tm
from ophio.testing import random_motion

MIRROR = torch.tensor([1.0, 1.0, -1.0])


def ca(name: str) -> torch.Tensor:
    return read(name)[1].ca.float()


def decoys(count: int) -> list[torch.Tensor]:
    """Compact chains of the steps of a protein, and mirror images of pieces of one, of 30 to 120 residues."""
    generator = torch.Generator().manual_seed(0)
    chain, made = ca(OPEN) * MIRROR, []
    for k in range(count):
        length = int(torch.randint(30, 120, (), generator=generator))
        start = int(torch.randint(0, 214 - length, (), generator=generator))
        steps = F.normalize(torch.randn(length, 3, generator=generator), dim=-1)
        walk = 3.8 * steps.cumsum(0)
        piece = chain[start : start + length]
        made.append(piece if k % 2 else 0.6 * walk + 0.4 * walk.mean(0))
    return made


def relative(chain: torch.Tensor, seed: int) -> torch.Tensor:
    """The chain elsewhere, each atom off by about 1 Å."""
    noise = torch.randn(chain.shape, generator=torch.Generator().manual_seed(seed))
    return transform(chain + 0.6 * noise, *random_motion(seed, torch.float32))


# Search


def test_planted_relatives_are_found_among_decoys(monkeypatch):
    monkeypatch.setattr(novelty, "GROUP", 64)
    queries = [ca(COBROTOXIN), ca(OPEN)[:100], ca(CLOSED)[100:180]]
    references = decoys(300)
    places = [17, 123, 299]
    for place, query in zip(places, queries, strict=True):
        references[place] = relative(query, place)
    found = max_tm(queries, StructureIndex.of(references), candidates=8)
    assert found.reference.tolist() == places
    expected = tm_scores(queries, references, torch.tensor(list(enumerate(places))))[:, 0]
    assert torch.allclose(found.tm_score, expected, atol=2e-3)
    assert (found.tm_score > 0.7).all()


def test_search_agrees_with_the_alignment_of_all():
    queries = [ca(COBROTOXIN), ca(OPEN)[100:160]]
    references = [*decoys(40), ca(CLOSED)[90:200], relative(ca(COBROTOXIN)[5:], 1)]
    pairs = torch.cartesian_prod(torch.arange(2), torch.arange(len(references)))
    every = tm_scores(queries, references, pairs)[:, 0].reshape(2, -1)
    found = max_tm(queries, StructureIndex.of(references), candidates=10)
    assert torch.equal(found.reference, every.argmax(1))
    assert torch.allclose(found.tm_score, every.amax(1), atol=5e-3)


def test_a_piece_of_a_larger_reference_is_found():
    chain = ca(OPEN)
    query = relative(chain[90:135], 5)
    references = decoys(500)[::2]  # distances do not tell a piece from its mirror image
    references[200] = chain
    index = StructureIndex.of(references)
    assert index.sharing([query], k=8).shape == (1, 8)
    assert index.sharing([query], k=8)[0, 0] == 200
    found = max_tm([query], index, candidates=1)
    assert found.reference == 200
    assert found.tm_score > 0.7


def test_chains_shorter_than_a_window_are_compared():
    short = ca(COBROTOXIN)[:20]
    found = max_tm([short, ca(COBROTOXIN)], StructureIndex.of([short, ca(COBROTOXIN)[:25]]))
    assert found.tm_score[0].item() == pytest.approx(1, abs=1e-3)
    assert found.reference[1] == 1


def test_a_structure_is_its_own_nearest():
    references = decoys(60)
    index = StructureIndex.of(references)
    assert len(index) == 60
    queries = [relative(references[k], 0) if k == 31 else references[k] for k in (3, 31, 58)]
    nearest = index.nearest(queries, k=5)
    assert nearest.reference[:, 0].tolist() == [3, 31, 58]
    assert nearest.reference.shape == (3, 5)
    assert (nearest.estimate.diff(dim=1) <= 0).all()


def test_mirror_images_are_not_taken_for_copies():
    query = ca(COBROTOXIN)
    found = max_tm([query], StructureIndex.of([query * MIRROR, *decoys(10)]))
    assert found.tm_score < 0.5


def test_order_of_queries_and_of_references_does_not_matter():
    queries, references = [ca(COBROTOXIN), ca(OPEN)[:50]], [*decoys(30), relative(ca(OPEN)[:50], 3)]
    found = max_tm(queries, StructureIndex.of(references))
    turned = max_tm(queries[::-1], StructureIndex.of(references[::-1]))
    assert torch.allclose(found.tm_score, turned.tm_score.flip(0), atol=5e-3)
    assert (30 - turned.reference.flip(0))[1] == found.reference[1] == 30


def test_unfit_structures_are_named():
    with pytest.raises(UserError, match="no reference structure"):
        StructureIndex.of([])
    with pytest.raises(UserError, match="reference 1: expected CA positions"):
        StructureIndex.of([ca(COBROTOXIN), torch.zeros(2, 3)])
    with pytest.raises(UserError, match="query 0: a CA position is not finite"):
        max_tm([ca(COBROTOXIN) * torch.nan], StructureIndex.of([ca(COBROTOXIN)]))


# Clusters


def matrix(size: int, links: dict[tuple[int, int], float]) -> torch.Tensor:
    scores = torch.eye(size)
    for (i, j), value in links.items():
        scores[i, j] = scores[j, i] = value
    return scores


def test_clusters_are_connected_components():
    scores = matrix(7, {(0, 3): 0.7, (3, 5): 0.6, (1, 4): 0.55, (0, 1): 0.4})
    assert cluster(scores, 0.5).tolist() == [0, 1, 2, 0, 1, 0, 3]
    assert cluster(scores, 0.6).tolist() == [0, 1, 2, 0, 3, 0, 4]
    assert cluster(scores, 0.4).tolist() == [0, 0, 1, 0, 0, 0, 2]
    assert cluster(scores, 1.1).tolist() == list(range(7))


def test_long_chains_of_links_are_one_cluster():
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0)).tolist()
    scores = matrix(50, {pair: 0.8 for pair in zip(order, order[1:], strict=False)})
    assert cluster(scores, 0.5).unique().tolist() == [0]
    scores[order[24], order[25]] = 0.1  # one normalisation is enough to part them
    assert len(cluster(scores, 0.5).unique()) == 2


def test_scores_that_are_not_known_do_not_link():
    scores = torch.full((3, 3), torch.nan)
    scores[0, 2] = scores[2, 0] = 0.9
    assert cluster(scores, 0.5).tolist() == [0, 1, 0]


def test_clusters_of_nothing_and_of_one():
    assert cluster(torch.zeros(0, 0), 0.5).tolist() == []
    assert cluster(torch.ones(1, 1), 0.5).tolist() == [0]
