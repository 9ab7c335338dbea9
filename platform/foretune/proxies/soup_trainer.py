"""A soup as a run: it is asked for, executed, tried again and recorded like any other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from foretune.proxies.averaging import evaluate_soup
from foretune.proxies.members import find_checkpoints
from foretune.proxies.residents import RESIDENTS
from foretune.proxies.train import train_run
from foretune.records import CurvePoint, RunOutcome, RunSpec


def make_soup(spec: RunSpec, folder: Path, report: Callable[[CurvePoint], None]) -> RunOutcome:
    """The mean of the members' final weights; `reason` names those that it is of.

    The members' states lie in the folders beside its own. Where one is not there (swept when its run had ended, or on
    another machine) the run is trained again, which gives the same weights up to the rounding of sums; the soup has
    that in its `spent_flops`.
    """
    assert spec.soup, f"{spec.run_id} is no soup"
    RESIDENTS.release()  # it goes on from files
    folders = [folder.parent / member.run_id for member in spec.members]
    pairs = zip(spec.members, folders, strict=True)
    missing = [(member, place) for member, place in pairs if not _has_state(member, place)]
    again = [train_run(member.model_copy(update={"keep_state": True}), place, _ignore) for member, place in missing]
    outcome, kept = evaluate_soup(spec.members, folders, spec.soup)
    told = f"{spec.soup} soup of {len(kept)} of {len(spec.members)} runs: {', '.join(kept)}"
    if again:
        told += f"; {len(again)} of them trained again, as their states were gone"
    return outcome.model_copy(
        update={
            "reason": f"{outcome.reason}; {told}" if outcome.reason else told,
            "spent_flops": sum(item.spent_flops or 0.0 for item in again),
            "wall_seconds": outcome.wall_seconds + sum(item.wall_seconds for item in again),
        }
    )


def _has_state(member: RunSpec, folder: Path) -> bool:
    return find_checkpoints(folder, member.run_id).load(torch.device("cpu"), member.last_step) is not None


def _ignore(point: CurvePoint) -> None:
    """A member's curve is in the ledger already, and is not that of the soup."""
