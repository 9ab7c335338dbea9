"""Which runs train as one batched computation, which of them share a trunk, and how much memory that takes.

Runs that agree in `pack_key` may be packed: learning rates, weight decays, seeds, mixtures and horizons may differ.
Runs whose learning rate before the decay does not depend on the horizon have a trunk in common (Haegele et al. 2024,
arXiv 2405.18392): the longest of them leads, and the others are copied from it where their own decay begins.

Symbols of the estimate
    d  width    k  size of all keys    f  inner size that a token goes through    L  depth    V  vocabulary
    P  parameters of one run
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable

from foretune.records import PROXY_TRAINER, CausalLMSpec, DecoderSpec, RunSpec

SOLO_OPTIMIZERS = ("schedulefree", "prodigy")
"""Those of other packages, which know nothing of members."""
TRUNK_SCHEDULES = ("wsd", "power", "constant")
"""Before the decay, their learning rate does not depend on the horizon."""
BRANCHING_FIELDS = frozenset(
    {"steps", "decay_steps", "decay_shape", "final_lr_fraction", "evaluations", "checkpoint_steps", "diagnoses"}
)
"""Fields of TrainingSpec that make no difference before the decay."""
ROWS_KEPT = 4
"""Numbers kept per parameter: weight, gradient, and two moments; some optimizers need fewer."""
ROWS_PASSING = 4
"""Numbers per parameter that an update has besides for a moment, when it is not done in chunks (assumption)."""
BFLOAT16_SHARE = 0.65
"""Memory of the activations of a layer under autocast over that in float32 (measured: .62; norms stay float32)."""


def pack_key(spec: RunSpec) -> Hashable:
    """What runs of one pack must have in common; a run that can only train alone has a key of its own."""
    training, data = spec.training, spec.data
    packs = spec.trainer == PROXY_TRAINER and isinstance(spec.model, DecoderSpec) and training.reference is None
    return (
        "" if packs and training.optimizer not in SOLO_OPTIMIZERS else spec.run_id,
        spec.trainer,
        spec.model.model_dump_json(),
        (data.corpus_digest, data.seq_len, data.validation_sequences),
        (training.optimizer, training.batch_tokens, training.ramp, training.accumulation_steps),
        (training.reweighting, training.dropout > 0),
        (training.precision, training.spikes),  # one that skips waits for the device in every step
    )


def find_trunks(specs: Iterable[RunSpec]) -> dict[str, tuple[str, int]]:
    """Which runs begin as copies of a longer one: run id to (run id of the leader, steps in common)."""
    found: dict[str, tuple[str, int]] = {}
    for family in group_by(specs, _trunk_key):
        leader, *followers = sorted(family, key=lambda spec: (-_count_shared(spec), -spec.training.steps, spec.run_id))
        found |= {spec.run_id: (leader.run_id, _count_shared(spec)) for spec in followers}
    return found


def estimate_bytes(spec: RunSpec, members: int) -> int:
    """Bytes that so many runs like `spec` need on their device together, at the peak of a step; the process is extra.

    Activations of a token in a block, as the backward pass needs them: 10 d + 3 k, 4 f with SwiGLU and 2 f without,
    d + k more where queries and keys are normed; outside the blocks 3 d, and 3 V for the logits, their log-softmax and
    its gradient. Measured on a CPU: within 10 % for widths 32 to 128. Models of `transformers` are counted as if they
    were ours.
    """
    tokens = spec.training.batch_tokens // spec.training.accumulation_steps
    share = BFLOAT16_SHARE if spec.training.precision == "bfloat16" else 1.0
    outside = 3 * spec.model.width + 3 * spec.model.vocab_size
    activations = tokens * (share * spec.model.depth * _count_activations(spec.model) + outside)
    rows = (ROWS_KEPT + ROWS_PASSING) * spec.model.shape.params_total
    copies = 1 if spec.training.reference is None else 2  # of a model, or of its feed-forwards for their responses
    return math.ceil(4 * members * (copies * rows + spec.training.passes_per_token * activations))


def _count_activations(model: DecoderSpec | CausalLMSpec) -> float:
    """Numbers kept of a token in one block."""
    width = model.width
    if isinstance(model, CausalLMSpec):  # matrices of 4 d^2 + 3 d f parameters
        inner = (model.shape.matrix_params_active - model.vocab_size * width) / (model.depth * width)
        return 13 * width + 4 / 3 * max(0.0, inner - 4 * width)
    keys = model.shape.key_value_width
    inner, copies = model.ffn_width, 0
    if model.experts:
        inner = (model.experts.active + model.experts.shared) * model.experts.width
        copies = 3 * model.experts.active * width  # what goes in and out of the experts
    matrices = 4 if model.activation == "swiglu" else 2
    return 10 * width + 3 * keys + (width + keys if model.qk_norm else 0) + matrices * inner + copies


def _trunk_key(spec: RunSpec) -> Hashable:
    changes = spec.phases or spec.stop_step or spec.parent_run_id  # or begins where another one ended
    if changes or spec.training.schedule not in TRUNK_SCHEDULES:
        return spec.run_id
    training = spec.training.model_dump_json(exclude=set(BRANCHING_FIELDS))
    data = (tuple(sorted(spec.data.mixture.items())), tuple(sorted(spec.data.unique_tokens.items())))
    return (pack_key(spec), training, spec.seed, data)


def _count_shared(spec: RunSpec) -> int:
    """Steps before the decay."""
    return spec.training.steps - spec.training.decay_steps


def group_by(specs: Iterable[RunSpec], key: Callable[[RunSpec], Hashable]) -> list[list[RunSpec]]:
    """Runs by a key, in the order in which the keys are met."""
    groups: dict[Hashable, list[RunSpec]] = {}
    for spec in specs:
        groups.setdefault(key(spec), []).append(spec)
    return list(groups.values())
