"""Mixtures that runs learn along the way, then trained from scratch beside the mixture that they began with.

At every scale a run of each seed learns its mixture (`[training.mixture_learning]`). What they came to, the mean over
the seeds, is a decision; plain runs of it and of the mixture of `[data]`, with the same seeds, say which is better.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from foretune.deriving import CorpusFacts, resolve_run
from foretune.planning import Skipped, find_obstacle
from foretune.records import Decision, Result, RunSpec
from foretune.search.interface import Asked, Findings, History, Strategy, number_decisions
from foretune.search.learned import FROM_SCRATCH, VERDICTS, average_learned, compare_trained, list_scores
from foretune.sections import ScaleSection
from foretune.study import Study

PLAIN = {"mixture_learning": None}
"""What a point says of a run that keeps its mixture."""
SPACE = ("seed",)
"""What the space may vary: the rest of the runs' settings stay as they are."""


class Bilevel(Strategy):
    """First-order bilevel optimisation of the mixture, and a check of what it found."""

    def find_problems(self, study: Study, corpus: CorpusFacts) -> list[str]:
        """It needs runs that learn, and varies nothing but their seed."""
        problems = []
        if study.training.mixture_learning is None:
            problems.append(
                "training.mixture_learning: missing, and strategy 'bilevel' asks for runs that learn their mixture; "
                "add the table, an empty one to begin with"
            )
        others = [key for key in study.search.list_keys() if key not in SPACE]
        if others:
            problems.append(
                f"search.space.{others[0]}: strategy 'bilevel' varies the seed only; set it in [training], or search "
                "it first with another strategy"
            )
        if study.search.objective:
            problems.append(
                "search.objective: strategy 'bilevel' minimises what its runs learn for; give the weights as "
                "training.mixture_learning.objective"
            )
        return problems

    def ask(self, study: Study, corpus: CorpusFacts, history: History) -> Asked:
        """The runs that learn, and plain ones of what those of a scale have come to."""
        specs: list[RunSpec] = []
        skipped: list[Skipped] = []
        new: list[Decision] = []
        known = {decision.details["scale"]: decision for decision in history.decisions}
        waits = False
        for scale in _list_rungs(study):
            learners = _ask_learners(study, scale, corpus)
            decision = known.get(scale.name) or _decide(scale, learners, history.results)
            if decision is None:
                specs += learners
                waits |= any(spec.run_id not in history.results for spec in learners)
                continue
            passed_over = decision.details.get("passed_over", ())  # the first decisions that were kept do not say
            specs += [spec for spec in learners if spec.run_id not in passed_over]
            if scale.name not in known:
                new.append(decision)
            for spec in _ask_plain(study, scale, decision.details["mixture"], corpus):
                if obstacle := find_obstacle(spec, study, corpus):
                    skipped.append(Skipped(scale.name, {"seed": spec.seed, "mixture": spec.data.mixture}, obstacle))
                else:
                    specs.append(spec)
        decisions = number_decisions(history.decisions, new)
        return Asked(tuple(specs), tuple(skipped), decisions, finished=not waits)

    def expect(self, study: Study, corpus: CorpusFacts) -> list[RunSpec]:
        """The learned mixture is not known before; another one costs the same."""
        weights = {name: rank * share for rank, (name, share) in enumerate(corpus.mixture.items(), start=1)}
        stand_in = {name: weight / sum(weights.values()) for name, weight in weights.items()}
        scales = _list_rungs(study)
        learners = [spec for scale in scales for spec in _ask_learners(study, scale, corpus)]
        return [*learners, *(spec for scale in scales for spec in _ask_plain(study, scale, stand_in, corpus))]

    def conclude(self, study: Study, corpus: CorpusFacts, history: History) -> Findings | None:
        """The learned mixture of the largest scale that has one, and how it compares."""
        scales = {scale.name: scale for scale in _list_rungs(study)}
        rows, shares, sentences = [], [], []
        for decision in history.decisions:
            scale = scales[decision.details["scale"]]
            shares += _tell_shares(decision, corpus)
            row, sentence = _compare(study, scale, decision, corpus, history.results)
            rows.append(row)
            sentences.append(sentence)
        if not sentences:
            return None
        mixture = history.decisions[-1].details["mixture"]
        paths = {
            run_id: [point.model_dump() for point in result.learned_path]
            for run_id, result in history.results.items()
            if result.learned_path
        }
        return Findings(
            sentence=sentences[-1],
            settings={"mixture": mixture} if mixture else {},
            tables={"Learned mixtures": shares, FROM_SCRATCH: rows},
            data={"paths": paths},
        )


def _list_rungs(study: Study) -> list[ScaleSection]:
    held_out = study.verification.scale if study.verification else ""
    return [scale for scale in study.scales if scale.name != held_out]


def _list_seeds(study: Study) -> tuple[int, ...]:
    return study.search.axis("seed") or (study.study.seed,)


def _ask_learners(study: Study, scale: ScaleSection, corpus: CorpusFacts) -> list[RunSpec]:
    return [resolve_run(study, scale, {"seed": seed}, corpus) for seed in _list_seeds(study)]


def _ask_plain(
    study: Study, scale: ScaleSection, mixture: Mapping[str, float], corpus: CorpusFacts
) -> Iterator[RunSpec]:
    """Runs of the learned mixture and of the given one; none where nothing was learned."""
    for shares in (mixture, corpus.mixture) if mixture else ():
        for seed in _list_seeds(study):
            yield resolve_run(study, scale, {**PLAIN, "seed": seed, "mixture": dict(shares)}, corpus)


def _decide(scale: ScaleSection, learners: Sequence[RunSpec], results: Mapping[str, Result]) -> Decision | None:
    """What the runs of a scale have learned, once all of them have ended; an empty mixture where all were lost.

    None where nothing was learned and a run failed for reasons of the machine: the next launch tries it again.
    """
    details = average_learned("mixture", scale.name, learners, results)
    if details is None or (details["passed_over"] and not details["mixture"]):
        return None
    return Decision(number=0, kind="mixture" if details["mixture"] else "lost", details=details)


def _tell_shares(decision: Decision, corpus: CorpusFacts) -> list[dict[str, Any]]:
    """A row for each domain of a scale: what was given, what was learned, and how far the seeds are apart."""
    learned = [shares for shares in decision.details["learned"].values() if shares]
    return [
        {
            "scale": decision.details["scale"],
            "domain": name,
            "given": corpus.mixture[name],
            "learned": share,
            "sd_of_seeds": statistics.stdev(shares[name] for shares in learned) if len(learned) > 1 else None,
        }
        for name, share in decision.details["mixture"].items()
    ]


def _compare(
    study: Study, scale: ScaleSection, decision: Decision, corpus: CorpusFacts, results: Mapping[str, Result]
) -> tuple[dict[str, Any], str]:
    """The objective of both mixtures at a scale, as a row and in a sentence."""
    mixture = decision.details["mixture"]
    if not mixture:
        return {"scale": scale.name}, f"At scale {scale.name} every run that was to learn a mixture was lost."
    learning = _ask_learners(study, scale, corpus)[0].training.mixture_learning
    assert learning is not None, "find_problems asks for it"
    plain = list(_ask_plain(study, scale, mixture, corpus))
    learned, given = (
        list_scores([spec for spec in plain if spec.data.mixture == dict(shares)], results, learning.objective)
        for shares in (mixture, corpus.mixture)
    )
    told = ", ".join(f"{name} {share:.1%}" for name, share in mixture.items())
    if not learned or not given:
        return {"scale": scale.name}, f"The runs of scale {scale.name} learned {told}; it has not been trained yet."
    row = compare_trained(scale.name, learned, given)
    sentence = (
        f"The runs of scale {scale.name} learned {told}. Trained from scratch, its objective is {row['learned']:.4f} "
        f"nats per token against {row['given']:.4f} of the given mixture ({row['difference']:+.2%}). "
        f"{VERDICTS[row['verdict']]}"
    )
    return row, sentence
