"""What a model of a given shape costs: parameters by group and FLOPs per token, without building it.

Symbols
    d  width, the residual stream              f  ffn_width, the inner size of SwiGLU
    L  depth, the number of blocks             s  seq_len, tokens per sequence
    V  vocab_size                              h  head_size
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelShape:
    """The shape of a decoder-only transformer, which fixes its parameter count and its FLOPs."""

    width: int
    """Size of the residual stream."""
    depth: int
    """Number of transformer blocks."""
    head_size: int
    """Size of one attention head; width / head_size heads."""
    ffn_width: int
    """Inner size of the SwiGLU feed-forward."""
    vocab_size: int
    """Rows of the embedding."""
    tied_head: bool = False
    """The output head is the embedding transposed."""
    qk_norm: bool = False
    """RMSNorm on queries and keys, with a gain per head dimension."""
    activation: str = "swiglu"
    """`swiglu` has three matrices, `relu2` two."""
    queries_per_key: int = 1
    """Query heads per key and value head."""
    experts: int = 0
    """Routed experts per block; 0 for a dense feed-forward."""
    active_experts: int = 0
    """Routed experts that a token goes through."""
    shared_experts: int = 0
    """Experts that every token goes through."""
    expert_width: int = 0
    """Inner size of one expert."""

    @property
    def key_value_width(self) -> int:
        """Size of all keys (and of all values) of a position."""
        return self.width // self.queries_per_key

    def count_params(self) -> dict[str, int]:
        """Parameters by group. `embedding` and `head` are what `params_non_embedding` leaves out."""
        d, layers = self.width, self.depth
        return {
            "embedding": self.vocab_size * d,
            "attention": layers * (2 * d * d + 2 * d * self.key_value_width),
            "feed_forward": layers * self._feed_forward(self.experts + self.shared_experts),
            **({"router": layers * d * self.experts} if self.experts else {}),
            "norms": layers * 2 * d + d + (layers * 2 * self.head_size if self.qk_norm else 0),
            "head": 0 if self.tied_head else self.vocab_size * d,
        }

    @property
    def params_total(self) -> int:
        """Every trained parameter, once."""
        return sum(self.count_params().values())

    @property
    def params_active(self) -> int:
        """Those that one token goes through; all of them in a dense model."""
        idle = self._feed_forward(self.experts - self.active_experts) if self.experts else 0
        return self.params_total - self.depth * idle

    @property
    def activation_ratio(self) -> float:
        """Share of the experts that a token goes through (Tian et al. 2025); 1 for a dense model."""
        if not self.experts:
            return 1.0
        return (self.active_experts + self.shared_experts) / (self.experts + self.shared_experts)

    @property
    def params_non_embedding(self) -> int:
        """All but the input embedding and the output head (Kaplan et al. 2020, section 2.1)."""
        groups = self.count_params()
        return self.params_total - groups["embedding"] - groups["head"]

    def flops_per_token(self, seq_len: int) -> int:
        """Training FLOPs (forward and backward) per token: 6 (active matrix parameters) + 12 L d s.

        Source: Chowdhery et al. 2022 (PaLM), appendix B. Matrix parameters are those of the blocks and the output
        head, which multiplies even when it is tied; the embedding is a look-up. Attention is counted without
        the causal half, as the field does. A backward pass costs two forward passes.
        """
        groups = self.count_params()
        blocks = groups["attention"] + groups.get("router", 0)
        blocks += self.depth * self._feed_forward(self.active_experts + self.shared_experts)
        return 6 * (blocks + self.vocab_size * self.width) + 12 * self.depth * self.width * seq_len

    def _feed_forward(self, experts: int) -> int:
        """Matrix parameters of one block's feed-forward, dense or of so many experts."""
        matrices = 3 if self.activation == "swiglu" else 2
        return matrices * self.width * (self.expert_width * experts if self.experts else self.ffn_width)


@dataclass(frozen=True)
class MeasuredShape:
    """Counts read off a model whose layers are not ours; the same questions as `ModelShape` answers."""

    params_total: int
    """Every trained parameter, once."""
    params_embedding: int
    """Those of the input embeddings, position embeddings among them."""
    params_head: int
    """Those of the output head; 0 where it is tied."""
    params_active: int
    """Those that one token goes through."""
    activation_ratio: float
    """Share of the experts that a token goes through; 1 for a dense model."""
    groups: dict[str, int]
    """Parameters by group."""
    matrix_params_active: int
    """Matrix parameters that one token is multiplied with, the head among them."""
    attention_width: int
    """Sum over the layers of query heads times head size, which attention multiplies with the sequence."""

    def count_params(self) -> dict[str, int]:
        """Parameters by group."""
        return dict(self.groups)

    @property
    def params_non_embedding(self) -> int:
        """All but the input embedding and the output head."""
        return self.params_total - self.params_embedding - self.params_head

    def flops_per_token(self, seq_len: int) -> int:
        """Training FLOPs per token by the formula of `ModelShape.flops_per_token`."""
        return 6 * self.matrix_params_active + 12 * self.attention_width * seq_len


def choose_ffn_width(width: int, ratio: float, multiple: int = 8) -> int:
    """The SwiGLU inner size nearest to ratio x width that is a multiple of `multiple` (matrix kernels like that).

    >>> choose_ffn_width(64, 8 / 3)
    168
    """
    return max(multiple, round(width * ratio / multiple) * multiple)
