"""Our parametrization beside the `mup` package's on the same shapes: initial weights, learning rates, weight decays.

A twin of plain torch modules is built at the base width and at four times that. `mup.set_base_shapes` finds what grew;
`mup.MuAdamW`, `mup.MuSGD`, `mup.init` and `mup.MuReadout` give its numbers, `choose_rules` gives ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args

import mup
import torch
from torch import Tensor, nn

from foretune.accounting import choose_ffn_width
from foretune.parametrization import GroupRule, choose_multipliers, choose_rules
from foretune.records import DecoderSpec, ExpertsSpec

BASE_WIDTH, GROWTH, PEAK_LR, WEIGHT_DECAY = 32, 4, 0.01, 0.1
SHAPES: dict[str, dict[str, Any]] = {
    "dense": {},
    "grouped-query, tied, relu2": {"queries_per_key": 2, "tied_head": True, "activation": "relu2", "qk_norm": True},
    "mixture of experts": {"experts": (4, 2, 1)},
}
"""Variants of the decoder; experts are (count, active, shared)."""

Family = Literal["adamw", "sgd"]
CELLS = ("lr", "weight_decay")


def describe_model(width: int, experts: tuple[int, int, int] | None = None, **overrides: Any) -> DecoderSpec:
    """A decoder of that width under mup."""
    return DecoderSpec(
        parametrization="mup",
        width=width,
        depth=2,
        vocab_size=257,
        base_width=BASE_WIDTH,
        base_depth=2,
        head_size=8,
        base_head_size=8,
        ffn_width=choose_ffn_width(width, 8 / 3),
        base_ffn_width=choose_ffn_width(BASE_WIDTH, 8 / 3),
        rope_base=10_000.0,
        experts=_describe_experts(width, *experts) if experts else None,
        **{"qk_norm": False, "tied_head": False, **overrides},
    )


def _describe_experts(width: int, count: int, active: int, shared: int) -> ExpertsSpec:
    return ExpertsSpec(
        count=count,
        active=active,
        shared=shared,
        width=width,
        base_width=BASE_WIDTH,
        balance="global",
        balance_weight=0.01,
        router_z_weight=0.001,
    )


class Twin(nn.Module):
    """The tensors of a decoder as plain torch modules, each named by its group; it is never run."""

    def __init__(self, model: DecoderSpec) -> None:
        """Every linear map with a fan-out that does not grow is a readout, as `mup` asks."""
        super().__init__()
        self.embedding = nn.Embedding(model.vocab_size, model.width)
        self.blocks = nn.ModuleList(_build_block(model) for _ in range(model.depth))
        self.final_norm = nn.RMSNorm(model.width)
        if model.tied_head:
            self.head = mup.MuSharedReadout(self.embedding.weight, bias=False)
        else:
            self.head = mup.MuReadout(model.width, model.vocab_size, bias=False)

    def list_groups(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor with its group."""
        for name, tensor in self.named_parameters():
            yield next(part for part in reversed(name.split(".")[:-1]) if not part.isdigit()), tensor


def _build_block(model: DecoderSpec) -> nn.Module:
    width, size, wide = model.width, model.head_size, model.activation == "swiglu"
    up = "gate_up" if wide else "up"
    parts: dict[str, nn.Module] = {
        "norms": nn.ModuleList(nn.RMSNorm(width) for _ in range(2)),
        "query_key_value": nn.Linear(width, width + 2 * width // model.queries_per_key, bias=False),
        "attention_output": nn.Linear(width, width, bias=False),
    }
    if model.qk_norm:
        parts["head_norms"] = nn.ModuleList(nn.RMSNorm(size) for _ in range(2))
    if model.experts is None:
        parts |= {up: _stack(1, width, (1 + wide) * model.ffn_width), "down": _stack(1, model.ffn_width, width)}
        return nn.ModuleDict(parts)
    count, inner, shared = model.experts.count, model.experts.width, model.experts.shared * model.experts.width
    parts["router"] = mup.MuReadout(width, count, bias=False)
    parts |= {f"experts_{up}": _stack(count, width, (1 + wide) * inner), "experts_down": _stack(count, inner, width)}
    parts |= {f"shared_{up}": _stack(1, width, (1 + wide) * shared), "shared_down": _stack(1, shared, width)}
    return nn.ModuleDict(parts)


def _stack(count: int, fan_in: int, fan_out: int) -> nn.ModuleList:
    return nn.ModuleList(nn.Linear(fan_in, fan_out, bias=False) for _ in range(count))


def compare_with_mup(shape: str, optimizer: Family) -> list[dict[str, Any]]:
    """A row per group: initial standard deviation, learning rate, weight decay and readout, ours and of `mup`."""
    overrides = SHAPES[shape]
    model, base = (describe_model(width, **overrides) for width in (GROWTH * BASE_WIDTH, BASE_WIDTH))
    twin, base_twin, delta = (
        Twin(describe_model(width, **overrides)) for width in (GROWTH * BASE_WIDTH, BASE_WIDTH, 2 * BASE_WIDTH)
    )
    mup.set_base_shapes(twin, base_twin, delta=delta)
    chosen = {"adamw": mup.MuAdamW, "sgd": mup.MuSGD}[optimizer](
        twin.parameters(), lr=PEAK_LR, weight_decay=WEIGHT_DECAY
    )
    theirs = {id(tensor): group for group in chosen.param_groups for tensor in group["params"]}
    base_std = {rule.name: rule.init_std for rule in choose_rules(base, optimizer)}
    tensors = dict(twin.list_groups())
    return [
        _compare(rule, tensors[rule.name], theirs[id(tensors[rule.name])], base_std[rule.name], model)
        for rule in choose_rules(model, optimizer)
    ]


def _compare(
    rule: GroupRule, tensor: Tensor, theirs: dict[str, Any], base_std: float, model: DecoderSpec
) -> dict[str, Any]:
    multipliers = choose_multipliers(model)
    readouts = {"head": multipliers.logits, "router": multipliers.router}
    row = {
        "group": rule.name,
        "init_std": (rule.init_std, _draw_std(tensor, base_std) if base_std else 0.0),
        "lr": (PEAK_LR * rule.lr_multiplier, theirs["lr"]),
        "weight_decay": (WEIGHT_DECAY * rule.weight_decay_multiplier, theirs["weight_decay"]),
    }
    if rule.name in readouts:
        row["readout"] = (readouts[rule.name], 1 / tensor.infshape.width_mult())
    return row


def _draw_std(tensor: Tensor, base_std: float) -> float:
    """The standard deviation that `mup.init.normal_` scales to, from the same draw unscaled."""
    torch.manual_seed(0)
    drawn = torch.empty_like(tensor, requires_grad=False).normal_()
    torch.manual_seed(0)
    mup.init.normal_(tensor, std=base_std)
    return float((tensor.detach() * drawn).sum() / drawn.square().sum())


def main() -> None:
    """One table a shape; every cell is ours, then that of `mup`."""
    print(
        f"width {BASE_WIDTH} to {GROWTH * BASE_WIDTH}, learning rate {PEAK_LR}, weight decay {WEIGHT_DECAY}: ours | mup"
    )
    worst = 0.0
    for shape in SHAPES:
        tables = {optimizer: compare_with_mup(shape, optimizer) for optimizer in get_args(Family)}
        print(f"\n{shape}\n{'group':<17}{'init std':>18} ", *(f"{f'{name} {c}':>18}" for name in tables for c in CELLS))
        for rows in zip(*tables.values(), strict=True):
            cells = [rows[0]["init_std"], *(row[name] for row in rows for name in CELLS)]
            print(f"{rows[0]['group']:<17}", *(f"{f'{ours:.5g} | {theirs:.5g}':>18}" for ours, theirs in cells))
            worst = max([worst, *(abs(ours / theirs - 1) for ours, theirs in cells if ours)])
        print(
            *(f"{r['group']} x {r['readout'][0]:g} | {r['readout'][1]:g}" for r in rows_with_readout(shape)), sep=", "
        )
    print(f"\nlargest relative difference {worst:.1e}; mup leaves it to its user to spare gains from weight decay")


def rows_with_readout(shape: str) -> list[dict[str, Any]]:
    """The rows of output layers."""
    return [row for row in compare_with_mup(shape, "adamw") if "readout" in row]


if __name__ == "__main__":
    main()
