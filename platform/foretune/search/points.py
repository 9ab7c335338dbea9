"""Single runs that a study names one by one: those that `foretune next` proposed, or a person wants."""

from __future__ import annotations

from foretune.deriving import CorpusFacts, nearest_batch, resolve_horizon, resolve_run
from foretune.errors import InputError
from foretune.planning import Skipped, find_obstacle
from foretune.records import RunSpec
from foretune.search.interface import Asked, History, Strategy
from foretune.study import Study


class Points(Strategy):
    """Only the runs that are named one by one, which every other strategy has beside its own."""

    def ask(self, study: Study, corpus: CorpusFacts, history: History) -> Asked:
        """None of its own; see `ask_points`."""
        return Asked((), decisions=history.decisions)


def ask_points(study: Study, corpus: CorpusFacts) -> tuple[list[RunSpec], list[Skipped]]:
    """The runs of `[[search.points]]`, and those that would be of no use with the reason.

    Raises InputError where a batch does not divide the rung's horizon: the run would see fewer tokens than its cell.
    """
    specs, skipped = [], []
    for index, item in enumerate(study.search.points):
        point = item.model_dump(exclude_none=True, exclude={"scale"})
        point["batch_tokens"] = item.batch_tokens or study.training.batch_tokens
        scale = study.scale_named(item.scale)
        horizon = resolve_horizon(study, scale, corpus)
        if horizon % point["batch_tokens"]:
            raise InputError(
                f"search.points[{index}].batch_tokens: must divide the {horizon} tokens of scale {item.scale}, got "
                f"{point['batch_tokens']}; nearest: {nearest_batch(point['batch_tokens'], study, horizon)}"
            )
        spec = resolve_run(study, scale, point, corpus)
        if obstacle := find_obstacle(spec, study, corpus):
            skipped.append(Skipped(scale.name, point, obstacle))
        else:
            specs.append(spec)
    return specs, skipped
