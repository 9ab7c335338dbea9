"""The course of a population: what may change along it, the occasions for that, and the run of every stretch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from foretune.deriving import CorpusFacts, resolve_run
from foretune.planning import find_obstacle
from foretune.records import CHANGEABLE, Phase, RunSpec, TrainingSpec
from foretune.search.population.exploring import Axes, find_bounded
from foretune.sections import PopulationSection, ScaleSection
from foretune.space import Choice, Derived, Simplex
from foretune.study import Study
from foretune.training.lineages import count_steps

ROUNDING = 1e-9
"""Relative room that is left below a limit for the rounding of sums."""
STRUCTURAL = {
    "batch_tokens": "it decides the steps of a run, which members must have in common",
    "timescale": "it decides the weight decay of a whole run; vary weight_decay",
    "optimizer": "another optimizer cannot go on with the state of this one",
    "schedule": "it is the shape that the peak learning rate is multiplied by",
    "final_lr_fraction": "it is part of the schedule's shape",
    "seed": "every member has its own: the study's, counted on",
}
"""What a space may vary and a run may not change, with the reason; of the rest, the shape of the weights is decided."""


@dataclass(frozen=True)
class Course:
    """Where a population trains, and when its members may copy each other."""

    study: Study
    corpus: CorpusFacts
    scale: ScaleSection
    """The rung."""
    rules: PopulationSection
    axes: Axes
    """The settings that change, by key."""
    stops: tuple[int, ...]
    """Steps at which the generations end, the last one at the end of the run."""
    training: TrainingSpec
    """Steps and tokens of every member."""
    _roots: dict[int, RunSpec] = field(default_factory=dict, repr=False)
    """Whole runs by their seeds: a population asks for each of its runs after every result."""

    @property
    def domains(self) -> tuple[str, ...]:
        """The domains of the corpus, in the order in which mixtures name them."""
        return tuple(self.corpus.mixture)

    @property
    def generations(self) -> int:
        """Stretches of every member."""
        return len(self.stops)

    def step_after(self, generation: int) -> int:
        """Steps done when generation 1, 2, ... ends; 0 after generation 0."""
        return self.stops[generation - 1] if generation else 0

    def tokens_after(self, generation: int) -> int:
        """Tokens seen when a generation ends."""
        return self.training.tokens_at(self.step_after(generation))

    def choose_seed(self, member: int) -> int:
        """The seed with which a member begins."""
        return (self.study.study.seed + member) % 2**32

    def make_spec(
        self, root: dict[str, Any], seed: int, generation: int, phases: tuple[Phase, ...] = (), parent_run_id: str = ""
    ) -> RunSpec:
        """The run of a lineage up to the end of a generation."""
        is_last = generation == self.generations
        if seed not in self._roots:
            self._roots[seed] = resolve_run(self.study, self.scale, {**root, "seed": seed}, self.corpus)
        return self._roots[seed].model_copy(
            update={
                "stop_step": 0 if is_last else self.step_after(generation),
                "phases": phases,
                "parent_run_id": parent_run_id,
                "parent_step": self.step_after(generation - 1),
                "keep_state": not is_last,
            }
        )


def plot_course(study: Study, corpus: CorpusFacts) -> Course:
    """The course of a study's population; the study is known to be sound (see `find_course_problems`)."""
    rules = study.search.population
    assert rules is not None, "find_course_problems asks for it"
    scale = study.scale_named(rules.scale or study.scales[0].name)
    spec = resolve_run(study, scale, _stand_in(study), corpus)
    axes = _cap_shares(study, spec, corpus)
    return Course(study, corpus, scale, rules, axes, _list_stops(spec.training, rules), spec.training)


def _cap_shares(study: Study, spec: RunSpec, corpus: CorpusFacts) -> Axes:
    """The dimensions; in mixtures no share that, kept up for a whole run, is more than `[data] max_epochs` of a domain.

    So no lineage goes more often through a domain, whatever mixtures it takes one after the other.
    """
    axes: Axes = dict(study.search.space)  # type: ignore[arg-type]  # find_course_problems refuses derived values
    mixture = axes.get("mixture")
    if not isinstance(mixture, Simplex):
        return axes
    held = {**corpus.train_tokens, **spec.data.unique_tokens}
    caps = {name: (1 - ROUNDING) * study.data.max_epochs * unique / spec.tokens for name, unique in held.items()}
    lower = {name: cap for name, cap in caps.items() if cap < mixture.maximum.get(name, 1.0)}
    return {**axes, "mixture": mixture.model_copy(update={"maximum": mixture.maximum | lower})}


def find_course_problems(study: Study, corpus: CorpusFacts) -> list[str]:
    """What speaks against training a population: key, rule, value, what to try."""
    rules = study.search.population
    if rules is None:
        return ['search.population: strategy = "pbt" needs it; give size and ready_tokens']
    names = [scale.name for scale in study.scales]
    if rules.scale and rules.scale not in names:
        return [f"search.population.scale: no such scale {rules.scale!r}; scales: {', '.join(names)}"]
    problems = [*_space_problems(study, rules), *_training_problems(study), *_judgement_problems(study, rules)]
    return problems or list(_horizon_problems(plot_course(study, corpus)))


def _stand_in(study: Study) -> dict[str, Any]:
    """A point by which a run can be resolved: a learning rate if `[training]` gives none."""
    return {} if study.training.peak_lr is not None else {"peak_lr": _find_bounds(study, "peak_lr")[1]}


def _find_bounds(study: Study, key: str) -> tuple[float, float]:
    """The lowest and highest value of a number, searched or not."""
    axis = study.search.space.get(key)
    if axis is None:
        value = getattr(study.training, key)
        return value, value
    return (min(axis.values), max(axis.values)) if isinstance(axis, Choice) else (axis.low, axis.high)  # type: ignore[union-attr]


def _list_stops(training: TrainingSpec, rules: PopulationSection) -> tuple[int, ...]:
    """The steps of the occasions: every `ready_tokens` once burn-in and warm-up are over, and the end of the run.

    The last generation is between half and one and a half of the others.
    """
    begin = max(rules.burn_in_tokens, training.tokens_at(training.warmup_steps))
    marks = [number * rules.ready_tokens for number in range(1, round(training.tokens / rules.ready_tokens))]
    stops = [count_steps(training, mark) for mark in marks if mark >= begin]
    return (*dict.fromkeys(stop for stop in stops if stop < training.steps), training.steps)


def _space_problems(study: Study, rules: PopulationSection) -> Iterator[str]:
    space = study.search.space
    for key, axis in space.items():
        if key not in (*CHANGEABLE, "mixture"):
            reason = STRUCTURAL.get(key, "it decides the shape of the weights, which members copy from each other")
            changeable = ", ".join((*CHANGEABLE, "mixture"))
            yield f"search.space.{key}: cannot change along a run: {reason}; a population may vary {changeable}"
        elif isinstance(axis, Derived):
            yield f"search.space.{key}: a derived value does not follow along a run; search it, or leave it out"
    if all(isinstance(axis, Choice) and len(axis.values) == 1 for axis in space.values()):
        yield "search.space: every dimension has one value, so nothing can change; give bounds or more values"
    if rules.explore == "bandit" and not find_bounded(space):
        yield (
            "search.population.explore: 'bandit' chooses numbers between bounds, and the space has lists and mixtures "
            "only, which are perturbed; give a dimension low and high, or take 'perturb'"
        )


def _training_problems(study: Study) -> Iterator[str]:
    training, space = study.training, study.search.space
    for name, instead in (("timescale", "weight_decay"), ("final_lr", "final_lr_fraction")):
        if getattr(training, name) is not None and "peak_lr" in space:
            yield (
                f"training.{name}: is turned into {instead} by the peak learning rate, which changes along a run, got "
                f"{getattr(training, name):g}; give {instead}"
            )
    if study.verification is not None:
        yield "verification: a population gives no law whose forecast could be checked; leave it out"
    rate, decay = (_find_bounds(study, key)[1] for key in ("peak_lr", "weight_decay"))
    if rate * decay >= 1:
        yield (
            f"search.space: a learning rate of {rate:g} with a weight decay of {decay:g} would take away all of the "
            f"weights in a step; keep weight_decay below {1 / rate:.3g}"
        )


def _judgement_problems(study: Study, rules: PopulationSection) -> Iterator[str]:
    mixes = "mixture" in study.search.space
    if mixes and not study.search.objective:
        yield (
            "search.objective: needed where the mixture changes: a run's own loss is weighted by its own mixture, and "
            "members could not be compared; give a weight for every domain that counts"
        )
    if rules.exploit == "ttest" and (mixes or study.search.objective):
        yield (
            "search.population.exploit: 'ttest' goes by the losses along a run, which its own mixture weighs and no "
            "objective; take 'truncation' or 'tournament'"
        )


def _mixture_problems(course: Course) -> Iterator[str]:
    """Bounds on mixtures that do not suit the corpus, or leave none that goes through no domain too often."""
    given, capped = course.study.search.space.get("mixture"), course.axes.get("mixture")
    if not isinstance(given, Simplex) or not isinstance(capped, Simplex):
        return
    if problems := given.find_problems(course.domains):
        yield from (f"search.space.mixture: {problem}" for problem in problems)
        return
    limit = f"data.max_epochs is {course.study.data.max_epochs:g}"
    for name, most in capped.maximum.items():
        if capped.minimum.get(name, 0.0) > most:
            yield (
                f"search.space.mixture.minimum.{name}: a run of {course.training.tokens} tokens may have a share of at "
                f"most {most:.3g} of it ({limit}), got {capped.minimum[name]:g}; lower it, or train on fewer tokens"
            )
    if capped.find_problems(course.domains):
        most = sum(capped.maximum.get(name, 1.0) for name in course.domains)
        yield (
            f"search.space.mixture: all domains together fill {most:.3g} of the {course.training.tokens} tokens of a "
            f"run ({limit}); train on fewer tokens, or allow more epochs"
        )


def _list_mixtures(course: Course) -> list[dict[str, Any]]:
    """The mixtures of a list; else one of those within the bounds, or none where the mixture is not searched."""
    axis, middle = course.axes.get("mixture"), [0.5] * (len(course.domains) - 1)
    if isinstance(axis, Choice):
        return [{"mixture": value} for value in axis.values]
    return [{"mixture": axis.place(middle, course.domains)} if isinstance(axis, Simplex) else {}]


def _choose_first(course: Course) -> dict[str, Any]:
    """The first value of every list."""
    return {key: axis.values[0] for key, axis in course.axes.items() if isinstance(axis, Choice)}


def _horizon_problems(course: Course) -> Iterator[str]:
    rules, training = course.rules, course.training
    wrong = list(_mixture_problems(course))
    yield from wrong
    for place, mixture in enumerate([] if wrong else _list_mixtures(course)):
        spec = course.make_spec({**_stand_in(course.study), **_choose_first(course), **mixture}, place, 1)
        if obstacle := find_obstacle(spec, course.study, course.corpus):
            yield f"search.population.scale: the run at {course.scale.name!r} would be of no use: {obstacle}"
            break
    if rules.ready_tokens < training.batch_tokens:
        yield (
            f"search.population.ready_tokens: {rules.ready_tokens} is less than a batch of {training.batch_tokens} "
            "tokens; raise it"
        )
    if course.generations == 1:
        begin = max(rules.burn_in_tokens, training.tokens_at(training.warmup_steps))
        yield (
            f"search.population.ready_tokens: {rules.ready_tokens} leaves no occasion to copy in a run of "
            f"{training.tokens} tokens, of which {begin} are burn-in and warm-up; lower it, or lower burn_in_tokens"
        )
