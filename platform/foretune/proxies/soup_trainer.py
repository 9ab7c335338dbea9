"""A soup as a run: it is asked for, executed, tried again and recorded like any other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from foretune.proxies.averaging import evaluate_soup
from foretune.records import CurvePoint, RunOutcome, RunSpec


def make_soup(spec: RunSpec, folder: Path, report: Callable[[CurvePoint], None]) -> RunOutcome:
    """The mean of the members' final weights, which lie in the folders beside its own; `reason` says which it is of.

    Raises InputError where a member's state is not on this machine.
    """
    assert spec.soup, f"{spec.run_id} is no soup"
    folders = [folder.parent / member.run_id for member in spec.members]
    outcome, kept = evaluate_soup(spec.members, folders, spec.soup)
    told = f"{spec.soup} soup of {len(kept)} of {len(spec.members)} runs: {', '.join(kept)}"
    return outcome.model_copy(update={"reason": f"{outcome.reason}; {told}" if outcome.reason else told})
