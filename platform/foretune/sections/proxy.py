"""`[proxy]` and `[[scales]]`: the small models and the ladder of their sizes and horizons."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from foretune.quantities import Count, Horizon, Quantity
from foretune.sections.base import Name, Parametrization, Section


class ExpertsSection(Section):
    """`[proxy.experts]`: a mixture of experts in place of the feed-forward of every block."""

    count: Count = Field(ge=2)
    """Routed experts in a block."""
    active: Count = Field(default=2, ge=1)
    """Routed experts that each token goes through (top-k)."""
    shared: int = Field(default=0, ge=0)
    """Experts that every token goes through."""
    granularity: Quantity = Field(default=2.0, gt=0)
    """2 width / inner size of one expert (Tian et al. 2025, arXiv 2507.17702, section 2)."""
    balance: Literal["global", "micro", "none"] = "global"
    """Load-balancing loss over the whole batch of a step, over each micro-batch, or none (Qiu et al. 2025)."""
    balance_weight: Quantity = Field(default=0.01, ge=0)
    """Weight of the load-balancing loss (Fedus et al. 2021)."""
    router_z_weight: Quantity = Field(default=0.001, ge=0)
    """Weight of the squared log-sum-exp of the router's logits (Zoph et al. 2022)."""

    @model_validator(mode="after")
    def _check_active(self) -> ExpertsSection:
        if self.active > self.count:
            raise ValueError(f"active must not exceed count = {self.count}, got {self.active}")
        return self


class ProxySection(Section):
    """`[proxy]`: the small models. Widths and depths are in `[[scales]]`."""

    architecture: Literal["decoder", "transformers"] = "decoder"
    """`decoder`: a decoder-only transformer with RoPE, RMSNorm and SwiGLU; `transformers`: the causal language model of
    the `transformers` library that `[proxy.config]` describes."""
    parametrization: Parametrization = "mup"
    """How initial weights, learning rates and multipliers follow width and depth: `standard`, `mup` (width),
    `depth-mup` or `completep` (width and depth)."""
    across_widths: Literal["fit", "transfer", "assume_transfer"] = "fit"
    """How the optimal learning rate is carried to other sizes. `fit`: a law of how it moves with size is fitted.
    `transfer`: it is the same at every size (law `lr_transferred`), which is refused unless `foretune coordcheck` and
    `foretune transfer` passed for the parametrization. `assume_transfer`: the same law whatever they say, and every
    answer warns of it. `standard` claims no transfer: its runs beside those of another are always fitted."""
    base_width: Count = Field(ge=8)
    """Width at which muP and standard are the same model; learning rates under muP are quoted at this width."""
    head_size: Count = Field(default=64, ge=2)
    """Size of an attention head at the base width; even, and a divisor of every width."""
    depth: Count = Field(default=2, ge=1)
    """Blocks at the base width; also the depth at which `depth-mup` and `completep` are the same model as `mup`."""
    depth_rule: Literal["fixed", "proportional"] = "fixed"
    """`fixed`: every scale has `depth` blocks; `proportional`: depth grows with width / base_width."""
    ffn_ratio: Quantity = Field(default=8 / 3, gt=0, le=16)
    """Inner size of the feed-forward over the width, rounded to a multiple of 8."""
    activation: Literal["swiglu", "relu2"] = "swiglu"
    """`swiglu`: down(silu(gate x) * up x) (Shazeer 2020); `relu2`: down(relu(up x)^2) (So et al. 2021)."""
    queries_per_key: Count = Field(default=1, ge=1)
    """Query heads that share one key and value head (grouped-query attention, Ainslie et al. 2023)."""
    experts: ExpertsSection | None = None
    """A mixture of experts instead of the dense feed-forward."""
    config: dict[str, Any] = Field(default_factory=dict)
    """With `transformers`: `model_type` and further fields of its configuration. Sizes follow the rung; a text such
    as `"0.5xwidth"` or `"2xdepth"` is a multiple of its width or depth."""
    qk_norm: bool = False
    """RMSNorm on queries and keys before attention (Henry et al. 2020)."""
    tied_head: bool = False
    """Use the embedding, transposed, as output head."""
    rope_base: Quantity = Field(default=10_000.0, gt=1)
    """Base of the rotary frequencies."""

    @model_validator(mode="after")
    def _check_architecture(self) -> ProxySection:
        if (self.architecture == "transformers") != bool(self.config):
            raise ValueError('[proxy.config] is needed with architecture = "transformers", and only then')
        if self.architecture == "transformers" and "model_type" not in self.config:
            raise ValueError('config.model_type is missing; give the name of a causal language model, such as "llama"')
        return self


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
