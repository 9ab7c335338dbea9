"""Model soups (Wortsman et al. 2022, arXiv 2203.05482): the mean of the weights of runs forked from one trunk.

Weights may be averaged where runs began as one: the same initial weights and the same steps on the same text, far
enough that they ended in one basin of the loss (Frankle et al. 2020, arXiv 1912.05671, section 3). Which runs did is
decided here, from their specs alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from foretune.planning import Skipped
from foretune.records import CHANGEABLE, PROXY_TRAINER, RunSpec, RunStatus
from foretune.search.interface import Asked, Findings, History, score
from foretune.study import Study
from foretune.training.schedules import schedule_lr

SOUP_TRAINER = "foretune.proxies.soup_trainer:make_soup#1"
"""What makes a soup; the number changes when the same members would give another one."""
SHARED = 0.5
"""Share of the shorter of two runs that they must have in common (assumption: Frankle et al. 2020 find runs stable to
the order of data from 3 to 20 % of training on, for networks of images; decays are forked later than that)."""
UNCHANGED = ("optimizer", "batch_tokens", "ramp", "accumulation_steps", "precision", "spikes", "reweighting", "dropout")
"""Fields of TrainingSpec that the members of a soup have alike, beside those that are compared step by step."""


def add_soups(asked: Asked, study: Study, history: History) -> Asked:
    """What is asked for, with the soups of it once all its runs have ended; their states are kept until then."""
    if not study.search.soup:
        return asked
    whole = [spec for spec in asked.specs if _may_join(spec)]
    kept = {spec.run_id: spec.model_copy(update={"keep_state": True}) for spec in whole}
    specs = tuple(kept.get(spec.run_id, spec) for spec in asked.specs)
    if not asked.finished or any(spec.run_id not in history.results for spec in whole):
        return replace(asked, specs=specs, retained=asked.retained | set(kept), finished=False)
    soups, skipped = _ask_soups(whole, study, history)
    retained = set() if all(soup.run_id in history.results for soup in soups) else set(kept)
    return replace(
        asked,
        specs=(*specs, *soups),
        skipped=(*asked.skipped, *skipped),
        retained=asked.retained | retained,
    )


def find_soup_problems(asked: Asked, study: Study) -> list[str]:
    """That no run shares a trunk with another one, where `asked` is all that a search will ask for."""
    whole = [spec for spec in asked.specs if _may_join(spec)]
    if not study.search.soup or not asked.finished or any(len(pot) > 1 for pot in gather_pots(whole)):
        return []
    return [f"search.soup: {_explain(whole)}; got {study.search.soup!r}: leave it out"]


def find_fork(one: RunSpec, other: RunSpec) -> int:
    """Steps that two runs have in common, settings and text alike; 0 where they began differently."""
    if _describe_beginning(one) != _describe_beginning(other):
        return 0
    last = min(one.last_step, other.last_step)
    return next((step for step in range(last) if _describe_step(one, step) != _describe_step(other, step)), last)


def gather_pots(specs: Sequence[RunSpec]) -> list[list[RunSpec]]:
    """Runs that may be averaged with one another, in order; those without another are pots of their own."""
    pots: list[list[RunSpec]] = []
    for spec in specs:
        fitting = [pot for pot in pots if all(_shares_trunk(spec, member) for member in pot)]
        if fitting:
            fitting[0].append(spec)
        else:
            pots.append([spec])
    return pots


def list_retrained(
    todo: Sequence[RunSpec], done: Sequence[RunSpec], has_state: Callable[[RunSpec], bool]
) -> list[RunSpec]:
    """Runs that are done and have to be trained again, from the beginning, for the soups that are still to be made.

    Before soups are asked for these are at most so many: a run that is still to do may diverge.
    """
    soups = [spec for spec in (*todo, *done) if spec.soup]
    pots = [spec.members for spec in todo if spec.soup]
    if not soups:
        pots = [tuple(pot) for pot in gather_pots([spec for spec in (*done, *todo) if _may_join(spec)])]
    wanted = {spec.run_id for pot in pots for spec in pot if len(pot) > 1}
    whole = {"parent_run_id": "", "parent_step": 0}
    return [spec.model_copy(update=whole) for spec in done if spec.run_id in wanted and not has_state(spec)]


def tell_soups(findings: Findings | None, specs: Sequence[RunSpec], study: Study, history: History) -> Findings | None:
    """The findings with a table of the soups that have been made, beside the best of their members."""
    made = [spec for spec in specs if spec.soup and spec.run_id in history.results]
    rows = [_describe_soup(spec, study, history) for spec in made]
    if not rows:
        return findings
    found = findings or Findings("The runs are there for the laws to fit.")
    sentence = " ".join([found.sentence, *map(_tell, rows)])
    return replace(found, sentence=sentence, tables={**found.tables, "Soups": rows})


def _may_join(spec: RunSpec) -> bool:
    """Whether it is a run of the search that this package trains to the end of its schedule."""
    return spec.role == "search" and not spec.is_partial and spec.trainer == PROXY_TRAINER


def _ask_soups(whole: Sequence[RunSpec], study: Study, history: History) -> tuple[list[RunSpec], list[Skipped]]:
    """A soup for every pot with at least two runs that came to their end."""
    ended = [spec for spec in whole if history.results[spec.run_id].status is RunStatus.COMPLETED]
    ranked = sorted(ended, key=lambda spec: score(history.results[spec.run_id], study.search.objective))
    pots = [pot for pot in gather_pots(ranked) if len(pot) > 1]
    if pots:
        return [_make_spec(pot, study) for pot in pots], []
    return [], [Skipped(study.scales[0].name, {"soup": study.search.soup}, _explain(ended))]


def _explain(specs: Sequence[RunSpec]) -> str:
    return (
        f"none of the {len(specs)} runs shares at least {SHARED:.0%} of its steps with another one: same seed, model, "
        "text and settings so far; vary final_lr_fraction, or horizons under wsd with a warm-up in tokens"
    )


def _make_spec(pot: Sequence[RunSpec], study: Study) -> RunSpec:
    """The soup of these runs, best first. It trains nothing; a plan counts one step for its evaluations."""
    best = pot[0]
    return best.model_copy(
        update={
            "role": "soup",
            "trainer": SOUP_TRAINER,
            "soup": study.search.soup,
            "members": tuple(pot),
            "parent_run_id": best.run_id,
            "parent_step": best.last_step - 1,
            "keep_state": False,
        }
    )


def _shares_trunk(one: RunSpec, other: RunSpec) -> bool:
    return find_fork(one, other) >= SHARED * min(one.last_step, other.last_step)


def _describe_beginning(spec: RunSpec) -> tuple[Any, ...]:
    data = spec.data.model_copy(update={"section": None, "mixture": {}})
    return (spec.model, data, spec.seed, *(getattr(spec.training, name) for name in UNCHANGED))


def _describe_step(spec: RunSpec, step: int) -> tuple[Any, ...]:
    """What decides a step beside the state that it begins with; of the rate, what the schedule makes of its peak."""
    training = spec.training_at(step)
    others = [getattr(training, name) for name in CHANGEABLE if name != "peak_lr"]
    return (schedule_lr(training, step), spec.mixture_at(step), *others)


def _describe_soup(spec: RunSpec, study: Study, history: History) -> dict[str, Any]:
    objective, result = study.search.objective, history.results[spec.run_id]
    value = score(result, objective)
    return {
        "scale": spec.scale,
        "seed": spec.seed,
        "kind": spec.soup,
        "members": len(spec.members),
        "kept": sum(member.run_id in result.reason for member in spec.members),
        "shared_steps": min(find_fork(spec.members[0], member) for member in spec.members[1:]),
        "score": value if math.isfinite(value) else None,
        "best_member": score(history.results[spec.members[0].run_id], objective),
        "worst_member": score(history.results[spec.members[-1].run_id], objective),
        "best_run_id": spec.members[0].run_id,
        "run_id": spec.run_id,
    }


def _tell(row: dict[str, Any]) -> str:
    made = f"The {row['kind']} soup of {row['members']} runs at scale {row['scale']}, seed {row['seed']},"
    if row["score"] is None:
        return f"{made} has no loss (diverged or failed)."
    kept = f"kept {row['kept']} of them and " if row["kind"] == "greedy" else ""
    verdict = "the soup is best" if row["score"] < row["best_member"] else "the soup brings nothing over it"
    best = f"its best member, run {row['best_run_id']}, to {row['best_member']:.4f}"
    return f"{made} {kept}came to {row['score']:.4f}, {best}: {verdict}."
