"""What a search over mixtures goes by: whole shares, and which of its decisions were passed."""

from __future__ import annotations

import numpy as np

from foretune.records import Decision
from foretune.search.mixing.course import UNIT, Trial, find_lost, read_trials, settle_units
from foretune.search.mixing.simplex import build_region


def decide(kind: str, run_id: str, searched: int = 0, *, waited: bool = True) -> Decision:
    fields = {"scale": "small", "seed": 0, "shares": {"code": 1.0}, "searched": searched, "waited": waited}
    return Trial(kind=kind, run_id=run_id, **fields).decide()  # type: ignore[arg-type]


ADVISED = Decision(number=0, kind="recommend")
BEGUN = [decide("natural", "a"), decide("design", "b"), decide("propose", "c", 2)]
ENDED = [*BEGUN, decide("confirm", "d", 3), decide("confirm", "e", 3), ADVISED, decide("check", "f", 3)]


def list_lost(decisions: list[Decision]) -> set[str]:
    return set(find_lost(read_trials(decisions), {}))


def test_runs_are_lost_to_the_decisions_that_waited_for_them() -> None:
    assert list_lost(BEGUN[:2]) == set()
    assert list_lost(BEGUN) == {"a", "b"}
    assert list_lost(ENDED[:5]) == {"a", "b", "c", "d"}
    assert list_lost(ENDED[:6]) == set("abcde")
    assert list_lost(ENDED) == set("abcde")


def test_a_search_that_goes_on_does_not_lose_what_it_proposes_to_what_it_checked_before() -> None:
    assert list_lost([*ENDED, decide("propose", "g", 3), decide("propose", "h", 3)]) == set("abcdef")


def test_what_did_not_wait_loses_nothing() -> None:
    assert list_lost([*BEGUN, decide("propose", "d", 3, waited=False)]) == {"a", "b"}
    assert list_lost([*BEGUN, decide("propose", "d", 3, waited=False), decide("propose", "e", 4)]) == set("abcd")


def test_a_run_that_is_decided_on_again_is_not_lost() -> None:
    again = [*ENDED, decide("propose", "g", 3), ADVISED, decide("check", "f", 4)]
    assert list_lost(again) == set("abcdeg")


def test_settled_shares_are_whole_units_within_the_bounds() -> None:
    rng = np.random.default_rng(0)
    region = build_region(tuple("abcdefg"), {"a": 0.123456}, {"b": 0.0400001, "c": 0.2})
    for shares in region.sample(200, rng):
        units = settle_units(shares, region)
        assert units.sum() == round(1 / UNIT)
        assert (units * UNIT >= region.low - 1e-9).all()
        assert (units * UNIT <= region.high + 1e-9).all()
        assert np.abs(units * UNIT - shares).max() <= 2 * UNIT
