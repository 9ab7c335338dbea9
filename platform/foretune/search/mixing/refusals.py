"""What is wrong with a study for a search over mixtures, found before any compute: key, rule, value, what to try."""

from __future__ import annotations

from collections.abc import Iterator

from foretune.errors import InputError
from foretune.planning import find_obstacle
from foretune.search.mixing.course import Course
from foretune.search.sampling import find_mixture_problems
from foretune.space import Simplex

SEARCHED = ("mixture", "seed")
"""What the space of such a search may hold."""


def find_course_problems(course: Course) -> list[str]:
    """All problems; those of the bounds and sizes only where the keys are right."""
    return list(_find_key_problems(course)) or list(_find_count_problems(course)) or list(_find_size_problems(course))


def _find_key_problems(course: Course) -> Iterator[str]:
    study, rules, search = course.study, course.rules, course.study.search
    if len(course.domains) < 2:
        yield f"search.strategy: nothing to search in a mixture of one domain ({', '.join(course.domains)}); add text"
        return
    if not isinstance(search.space.get("mixture"), Simplex):
        yield "search.space.mixture: needs a table of bounds, which may be empty: mixture = {}"
    for key in sorted({*search.list_keys()} - {*SEARCHED}):
        yield f"search.space.{key}: a search over mixtures varies nothing else; fix it in [training] or [proxy]"
    yield from find_mixture_problems(search, course.domains)
    if study.verification:
        yield "verification: checks a forecast of settings; a mixture is checked at [search.mixture] check_scales"
    names = [rung.name for rung in study.scales]
    for key, chosen in (("fidelities", rules.fidelities), ("check_scales", rules.check_scales)):
        for name in sorted(set(chosen) - set(names)):
            yield f"search.mixture.{key}: no such scale {name!r}; scales: {', '.join(names)}"
    for name in sorted(set(rules.fidelities) & set(rules.check_scales)):
        yield f"search.mixture.check_scales: {name!r} is searched too; a check needs a scale that is not"


def _find_count_problems(course: Course) -> Iterator[str]:
    """Sizes and numbers of runs that do not fit together."""
    rules, runs = course.rules, course.study.search.runs
    if not course.fidelities:
        yield "search.mixture.check_scales: they are all scales there are; leave at least one to search"
        return
    natural = len(course.seeds) * min(2, len(course.fidelities))
    if rules.surrogate != "gp" and len(course.fidelities) > 1:
        told = ", ".join(rung.name for rung in course.fidelities)
        yield (f"search.mixture.fidelities: surrogate {rules.surrogate!r} is fitted at one size, got {told}; name one")
    least = natural + (rules.initial if rules.surrogate == "gp" else 3)
    if runs < least:
        yield (
            f"search.runs: must be at least {least}, got {runs}: {natural} of the natural mixture "
            f"({len(course.seeds)} seeds), and the first mixtures; raise it, or lower search.mixture.initial"
        )
    target = course.resolve(course.target)
    for rung in course.checks:
        if course.resolve(rung).compute_flops <= target.compute_flops:
            yield (
                f"search.mixture.check_scales: {rung.name!r} is no larger than {course.target.name!r}, the dearest "
                "that is searched; a check needs a larger one"
            )


def _find_size_problems(course: Course) -> Iterator[str]:
    """Bounds that leave no mixture, and scales at which even the natural one cannot be trained."""
    try:
        course.name_shares(course.region.centre)
    except InputError as error:
        yield str(error) if str(error).startswith(("data.", "search.")) else f"search.space.mixture.{error}"
        return
    for rung in (*course.fidelities, *course.checks):
        if obstacle := find_obstacle(course.resolve(rung), course.study, course.corpus):
            yield f"scales.{rung.name}: the natural mixture cannot be trained: {obstacle}"
