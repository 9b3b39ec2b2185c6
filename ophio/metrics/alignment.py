"""TM-score of two structures of different chains: which residues correspond is part of the search.

The search is in the manner of TM-align (Zhang & Skolnick 2005, Nucleic Acids Res. 33:2302), for a batch of pairs at once:
superpose, pair the residues by dynamic programming on the TM terms 1 / (1 + d^2 / d0^2), superpose the pairs, repeat. It
starts from superpositions of fragments, and from an alignment of environments: what surrounds a point, in a frame of its
own. Starts are told apart on traces of block means, four residues a point and then three, where a round costs a tenth; the
best few go on to single residues.

Two steps are exact where TM-align goes by rules of thumb. Gaps cost nothing, so the pairing is the one of highest TM sum
in its superposition. And a superposition weights each pair by its squared TM term: as 1 / (1 + u) is convex, that never
lowers the TM sum of the pairs.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from einops import rearrange, reduce, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize, pad
from torch.nn.utils.rnn import pad_sequence

from ophio.errors import UserError
from ophio.geometry import kabsch, pairwise_vectors, safe_norm, transform
from ophio.metrics.similarity import tm_distance_scale

FRAGMENT = 24  # residues, superposed to start from
FRAGMENTS = 8  # of each chain, evenly spread over it
BLOCK, SEEDS = 4, 16  # residues a point where all starts are compared, and how many go on
ENVIRONMENT_RADIUS = 13.0  # Å
ENVIRONMENT_SIMILARITY = 0.25  # times the squared distance of two environments: the exponent of their similarity
COARSE_BLOCK, COARSE_ROUNDS = 3, (8, 6, 4)  # residues a point, and how many superpositions each round passes on
COARSE_SCALE = 1.5  # times d0: block means of equal folds lie farther apart than residues
COARSE_FLOOR = 4.5  # Å
QUICK_ROUNDS = 3
FINE_ROUNDS = (2, 1, 1)
COARSE_RADIUS, FINE_RADIUS = 2.0, 0.5  # Å RMSD; superpositions closer than that count as one
SUPERPOSITIONS = 3  # after each pairing
FINAL_SUPERPOSITIONS = 4
MIN_LENGTH = 3
CELLS = 2**22  # of dynamic programming held at once: bounds the memory, and a few such tables fit the cache of a core
PAIRS = 256  # padded into one batch
LENGTH_STEP = 8  # chains of a batch differ by less, where there are enough of them
FAR = 1e4  # Å, where padding lies. That of the target is farther still, so no two points of padding ever meet
TARGET_FAR = 8 * FAR


class Alignment(NamedTuple):
    """The best superposition found, R x + t of the query, and the residues paired under it.

    `target_index[i]` is the target residue paired with query residue i, or -1. Pairs keep the order of both chains. All
    that can be made are listed: those far apart add next to nothing to the scores.
    """

    query_tm: Float[Tensor, "batch"]  # normalised by the length of the query, 0..1
    target_tm: Float[Tensor, "batch"]  # normalised by the length of the target
    rotation: Float[Tensor, "batch 3 3"]  # that of query_tm
    translation: Float[Tensor, "batch 3"]
    target_index: Int[Tensor, "batch n"]


@torch.no_grad()
def tm_align(
    query: Float[Tensor, "batch n 3"],
    target: Float[Tensor, "batch m 3"],
    query_mask: Bool[Tensor, "batch n"] | None = None,
    target_mask: Bool[Tensor, "batch m"] | None = None,
) -> Alignment:
    """Structural alignment of CA traces (Å), pair by pair; the masks mark the residues that exist (default: all).

    The scores are lower bounds of the maximum, as those of TM-align. NaN where a chain has fewer than three residues.
    """
    x, y = _packed(query, query_mask, FAR), _packed(target, target_mask, TARGET_FAR)
    pairs = _pairs(x, y)
    placements = _coarse_search(pairs)
    for kept in FINE_ROUNDS:
        placements = _distinct(pairs, _improved(pairs, placements), kept, FINE_RADIUS)
    return _alignment(pairs, placements, x, y)


@torch.no_grad()
def coarse_tm(
    query: Float[Tensor, "batch n 3"],
    target: Float[Tensor, "batch m 3"],
    query_mask: Bool[Tensor, "batch n"] | None = None,
    target_mask: Bool[Tensor, "batch m"] | None = None,
) -> Float[Tensor, "batch"]:
    """An estimate of `tm_align(...).query_tm` in a twentieth of the time, to rank candidates by.

    The score of block means, searched for from the alignment of environments alone.
    """
    pairs = _pairs(_packed(query, query_mask, FAR), _packed(target, target_mask, TARGET_FAR))
    coarse, placements = _coarse(pairs, BLOCK), _environment_start(pairs)
    for _ in range(QUICK_ROUNDS):
        placements = _improved(coarse, placements)
    return _defined(pairs, placements.score[:, 0] * BLOCK / pairs.query_length)


def tm_scores(
    queries: Sequence[Float[Tensor, "_ 3"]],
    targets: Sequence[Float[Tensor, "_ 3"]],
    pairs: Int[Tensor, "p 2"],
) -> Float[Tensor, "p 2"]:
    """TM-scores of queries[i] and targets[j] for every row i, j of `pairs`, normalised by the query and by the target."""
    return in_batches(lambda *batch: torch.stack(tm_align(*batch)[:2], -1), queries, targets, pairs)


def likely_alike(
    structures: Sequence[Float[Tensor, "_ 3"]], pairs: Int[Tensor, "p 2"], estimate: float
) -> Int[Tensor, "kept 2"]:
    """The `pairs` of CA traces (Å) whose `coarse_tm`, normalised by the longer trace, reaches `estimate`."""
    if not len(pairs):
        return pairs
    query, target = torch.tensor([len(structure) for structure in structures])[pairs].unbind(-1)
    scores = in_batches(coarse_tm, structures, structures, pairs) * query / torch.maximum(query, target)
    return pairs[scores >= estimate]


def pairwise_tm(structures: Sequence[Float[Tensor, "_ 3"]]) -> Float[Tensor, "s s"]:
    """TM-scores of all pairs of CA traces (Å); entry i, j is normalised by the length of structure i, the diagonal 1."""
    pairs = torch.combinations(torch.arange(len(structures)))
    i, j = pairs.unbind(-1)
    scores = tm_scores(structures, structures, pairs)
    matrix = torch.eye(len(structures), device=scores.device)
    matrix[i, j], matrix[j, i] = scores.unbind(-1)
    return matrix


def in_batches(
    function: Callable[..., Tensor],
    queries: Sequence[Float[Tensor, "_ 3"]],
    targets: Sequence[Float[Tensor, "_ 3"]],
    pairs: Int[Tensor, "p 2"],
) -> Float[Tensor, "p ..."]:
    """`function(query, target, query_mask, target_mask)` of the chains that the rows of `pairs` name, in their order.

    Chains of similar lengths are padded together. Raises UserError where there is no pair or a chain is unfit.
    """
    if not len(pairs):
        raise UserError("no pair of structures to compare: give at least one query and one target")
    check_chains(queries, "query")
    check_chains(targets, "target")
    n, m = (torch.tensor([len(chain) for chain in chains]) for chains in (queries, targets))
    size = (n[pairs[:, 0]] // LENGTH_STEP) * (int(m.max()) + 1) + m[pairs[:, 1]]
    order = size.argsort()
    results = []
    for chosen in order.split(PAIRS):
        query, query_mask = pad_chains([queries[i] for i in pairs[chosen, 0].tolist()])
        target, target_mask = pad_chains([targets[j] for j in pairs[chosen, 1].tolist()])
        results.append(function(query, target, query_mask, target_mask))
    return torch.cat(results)[order.argsort()]


def check_chains(chains: Sequence[Tensor], name: str) -> None:
    """Raises UserError for the first chain that is not three or more finite points."""
    for number, chain in enumerate(chains):
        if chain.dim() != 2 or chain.shape[1] != 3 or len(chain) < MIN_LENGTH:
            raise UserError(
                f"{name} {number}: expected CA positions [{MIN_LENGTH} or more, 3], got {list(chain.shape)}"
            )
        if not chain.isfinite().all():
            raise UserError(f"{name} {number}: a CA position is not finite")


def pad_chains(chains: Sequence[Float[Tensor, "_ 3"]]) -> tuple[Float[Tensor, "b n 3"], Bool[Tensor, "b n"]]:
    """One batch of all, and which of its points are residues."""
    lengths = torch.tensor([len(chain) for chain in chains], device=chains[0].device)
    positions = pad_sequence(list(chains), batch_first=True)
    return positions, torch.arange(positions.shape[1], device=lengths.device) < lengths[:, None]


# Chains


class _Packed(NamedTuple):
    positions: Float[Tensor, "batch n 3"]  # residues first, their mean at the origin; then padding, far away
    length: Int[Tensor, "batch"]
    order: Int[Tensor, "batch n"]  # where each came from
    centre: Float[Tensor, "batch 3"]


def _packed(positions: Float[Tensor, "b n 3"], mask: Bool[Tensor, "b n"] | None, far: float) -> _Packed:
    mask = positions.new_ones(positions.shape[:2], dtype=torch.bool) if mask is None else mask
    order = (~mask).int().argsort(dim=1, stable=True)
    positions, mask = _take(positions.float(), order), mask.gather(1, order)
    length = mask.sum(-1)
    positions = positions.masked_fill(~mask[..., None], 0.0)
    centre = positions.sum(1) / length.clamp(min=1)[:, None]
    return _Packed(torch.where(mask[..., None], positions - centre[:, None], far), length, order, centre)


class _Pairs(NamedTuple):
    query: Float[Tensor, "batch n 3"]
    target: Float[Tensor, "batch m 3"]
    query_length: Int[Tensor, "batch"]
    target_length: Int[Tensor, "batch"]
    d0: Float[Tensor, "batch"]  # Å
    axes: Float[Tensor, "batch 3 3"]  # a a^T is the covariance of the query


def _pairs(query: _Packed, target: _Packed) -> _Pairs:
    real = (query.positions < FAR).all(-1, keepdim=True)
    points = query.positions * real / query.length.clamp(min=1).sqrt()[:, None, None]
    values, vectors = torch.linalg.eigh(points.mT @ points)
    axes = vectors * values.clamp(min=0).sqrt()[:, None]
    d0 = _distance_scale(torch.minimum(query.length, target.length))
    return _Pairs(query.positions, target.positions, query.length, target.length, d0, axes)


def _distance_scale(length: Int[Tensor, "b"]) -> Float[Tensor, "b"]:
    return torch.tensor([tm_distance_scale(n) for n in length.tolist()], device=length.device)


def _coarse(pairs: _Pairs, block: int) -> _Pairs:
    """Both chains as means of `block` residues; a block that is not full lies far away, like padding."""
    query, target = _blocks(pairs.query, block, FAR), _blocks(pairs.target, block, TARGET_FAR)
    return pairs._replace(query=query, target=target, d0=(COARSE_SCALE * pairs.d0).clamp(min=COARSE_FLOOR))


def _blocks(chain: Float[Tensor, "b n 3"], block: int, far: float) -> Float[Tensor, "b k 3"]:
    filled = pad(chain, (0, 0, 0, -chain.shape[1] % block), value=far)
    return reduce(filled, "b (k block) xyz -> b k xyz", "mean", block=block)


def _take(points: Float[Tensor, "b n 3"], index: Int[Tensor, "b k"]) -> Float[Tensor, "b k 3"]:
    return points.gather(1, repeat(index, "b k -> b k xyz", xyz=3))


# Environments


class Environments(NamedTuple):
    """Two embeddings of the surroundings of every block of four residues: exp(query . target) is a similarity, 0..1.

    It does not change when a chain moves, and it tells mirror images apart. That of an incomplete block is 0.
    """

    query: Float[Tensor, "batch blocks features"]
    target: Float[Tensor, "batch blocks features"]


@torch.no_grad()
def environments(chain: Float[Tensor, "b n 3"], mask: Bool[Tensor, "b n"] | None = None) -> Environments:
    """What lies around each block of CA atoms (Å): how much, and running which way, in axes made of the chain itself."""
    packed = _packed(chain, mask, FAR)
    return _environments(_blocks(packed.positions, BLOCK, FAR), packed.length)


def _environments(blocks: Float[Tensor, "b k 3"], length: Int[Tensor, "b"]) -> Environments:
    features = _surroundings(blocks, length // BLOCK)
    complete = torch.arange(blocks.shape[1], device=blocks.device) < (length // BLOCK)[:, None]
    features = features * complete[..., None]
    size = -ENVIRONMENT_SIMILARITY * features.square().sum(-1, keepdim=True) - FAR * ~complete[..., None]
    one = torch.ones_like(size)
    return Environments(
        torch.cat([2 * ENVIRONMENT_SIMILARITY * features, size, one], -1), torch.cat([features, one, size], -1)
    )


def _surroundings(blocks: Float[Tensor, "b k 3"], count: Int[Tensor, "b"]) -> Float[Tensor, "b k 12"]:
    """Sums over the blocks near each, before it in the chain and after it: of the directions to them, of theirs.

    The axes are the direction of the chain, that to the middle of the nearby blocks, and the normal of both.
    """
    number = torch.arange(blocks.shape[1], device=blocks.device)
    last = (count - 1).clamp(min=0)[:, None]
    following, previous = (torch.minimum((number + step).clamp(min=0), last) for step in (1, -1))
    direction = normalize(_take(blocks, following) - _take(blocks, previous), dim=-1)
    vectors = pairwise_vectors(blocks)
    distance = safe_norm(vectors, keepdim=True)
    separation = number - number[:, None]
    weight = (-((distance / ENVIRONMENT_RADIUS) ** 2)).exp() * (separation.abs() > 1)[..., None]
    inward = (weight * vectors).sum(2)
    inward = normalize(inward - (inward * direction).sum(-1, keepdim=True) * direction, dim=-1)
    axes = torch.stack([direction, inward, torch.linalg.cross(direction, inward)], dim=-1)
    sums = []
    for side in (separation < 0, separation > 0):
        near = weight * side[..., None]
        sums += [(near / distance * vectors).sum(2), near.squeeze(-1) @ direction]
    return rearrange(torch.stack(sums, -2) @ axes, "b k sums axes -> b k (sums axes)")


# Search


class _Placements(NamedTuple):
    """Superpositions of each query on its target, R x + t, with the TM sum of the points paired under them."""

    rotation: Float[Tensor, "batch k 3 3"]
    translation: Float[Tensor, "batch k 3"]
    score: Float[Tensor, "batch k"]


def _coarse_search(pairs: _Pairs) -> _Placements:
    """The best few superpositions of block means, best first."""
    starts = (
        torch.cat(values, 1) for values in zip(_fragment_starts(pairs), _environment_start(pairs)[:2], strict=True)
    )
    placements = _distinct(pairs, _scored(_coarse(pairs, BLOCK), *starts), SEEDS, COARSE_RADIUS)
    coarse = _coarse(pairs, COARSE_BLOCK)
    for kept in COARSE_ROUNDS:
        placements = _distinct(pairs, _improved(coarse, placements), kept, COARSE_RADIUS)
    return placements


def _environment_start(pairs: _Pairs) -> _Placements:
    """The superposition of the blocks whose environments are paired, weighted by their similarity."""
    blocks = _coarse(pairs, BLOCK)
    query = _environments(blocks.query, pairs.query_length).query
    target = _environments(blocks.target, pairs.target_length).target
    similarity = (query @ target.mT).exp()
    sums = best_sums(rearrange(similarity, "b n m -> n m b").contiguous())
    index = _traceback(sums)
    weight = similarity.gather(2, index.clamp(min=0)[..., None]).squeeze(-1) * (index >= 0)
    rotation, translation = kabsch(blocks.query, _take(blocks.target, index.clamp(min=0)), weight.square())
    return _Placements(rotation[:, None], translation[:, None], sums[-1, -1][:, None])


def _fragment_starts(pairs: _Pairs) -> tuple[Float[Tensor, "b k 3 3"], Float[Tensor, "b k 3"]]:
    """Every fragment of the query superposed on every fragment of the target."""
    size = torch.minimum(pairs.query_length, pairs.target_length).clamp(max=FRAGMENT)
    query = _fragments(pairs.query, pairs.query_length, size)
    target = _fragments(pairs.target, pairs.target_length, size)
    inside = torch.arange(FRAGMENT, device=size.device) < size[:, None]
    return kabsch(
        repeat(query, "b i n xyz -> b (i j) n xyz", j=FRAGMENTS),
        repeat(target, "b j n xyz -> b (i j) n xyz", i=FRAGMENTS),
        repeat(inside, "b n -> b k n", k=FRAGMENTS**2),
    )


def _fragments(
    chain: Float[Tensor, "b n 3"], length: Int[Tensor, "b"], size: Int[Tensor, "b"]
) -> Float[Tensor, "b fragments points 3"]:
    """Fragments from the first residue to the last; points beyond `size` are of no account."""
    spread = torch.linspace(0, 1, FRAGMENTS, device=chain.device)
    start = ((length - size)[:, None] * spread).round().long()
    index = start[..., None] + torch.arange(FRAGMENT, device=chain.device)
    points = _take(chain, rearrange(index, "b k n -> b (k n)").clamp(max=chain.shape[1] - 1))
    return rearrange(points, "b (k n) xyz -> b k n xyz", n=FRAGMENT)


def _scored(pairs: _Pairs, rotation: Float[Tensor, "b k 3 3"], translation: Float[Tensor, "b k 3"]) -> _Placements:
    """The placements with the TM sum of the best pairing under each."""
    sums = [best_sums(_terms(part))[-1, -1] for part in _parts(pairs, rotation, translation)]
    return _Placements(rotation, translation, torch.cat(sums).reshape(rotation.shape[:2]))


def _improved(pairs: _Pairs, placements: _Placements) -> _Placements:
    """One round: the best pairing under each placement, superposed anew, and the TM sum it then has."""
    parts = _parts(pairs, placements.rotation, placements.translation)
    found = [_superposed(part, _pairing(part), SUPERPOSITIONS) for part in parts]
    shape = placements.score.shape
    return _Placements(*(torch.cat(v).reshape((*shape, *v[0].shape[1:])) for v in zip(*found, strict=True)))


def _distinct(pairs: _Pairs, placements: _Placements, kept: int, radius: float) -> _Placements:
    """The best placements that are no closer to each other than `radius` (Å RMSD of the query); others fill up."""
    shape = (placements.rotation @ pairs.axes[:, None]).flatten(-2)
    position = torch.cat([shape, placements.translation], dim=-1)
    rmsd = torch.cdist(position, position)
    score, chosen = placements.score, []
    for _ in range(kept):
        best = score.argmax(-1)
        chosen.append(best)
        near = rmsd[torch.arange(len(best), device=best.device), best] < radius
        score = score - FAR * near  # more than any TM sum
    index = torch.stack(chosen, -1)
    rows = torch.arange(len(index), device=index.device)[:, None]
    return _Placements(*(values[rows, index] for values in placements))


def _alignment(pairs: _Pairs, placements: _Placements, query: _Packed, target: _Packed) -> Alignment:
    """The pairing under the best placement, and its superpositions of highest TM-score for either length."""
    part = _Placed(pairs.query, pairs.target, pairs.d0, placements.rotation[:, 0], placements.translation[:, 0])
    index = _pairing(part)
    index = index.masked_fill((index >= pairs.target_length[:, None]) | (pairs.query >= FAR).any(-1), -1)
    of_query, of_target = (
        _superposed(part._replace(d0=_distance_scale(length)), index, FINAL_SUPERPOSITIONS)
        for length in (pairs.query_length, pairs.target_length)
    )
    rotation = of_query.rotation
    return Alignment(
        _defined(pairs, of_query.score / pairs.query_length),
        _defined(pairs, of_target.score / pairs.target_length),
        rotation,
        of_query.translation + target.centre - (rotation @ query.centre[..., None]).squeeze(-1),
        _unpacked(index, query, target),
    )


def _unpacked(index: Int[Tensor, "b n"], query: _Packed, target: _Packed) -> Int[Tensor, "b n"]:
    """The pairs in the numbering of the chains as given."""
    original = target.order.gather(1, index.clamp(min=0)).masked_fill(index < 0, -1)
    return torch.empty_like(index).scatter_(1, query.order, original)


def _defined(pairs: _Pairs, score: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
    return score.masked_fill(torch.minimum(pairs.query_length, pairs.target_length) < MIN_LENGTH, torch.nan)


# One round, for chains in one placement each


class _Placed(NamedTuple):
    query: Float[Tensor, "batch n 3"]
    target: Float[Tensor, "batch m 3"]
    d0: Float[Tensor, "batch"]
    rotation: Float[Tensor, "batch 3 3"]
    translation: Float[Tensor, "batch 3"]


class _Superposed(NamedTuple):
    rotation: Float[Tensor, "batch 3 3"]
    translation: Float[Tensor, "batch 3"]
    score: Float[Tensor, "batch"]  # TM sum of the pairs


def _parts(pairs: _Pairs, rotation: Float[Tensor, "b k 3 3"], translation: Float[Tensor, "b k 3"]) -> Iterator[_Placed]:
    """Every placement of every pair, so many at a time as CELLS allows."""
    query, target = (repeat(chain, "b n xyz -> (b k) n xyz", k=rotation.shape[1]) for chain in pairs[:2])
    d0 = repeat(pairs.d0, "b -> (b k)", k=rotation.shape[1])
    every = _Placed(query, target, d0, rotation.flatten(0, 1), translation.flatten(0, 1))
    size = max(1, CELLS // (query.shape[1] * target.shape[1]))
    return map(_Placed._make, zip(*(values.split(size) for values in every), strict=True))


def _superposed(placed: _Placed, index: Int[Tensor, "b n"], rounds: int) -> _Superposed:
    """Superpositions of the pairs, each weighted by the placement before: the TM sum of the pairs rises."""
    partner, paired = _take(placed.target, index.clamp(min=0)), index >= 0
    rotation, translation = placed.rotation, placed.translation

    def terms() -> Float[Tensor, "b n"]:
        squared = (transform(placed.query, rotation, translation) - partner).square().sum(-1)
        return paired / (1 + squared / placed.d0[:, None] ** 2)

    for _ in range(rounds):
        rotation, translation = kabsch(placed.query, partner, terms().square())
    return _Superposed(rotation, translation, terms().sum(-1))


def _pairing(placed: _Placed) -> Int[Tensor, "b n"]:
    """For every query residue the target residue paired with it, or -1, such that the sum of the TM terms is highest."""
    return _traceback(best_sums(_terms(placed)))


def _terms(placed: _Placed) -> Float[Tensor, "n m b"]:
    """1 / (1 + d^2 / d0^2) of all residues. The batch comes last: steps along a diagonal then read whole rows."""
    scale = placed.d0[:, None, None]
    x = rearrange(transform(placed.query, placed.rotation, placed.translation) / scale, "b n xyz -> xyz n b")
    y = rearrange(placed.target / scale, "b m xyz -> xyz m b")
    x, y = x.contiguous(), y.contiguous()
    table = (x.square().sum(0) + 1)[:, None] + y.square().sum(0)
    for a, b in zip(x, y, strict=True):
        table.addcmul_(a[:, None], b, value=-2)
    return table.reciprocal_()


def best_sums(terms: Float[Tensor, "n m b"]) -> Float[Tensor, "n+1 m+1 b"]:
    """Entry i, j: the highest sum of pairs of the first i and the first j residues (Needleman & Wunsch 1970)."""
    n, m, batch = terms.shape
    sums = terms.new_zeros(n + 1, m + 1, batch)

    def diagonal(table: Tensor, i: int, j: int) -> Float[Tensor, "length b"]:
        """Entries i, j; i + 1, j - 1; ... of a table."""
        columns = table.shape[1]
        return table.as_strided((length, batch), ((columns - 1) * batch, 1), (i * columns + j) * batch)

    for k in range(n + m - 1):
        i = max(0, k - m + 1)
        j, length = k - i, min(n - 1, k) - i + 1
        best = diagonal(sums, i + 1, j + 1)
        torch.add(diagonal(sums, i, j), diagonal(terms, i, j), out=best)
        torch.maximum(best, diagonal(sums, i, j + 1), out=best)
        torch.maximum(best, diagonal(sums, i + 1, j), out=best)
    return sums


def _traceback(sums: Float[Tensor, "rows columns b"]) -> Int[Tensor, "b rows-1"]:
    """The pairs of the best sum: an entry is a pair unless it equals the entry above it or to its left."""
    rows, columns, batch = sums.shape
    flat = sums.flatten()
    up, left = columns * batch, batch
    offsets = torch.tensor([[0], [up], [left]], device=sums.device)
    entry = torch.arange(batch, device=sums.device) + (rows * columns - 1) * batch
    path = []
    for _ in range(rows + columns):
        value, above, beside = flat[entry - offsets]
        if not value.any():
            break
        path.append(entry)
        step = torch.where(above == value, up, torch.where(beside == value, left, up + left))
        entry = entry - step * (value > 0)  # at 0 no pair is left
    path = torch.stack([*path, entry])
    pairs = torch.where(path[:-1] - path[1:] == up + left, path[:-1] // batch, 0)
    index = pairs.new_zeros(rows, batch).scatter_(0, pairs // columns, pairs % columns)
    return index[1:].T - 1
