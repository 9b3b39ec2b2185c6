"""The network of ProteinMPNN: residue probabilities of a backbone, one residue after the other in any order.

J. Dauparas et al., "Robust deep learning-based protein sequence design using ProteinMPNN", Science 378, 49-56 (2022).
Parameters are named as in the published weights. Written for many sequences of one backbone: it is encoded once, and of
every message only the part that depends on the sequence is computed at each step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ophio.backbone import ideal_cb
from ophio.constants import CA, NUM_TYPES, UNKNOWN

HIDDEN = 128
DEPTH = 3  # encoder layers, and decoder layers
MESSAGE_SCALE = 30.0
LETTERS = NUM_TYPES + 1  # the residue types in the order of RESIDUE_LETTERS, and X
FARTHEST_OFFSET = 32  # residues along the chain
OFFSET_CHANNELS = 16
RBF_CENTRES, RBF_FIRST, RBF_LAST = 16, 2.0, 22.0  # Å
MIN_SQUARE = 1e-6  # Å²: added to every squared distance, as in training
ATOMS = ("N", "CA", "C", "O", "CB")  # slots 0 to 4
ATOM_PAIRS = (
    "CA-CA N-N C-C O-O CB-CB CA-N CA-C CA-O CA-CB N-C N-O N-CB CB-C CB-O O-C "
    "N-CA C-CA O-CA CB-CA C-N O-N CB-N C-CB O-CB C-O"
)  # of a residue and its neighbour, in the order of the weights
_HERE, _THERE = zip(*(map(ATOMS.index, pair.split("-")) for pair in ATOM_PAIRS.split()), strict=True)


@dataclass(frozen=True)
class Encoded:
    """What the decoder needs to know of B backbones, whatever their sequences."""

    nodes: Float[Tensor, "B L H"]
    neighbours: Int[Tensor, "B L K"]  # indices of residues, itself among them
    attend: Bool[Tensor, "B L K"]  # False where a neighbour is no complete residue
    contexts: list[Float[Tensor, "B L K H"]]  # for each decoder layer, the part of messages without a sequence


class Network(nn.Module):
    """Encoder and decoder over the graph of each residue's `num_neighbours` nearest residues."""

    def __init__(self, num_neighbours: int = 48) -> None:
        super().__init__()
        self.features = EdgeFeatures(num_neighbours)
        self.W_e = nn.Linear(HIDDEN, HIDDEN)
        self.W_s = nn.Embedding(LETTERS, HIDDEN)
        self.encoder_layers = nn.ModuleList(EncoderLayer() for _ in range(DEPTH))
        self.decoder_layers = cast(Sequence["DecoderLayer"], nn.ModuleList(DecoderLayer() for _ in range(DEPTH)))
        self.W_out = nn.Linear(HIDDEN, LETTERS)

    def encode(
        self, backbone: Float[Tensor, "B L 4 3"], mask: Bool[Tensor, "B L"], index: Int[Tensor, "B L"]
    ) -> Encoded:
        """From N, CA, C, O (Å); `mask`: False where a residue lacks any; `index`: numbers residues along the chain."""
        edges, neighbours = self.features(backbone, mask, index)
        attend = gather(mask[..., None], neighbours)[..., 0]
        edges = self.W_e(edges)
        nodes = edges.new_zeros(*mask.shape, HIDDEN)
        for layer in self.encoder_layers:
            nodes, edges = layer(nodes, edges, neighbours, attend)
        contexts = [layer.context(nodes, edges, neighbours) for layer in self.decoder_layers]
        return Encoded(nodes, neighbours, attend, contexts)

    def decode(
        self,
        encoded: Encoded,
        order: Int[Tensor, "N steps"],
        noise: Float[Tensor, "N L 20"] | None = None,
        given: Int[Tensor, "N L"] | None = None,
    ) -> tuple[Int[Tensor, "N L"], Float[Tensor, "N L 21"]]:
        """Residue types, and the log-probabilities (of all 21 letters) at the time when each was chosen.

        N is a multiple of B: as many sequences of the first backbone, then of the second, and so on. Residues are
        visited in `order`, each once; those not in it stay `UNKNOWN`, with log-probability 0. With `noise`, the type with
        the highest sum of logit and noise is taken, never X: a temperature times Gumbel distributed numbers samples at
        that temperature. Without, the `given` type is. Raises ValueError without either.
        """
        num, length = order.shape[0], encoded.nodes.shape[1]
        row = torch.arange(num, device=order.device)
        backbone = row // (num // encoded.nodes.shape[0])
        memories = [encoded.nodes.new_zeros(num, length, HIDDEN) for _ in self.decoder_layers]
        chosen = order.new_full((num, length), UNKNOWN)
        log_probabilities = encoded.nodes.new_zeros(num, length, LETTERS)
        for residue in order.unbind(1):
            neighbours, attend = encoded.neighbours[backbone, residue], encoded.attend[backbone, residue]
            states = [encoded.nodes[backbone, residue]]
            for layer, context, memory in zip(self.decoder_layers, encoded.contexts, memories, strict=True):
                messages = context[backbone, residue] + memory[row[:, None], neighbours]
                states.append(layer(states[-1], messages, attend))
            logits = self.W_out(states[-1])
            if noise is not None:
                choice = (logits[:, :NUM_TYPES] + noise[row, residue]).argmax(-1)
            elif given is not None:
                choice = given[row, residue]
            else:
                raise ValueError("decode needs noise to choose residue types with, or given ones")
            chosen[row, residue] = choice
            log_probabilities[row, residue] = logits.log_softmax(-1)
            for layer, memory, state in zip(self.decoder_layers, memories, states[:-1], strict=True):
                memory[row, residue] = layer.memory(state - states[0], self.W_s(choice))
        return chosen, log_probabilities


class EdgeFeatures(nn.Module):
    """Distances between all backbone atoms of neighbours, and how far apart they are along the chain."""

    def __init__(self, num_neighbours: int) -> None:
        super().__init__()
        self.num_neighbours = num_neighbours
        self.embeddings = nn.ModuleDict({"linear": nn.Linear(2 * FARTHEST_OFFSET + 2, OFFSET_CHANNELS)})
        self.edge_embedding = nn.Linear(OFFSET_CHANNELS + RBF_CENTRES * len(_HERE), HIDDEN, bias=False)
        self.norm_edges = nn.LayerNorm(HIDDEN)

    def forward(
        self, backbone: Float[Tensor, "B L 4 3"], mask: Bool[Tensor, "B L"], index: Int[Tensor, "B L"]
    ) -> tuple[Float[Tensor, "B L K H"], Int[Tensor, "B L K"]]:
        atoms = torch.cat([backbone, ideal_cb(backbone)[..., None, :]], -2)
        neighbours = self._nearest(atoms[..., CA, :], mask)
        around = gather(rearrange(atoms, "b l a x -> b l (a x)"), neighbours)
        around = rearrange(around, "b l k (a x) -> b l k a x", x=3)
        vectors = around[..., _THERE, :] - atoms[:, :, None, _HERE, :]
        distances = (vectors.square().sum(-1) + MIN_SQUARE).sqrt()
        offset = index[..., None] - gather(index[..., None], neighbours)[..., 0]
        edges = torch.cat([self._embed_offset(offset), rearrange(_rbf(distances), "... p c -> ... (p c)")], -1)
        return self.norm_edges(self.edge_embedding(edges)), neighbours

    def _nearest(self, ca: Float[Tensor, "B L 3"], mask: Bool[Tensor, "B L"]) -> Int[Tensor, "B L K"]:
        squares = (ca[:, :, None] - ca[:, None]).square().sum(-1).masked_fill(~mask[:, None], torch.inf)
        return squares.topk(min(self.num_neighbours, ca.shape[1]), largest=False).indices

    def _embed_offset(self, offset: Int[Tensor, "B L K"]) -> Float[Tensor, "B L K C"]:
        """The linear layer of a one-hot vector. (Its last column is for residues of another chain.)"""
        linear = cast(nn.Linear, self.embeddings["linear"])
        clipped = (offset + FARTHEST_OFFSET).clamp(0, 2 * FARTHEST_OFFSET)
        return F.embedding(clipped, linear.weight.T) + linear.bias


class FeedForward(nn.Module):
    """Two linear maps, four times as wide in between."""

    def __init__(self) -> None:
        super().__init__()
        self.W_in = nn.Linear(HIDDEN, 4 * HIDDEN)
        self.W_out = nn.Linear(4 * HIDDEN, HIDDEN)

    def forward(self, x: Float[Tensor, "*batch H"]) -> Float[Tensor, "*batch H"]:
        return self.W_out(F.gelu(self.W_in(x)))


class EncoderLayer(nn.Module):
    """Messages of neighbours change nodes, then edges. Messages come from (node, edge, neighbouring node)."""

    def __init__(self) -> None:
        super().__init__()
        self.W1, self.W11 = nn.Linear(3 * HIDDEN, HIDDEN), nn.Linear(3 * HIDDEN, HIDDEN)
        self.W2, self.W12 = nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, HIDDEN)
        self.W3, self.W13 = nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, HIDDEN)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(HIDDEN), nn.LayerNorm(HIDDEN), nn.LayerNorm(HIDDEN)
        self.dense = FeedForward()

    def forward(
        self,
        nodes: Float[Tensor, "B L H"],
        edges: Float[Tensor, "B L K H"],
        neighbours: Int[Tensor, "B L K"],
        attend: Bool[Tensor, "B L K"],
    ) -> tuple[Float[Tensor, "B L H"], Float[Tensor, "B L K H"]]:
        messages = F.gelu(self.W2(F.gelu(_of_triples(self.W1, nodes, edges, neighbours))))
        nodes = self.norm1(nodes + _aggregate(self.W3, messages, attend))
        nodes = self.norm2(nodes + self.dense(nodes))
        messages = F.gelu(self.W12(F.gelu(_of_triples(self.W11, nodes, edges, neighbours))))
        return nodes, self.norm3(edges + self.W13(messages))


class DecoderLayer(nn.Module):
    """Messages of neighbours change a node. They come from (node, edge, neighbour's residue type, neighbouring node).

    Neighbours that have no residue type yet send the encoder's node and no type. W1 of the four is a sum of four parts:
    that of the node is computed in `forward`; of the edge and the encoder's neighbouring node once, in `context`; and
    what a neighbour's type and its state in this layer add to it once, in its `memory`, which is 0 until then.
    """

    def __init__(self) -> None:
        super().__init__()
        self.W1, self.W2, self.W3 = nn.Linear(4 * HIDDEN, HIDDEN), nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, HIDDEN)
        self.norm1, self.norm2 = nn.LayerNorm(HIDDEN), nn.LayerNorm(HIDDEN)
        self.dense = FeedForward()

    def context(
        self, nodes: Float[Tensor, "B L H"], edges: Float[Tensor, "B L K H"], neighbours: Int[Tensor, "B L K"]
    ) -> Float[Tensor, "B L K H"]:
        """What edges and the encoder's neighbouring nodes add to the first layer of the messages."""
        _, of_edge, _, of_neighbour = self.W1.weight.split(HIDDEN, 1)
        return F.linear(edges, of_edge) + gather(F.linear(nodes, of_neighbour), neighbours)

    def memory(self, change: Float[Tensor, "N H"], residue_type: Float[Tensor, "N H"]) -> Float[Tensor, "N H"]:
        """`change`: from the encoder's node to this layer's; `residue_type`: embedded."""
        _, _, of_type, of_neighbour = self.W1.weight.split(HIDDEN, 1)
        return F.linear(change, of_neighbour) + F.linear(residue_type, of_type)

    def forward(
        self, node: Float[Tensor, "N H"], messages: Float[Tensor, "N K H"], attend: Bool[Tensor, "N K"]
    ) -> Float[Tensor, "N H"]:
        of_node = F.linear(node, self.W1.weight[:, :HIDDEN], self.W1.bias)
        messages = F.gelu(self.W2(F.gelu(messages + of_node[:, None])))
        node = self.norm1(node + _aggregate(self.W3, messages, attend))
        return self.norm2(node + self.dense(node))


def _of_triples(
    linear: nn.Linear, nodes: Float[Tensor, "B L H"], edges: Float[Tensor, "B L K H"], neighbours: Int[Tensor, "B L K"]
) -> Float[Tensor, "B L K H"]:
    """`linear` of (node, edge, neighbouring node) for every edge, without writing the three side by side."""
    of_node, of_edge, of_neighbour = linear.weight.split(HIDDEN, 1)
    here = F.linear(nodes, of_node, linear.bias)[:, :, None]
    return here + F.linear(edges, of_edge) + gather(F.linear(nodes, of_neighbour), neighbours)


def _aggregate(
    linear: nn.Linear, messages: Float[Tensor, "*batch K H"], attend: Bool[Tensor, "*batch K"]
) -> Float[Tensor, "*batch H"]:
    """Sum of `linear` of the messages of neighbours to attend to, which is `linear` of their sum but for the bias."""
    weight = attend.to(messages)[..., None]
    total = F.linear((messages * weight).sum(-2), linear.weight) + linear.bias * weight.sum(-2)
    return total / MESSAGE_SCALE


def gather(nodes: Tensor, neighbours: Int[Tensor, "B L K"]) -> Tensor:
    """Values [B, L, C] of the neighbours of every residue, [B, L, K, C]."""
    return nodes[torch.arange(len(nodes), device=nodes.device)[:, None, None], neighbours]


def _rbf(distances: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape C"]:
    centres = torch.linspace(RBF_FIRST, RBF_LAST, RBF_CENTRES, device=distances.device, dtype=distances.dtype)
    width = (RBF_LAST - RBF_FIRST) / RBF_CENTRES
    return torch.exp(-(((distances[..., None] - centres) / width) ** 2))
