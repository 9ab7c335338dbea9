"""The layers of the decoder, stacked: every weight has a first dimension of members, who never meet.

Shapes
    K  members    B  sequences    T  positions    D  width    H  heads    h  head size    F  inner size
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foretune.parametrization import choose_multipliers
from foretune.records import DecoderSpec

NORM_EPS = 1e-6
"""Added to the mean square in RMSNorm (Llama; Touvron et al. 2023)."""


class StackedLinear(nn.Module):
    """A matrix per member, without bias."""

    def __init__(self, members: int, inputs: int, outputs: int) -> None:
        """Weights are zero until the model is initialised."""
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(members, outputs, inputs))

    def forward(self, x: Tensor, scale: float = 1) -> Tensor:
        """K B T inputs to K B T outputs; they are multiplied by `scale`, which is put into the matrices."""
        matrices = self.matrices() if scale == 1 else self.matrices() * scale
        if len(matrices) == 1:
            return F.linear(x, matrices.flatten(0, 1))  # the kernel for a batch of one matrix is slower on a CPU
        return torch.bmm(x.flatten(1, 2), matrices.mT).view(*x.shape[:3], -1)

    def matrices(self) -> Tensor:
        """What the inputs are multiplied by, K outputs inputs."""
        return self.weight


class StackedEmbedding(nn.Module):
    """A table per member."""

    def __init__(self, members: int, vocab_size: int, width: int) -> None:
        """Weights are zero until the model is initialised."""
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(members, vocab_size, width))

    def forward(self, ids: Tensor) -> Tensor:
        """Token ids K B T to K B T D."""
        members, vocab_size, _ = self.weight.shape
        first = torch.arange(members, device=ids.device) * vocab_size
        return F.embedding(ids + first[:, None, None], self.weight.flatten(0, 1))


class RMSNorm(nn.Module):
    """x / rms(x), times a gain that starts at 1 (Zhang and Sennrich 2019)."""

    def __init__(self, members: int, size: int) -> None:
        """`size` is that of the last dimension."""
        super().__init__()
        self.gain = nn.Parameter(torch.ones(members, size))

    def forward(self, x: Tensor) -> Tensor:
        """The normed input K ... size, in its own type."""
        gain = self.gain.to(x.dtype)
        if len(gain) == 1:
            return F.rms_norm(x, gain.shape[1:], gain.flatten(), NORM_EPS)
        return F.rms_norm(x, gain.shape[1:], eps=NORM_EPS) * gain.view(-1, *[1] * (x.dim() - 2), gain.shape[1])


class Rotary(nn.Module):
    """Rotary position embedding (Su et al. 2021): the angle of pair k at position t is t base^(-2k/h)."""

    cosine: Tensor
    sine: Tensor

    def __init__(self, head_size: int, seq_len: int, base: float) -> None:
        """Angles are computed in float64: float32 loses the phase of late positions."""
        super().__init__()
        frequencies = base ** -(torch.arange(0, head_size, 2, dtype=torch.float64) / head_size)
        angles = torch.outer(torch.arange(seq_len, dtype=torch.float64), frequencies)
        self.register_buffer("cosine", angles.cos().float(), persistent=False)  # T h/2
        self.register_buffer("sine", angles.sin().float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Rotate queries or keys, ... T h, in the precision of the angles; the result has their own type."""
        positions = x.shape[-2]
        cosine, sine = self.cosine[:positions], self.sine[:positions]
        first, second = x.to(cosine.dtype).chunk(2, dim=-1)
        return torch.cat((first * cosine - second * sine, first * sine + second * cosine), dim=-1).to(x.dtype)


class Attention(nn.Module):
    """Causal attention; `queries_per_key` query heads share a key and value head (Ainslie et al. 2023)."""

    def __init__(self, model: DecoderSpec, members: int) -> None:
        """The scale of the scores is the parametrization's."""
        super().__init__()
        key_value_width = model.width // model.queries_per_key
        self.head_size = model.head_size
        self.sizes = (model.width, key_value_width, key_value_width)
        self.queries_per_key = model.queries_per_key
        self.scale = choose_multipliers(model).attention
        self.query_key_value = StackedLinear(members, model.width, sum(self.sizes))
        self.attention_output = StackedLinear(members, model.width, model.width)
        self.query_norm = RMSNorm(members, model.head_size) if model.qk_norm else nn.Identity()
        self.key_norm = RMSNorm(members, model.head_size) if model.qk_norm else nn.Identity()

    def forward(self, x: Tensor, rotary: Rotary) -> Tensor:
        """K B T D to K B T D."""
        query, key, value = (
            part.view(*x.shape[:3], -1, self.head_size).transpose(2, 3)  # K B H T h
            for part in self.query_key_value(x).split(self.sizes, dim=-1)
        )
        query, key = rotary(self.query_norm(query)), rotary(self.key_norm(key))
        grouped = self.queries_per_key > 1
        if grouped and x.is_cuda and query.dtype == torch.float32:  # there, only the flash kernel takes shared heads
            key, value = (part.repeat_interleave(self.queries_per_key, dim=2) for part in (key, value))
            grouped = False
        mixed = F.scaled_dot_product_attention(
            query.flatten(0, 1),
            key.flatten(0, 1),
            value.flatten(0, 1),
            is_causal=True,
            scale=self.scale,
            enable_gqa=grouped,
        )
        output: Tensor = self.attention_output(mixed.transpose(1, 2).reshape(x.shape))
        return output


def activate(inner: Tensor, *, gated: bool) -> Tensor:
    """silu(gate) * up of a gate and an up side by side (SwiGLU; Shazeer 2020), else relu(up)^2 (So et al. 2021)."""
    if not gated:
        return F.relu(inner).square()
    gate, up = inner.chunk(2, dim=-1)
    return F.silu(gate) * up


class FeedForward(nn.Module):
    """`swiglu`: down(silu(gate x) * up x); `relu2`: down(relu(up x)^2)."""

    def __init__(self, model: DecoderSpec, members: int) -> None:
        """Gate and up are one matrix."""
        super().__init__()
        self.gated = model.activation == "swiglu"
        if self.gated:
            self.gate_up = StackedLinear(members, model.width, 2 * model.ffn_width)
        else:
            self.up = StackedLinear(members, model.width, model.ffn_width)
        self.down = StackedLinear(members, model.ffn_width, model.width)

    def forward(self, x: Tensor) -> Tensor:
        """K B T D to K B T D."""
        inner = self.gate_up(x) if self.gated else self.up(x)
        output: Tensor = self.down(activate(inner, gated=self.gated))
        return output
