"""Self-tuning networks: regularisation is tuned by gradient while the weights train (MacKay et al. 2019, 1903.03088).

The weights answer to the hyperparameters h: a layer multiplies by W + (V h) * R, an affine guess of what training
under other hyperparameters would have made of W. Steps alternate. On training text, under h + noise, everything but h
learns; on held-out text h and the width of the noise move down the held-out loss through that answer. The noise keeps
the answer true in a neighbourhood of h; its entropy is rewarded, or it would vanish. All sequences of a step have the
same noise, where the authors draw it for each: one matrix serves them all, at the cost of a noisier gradient.

Only what regularises can be tuned so: of a learning rate the training loss at the weights reached is no function.

Symbols
    h  hyperparameters, unconstrained [H]    s  widths of their noise [H]    K  members, of which there is one
    W, R  weights [K, outputs, inputs]    V  what h does to each output [K, outputs, H]
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foretune.parametrization import choose_rules
from foretune.proxies.decoder import Block, Decoder
from foretune.proxies.layers import StackedLinear
from foretune.proxies.process import send
from foretune.records import DecoderSpec, SelfTuningSpec, hash_content

RESPONSE_STD = 0.01
"""Spread of V at the beginning (the authors' code)."""
TRANSFORMS: Mapping[str, Callable[[Tensor], Tensor]] = {"l2": torch.exp, "dropout": torch.sigmoid}
"""From an unconstrained number to the hyperparameter: a coefficient above 0, a rate in (0, 1)."""
INVERSES: Mapping[str, Callable[[Tensor], Tensor]] = {"l2": torch.log, "dropout": torch.logit}
"""The way back."""


class ResponsiveLinear(StackedLinear):
    """A layer whose matrix answers to hyperparameters."""

    h: Tensor
    """Those that it answers to now."""

    def __init__(self, members: int, inputs: int, outputs: int, hyperparameters: int) -> None:
        """Weights, V and h are zero until they are set."""
        super().__init__(members, inputs, outputs)
        self.response = nn.Parameter(torch.zeros(members, outputs, inputs))
        self.scales = nn.Parameter(torch.zeros(members, outputs, hyperparameters))
        self.h = torch.zeros(hyperparameters)

    def matrices(self) -> Tensor:
        """See StackedLinear; an L2 penalty is on these."""
        shifts = (self.scales * self.h).sum(dim=-1, keepdim=True)  # no product of matrices: autocast would round it
        return self.weight + shifts * self.response

    @torch.no_grad()
    def draw_response(self, std: float, generator: torch.Generator) -> None:
        """R as a plain matrix is drawn, and V near none."""
        self.response.copy_(torch.empty(self.response.shape).normal_(0.0, std, generator=generator))
        self.scales.copy_(torch.empty(self.scales.shape).normal_(0.0, RESPONSE_STD, generator=generator))


class SelfTuningDecoder(Decoder):
    """One decoder, both matrices of whose feed-forwards answer to hyperparameters. With V = 0 it is the plain one."""

    def __init__(self, model: DecoderSpec, seq_len: int, hyperparameters: int) -> None:
        """`hyperparameters` is their number."""
        super().__init__(model, 1, seq_len)
        self._layers: dict[str, ResponsiveLinear] = {}
        for number, block in enumerate(cast(list[Block], self.blocks)):
            for name, plain in list(block.feed_forward.named_children()):
                members, outputs, inputs = cast(StackedLinear, plain).weight.shape
                layer = ResponsiveLinear(members, inputs, outputs, hyperparameters)
                setattr(block.feed_forward, name, layer)
                self._layers[f"blocks.{number}.feed_forward.{name}"] = layer

    def groups(self) -> dict[str, str]:
        """See Decoder; R is trained as W, and V as the gains are, which multiply outputs, too."""
        groups = super().groups()
        for place in self._layers:
            groups[f"{place}.response"] = groups[f"{place}.weight"]
            groups[f"{place}.scales"] = "norms"
        return groups

    def initialise(self, member: int, seed: int) -> None:
        """See Decoder, whose weights it has; then R and V."""
        super().initialise(member, seed)
        generator = seed_generator("response", seed)
        stds = {rule.name: rule.init_std for rule in choose_rules(self.spec)}
        for place, layer in self._layers.items():
            layer.draw_response(stds[place.rpartition(".")[2]], generator)

    def respond(self, h: Tensor) -> None:
        """Answer to these hyperparameters from now on, [H]."""
        for layer in self._layers.values():
            layer.h = h

    def penalise(self) -> Tensor:
        """Half the sum of squares of the matrices of the feed-forwards, as they are under h, [K]."""
        squares = [layer.matrices().square().sum(dim=(1, 2)) for layer in self._layers.values()]
        return torch.stack(squares).sum(dim=0) / 2


class SelfTuner:
    """Hyperparameters by name, the width of their noise, and how both are tuned."""

    def __init__(self, tuning: SelfTuningSpec, seed: int, device: torch.device) -> None:
        """At the values that tuning starts with."""
        self.names = tuple(tuning.start)
        begin = [float(INVERSES[name](torch.tensor(value))) for name, value in tuning.start.items()]
        self._h = send(begin, device).requires_grad_()
        raw = torch.full((len(begin),), tuning.width).expm1().log()  # softplus gives the width back
        self._raw_widths = raw.to(device).requires_grad_()
        self._optimizer = torch.optim.Adam([self._h, self._raw_widths], lr=tuning.lr)
        self._entropy = tuning.entropy
        self._generator = seed_generator("noise", seed)

    @property
    def centre(self) -> Tensor:
        """h without noise, [H]."""
        return self._h.detach()

    def values(self) -> Tensor:
        """The hyperparameters, each in its own unit, [H]."""
        return torch.stack(list(self.read(self.centre).values()))

    def read(self, h: Tensor) -> dict[str, Tensor]:
        """Unconstrained numbers [H] as hyperparameters by name, each in its own unit."""
        return {name: TRANSFORMS[name](value) for name, value in zip(self.names, h, strict=True)}

    def disturb(self) -> Tensor:
        """h and noise of its width; has a gradient to both."""
        noise = torch.randn(self._h.shape, generator=self._generator)
        return self._h + F.softplus(self._raw_widths) * send(noise.tolist(), self._h.device)

    def step(self, held_out: Tensor) -> None:
        """Move down the gradient of a held-out loss, a number that was computed under what `disturb` gave."""
        tuned = [self._h, self._raw_widths]
        entropy = F.softplus(self._raw_widths).log().sum()  # of the noise, in nats, up to a constant
        gradients = torch.autograd.grad(held_out - self._entropy * entropy, tuned)
        for parameter, gradient in zip(tuned, gradients, strict=True):
            parameter.grad = gradient
        self._optimizer.step()

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        numbers = {"h": self._h.detach().clone(), "raw_widths": self._raw_widths.detach().clone()}
        optimizer = copy.deepcopy(self._optimizer.state_dict())  # its own tensors go on being changed
        return {**numbers, "optimizer": optimizer, "noise": self._generator.get_state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""
        with torch.no_grad():
            self._h.copy_(state["h"])
            self._raw_widths.copy_(state["raw_widths"])
        self._optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        self._generator.set_state(state["noise"].cpu())


def seed_generator(purpose: str, seed: int) -> torch.Generator:
    """Random numbers on the host of a run's seed, for one purpose: others of the seed are not related to them."""
    return torch.Generator().manual_seed(int(hash_content([purpose, seed])[:15], 16))
