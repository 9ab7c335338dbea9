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

    def count_params(self) -> dict[str, int]:
        """Parameters by group. `embedding` and `head` are what `params_non_embedding` leaves out."""
        d, f, layers = self.width, self.ffn_width, self.depth
        return {
            "embedding": self.vocab_size * d,
            "attention": layers * 4 * d * d,
            "feed_forward": layers * 3 * d * f,
            "norms": layers * 2 * d + d + (layers * 2 * self.head_size if self.qk_norm else 0),
            "head": 0 if self.tied_head else self.vocab_size * d,
        }

    @property
    def params_total(self) -> int:
        """Every trained parameter, once."""
        return sum(self.count_params().values())

    @property
    def params_non_embedding(self) -> int:
        """All but the input embedding and the output head (Kaplan et al. 2020, section 2.1)."""
        groups = self.count_params()
        return groups["attention"] + groups["feed_forward"] + groups["norms"]

    def flops_per_token(self, seq_len: int) -> int:
        """Training FLOPs (forward and backward) per token: 6 (matrix parameters) + 12 L d s.

        Source: Chowdhery et al. 2022 (PaLM), appendix B. Matrix parameters are those of the blocks and the output
        head, which multiplies even when it is tied; the embedding is a look-up. Attention is counted without
        the causal half, as the field does. A backward pass costs two forward passes.
        """
        groups = self.count_params()
        matrices = groups["attention"] + groups["feed_forward"] + self.vocab_size * self.width
        return 6 * matrices + 12 * self.depth * self.width * seq_len


def choose_ffn_width(width: int, ratio: float, multiple: int = 8) -> int:
    """The SwiGLU inner size nearest to ratio x width that is a multiple of `multiple` (matrix kernels like that).

    >>> choose_ffn_width(64, 8 / 3)
    168
    """
    return max(multiple, round(width * ratio / multiple) * multiple)
