"""The coordinate check: does what one step changes in each layer keep its size as the width grows?

Yang et al. 2022 (Tensor Programs V, appendix D.1): after a few steps the activations of every layer have the same scale
at every width if the parametrization is right; with standard parametrization they grow with the width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from foretune.corpora import open_corpus
from foretune.proxies.process import reset_process
from foretune.proxies.train import Trainer
from foretune.records import RunSpec


def measure_coordinates(spec: RunSpec, steps: int = 4) -> dict[str, float]:
    """How much `steps` steps at the peak learning rate change the output of each layer, root mean square.

    The layers are the embedding, the two branches of every block and the logits, on the held-out sequences.
    """
    reset_process(spec.seed)
    trainer = Trainer(spec, open_corpus(spec.data.section, spec.data.corpus_digest))
    before = _collect_outputs(trainer)
    for step in range(steps):
        trainer.train_step(step, spec.training.peak_lr)
    after = _collect_outputs(trainer)
    return {name: float((after[name] - before[name]).square().mean().sqrt()) for name in before}


@torch.no_grad()
def _collect_outputs(trainer: Trainer) -> dict[str, Tensor]:
    outputs: dict[str, Tensor] = {}
    hooks = [module.register_forward_hook(_keep(outputs, name)) for name, module in _list_layers(trainer.model)]
    try:
        rows = torch.cat(list(trainer.held_out.values()))
        outputs["logits"] = trainer.model(rows[:, :-1]).float()
    finally:
        for hook in hooks:
            hook.remove()
    return outputs


def _list_layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    wanted = ("embedding", "attention", "feed_forward")
    return [(name, module) for name, module in model.named_modules() if name.split(".")[-1] in wanted]


def _keep(outputs: dict[str, Tensor], name: str) -> Callable[[nn.Module, Any, Tensor], None]:
    def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
        outputs[name] = output.float()

    return hook
