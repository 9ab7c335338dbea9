"""What a point of a space changes in a study, and what is wrong with a space for the study that it stands in."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from foretune.sections import ExpertsSection, Leaf, ProxySection, TrainingSection
from foretune.sections.spaces import RUNG, is_whole
from foretune.settings import find_training_problems
from foretune.space import Derived, Dimension, LinearRange, LogRange, Simplex

if TYPE_CHECKING:
    from foretune.study import Study

EXPERTS = "experts."
"""How the keys of `[proxy.experts]` begin in a space."""
PROXY_KEYS = ("activation", "ffn_ratio", "queries_per_key")
"""Keys of `[proxy]` that a space may vary, beside those of its experts."""
COMBINATIONS = 1000
"""Most models of a space that are built to check it; only more choices than anyone lists make more (assumption)."""


def is_proxy_key(key: str) -> bool:
    """Whether a dimension describes the model."""
    return key in PROXY_KEYS or key.startswith(EXPERTS)


def vary_proxy(proxy: ProxySection, point: Mapping[str, Any]) -> ProxySection:
    """`[proxy]` with what the point says of the model; `experts.count = 0` is a dense feed-forward."""
    changes = {key: point[key] for key in PROXY_KEYS if key in point}
    experts = {key.removeprefix(EXPERTS): value for key, value in point.items() if key.startswith(EXPERTS)}
    if experts:
        own = proxy.experts.model_dump() if proxy.experts else {}
        changes["experts"] = ExpertsSection(**{**own, **experts}) if experts.get("count", 1) else None
    return proxy.model_copy(update=changes) if changes else proxy


def find_space_problems(study: Study) -> list[str]:
    """All problems of the space and its branches, each with its key, rule, value and what to try."""
    problems = [line for leaf in study.search.leaves() for line in _leaf_problems(study, leaf)]
    return list(dict.fromkeys(problems))


def _leaf_problems(study: Study, leaf: Leaf) -> Iterator[str]:
    branches = leaf.axis("parametrization") or (study.proxy.parametrization,)
    seq_len, training = study.data.seq_len, study.training
    found = [*_value_problems(study, leaf), *_rule_problems(study, leaf)]
    found += find_training_problems(training, leaf, study.scales, seq_len, branches)
    for line in found:
        key = re.match(r"search\.space\.([\w.]+): ", line)
        yield line if key is None else f"{leaf.places[key[1]]}: {line[key.end() :]}"


def _value_problems(study: Study, leaf: Leaf) -> Iterator[str]:
    """Values of the space are held to the range of the field that they stand in for."""
    for key in leaf.space:
        home = study.study if key == "seed" else study.proxy if key in PROXY_KEYS else study.training
        for value in leaf.extremes(key) if key in type(home).model_fields else ():
            for said in find_value_problems(home, key, value):
                yield f"search.space.{key}: {said}"


def find_value_problems(home: BaseModel, key: str, value: Any) -> list[str]:
    """What is wrong with a value in the place of a field of this table."""
    try:
        type(home).model_validate({**home.model_dump(exclude_none=True), key: value})
    except ValidationError as error:
        return [f"{item['msg'].removeprefix('Value error, ').lower()}, got {value!r}" for item in error.errors()]
    return []


def _rule_problems(study: Study, leaf: Leaf) -> Iterator[str]:
    for key, rule in leaf.space.items():
        if isinstance(rule, Derived) and rule.of not in (*leaf.space, *RUNG) and read_setting(study, rule.of) is None:
            yield f"search.space.{key}: follows {rule.of}, which has no value; give it in the space or its own table"


def read_setting(study: Study, key: str) -> float | None:
    """The number that a study's tables give a key of the space; None where they give none."""
    home: Any = study.training if key in TrainingSection.model_fields else study.proxy
    for part in key.split("."):
        home = getattr(home, part, None)
    return None if home is None else float(home)


def list_rates(study: Study) -> tuple[float, ...]:
    """The learning rates that a study names, searched or in `[training]`; none where a rule gives them."""
    searched = [study.search.axis("peak_lr"), *(leaf.extremes("peak_lr") for leaf in study.search.leaves())]
    given = () if study.training.peak_lr is None else (study.training.peak_lr,)
    return next((rates for rates in searched if rates), given)


def describe_space(study: Study) -> list[dict[str, Any]]:
    """Every dimension with its values, branch by branch."""
    leaves = study.search.leaves()
    rows = []
    for leaf in leaves:
        for key, dimension in leaf.space.items():
            place = {"branch": leaf.name} if len(leaves) > 1 else {}
            rows.append({**place, "dimension": key, "values": _describe_values(leaf, key, dimension, study)})
    return rows


def _describe_values(leaf: Leaf, key: str, dimension: Dimension, study: Study) -> str:
    if isinstance(dimension, Derived):
        other = dimension.of if dimension.reference == 1 else f"({dimension.of} / {dimension.reference:g})"
        return f"{dimension.coefficient:g} {other}^{dimension.power:g}"
    if isinstance(dimension, Simplex):
        bounds = [f"{name} >= {share:g}" for name, share in dimension.minimum.items()]
        bounds += [f"{name} <= {share:g}" for name, share in dimension.maximum.items()]
        return ", ".join([f"{dimension.points} mixtures" if dimension.points else "mixtures", *bounds])
    if isinstance(dimension, LogRange | LinearRange) and study.search.strategy != "grid" and not is_whole(key):
        return f"{dimension.low:.4g} to {dimension.high:.4g} ({dimension.scale})"
    return ", ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in leaf.axis(key))


def list_proxies(study: Study) -> tuple[list[ProxySection], list[str]]:
    """The models at the ends of the space, and why some combinations of its values describe none."""
    proxies, problems = [], []
    for leaf in study.search.leaves():
        axes = {key: leaf.extremes(key) for key in leaf.space if is_proxy_key(key)}
        if axes and study.proxy.architecture == "transformers":
            problems += [f"{leaf.places[key]}: describes the decoder of this package; remove it" for key in axes]
            continue
        problems += list(_expert_problems(study, leaf, axes))
        for values in itertools.islice(itertools.product(*axes.values()), COMBINATIONS if axes else 0):
            point = dict(zip(axes, values, strict=True))
            try:
                proxies.append(vary_proxy(study.proxy, point))
            except ValidationError as error:
                problems += [_explain(item, leaf, point) for item in error.errors() if item["type"] != "missing"]
    return proxies, list(dict.fromkeys(problems))


def _expert_problems(study: Study, leaf: Leaf, axes: Mapping[str, tuple[Any, ...]]) -> Iterator[str]:
    others = [key for key in axes if key.startswith(EXPERTS) and key != "experts.count"]
    for key in others:
        if "experts.count" not in axes and study.proxy.experts is None:
            yield f"{leaf.places[key]}: there are no experts; give experts.count beside it, or [proxy.experts]"
        if 0 in axes.get("experts.count", ()):
            yield (
                f"{leaf.places[key]}: a dense feed-forward (experts.count = 0) does without it, so its runs would be "
                "repeats; give experts a branch of their own"
            )


def _explain(item: Any, leaf: Leaf, point: Mapping[str, Any]) -> str:
    key = next((f"{EXPERTS}{part}" for part in item["loc"] if f"{EXPERTS}{part}" in point), "")
    place = leaf.places[key or next(name for name in point if name.startswith(EXPERTS))]
    said = item["msg"].removeprefix("Value error, ")
    return f"{place}: {said[0].lower()}{said[1:]}" + (f", got {item['input']!r}" if key else "; give it a branch")
