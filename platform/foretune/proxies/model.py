"""The proxy: a decoder-only transformer with RoPE, RMSNorm and SwiGLU, as large models of the day are built.

Shapes
    B  sequences    T  positions    D  width    H  heads    K  head size    F  inner size of SwiGLU    V  vocabulary
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foretune.parametrization import choose_multipliers, choose_rules
from foretune.records import ModelSpec

NORM_EPS = 1e-6
"""Added to the mean square in RMSNorm (Llama; Touvron et al. 2023)."""


class RMSNorm(nn.Module):
    """x / rms(x), times a gain that starts at 1 (Zhang and Sennrich 2019)."""

    def __init__(self, size: int) -> None:
        """`size` is that of the last dimension."""
        super().__init__()
        self.gain = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        """The normed input, in its own type."""
        return F.rms_norm(x, self.gain.shape, self.gain.to(x.dtype), NORM_EPS)


class Rotary(nn.Module):
    """Rotary position embedding (Su et al. 2021): the angle of pair k at position t is t base^(-2k/K)."""

    cosine: Tensor
    sine: Tensor

    def __init__(self, head_size: int, seq_len: int, base: float) -> None:
        """Angles are computed in float64: float32 loses the phase of late positions."""
        super().__init__()
        frequencies = base ** -(torch.arange(0, head_size, 2, dtype=torch.float64) / head_size)
        angles = torch.outer(torch.arange(seq_len, dtype=torch.float64), frequencies)
        self.register_buffer("cosine", angles.cos().float(), persistent=False)  # T K/2
        self.register_buffer("sine", angles.sin().float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Rotate queries or keys, B H T K, in the precision of the angles; the result has their own type."""
        positions = x.shape[-2]
        cosine, sine = self.cosine[:positions], self.sine[:positions]
        first, second = x.to(cosine.dtype).chunk(2, dim=-1)
        return torch.cat((first * cosine - second * sine, first * sine + second * cosine), dim=-1).to(x.dtype)


class Attention(nn.Module):
    """Causal multi-head attention."""

    def __init__(self, model: ModelSpec) -> None:
        """The scale of the scores is the parametrization's."""
        super().__init__()
        self.head_size = model.head_size
        self.scale = choose_multipliers(model).attention
        self.query_key_value = nn.Linear(model.width, 3 * model.width, bias=False)
        self.attention_output = nn.Linear(model.width, model.width, bias=False)
        self.query_norm = RMSNorm(model.head_size) if model.qk_norm else nn.Identity()
        self.key_norm = RMSNorm(model.head_size) if model.qk_norm else nn.Identity()

    def forward(self, x: Tensor, rotary: Rotary) -> Tensor:
        """B T D to B T D."""
        heads = self.query_key_value(x).unflatten(-1, (3, -1, self.head_size))  # B T 3 H K
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # each B H T K
        query, key = rotary(self.query_norm(query)), rotary(self.key_norm(key))
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=self.scale)
        output: Tensor = self.attention_output(mixed.transpose(1, 2).flatten(2))
        return output


class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020): down(silu(gate(x)) * up(x))."""

    def __init__(self, model: ModelSpec) -> None:
        """Gate and up are one matrix."""
        super().__init__()
        self.gate_up = nn.Linear(model.width, 2 * model.ffn_width, bias=False)
        self.down = nn.Linear(model.ffn_width, model.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """B T D to B T D."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)  # each B T F
        output: Tensor = self.down(F.silu(gate) * up)
        return output


class Block(nn.Module):
    """Attention, then feed-forward, each on the normed stream and added to it."""

    def __init__(self, model: ModelSpec) -> None:
        """One block of the stack."""
        super().__init__()
        self.attention_norm = RMSNorm(model.width)
        self.attention = Attention(model)
        self.feed_forward_norm = RMSNorm(model.width)
        self.feed_forward = FeedForward(model)

    def forward(self, x: Tensor, rotary: Rotary) -> Tensor:
        """B T D to B T D."""
        x = x + self.attention(self.attention_norm(x), rotary)
        x = x + self.feed_forward(self.feed_forward_norm(x))
        return x


class Proxy(nn.Module):
    """The language model. Its initial weights are a pure function of the spec and the seed."""

    def __init__(self, model: ModelSpec, *, seq_len: int, seed: int) -> None:
        """`seq_len` is the longest sequence it will see."""
        super().__init__()
        self.logit_scale = choose_multipliers(model).logits
        self.embedding = nn.Embedding(model.vocab_size, model.width)
        self.rotary = Rotary(model.head_size, seq_len, model.rope_base)
        self.blocks = nn.ModuleList(Block(model) for _ in range(model.depth))
        self.norm = RMSNorm(model.width)
        self.head = nn.Linear(model.width, model.vocab_size, bias=False)
        if model.tied_head:
            self.head.weight = self.embedding.weight
        self._initialise(model, seed)

    def forward(self, ids: Tensor) -> Tensor:
        """Token ids B T to logits B T V."""
        x = self.embedding(ids)  # B T D
        for block in self.blocks:
            x = block(x, self.rotary)
        logits: Tensor = self.head(self.norm(x))
        return logits.float() * self.logit_scale  # scaled in bfloat16 they would be rounded twice

    def parameters_by_group(self) -> dict[str, list[nn.Parameter]]:
        """The parameters under the names of the parametrization's groups; a tied head counts as embedding."""
        groups: dict[str, list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            group = "norms" if name.endswith(".gain") else name.split(".")[-2]
            groups.setdefault(group, []).append(parameter)
        return groups

    @torch.no_grad()
    def _initialise(self, model: ModelSpec, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        groups = self.parameters_by_group()
        for rule in choose_rules(model):
            for parameter in groups[rule.name] if rule.init_std else ():
                parameter.normal_(0.0, rule.init_std, generator=generator)


def measure_loss(model: nn.Module, tokens: Tensor) -> Tensor:
    """Mean cross-entropy in nats per token of sequences B T+1, each token predicted from those before it."""
    logits = model(tokens[:, :-1])
    return F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())
