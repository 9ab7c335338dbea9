"""A causal language model of the `transformers` library, under one of our parametrizations, its code untouched.

Its weights are drawn by our rules. The constants of the forward pass are applied from outside: the attention's own
`scaling`, and hooks on the output head, the routers and the branches of the residual stream.

Shapes
    B  sequences    T  positions    V  vocabulary; the one member is a first dimension of 1
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from foretune.errors import InputError
from foretune.parametrization import ForwardMultipliers, choose_multipliers, choose_rules
from foretune.parametrization.growth import TensorShape
from foretune.proxies.configs import build_config, check_positions
from foretune.proxies.shapes import build_model, describe, list_options
from foretune.records import CausalLMSpec

BRANCH_TOLERANCE = 1e-4
"""Relative error up to which the outputs of modules count as what a layer adds to the stream: float32 sums."""


class CausalLM(nn.Module):
    """One language model. Its weights are the library's until it is initialised by a seed."""

    def __init__(self, model: CausalLMSpec, seq_len: int) -> None:
        """`seq_len` is the longest sequence it will see."""
        super().__init__()
        self.spec = model
        config = build_config(model.config)
        check_positions(model.config, seq_len)
        with torch.random.fork_rng(devices=[]):
            self.model: Any = build_model(config)
        self._tensors: dict[str, TensorShape] = {
            f"model.{tensor.name}": tensor for tensor in describe(model.config).tensors
        }
        self._constants = dict(self._read_constants())
        self._auxiliary_weight = float(getattr(config, "router_aux_loss_coef", 0.0) or 0.0)
        self._options = list_options(config)
        self._auxiliary: Tensor | None = None
        self._set_multipliers(choose_multipliers(model))

    def forward(self, ids: Tensor) -> Tensor:
        """Token ids 1 B T to logits 1 B T V, in float32."""
        outputs = self.model(input_ids=ids[0], use_cache=False, **self._options)
        self._auxiliary = outputs.aux_loss if self._options else None
        logits: Tensor = outputs.logits
        return logits.float()[None]

    def groups(self) -> dict[str, str]:
        """The group in the parametrization of every parameter, by name."""
        return {name: self._tensors[name].group for name, _ in self.named_parameters()}

    @torch.no_grad()
    def initialise(self, member: int, seed: int) -> None:
        """Draw the initial weights of a seed: the same on every device."""
        assert member == 0, member
        generator = torch.Generator().manual_seed(seed)
        groups, parameters = self.groups(), dict(self.named_parameters())
        for rule in choose_rules(self.spec):
            for name in (name for name in parameters if groups[name] == rule.name):
                drawn = torch.full(parameters[name].shape, self._constants.get(name, 0.0))
                if rule.init_std:
                    drawn.normal_(0.0, rule.init_std, generator=generator)
                parameters[name].copy_(drawn)

    def begin_step(self) -> None:
        """A step begins; the library balances the load of experts over each micro-batch alone."""

    def auxiliary_losses(self) -> Tensor | None:
        """What is added to the loss in training, [1], of the last forward pass; None in a dense model."""
        return None if self._auxiliary is None else self._auxiliary_weight * self._auxiliary[None]

    def _read_constants(self) -> Iterator[tuple[str, float]]:
        """What the library starts gains and biases at."""
        for name, parameter in self.named_parameters():
            if parameter.dim() == 1:
                first = float(parameter.detach()[0])
                if not bool((parameter == first).all()):
                    raise InputError(
                        f"proxy.config: tensor {name!r} starts at different values; no rule is known for it"
                    )
                yield name, first

    def _set_multipliers(self, multipliers: ForwardMultipliers) -> None:
        """Put the constants of the forward pass in place; those that are 1 leave the model as it is."""
        own_scale = describe(self.spec.config).attention_scale
        if multipliers.attention != own_scale:
            for module in _list_attentions(self.model):
                module.scaling *= multipliers.attention / own_scale
        if multipliers.logits != 1:
            self.model.get_output_embeddings().register_forward_hook(_scale_output(multipliers.logits))
        if multipliers.router != 1:
            for router in self._list_routers():
                router.register_forward_pre_hook(_scale_input(multipliers.router))
        if multipliers.residual != 1:
            for branch in find_branches(self.model, self.spec):
                branch.register_forward_hook(_scale_output(multipliers.residual))

    def _list_routers(self) -> Iterator[nn.Module]:
        """The modules that hold an output layer other than the head."""
        heads = {rule.name for rule in choose_rules(self.spec) if rule.kind == "head"}
        for name, tensor in self._tensors.items():
            if tensor.group in heads and tensor.role != "head":
                yield self.get_submodule(name.rpartition(".")[0])


def _list_attentions(model: nn.Module) -> Iterator[Any]:
    return (module for module in model.modules() if isinstance(getattr(module, "scaling", None), float))


def _scale_output(factor: float) -> Callable[[nn.Module, Any, Any], Any]:
    """A hook that multiplies a module's output, of a tuple its first."""

    def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (output[0] * factor, *output[1:])
        return output * factor

    return hook


def _scale_input(factor: float) -> Callable[[nn.Module, Any], Any]:
    """A hook that multiplies a linear module's first input, and so its output but for a bias."""

    def hook(module: nn.Module, inputs: Any) -> Any:
        return (inputs[0] * factor, *inputs[1:])

    return hook


def find_branches(model: nn.Module, spec: CausalLMSpec) -> list[nn.Module]:
    """In every block, the modules whose outputs are added to the residual stream.

    They are found by a forward pass: the children of the first block whose outputs add up to what the block adds. One
    that is called twice, as a dropout may be, is none of them. InputError where there are none, as in blocks that add
    inside of their children.
    """
    blocks = find_blocks(model, spec.depth)
    calls: dict[str, list[Tensor]] = {}
    stream: list[Tensor] = []
    hooks = [child.register_forward_hook(_keep(calls, name)) for name, child in blocks[0].named_children()]
    hooks.append(blocks[0].register_forward_hook(_keep_stream(stream), with_kwargs=True))
    with torch.no_grad():
        model(input_ids=torch.arange(4)[None] % spec.vocab_size, use_cache=False)
    for hook in hooks:
        hook.remove()
    added = stream[1] - stream[0]
    once = {name: outputs[0] for name, outputs in calls.items() if len(outputs) == 1}
    names = _find_summands({name: output for name, output in once.items() if output.shape == added.shape}, added)
    if not names:
        raise InputError(
            f"proxy.parametrization: {spec.parametrization} scales what a block adds to the residual stream, and in "
            f"{type(blocks[0]).__name__} no modules were found whose outputs add up to that; use mup"
        )
    return [block.get_submodule(name) for block in blocks for name in names]


def _find_summands(outputs: dict[str, Tensor], total: Tensor) -> tuple[str, ...]:
    """The fewest outputs whose sum is the total; none where no sum is."""
    limit = BRANCH_TOLERANCE * float(total.abs().max())
    for count in range(1, len(outputs) + 1):
        for names in combinations(outputs, count):
            if float((sum(outputs[name] for name in names) - total).abs().max()) <= limit:
                return names
    return ()


def find_blocks(model: nn.Module, depth: int) -> nn.ModuleList:
    """The stack of the blocks."""
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return module
    raise InputError(f"proxy.config: no list of {depth} blocks in {type(model).__name__}")


def _keep(calls: dict[str, list[Tensor]], name: str) -> Callable[[nn.Module, Any, Any], None]:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) else output
        if isinstance(first, Tensor):
            calls.setdefault(name, []).append(first)

    return hook


def _keep_stream(stream: list[Tensor]) -> Callable[[nn.Module, Any, Any, Any], None]:
    def hook(module: nn.Module, inputs: Any, named: Any, output: Any) -> None:
        stream.append(inputs[0] if inputs else named["hidden_states"])
        stream.append(output[0] if isinstance(output, tuple) else output)

    return hook
