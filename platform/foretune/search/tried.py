"""The settings that a search has tried: read back from its decisions, judged over their seeds, told as findings."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

from foretune.deriving import CorpusFacts, resolve_run
from foretune.planning import Skipped, find_obstacle
from foretune.quantities import format_count
from foretune.records import Decision, Result, RunSpec, RunStatus
from foretune.search.comparing import Ranking, rank_settings
from foretune.search.edges import find_edges
from foretune.search.interface import Asked, Findings, History, score
from foretune.search.sampling import Placed, Point, list_rungs, list_seeds
from foretune.study import Study

TRY = "try"
"""Kind of a decision to run a setting at a rung, with every seed."""


@dataclass(frozen=True)
class Setting:
    """A point of the space at a rung, with every seed."""

    scale: str
    """The rung."""
    placed: Placed
    """The settings, and the choices that led to them."""
    specs: tuple[RunSpec, ...]
    """Its runs, one a seed."""
    obstacle: str
    """Why they would be of no use; empty where they are run."""
    results: tuple[Result, ...]
    """What came of those that have ended."""
    scores: tuple[float, ...]
    """What is minimised, of each result: infinite without a loss."""

    @property
    def point(self) -> Point:
        """The settings, by their names in the space."""
        return self.placed.point

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will be known of it."""
        return bool(self.obstacle) or len(self.results) == len(self.specs)

    @property
    def has_diverged(self) -> bool:
        """Whether a seed of it did not get to its end, for reasons of its settings."""
        return any(result.status is RunStatus.DIVERGED for result in self.results)

    @property
    def losses(self) -> tuple[float, ...]:
        """The scores of the seeds that have one."""
        return tuple(value for value in self.scores if math.isfinite(value))

    @cached_property  # settings are ranked by it after every result
    def mean(self) -> float:
        """By what it is judged: the mean over its seeds; infinite where one diverged, or none has a loss."""
        return math.fsum(self.losses) / len(self.losses) if self.losses and not self.has_diverged else math.inf


def make_setting(
    study: Study, corpus: CorpusFacts, scale: str, placed: Placed, results: Mapping[str, Result]
) -> Setting:
    """The runs of a setting, with what came of them."""
    specs = tuple(_resolve(study, corpus, scale, placed, seed) for seed in list_seeds(study))
    setting = Setting(scale, placed, specs, find_obstacle(specs[0], study, corpus), (), ())
    return judge_setting(setting, results, study.search.objective)


def judge_setting(setting: Setting, results: Mapping[str, Result], objective: Mapping[str, float]) -> Setting:
    """The same with what came of its runs by now."""
    ended = tuple(results[spec.run_id] for spec in setting.specs if spec.run_id in results)
    return replace(setting, results=ended, scores=tuple(score(result, objective) for result in ended))


def decide_setting(setting: Setting, *, model: str) -> Decision:
    """The decision to run a setting; `model` says what proposed it."""
    first = setting.specs[0]
    details = {"scale": setting.scale, "point": setting.point, "choices": setting.placed.choices, "model": model}
    run_id = "" if setting.obstacle else first.run_id
    return Decision(number=0, kind=TRY, run_id=run_id, details={**details, "seed": first.seed})


def list_settings(study: Study, corpus: CorpusFacts, history: History) -> list[Setting]:
    """The settings that were decided on, in order; at each rung no more than the study has runs for by now."""
    found: list[Setting] = []
    counts: Counter[str] = Counter()
    for item in history.decisions:
        scale = item.details["scale"]
        if item.kind == TRY and counts[scale] < study.search.runs:
            counts[scale] += 1
            found.append(_read_setting(study, corpus, item, history))
    return found


def _read_setting(study: Study, corpus: CorpusFacts, item: Decision, history: History) -> Setting:
    """The setting that was decided on, with what came of it by now; one that has ended is kept."""
    scale, placed = item.details["scale"], Placed(item.details["point"], item.details["choices"])
    if "seed" in item.details:  # the first decisions that were kept do not say, and seeds may have changed since
        history.remake(item, partial(_resolve, study, corpus, scale, placed, item.details["seed"]))

    def judge() -> Setting:
        begun = history.keep(("setting", item.number), partial(make_setting, study, corpus, scale, placed, {}))
        return judge_setting(begun, history.results, study.search.objective)

    return history.keep(("ended", item.number), judge, lambda setting: setting.has_ended)


def _resolve(study: Study, corpus: CorpusFacts, scale: str, placed: Placed, seed: int) -> RunSpec:
    return resolve_run(study, study.scale_named(scale), {**placed.point, "seed": seed}, corpus)


def ask_settings(settings: Sequence[Setting], decisions: tuple[Decision, ...], *, finished: bool) -> Asked:
    """The runs of these settings."""
    specs = [spec for item in settings if not item.obstacle for spec in item.specs]
    skipped = [Skipped(item.scale, item.point, item.obstacle) for item in settings if item.obstacle]
    return Asked(tuple(specs), tuple(skipped), decisions, finished=finished)


def conclude_settings(study: Study, corpus: CorpusFacts, settings: Sequence[Setting]) -> Findings | None:
    """The best setting of the largest rung and those within noise of it, with a table for each rung."""
    tables, sentence, best = {}, "", None
    for rung in list_rungs(study):
        judged = [item for item in settings if item.scale == rung.name and item.has_ended and not item.obstacle]
        if not judged:
            continue
        by_name = {str(place): item for place, item in enumerate(judged)}
        ranking = rank_settings({name: item.losses for name, item in by_name.items() if math.isfinite(item.mean)})
        rows = [_describe(by_name[name], name, ranking) for name in ranking.order]
        tables[f"settings at {rung.name}"] = _align(rows)
        lost = len(judged) - len(ranking.order)
        if ranking.order and (best is None or _cost(by_name[ranking.order[0]]) >= _cost(best)):
            best = by_name[ranking.order[0]]
            sentence = _tell(best, ranking, lost, find_edges(study.search.leaf_at(best.point), best.point))
    if best is None:
        return None
    return Findings(sentence, best.point, tables, {"scale": best.scale})


def _cost(setting: Setting) -> int:
    return setting.specs[0].compute_flops


def _align(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same columns in every row: a branch has settings that others do without."""
    outcome = ("loss", "seeds", "beside the best")
    settings = dict.fromkeys(key for row in rows for key in row if key not in outcome)
    return [{key: row.get(key) for key in (*settings, *outcome)} for row in rows]


def _describe(setting: Setting, name: str, ranking: Ranking) -> dict[str, Any]:
    verdict = "best" if name == ranking.order[0] else "within noise" if name in ranking.rivals else "worse"
    if verdict == "within noise" and ranking.noise is None:
        verdict = "unknown"
    mixture = {f"mixture.{key}": share for key, share in setting.point.get("mixture", {}).items()}
    plain = {key: value for key, value in setting.point.items() if key != "mixture"}
    return {**plain, **mixture, "loss": setting.mean, "seeds": len(setting.losses), "beside the best": verdict}


def _tell(best: Setting, ranking: Ranking, lost: int, edges: Iterable[str]) -> str:
    settings = ", ".join(f"{key} {_render(value)}" for key, value in best.point.items())
    tokens = format_count(best.specs[0].tokens)
    parts = [f"At {best.scale} ({tokens} tokens) the lowest loss, {best.mean:.4f}, is at {settings}", *edges]
    if ranking.noise is None:
        parts.append("without replicates nothing says how much of it is noise: give search.space.seed several seeds")
    elif ranking.rivals:
        parts.append(f"{len(ranking.rivals)} of {len(ranking.order) - 1} other settings are within noise of it")
    else:
        parts.append("every other setting is worse beyond noise")
    if ranking.noise:
        parts.append(f"noise: {ranking.noise.describe()}")
    if lost:
        parts.append(f"{lost} settings have no loss (diverged or failed)")
    return "; ".join(parts) + "."


def _render(value: Any) -> str:
    if isinstance(value, dict):
        return "/".join(f"{name} {share:.3g}" for name, share in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)
