"""May the optimum of the proxies count as that of every size? What `[proxy] across_widths` and the two gates allow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from foretune.errors import InputError
from foretune.gates.coordinates import fingerprint_proxy
from foretune.gates.transferring import fingerprint_runs
from foretune.study import Study
from scalelaws import Forecast

if TYPE_CHECKING:
    import pandas as pd

TRANSFERRED = "lr_transferred"
"""The law in which the optimal learning rate does not depend on size."""
GATES = ("coordcheck", "transfer")
"""Both are needed: coordinates can agree while the optimum moves (microsoft/mup, issue 22)."""


@dataclass(frozen=True)
class Licence:
    """Which law of the settings answers, and what every answer by it must say."""

    law: str = ""
    """Empty: the law that the runs allow."""
    warnings: tuple[str, ...] = ()

    def mark(self, forecast: Forecast) -> Forecast:
        """The forecast with this licence's warnings."""
        return replace(forecast, warnings=(*forecast.warnings, *self.warnings)) if self.warnings else forecast


FITTED = Licence()
"""How the optimum moves with size is fitted."""


def grant_licence(study: Study, gates: pd.DataFrame, frame: pd.DataFrame, parametrization: str) -> Licence:
    """What a study's file and its gates allow for one parametrization; `gates` as `Ledger.gates` gives them.

    Raises InputError where transfer is asked for and a gate is missing, failed, or judged other runs.
    """
    asked = study.proxy.across_widths
    if asked == "fit" or parametrization == "standard":
        return FITTED
    verdicts = {kind: _judge_gate(kind, study, gates, frame, parametrization) for kind in GATES}
    if asked == "assume_transfer":
        said = "; ".join(f"{kind} {problem or 'passed'}" for kind, problem in verdicts.items())
        return Licence(
            TRANSFERRED,
            (
                'the same learning rate at every size is ASSUMED: proxy.across_widths = "assume_transfer"; '
                f"the gates: {said}",
            ),
        )
    problems = [f"{kind} {problem}" for kind, problem in verdicts.items() if problem]
    if problems:
        raise InputError(
            f'proxy.across_widths: "transfer" needs both gates of {study.study.name!r} under {parametrization}: '
            f'{"; ".join(problems)}. Or set across_widths to "fit", which fits how the optimum moves, or to '
            '"assume_transfer", which overrides the gates and says so in every answer'
        )
    return Licence(TRANSFERRED)


def _judge_gate(kind: str, study: Study, gates: pd.DataFrame, frame: pd.DataFrame, parametrization: str) -> str:
    """What is wrong with one gate, with its numbers and what to do; empty when it stands."""
    found = gates[gates["kind"].eq(kind) & gates["parametrization"].eq(parametrization)]
    again = f"`foretune {kind} {study.study.name}`"
    if found.empty:
        return f"was never run (run {again})"
    row = found.iloc[-1]
    details: Mapping[str, Any] = row["details"]
    if not row["passed"]:
        wanted = f" (what would decide it: {details['wanted']}; then {again})" if details.get("wanted") else ""
        return f"did not pass: {details.get('message', 'see its figure')}{wanted}"
    if kind == "transfer" and details.get("fingerprint") != fingerprint_runs(frame, parametrization):
        return f"judged other runs than the study has now (run {again} again)"
    if kind == "coordcheck" and details.get("fingerprint") != fingerprint_proxy(study):
        return f"judged another [proxy] or optimizer than the study has now (run {again} again)"
    return ""
