"""How much a few steps change in each layer: what the coordinate check compares between widths and depths.

The change since the start is measured, not the size: at the start the logits of muP shrink as 1 / sqrt(width) and what
is initialised to zero has no size at all, while what the updates add must be alike at every width (Yang et al. 2022,
arXiv 2203.03466, appendix D.1). For the same reason the head's change is what its own updates add to the logits.

Shapes
    K  members    B  sequences    T  positions    D  width    V  vocabulary
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from foretune.corpora import BatchStream, open_corpus
from foretune.parametrization import choose_multipliers
from foretune.proxies.causal_lm import CausalLM, find_blocks, find_branches
from foretune.proxies.decoder import Block, Decoder
from foretune.proxies.process import choose_device, reset_process
from foretune.proxies.stepping import Stepper
from foretune.records import RunSpec
from foretune.training.packing import pack_key

SEQUENCES = 4
"""Sequences of the one batch that every step trains on: few, so that a step's update and the features that it meets
are aligned as they are later in training."""
LOGITS = "logits"
"""The layer whose change is what the head's own updates add to it."""


@dataclass(frozen=True)
class Coordinates:
    """Root mean squares of every layer, by name in the order of the forward pass."""

    sizes: dict[str, NDArray[np.float64]]
    """Of the outputs, [steps + 1, K]; the first row is before training."""
    changes: dict[str, NDArray[np.float64]]
    """Of the outputs' change since the start, [steps, K]."""


def measure_coordinates(specs: Sequence[RunSpec], steps: int) -> Coordinates:
    """Train runs of one shape, which differ in their seeds, for a few steps on a fixed batch at their peak rate."""
    packs = [list(specs)] if len({pack_key(spec) for spec in specs}) == 1 else [[spec] for spec in specs]
    measured = [_measure_pack(pack, steps) for pack in packs]
    return Coordinates(
        {name: np.concatenate([part.sizes[name] for part in measured], axis=1) for name in measured[0].sizes},
        {name: np.concatenate([part.changes[name] for part in measured], axis=1) for name in measured[0].changes},
    )


def _measure_pack(specs: Sequence[RunSpec], steps: int) -> Coordinates:
    reset_process(specs[0].seed)
    data = specs[0].data
    corpus = open_corpus(data.section, data.corpus_digest)
    stepper = Stepper(specs, corpus, choose_device(), compiled=False)
    streams = [
        BatchStream(corpus, spec.data.mixture, data.seq_len, spec.seed, spec.data.unique_tokens) for spec in specs
    ]
    batch = torch.from_numpy(np.stack([stream.sequences(0, SEQUENCES) for stream in streams])).to(stepper.device)
    watch = _Watch(stepper, batch)
    for _ in range(steps):
        stepper.step(batch, [spec.training.peak_lr for spec in specs])
        watch.look()
    return Coordinates(_to_arrays(watch.sizes), _to_arrays(watch.changes))


class _Watch:
    """The outputs of every layer on one batch, compared with those before training."""

    def __init__(self, stepper: Stepper, batch: Tensor) -> None:
        self._stepper, self._batch = stepper, batch
        self._scale = choose_multipliers(stepper.specs[0].model).logits
        self._layers = dict(_list_layers(stepper.model))
        self._head = _find_head(stepper.model)
        self._first_weight = self._read_head().clone()
        self._first, _ = self._collect()
        self.sizes = {name: [_root_mean_square(output)] for name, output in self._first.items()}
        self.changes: dict[str, list[Tensor]] = {name: [] for name in self._first}

    def look(self) -> None:
        """Measure every layer as it is now."""
        outputs, features = self._collect()
        for name, output in outputs.items():
            self.sizes[name].append(_root_mean_square(output))
            if name != LOGITS:
                self.changes[name].append(_root_mean_square(output - self._first[name]))
        moved = self._read_head() - self._first_weight  # K V D
        self.changes[LOGITS].append(_root_mean_square(features @ moved.transpose(1, 2)) * abs(self._scale))

    @torch.no_grad()
    def _collect(self) -> tuple[dict[str, Tensor], Tensor]:
        """The outputs by layer, each [K, ...] in float32, and the features that the head is given, K B*T D."""
        outputs: dict[str, Tensor] = {}
        features: list[Tensor] = []
        hooks = [module.register_forward_hook(_keep(outputs, name)) for name, module in self._layers.items()]
        hooks.append(self._head.register_forward_pre_hook(lambda module, inputs: features.append(inputs[0])))
        members = len(self._batch)
        with self._stepper.optimizer.evaluation(), _removing(hooks):
            outputs[LOGITS] = self._stepper.model(self._batch[..., :-1])
        named = {name: output.detach().float().reshape(members, -1) for name, output in outputs.items()}
        return named, features[0].float().reshape(members, -1, features[0].shape[-1])

    def _read_head(self) -> Tensor:
        weight = cast(Tensor, self._head.weight).detach()
        return weight if weight.dim() == 3 else weight[None]


def _list_layers(model: Decoder | CausalLM) -> Iterator[tuple[str, nn.Module]]:
    """The embedding, every block's two branches and the stream after it, and the last norm where it is ours."""
    if isinstance(model, CausalLM):
        yield "embedding", model.model.get_input_embeddings()
        names = {module: name for name, module in model.model.named_modules()}
        for branch in find_branches(model.model, model.spec):
            yield names[branch].partition(".")[2], branch
        for number, block in enumerate(find_blocks(model.model, model.spec.depth)):
            yield f"blocks.{number}.stream", block
        return
    yield "embedding", model.embedding
    for number, block in enumerate(cast(Iterable[Block], model.blocks)):
        yield f"blocks.{number}.attention", block.attention
        yield f"blocks.{number}.feed_forward", block.feed_forward
        yield f"blocks.{number}.stream", block
    yield "norm", model.norm


def _find_head(model: Decoder | CausalLM) -> nn.Module:
    return cast(nn.Module, model.model.get_output_embeddings() if isinstance(model, CausalLM) else model.head)


def _keep(outputs: dict[str, Tensor], name: str) -> Callable[[nn.Module, Any, Any], None]:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        outputs[name] = output[0] if isinstance(output, tuple) else output

    return hook


@contextmanager
def _removing(hooks: Sequence[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _root_mean_square(rows: Tensor) -> Tensor:
    """Of each member, [K]."""
    return rows.flatten(1).square().mean(dim=1).sqrt()


def _to_arrays(values: dict[str, list[Tensor]]) -> dict[str, NDArray[np.float64]]:
    return {name: torch.stack(steps).double().cpu().numpy() for name, steps in values.items()}
