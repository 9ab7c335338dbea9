"""The proxy: a decoder-only transformer with RoPE and RMSNorm, as large models of the day are built, K at a time.

Shapes
    K  members    B  sequences    T  positions    D  width    V  vocabulary
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foretune.parametrization import choose_multipliers, choose_rules
from foretune.proxies.dropout import Dropout
from foretune.proxies.experts import Experts
from foretune.proxies.layers import Attention, FeedForward, RMSNorm, Rotary, StackedEmbedding, StackedLinear
from foretune.records import DecoderSpec


class Block(nn.Module):
    """Attention, then feed-forward, each on the normed stream and added to it."""

    def __init__(self, model: DecoderSpec, members: int, number: int, dropout: Dropout) -> None:
        """Block `number` of the stack, which shares its `dropout`."""
        super().__init__()
        self.number = number
        self.dropout = dropout
        self.residual = choose_multipliers(model).residual
        self.attention_norm = RMSNorm(members, model.width)
        self.attention = Attention(model, members)
        self.feed_forward_norm = RMSNorm(members, model.width)
        self.feed_forward = _build_feed_forward(model, members)

    def forward(self, x: Tensor, rotary: Rotary) -> Tensor:
        """K B T D to K B T D."""
        x = self._add(x, self.attention(self.attention_norm(x), rotary))
        return self._add(x, self.dropout(self.feed_forward(self.feed_forward_norm(x)), self.number))

    def _add(self, x: Tensor, branch: Tensor) -> Tensor:
        return x + branch if self.residual == 1 else torch.add(x, branch, alpha=self.residual)


class Decoder(nn.Module):
    """K language models of one shape. Their weights are zero until each member is initialised by its seed."""

    def __init__(self, model: DecoderSpec, members: int, seq_len: int) -> None:
        """`seq_len` is the longest sequence they will see."""
        super().__init__()
        self.spec = model
        self.tied_head = model.tied_head
        self.head_scale, self.logit_scale = _place_scale(choose_multipliers(model).logits)
        self.embedding = StackedEmbedding(members, model.vocab_size, model.width)
        self.rotary = Rotary(model.head_size, seq_len, model.rope_base)
        self.dropout = Dropout(members)
        self.blocks = nn.ModuleList(Block(model, members, number, self.dropout) for number in range(model.depth))
        self.norm = RMSNorm(members, model.width)
        self.head = StackedLinear(members, model.width, model.vocab_size)
        if model.tied_head:
            self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        """Token ids K B T to logits K B T V, in float32."""
        x = self.embedding(ids)  # K B T D
        for block in self.blocks:
            x = block(x, self.rotary)
        logits: Tensor = self.head(self.norm(x), self.head_scale).float()
        return logits if self.logit_scale == 1 else logits * self.logit_scale

    def groups(self) -> dict[str, str]:
        """The group in the parametrization of every parameter, by name; a tied head counts as embedding."""
        return {name: _name_group(name) for name, _ in self.named_parameters()}

    @torch.no_grad()
    def initialise(self, member: int, seed: int) -> None:
        """Give a member the initial weights of a seed: the same on every device, whoever is beside it."""
        generator = torch.Generator().manual_seed(seed)
        groups, parameters = Decoder.groups(self), dict(self.named_parameters())  # a subclass draws what it adds itself
        for rule in choose_rules(self.spec):
            for parameter in (parameters[name] for name in parameters if groups[name] == rule.name):
                row = parameter[member]
                drawn = torch.ones(row.shape)
                row.copy_(drawn.normal_(0.0, rule.init_std, generator=generator) if rule.init_std else drawn)

    def begin_step(self) -> None:
        """A step begins, of one or more micro-batches."""
        for experts in self._experts:
            experts.begin_step()

    def auxiliary_losses(self) -> Tensor | None:
        """What is added to the loss of each member in training, K, of the last forward pass; None in a dense model."""
        losses = [experts.auxiliary_loss() for experts in self._experts]
        return torch.stack(losses).sum(dim=0) if losses else None

    @property
    def _experts(self) -> list[Experts]:
        return [block.feed_forward for block in self.blocks if isinstance(block.feed_forward, Experts)]


def measure_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of every member, nats per token: logits K B T V and the tokens that follow, K B T, to K."""
    return _measure_tokens(logits, targets).view(len(logits), -1).mean(dim=1)


def measure_sequences(logits: Tensor, targets: Tensor) -> Tensor:
    """The same of every sequence, K B."""
    return _measure_tokens(logits, targets).view(targets.shape).mean(dim=2)


def _measure_tokens(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.float().flatten(0, 2), targets.flatten(), reduction="none")


def _place_scale(scale: float) -> tuple[float, float]:
    """What the head's matrix is multiplied by, and what its outputs in float32 are.

    A power of two goes to the matrix, which is smaller than the outputs of a batch: it rounds nothing, wherever it is
    applied. Another factor would round bfloat16 twice there.
    """
    return (scale, 1.0) if math.frexp(scale)[0] == 0.5 else (1.0, scale)


def _build_feed_forward(model: DecoderSpec, members: int) -> nn.Module:
    if not model.experts:
        return FeedForward(model, members)
    return Experts(model, members)


def _name_group(name: str) -> str:
    *_, owner, tensor = name.split(".")
    if tensor == "gain":
        return {"norm": "final_norm", "query_norm": "head_norms", "key_norm": "head_norms"}.get(owner, "norms")
    return owner if tensor == "weight" else tensor
