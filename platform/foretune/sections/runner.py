"""`[runner]`: how runs are executed, and the closed-form surface that a replay evaluates."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from foretune.quantities import Count, Quantity
from foretune.sections.base import Section

Compile = Literal["auto", "on", "off"]


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
    mixing: dict[str, dict[str, Quantity]] = Field(default_factory=dict)
    """Log-linear mixing law: of each domain with held-out text, by how much the log of its loss changes with the share
    of each domain; the domains are those of `[data] mixture`. Empty: no loss depends on the mixture."""
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
    pack: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)] = "auto"
    """Runs of one shape trained as one batched computation on a device: at most so many, or as many as fit and pay by a
    measurement; 1 trains each alone, but for trunks that are shared."""
    share_trunks: bool = True
    """Train the common part of `wsd` runs that differ in their horizon once, and decay from copies of its state."""
    compile: Compile = "auto"
    """Compile the training step (torch.compile): `auto` does on a GPU."""
    table: str = ""
    """Run table (CSV or Parquet) that `replay` looks runs up in; relative to the study file."""
    surface: SurfaceSection | None = None
    """Closed-form loss that `replay` evaluates instead of a table."""

    @model_validator(mode="after")
    def _check_replay(self) -> RunnerSection:
        if self.kind == "replay" and bool(self.table) == (self.surface is not None):
            raise ValueError("the replay runner needs either table or [runner.surface], and only one of them")
        return self
