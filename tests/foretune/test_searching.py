"""The main loop under a search that decides as results come: what is killed anywhere ends as if it had not been."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from foretune.checking import describe_plan
from foretune.deriving import CorpusFacts, resolve_run
from foretune.errors import InputError, RunnerInterruption
from foretune.execution import execute_study
from foretune.ledger import Ledger, open_ledger
from foretune.ledger.lease import LeaseLost
from foretune.progress import ProgressBar
from foretune.records import Decision, Result, RunOutcome, RunSpec, RunStatus, record_outcome
from foretune.resolution import plan_study, resolve_corpus
from foretune.runners import Runner, make_runner
from foretune.runners.interface import More, Note, Observer, ask_nothing, ignore_note
from foretune.search import STRATEGIES, Asked, History, Strategy
from foretune.search.interface import fingerprint_search, make_rng, number_decisions, score
from foretune.search.sampled import Drawn
from foretune.study import Study, read_study

SURFACE = {"lr_params_exponent": {"standard": -0.4, "mup": -0.4}, "lr_coefficient": 1.0, "lr_tokens_exponent": 0.0}
ROUNDS, BATCH = 4, 3


class Climb(Strategy):
    """Rounds of three learning rates about the best so far, ever closer; each goes on from a run of the last round."""

    def __init__(self, closer: float = 2.0) -> None:
        self.closer = closer

    def ask(self, study: Study, corpus: CorpusFacts, history: History) -> Asked:
        decisions = history.decisions
        specs = [self._make(study, corpus, item) for item in decisions]
        while len(specs) < ROUNDS * BATCH and all(spec.run_id in history.results for spec in specs):
            rates = self._propose(study, specs, history)
            parent = specs[-1].run_id if specs else ""
            new = []
            for rate in rates:
                item = Decision(number=0, kind="try", parent_run_id=parent, details={"peak_lr": rate})
                new.append(item.model_copy(update={"run_id": self._make(study, corpus, item).run_id}))
            decisions = number_decisions(decisions, new)
            specs = [self._make(study, corpus, item) for item in decisions]
        last = frozenset(spec.run_id for spec in specs[-BATCH:])
        return Asked(tuple(specs), decisions=decisions, retained=last, finished=len(specs) == ROUNDS * BATCH)

    def expect(self, study: Study, corpus: CorpusFacts) -> list[RunSpec]:
        return [resolve_run(study, study.scales[0], {"peak_lr": 1e-3}, corpus)] * (ROUNDS * BATCH)

    def _make(self, study: Study, corpus: CorpusFacts, item: Decision) -> RunSpec:
        spec = resolve_run(study, study.scales[0], {"peak_lr": item.details["peak_lr"]}, corpus)
        return spec.model_copy(update={"parent_run_id": item.parent_run_id, "keep_state": True})

    def _propose(self, study: Study, specs: list[RunSpec], history: History) -> list[float]:
        if not specs:
            return [1e-4, 1e-2, 0.3]
        best = min(specs, key=lambda spec: score(history.results[spec.run_id], {}))
        spread = 9.0 / self.closer ** (len(specs) // BATCH)
        luck = make_rng(study, "climb", len(specs)).uniform(0.9, 1.1)
        return [best.training.peak_lr * factor * luck for factor in (1 / spread, 1.05, spread)]


class Watcher(ProgressBar):
    """Counts what was executed, and can pull the plug."""

    def __init__(self, stop_after: int = -1) -> None:
        super().__init__(quiet=True)
        self.executed: list[str] = []
        self._stop_after = stop_after

    def finish_run(self, spec: RunSpec, outcome: RunOutcome) -> None:
        self.executed.append(spec.run_id)
        super().finish_run(spec, outcome)
        if len(self.executed) == self._stop_after:
            raise KeyboardInterrupt

    def note(self, message: str) -> None:
        """Print nothing."""


class Failing:
    """A runner under which the runs at some learning rates fail."""

    def __init__(self, inner: Runner, *rates: float) -> None:
        self._inner, self._rates = inner, rates

    def run(
        self, specs: Sequence[RunSpec], observe: Observer, note: Note = ignore_note, more: More = ask_nothing
    ) -> Generator[tuple[RunSpec, RunOutcome]]:
        for spec, outcome in self._inner.run(specs, observe, note, more):
            failed = RunOutcome(status=RunStatus.FAILED, reason="out of memory")
            yield spec, failed if spec.training.peak_lr in self._rates else outcome

    def describe(self) -> str:
        return "failing"

    def close(self) -> None:
        self._inner.close()


class Replaced:
    """A runner that breaks down when another study has finished its first runs."""

    def __init__(self, inner: Runner, ledger: Ledger) -> None:
        self._inner, self._ledger, self._has_broken = inner, ledger, False

    def run(
        self, specs: Sequence[RunSpec], observe: Observer, note: Note = ignore_note, more: More = ask_nothing
    ) -> Generator[tuple[RunSpec, RunOutcome]]:
        if self._has_broken:
            yield from self._inner.run(specs, observe, note, more)
            return
        self._has_broken = True
        for spec, outcome in self._inner.run(specs, observe):
            self._ledger.record(record_outcome(spec.model_copy(update={"study": "other"}), outcome))
        raise RunnerInterruption("the executor broke down")

    def describe(self) -> str:
        return "replaced"

    def close(self) -> None:
        self._inner.close()


class Overtaken:
    """A runner each of whose runs another study has finished meanwhile, with a better loss."""

    def __init__(self, inner: Runner, ledger: Ledger) -> None:
        self._inner, self._ledger = inner, ledger

    def run(
        self, specs: Sequence[RunSpec], observe: Observer, note: Note = ignore_note, more: More = ask_nothing
    ) -> Generator[tuple[RunSpec, RunOutcome]]:
        for spec, outcome in self._inner.run(specs, observe, note, more):
            better = outcome.model_copy(update={"loss": (outcome.loss or 0.0) / 2})
            self._ledger.record(record_outcome(spec.model_copy(update={"study": "other"}), better))
            yield spec, RunOutcome(status=RunStatus.FAILED, reason="out of memory")

    def describe(self) -> str:
        return "overtaken"

    def close(self) -> None:
        self._inner.close()


@pytest.fixture(autouse=True)
def _climb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STRATEGIES, "tpe", Climb())


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with open_ledger(tmp_path / "ledger.db", create=True) as opened:
        yield opened


def make_study(**changes: Any) -> Study:
    raw: dict[str, Any] = {
        "study": {"name": "climb"},
        "proxy": {"architecture": "decoder", "base_width": 32, "head_size": 16, "depth": 2},
        "scales": [{"name": "w32", "width": 32, "tokens": 102_400}],
        "training": {"batch_tokens": 1024},
        "search": {"strategy": "tpe", "space": {"peak_lr": {"low": 1e-5, "high": 0.5}}},
        "runner": {"kind": "replay", "surface": SURFACE},
    }
    return read_study(raw | changes)


def launch(study: Study, ledger: Ledger, watcher: Watcher, runner: Runner | None = None, **options: Any) -> None:
    chosen = runner or make_runner(study.runner, workspace=Path("unused"))
    execute_study(study, ledger, chosen, resolve_corpus(study), watcher, **options)


def test_killed_after_any_result_it_decides_the_same_and_repeats_nothing(tmp_path: Path) -> None:
    study = make_study()
    with open_ledger(tmp_path / "calm.db", create=True) as calm:
        launch(study, calm, Watcher())
        expected, losses = calm.decisions("climb"), calm.runs("climb").set_index("run_id")["loss"].sort_index()
    assert len(expected) == ROUNDS * BATCH
    for stop_after in range(1, ROUNDS * BATCH):
        with open_ledger(tmp_path / f"{stop_after}.db", create=True) as ledger:
            executed: list[str] = []
            first = Watcher(stop_after)
            with pytest.raises(KeyboardInterrupt):
                launch(study, ledger, first)
            second = Watcher()
            launch(study, ledger, second)
            executed = first.executed + second.executed
            assert sorted(executed) == sorted(item.run_id for item in expected)
            assert ledger.decisions("climb") == expected
            found = ledger.runs("climb").set_index("run_id")["loss"].sort_index()
            assert found.equals(losses)


def test_what_was_decided_is_not_decided_anew_by_a_later_version(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyboardInterrupt):
        launch(make_study(), ledger, Watcher(stop_after=4))
    before = ledger.decisions("climb")
    assert len(before) == 2 * BATCH
    monkeypatch.setitem(STRATEGIES, "tpe", Climb(closer=3.0))
    launch(make_study(), ledger, Watcher())
    after = ledger.decisions("climb")
    assert after[: len(before)] == before
    assert len(after) == ROUNDS * BATCH


def test_a_version_that_makes_other_runs_of_the_decisions_is_told_what_differs(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Something that `[training]` derives comes out otherwise; the space, and so the fingerprint, is the same."""
    monkeypatch.setitem(STRATEGIES, "tpe", Drawn("random"))
    launch(make_study(), ledger, Watcher())

    def derive(*args: Any, **options: Any) -> RunSpec:
        spec = resolve_run(*args, **options)
        return spec.model_copy(update={"training": spec.training.model_copy(update={"warmup_steps": 77})})

    monkeypatch.setattr("foretune.search.tried.resolve_run", derive)
    again = Watcher()
    with pytest.raises(InputError, match=r"decision 0 .* differs: training\.warmup_steps was \d+, is 77$"):
        launch(make_study(), ledger, again)
    assert again.executed == []


def test_decisions_on_a_seed_that_the_study_has_no_more_stand(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STRATEGIES, "tpe", Drawn("random"))
    space = {"peak_lr": {"low": 1e-5, "high": 0.5}}
    for seeds in ([0, 1], [1, 2]):
        search = {"strategy": "tpe", "runs": 3, "space": {**space, "seed": seeds}}
        launch(make_study(search=search), ledger, Watcher())
    assert len(ledger.decisions("climb")) == 3
    assert len(ledger.runs("climb")) == 3 * 3


def test_an_edited_space_is_a_new_search_and_the_plan_says_so(ledger: Ledger) -> None:
    launch(make_study(), ledger, Watcher())
    assert "note" not in describe_plan(make_study(), ledger, probe=False)[0]
    wider = make_study(search={"strategy": "tpe", "space": {"peak_lr": {"low": 1e-6, "high": 0.5}}})
    told = describe_plan(wider, ledger, probe=False)[0]["note"]
    assert told.startswith(f"study 'climb': {ROUNDS * BATCH} decisions in the ledger are of other versions")
    assert "begins anew" in told
    launch(wider, ledger, Watcher())
    assert "goes on from its own 12" in describe_plan(wider, ledger, probe=False)[0]["note"]


def test_decisions_are_written_before_anything_is_run_for_them(ledger: Ledger) -> None:
    with pytest.raises(KeyboardInterrupt):
        launch(make_study(), ledger, Watcher(stop_after=1))
    assert [item.number for item in ledger.decisions("climb")] == [0, 1, 2]


def test_a_failed_run_does_not_hold_the_search_up_and_is_tried_again_by_no_later_decision(ledger: Ledger) -> None:
    study = make_study()
    failing = Failing(make_runner(study.runner, workspace=Path("unused")), 1e-2)
    launch(study, ledger, Watcher(), failing)
    assert [failure.reason for failure in ledger.failures("climb")] == ["out of memory"]
    assert len(ledger.decisions("climb")) == ROUNDS * BATCH
    again = Watcher()
    launch(study, ledger, again)
    assert len(again.executed) == 1, "the next launch tries the failed run again, and nothing else"
    assert ledger.failures("climb") == []


def test_the_plan_counts_what_is_still_to_be_decided(ledger: Ledger) -> None:
    study = make_study()
    plan = plan_study(study, resolve_corpus(study), ledger)
    assert (len(plan.todo), len(plan.later)) == (BATCH, (ROUNDS - 1) * BATCH)
    assert plan.flops == ROUNDS * BATCH * plan.todo[0].compute_flops
    with pytest.raises(KeyboardInterrupt):
        launch(study, ledger, Watcher(stop_after=4))
    plan = plan_study(study, resolve_corpus(study), ledger)
    assert (len(plan.done), len(plan.todo), len(plan.later)) == (4, 2, 2 * BATCH)


def test_states_are_swept_but_for_those_that_are_named_or_whose_children_are_to_do(ledger: Ledger) -> None:
    kept: list[set[str]] = []
    launch(make_study(), ledger, Watcher(), sweep=lambda retained: kept.append(set(retained)))
    ids = [item.run_id for item in ledger.decisions("climb")]
    assert len(kept) == ROUNDS
    for place, retained in enumerate(kept):
        first = place * BATCH
        parents = {ids[first - 1]} if place else {""}
        assert retained == {*ids[first : first + BATCH], *parents}


def test_the_state_that_a_failed_run_begins_with_is_kept_for_the_next_launch(ledger: Ledger) -> None:
    """The first round of a climb is at known rates; all of the second go on from its last run."""
    study = make_study()
    with pytest.raises(KeyboardInterrupt):
        launch(study, ledger, Watcher(stop_after=BATCH + 1))
    parent, failing = (ledger.decisions("climb")[place] for place in (BATCH - 1, BATCH + 1))
    kept: list[set[str]] = []
    runner = Failing(make_runner(study.runner, workspace=Path("unused")), failing.details["peak_lr"])
    launch(study, ledger, Watcher(), runner, sweep=lambda retained: kept.append(set(retained)))
    assert [failure.run_id for failure in ledger.failures("climb")] == [failing.run_id]
    assert len(kept) == ROUNDS - 1
    assert all(parent.run_id in retained for retained in kept)


def test_a_result_that_another_study_recorded_first_is_the_one_to_go_by(ledger: Ledger) -> None:
    """A launch and the next one must see the same: that of the ledger."""
    study, seen = make_study(), list[Result]()

    class Listening(Climb):
        def ask(self, study: Study, corpus: CorpusFacts, history: History) -> Asked:
            seen[:] = history.results.values()
            return super().ask(study, corpus, history)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(STRATEGIES, "tpe", Listening())
        launch(study, ledger, Watcher(), Overtaken(make_runner(study.runner, workspace=Path("unused")), ledger))
    assert len(seen) >= (ROUNDS - 1) * BATCH
    assert seen == ledger.results([result.run_id for result in seen])
    assert all(result.status.final for result in seen), "and nothing is lost to the failures of this launch"


@pytest.mark.parametrize("breaks", [False, True])
def test_a_runner_that_ends_before_it_asks_for_more_is_started_again(ledger: Ledger, breaks: bool) -> None:
    class Deaf(Failing):
        def run(
            self, specs: Sequence[RunSpec], observe: Observer, note: Note = ignore_note, more: More = ask_nothing
        ) -> Generator[tuple[RunSpec, RunOutcome]]:
            yield from super().run(specs, observe, note)
            if breaks:
                raise RunnerInterruption("the executor broke down")

    study = make_study()
    launch(study, ledger, Watcher(), Deaf(make_runner(study.runner, workspace=Path("unused"))))
    assert len(ledger.runs("climb")) == ROUNDS * BATCH


def test_what_another_study_ends_while_the_executor_is_broken_is_gone_on_from(ledger: Ledger) -> None:
    study, watcher = make_study(), Watcher()
    launch(study, ledger, watcher, Replaced(make_runner(study.runner, workspace=Path("unused")), ledger))
    assert len(ledger.decisions("climb")) == ROUNDS * BATCH
    assert len(watcher.executed) == (ROUNDS - 1) * BATCH


def test_a_run_that_another_part_of_the_study_asks_for_as_well_changes_its_role(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A baseline that the search comes to ask for is a run of the search, as it would be had the driver been killed."""

    class Meeting(Climb):
        def ask(self, study: Study, corpus: CorpusFacts, history: History) -> Asked:
            asked = super().ask(study, corpus, history)
            if len(asked.specs) == BATCH:
                return asked
            first = asked.specs[0].model_copy(update={"role": "search"})
            return replace(asked, specs=(first, *asked.specs[1:]))

        def _make(self, study: Study, corpus: CorpusFacts, item: Decision) -> RunSpec:
            spec = super()._make(study, corpus, item)
            return spec.model_copy(update={"role": "baseline"}) if item.number == 0 else spec

    monkeypatch.setitem(STRATEGIES, "tpe", Meeting())
    launch(make_study(), ledger, Watcher())
    assert set(ledger.runs("climb")["role"]) == {"search"}


def test_results_of_another_study_are_taken_over(ledger: Ledger) -> None:
    launch(make_study(), ledger, Watcher())
    again = Watcher()
    launch(make_study(study={"name": "other"}), ledger, again)
    assert again.executed == []
    assert [item.run_id for item in ledger.decisions("other")] == [item.run_id for item in ledger.decisions("climb")]


def test_a_search_over_something_else_begins_anew_and_more_of_it_does_not() -> None:
    study, corpus = make_study(), resolve_corpus(make_study())
    known = fingerprint_search(study, corpus)
    search = study.search.model_dump()
    longer = make_study(search={**search, "runs": 99, "batch": 7})
    assert fingerprint_search(longer, corpus) == known
    wider = make_study(search={**search, "space": {"peak_lr": {"low": 1e-6, "high": 0.5}}})
    assert fingerprint_search(wider, corpus) != known
    other_corpus = CorpusFacts("other", corpus.vocab_size, corpus.mixture, corpus.train_tokens)
    assert fingerprint_search(study, other_corpus) != known


def test_a_decision_cannot_be_changed(ledger: Ledger) -> None:
    decision = Decision(number=0, kind="try", run_id="a", details={"peak_lr": 0.1})
    other = decision.model_copy(update={"details": {"peak_lr": 0.2}})
    with ledger.hold_study("climb") as lease:
        ledger.append_decisions("climb", "f", [decision], lease=lease)
        with pytest.raises(InputError, match="decision 0 of its search stands in the ledger"):
            ledger.append_decisions("climb", "f", [other], lease=lease)
        ledger.append_decisions("climb", "g", [other], lease=lease)
    assert ledger.decisions("climb", "f") == [decision]
    assert ledger.decisions("climb", "g") == [other]


def test_a_decision_with_an_infinite_score_is_the_same_when_it_is_read_back(ledger: Ledger) -> None:
    decision = Decision(number=0, kind="try", run_id="a", details={"seen": (math.inf, 0.1), "lost": math.nan})
    with ledger.hold_study("climb") as lease:
        for _ in range(2):
            ledger.append_decisions("climb", "f", [decision], lease=lease)
    (found,) = ledger.decisions("climb", "f")
    assert found.details["seen"] == [math.inf, 0.1]
    assert math.isnan(found.details["lost"])


def test_a_driver_that_was_replaced_cannot_say_what_the_study_is_made_of(ledger: Ledger) -> None:
    with ledger.hold_study("climb") as old, ledger.hold_study("climb", steal=True) as new:
        ledger.enroll("climb", [("a" * 16, "w32", "search")], lease=new)
        with pytest.raises(LeaseLost):
            ledger.enroll("climb", [("b" * 16, "w32", "search")], lease=old)
    assert ledger.count_enrolled("climb") == 1
