"""The tables of a study file, one frozen model each; every field has a docstring with meaning, unit and range.

What concerns one table alone is checked here; what concerns several is checked in `study.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError, model_validator

from foretune.quantities import TokensPerParam, parse_count, parse_horizon, parse_quantity
from foretune.space import Choice, LogRange

NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}$"
RUN_LIMIT = 10_000
"""Runs that one study may plan; above it a typing error is likelier than a wish."""

Parametrization = Literal["standard", "mup"]


Quantity = Annotated[float, BeforeValidator(parse_quantity)]
Count = Annotated[int, BeforeValidator(parse_count)]
Horizon = Annotated[
    int | TokensPerParam,
    BeforeValidator(parse_horizon),
    PlainSerializer(lambda value: str(value) if isinstance(value, TokensPerParam) else value),
]
Limit = Annotated[
    float,
    BeforeValidator(lambda value: value if value == math.inf else parse_quantity(value)),
    PlainSerializer(lambda value: None if math.isinf(value) else value),
]
"""A quantity that may be unlimited, which JSON can only say by leaving it out."""
Name = Annotated[str, Field(pattern=NAME_PATTERN)]


def as_tuple(value: object) -> object:
    """TOML has arrays only; strict models take no list for a tuple."""
    return tuple(value) if isinstance(value, list) else value


class Section(BaseModel):
    """A table of the study file: frozen, strict about types, closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True, defer_build=True)


class StudySection(Section):
    """`[study]`: what is asked."""

    name: Name
    """Name of the study and of its results folder: lower-case letters, digits, `.`, `_`, `-`; at most 64."""
    question: str = ""
    """The question in one sentence; it opens the report."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of the study: data order and initial weights of every run that the space gives no other, and of the fits."""


class ProxySection(Section):
    """`[proxy]`: the small models. Widths and depths are in `[[scales]]`."""

    architecture: Literal["decoder"] = "decoder"
    """`decoder`: a decoder-only transformer with RoPE, RMSNorm and SwiGLU."""
    parametrization: Parametrization = "mup"
    """How initial weights, learning rates and multipliers follow the width: `standard`, or `mup` for Adam."""
    base_width: Count = Field(ge=8)
    """Width at which muP and standard are the same model; learning rates under muP are quoted at this width."""
    head_size: Count = Field(default=64, ge=2)
    """Size of an attention head at the base width; even, and a divisor of every width."""
    depth: Count = Field(default=2, ge=1)
    """Blocks at the base width."""
    depth_rule: Literal["fixed", "proportional"] = "fixed"
    """`fixed`: every scale has `depth` blocks; `proportional`: depth grows with width / base_width."""
    ffn_ratio: Quantity = Field(default=8 / 3, gt=0, le=16)
    """Inner size of the feed-forward over the width, rounded to a multiple of 8."""
    qk_norm: bool = False
    """RMSNorm on queries and keys before attention (Henry et al. 2020)."""
    tied_head: bool = False
    """Use the embedding, transposed, as output head."""
    rope_base: Quantity = Field(default=10_000.0, gt=1)
    """Base of the rotary frequencies."""


class ScaleSection(Section):
    """`[[scales]]`: one rung of the ladder, a size and a horizon."""

    name: Name
    """Name of the rung, unique in the study."""
    width: Count = Field(ge=8)
    """Size of the residual stream; a multiple of the head size."""
    depth: Count = Field(default=0, ge=0)
    """Blocks; 0 takes the depth rule of `[proxy]`."""
    head_size: Count = Field(default=0, ge=0)
    """Size of an attention head; 0 takes that of `[proxy]`."""
    tokens: Horizon
    """Training tokens, or tokens per non-embedding parameter as `20xN`; rounded up to whole steps."""


class DomainSection(Section):
    """`[data.domains.NAME]`: where the text of one domain is read from."""

    path: str = ""
    """File, folder or glob; relative paths start at the study file."""
    dataset: str = ""
    """Name of a Hugging Face dataset instead of a path (extra `datasets`), as `owner/name` or `owner/name:config`."""
    split: str = "train"
    """Split of the dataset."""
    format: Literal["text", "jsonl", "parquet", "tokens_uint16", "tokens_uint32"] = "text"
    """`text` one document a file; `jsonl`, `parquet` one a row; `tokens_*` flat token ids (nanoGPT, Megatron)."""
    field: str = "text"
    """Column or key that holds the text."""

    @model_validator(mode="after")
    def _check_source(self) -> DomainSection:
        if bool(self.path) == bool(self.dataset):
            raise ValueError("give either path or dataset, and only one of them")
        return self


class DataSection(Section):
    """`[data]`: text, tokens and the mixture."""

    corpus: Literal["python", "files"] = "python"
    """`python`: the standard library's own source on this machine (code, tests, docs); `files`: `[data.domains]`."""
    domains: dict[str, DomainSection] = Field(default_factory=dict)
    """The domains when corpus is `files`."""
    tokenizer: str = "bytes"
    """`bytes`; `bpe:VOCAB`, trained on the corpus (`bpe:4096`); the path of a Hugging Face `tokenizer.json`; or
    `ids:VOCAB` or `ids:VOCAB:EOD` (the id that ends a document) where every domain holds token ids already."""
    seq_len: Count = Field(default=128, ge=8)
    """Tokens per training sequence."""
    validation_fraction: Quantity = Field(default=0.05, gt=0, lt=0.5)
    """Share of documents held out, chosen by content hash."""
    validation_sequences: Count = Field(default=32, ge=1)
    """Held-out sequences per domain on which the loss is measured; always the same ones."""
    mixture: dict[str, Quantity] = Field(default_factory=dict)
    """Share of training tokens per domain, summing to 1; empty takes each domain's share of the corpus."""
    max_epochs: Quantity = Field(default=4.0, gt=0)
    """Most often that a domain may be repeated in one run (4 is nearly free: Muennighoff et al. 2023)."""

    @model_validator(mode="after")
    def _check_domains(self) -> DataSection:
        if (self.corpus == "files") != bool(self.domains):
            raise ValueError('[data.domains.NAME] tables are needed with corpus = "files", and only then')
        bad = {name: share for name, share in self.mixture.items() if share < 0}
        if bad:
            raise ValueError(f"mixture shares must not be negative, got {bad}")
        total = math.fsum(self.mixture.values())
        if self.mixture and abs(total - 1) > 1e-6:
            fixed = ", ".join(f"{name} = {share / total:.6g}" for name, share in self.mixture.items()) if total else "?"
            raise ValueError(f"mixture shares must sum to 1, got {total:g}; normalised: {fixed}")
        return self


class TrainingSection(Section):
    """`[training]`: the optimizer and its schedule. Fields named in `[search.space]` are varied instead."""

    optimizer: Literal["adamw"] = "adamw"
    """`adamw` with decoupled weight decay (Loshchilov and Hutter 2019)."""
    peak_lr: Quantity | None = Field(default=None, gt=0)
    """Peak learning rate, at the base width under muP; needed here or in the space."""
    batch_tokens: Count = Field(ge=1)
    """Tokens per optimizer step; a multiple of seq_len."""
    accumulation_steps: Count = Field(default=1, ge=1)
    """Micro-batches per optimizer step; a divisor of the sequences per step."""
    beta1: Quantity = Field(default=0.9, ge=0, lt=1)
    """Decay of the first moment."""
    beta2: Quantity = Field(default=0.95, ge=0, lt=1)
    """Decay of the second moment."""
    eps: Quantity = Field(default=1e-8, gt=0)
    """Added to the root of the second moment."""
    weight_decay: Quantity = Field(default=0.1, ge=0)
    """Decoupled weight decay of matrices, multiplied by the learning rate; norms have none."""
    clip_norm: Quantity = Field(default=1.0, gt=0)
    """Global gradient norm above which gradients are scaled down."""
    schedule: Literal["wsd", "cosine"] = "wsd"
    """`wsd`: warm-up, constant, linear decay; `cosine`: warm-up, then a half cosine."""
    warmup: Quantity = Field(default=0.1, ge=0)
    """Linear warm-up: below 1 a fraction of the run, else tokens."""
    decay: Quantity = Field(default=0.2, ge=0)
    """Decay phase of `wsd`: up to 1 a fraction of the run, else tokens."""
    final_lr_fraction: Quantity = Field(default=0.0, ge=0, le=1)
    """Learning rate at the end over its peak."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """`bfloat16`: autocast of the forward pass; weights and optimizer state stay float32."""
    evaluations: Count = Field(default=4, ge=1)
    """Held-out evaluations along the run, evenly spaced, the last one at its end."""
    checkpoint_tokens: Count = Field(default=0, ge=0)
    """Tokens between checkpoints, from which a killed run goes on; 0 for runs short enough to repeat."""


VARIABLE: dict[str, Callable[[Any], Any]] = {
    "peak_lr": parse_quantity,
    "batch_tokens": parse_count,
    "weight_decay": parse_quantity,
    "beta2": parse_quantity,
    "parametrization": str,
    "seed": parse_count,
}
"""What a space may vary, and how its values are read."""


class PointSection(Section):
    """`[[search.points]]`: one run beside those of the strategy; `foretune next` proposes such runs."""

    scale: Name
    """The rung at which it is run; not the one that is held out for verification."""
    peak_lr: Quantity = Field(ge=1e-7, le=0.5)
    """Peak learning rate."""
    batch_tokens: Count = Field(default=0, ge=0)
    """Tokens per optimizer step, a divisor of the rung's horizon; 0 takes that of `[training]`."""
    parametrization: Parametrization | None = None
    """Branch of the study; that of `[proxy]` unless given."""
    seed: Count | None = Field(default=None, ge=0, lt=2**32)
    """Seed of data order and initial weights; that of `[study]` unless given."""


class SearchSection(Section):
    """`[search]`: which runs are tried."""

    strategy: Literal["grid", "points"] = "grid"
    """`grid`: every combination of the space's values at every scale; `points`: only the runs named one by one."""
    metric: Literal["loss"] = "loss"
    """What is minimised: the held-out loss at the end of a run."""
    space: dict[str, Choice | LogRange] = Field(min_length=1)
    """What is varied: `peak_lr = { low = "2^-10", high = "2^-4", factor = 2 }` or a list of values."""
    points: Annotated[tuple[PointSection, ...], BeforeValidator(as_tuple)] = ()
    """Single runs: those of strategy `points`, or further ones beside a grid."""

    @model_validator(mode="after")
    def _check_points(self) -> SearchSection:
        if self.strategy == "points" and not self.points:
            raise ValueError('strategy = "points" needs [[search.points]]; `foretune next` proposes some')
        return self

    @model_validator(mode="before")
    @classmethod
    def _read_space(cls, raw: Any) -> Any:
        if not isinstance(raw, dict) or not isinstance(raw.get("space"), dict):
            return raw
        space, problems = {}, []
        for key, value in raw["space"].items():
            try:
                space[key] = _read_dimension(key, value)
            except ValidationError as error:
                problems += [f"space.{_locate(key, item)}" for item in error.errors()]
            except ValueError as error:
                problems.append(f"space.{key}: {error}")
        if problems:
            raise ValueError("\n".join(problems))
        return {**raw, "space": space}

    def axis(self, name: str) -> tuple[Any, ...]:
        """The grid values of one dimension, whole numbers where they count things; empty when it is not searched."""
        return tuple(VARIABLE[name](value) for value in self.space[name].grid()) if name in self.space else ()


def _locate(key: str, item: Any) -> str:
    inner = ".".join(str(part) for part in item["loc"])
    return f"{key}{'.' if inner else ''}{inner}: {item['msg'].removeprefix('Value error, ')}, got {item['input']!r}"


def _read_dimension(key: str, value: Any) -> Choice | LogRange:
    """A dimension of the space from a list of values or a table of bounds."""
    if isinstance(value, Choice | LogRange):
        return value
    if key not in VARIABLE:
        raise ValueError(f"unknown dimension; a space may vary {', '.join(sorted(VARIABLE))}")
    if isinstance(value, dict) and VARIABLE[key] is not str:
        return LogRange(**value)
    if not isinstance(value, list) or not value:
        raise ValueError("give a list of at least one value, or for numbers a table with low, high and factor")
    if VARIABLE[key] is str:
        unknown = [item for item in value if item not in ("standard", "mup")]
        if unknown:
            raise ValueError(f"must be 'standard' or 'mup', got {unknown[0]!r}")
        return Choice(values=tuple(value))
    return Choice(values=tuple(VARIABLE[key](item) for item in value))


class VerificationSection(Section):
    """`[verification]`: larger runs that the fit does not see, at the predicted settings and around them."""

    scale: Name
    """The rung that is held out of the search and trained after the forecast has been written down."""
    lr_steps: int = Field(default=1, ge=0, le=4)
    """Neighbours of the predicted learning rate on each side."""
    lr_factor: Quantity = Field(default=2.0, gt=1)
    """Ratio between those neighbours."""


class SurfaceSection(Section):
    """`[runner.surface]`: a closed-form loss for the replay runner, with a planted optimum, noise and divergence.

    loss = (floor + A / N^alpha + B / D^beta) (1 + lr_curvature 2 (exp(s x) - 1 - s x) / s^2 + batch_curvature y^2)
    noise, with x = ln(lr / lr*), y = ln(batch / B*), s = steepness,
    lr* = lr_coefficient N^lr_params_exponent D^lr_tokens_exponent, B* = batch_coefficient D^batch_tokens_exponent, and
    noise log-normal between seeds. The basin in x (LINEX, Varian 1975) is convex, zero with zero slope at lr*, steeper
    above it, and x^2 in the limit s -> 0.
    """

    floor: Quantity = Field(default=1.8, ge=0)
    """Irreducible loss, nats per token."""
    params_coefficient: Quantity = Field(default=480.0, ge=0)
    """A, numerator of the parameter term."""
    params_exponent: Quantity = Field(default=0.35, gt=0)
    """alpha."""
    tokens_coefficient: Quantity = Field(default=2100.0, ge=0)
    """B, numerator of the token term."""
    tokens_exponent: Quantity = Field(default=0.37, gt=0)
    """beta."""
    lr_coefficient: Quantity = Field(default=1.79, gt=0)
    """Optimal learning rate at N = D = 1 (Li et al. 2025, Step Law)."""
    lr_params_exponent: dict[str, Quantity] = Field(default_factory=lambda: {"standard": -0.713, "mup": -0.713})
    """Exponent of N in the optimal learning rate, per parametrization."""
    lr_tokens_exponent: Quantity = 0.307
    """Exponent of D in the optimal learning rate."""
    batch_coefficient: Quantity = Field(default=0.58, gt=0)
    """Optimal batch in tokens at D = 1."""
    batch_tokens_exponent: Quantity = 0.571
    """Exponent of D in the optimal batch."""
    lr_curvature: Quantity = Field(default=0.012, gt=0)
    """Half the second derivative of the relative loss in ln lr: about its rise at one e-fold from the optimum."""
    batch_curvature: Quantity = Field(default=0.008, ge=0)
    """Relative loss at one e-fold from the optimal batch."""
    steepness: Quantity = Field(default=0.5, ge=0)
    """How much faster the loss rises above the optimal learning rate than below it; 0 is symmetric."""
    noise: Quantity = Field(default=0.0005, ge=0)
    """Standard deviation of the log loss between seeds."""
    divergence_factor: Quantity = Field(default=12.0, gt=1)
    """A run at more than this multiple of the optimal learning rate diverges."""
    seconds_per_run: Quantity = Field(default=0.0, ge=0, le=60)
    """Pause per run, to try interruption and progress."""


class RunnerSection(Section):
    """`[runner]`: how runs are executed."""

    kind: Literal["ray", "inline", "replay"] = "ray"
    """`ray`: Ray Tune, here or on a cluster; `inline`: this process; `replay`: looked up, nothing is trained."""
    cpus_per_run: Quantity = Field(default=1.0, gt=0)
    """CPU cores reserved for a run; a run on the CPU computes with as many threads."""
    gpus_per_run: Quantity = Field(default=0.0, ge=0)
    """GPUs reserved for a run; a fraction shares one."""
    concurrency: Count = Field(default=64, ge=1)
    """Most runs at once; resources may allow fewer."""
    retries: int = Field(default=2, ge=0, le=10)
    """How often a run is tried again after its worker died or raised."""
    table: str = ""
    """Run table (CSV or Parquet) that `replay` looks runs up in; relative to the study file."""
    surface: SurfaceSection | None = None
    """Closed-form loss that `replay` evaluates instead of a table."""

    @model_validator(mode="after")
    def _check_replay(self) -> RunnerSection:
        if self.kind == "replay" and bool(self.table) == (self.surface is not None):
            raise ValueError("the replay runner needs either table or [runner.surface], and only one of them")
        return self


class BudgetSection(Section):
    """`[budget]`: what the study may cost; a plan above it is refused."""

    runs: Count = Field(default=RUN_LIMIT, ge=1)
    """Most runs."""
    tokens: Limit = Field(default=math.inf, gt=0)
    """Most training tokens, all runs together."""
    flops: Limit = Field(default=math.inf, gt=0)
    """Most training FLOPs, all runs together."""
    hours: Limit = Field(default=math.inf, gt=0)
    """Most hours of wall time, by the measured probe."""

    @property
    def limits_hours(self) -> bool:
        """Whether a launch has to measure how fast this machine is."""
        return math.isfinite(self.hours)


class TargetSection(Section):
    """`[target]`: the large run that it is all for."""

    params: Count = Field(ge=1)
    """Non-embedding parameters."""
    tokens: Horizon
    """Training tokens, or `20xN`."""
    seq_len: Count = Field(default=0, ge=0)
    """Tokens per sequence of the target; 0 takes that of `[data]`."""

    @property
    def tokens_resolved(self) -> int:
        """The horizon in tokens."""
        if isinstance(self.tokens, TokensPerParam):
            return round(self.tokens.ratio * self.params)
        return self.tokens
