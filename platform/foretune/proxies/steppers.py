"""What does the steps of a pack."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from foretune.corpora import Corpus
from foretune.proxies.bilevel import BilevelStepper
from foretune.proxies.self_tuning_stepper import SelfTuningStepper
from foretune.proxies.stepping import Stepper
from foretune.records import RunSpec


def build_stepper(specs: Sequence[RunSpec], corpus: Corpus, device: torch.device, *, compiled: bool) -> Stepper:
    """That of these runs of one pack; one that learns more than its weights is a pack of its own."""
    training = specs[0].training
    if training.reference is None:
        return Stepper(specs, corpus, device, compiled=compiled)
    (spec,) = specs
    return (BilevelStepper if training.mixture_learning else SelfTuningStepper)(spec, corpus, device)
