"""Which runs may be averaged, when a soup is asked for, and that it is recorded as a run of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from foretune.checking import describe_plan
from foretune.deriving import CorpusFacts
from foretune.errors import InputError
from foretune.evidence import gather_observations
from foretune.execution import execute_study
from foretune.launching import launch_study
from foretune.ledger import open_ledger
from foretune.progress import ProgressBar
from foretune.records import Phase, Result, RunSpec, RunStatus
from foretune.resolution import resolve_corpus
from foretune.runners import make_runner
from foretune.search import History, ask_search, conclude_search
from foretune.search.soups import find_fork, gather_pots, list_retrained
from foretune.searching import Searching
from foretune.study import Study, read_study
from foretune_factories import make_spec

CORPUS = CorpusFacts("0" * 64, 257, {"code": 1.0}, {"code": 10**9})


def make_study(soup: str = "greedy", **search: Any) -> Study:
    """Three ends of one schedule: 40 steps, of which the last 8 decay."""
    space = {"final_lr_fraction": [0.0, 0.2, 0.5]}
    return read_study(
        {
            "study": {"name": "soup"},
            "proxy": {"base_width": 16, "head_size": 8, "depth": 1, "parametrization": "mup"},
            "scales": [{"name": "w16", "width": 16, "tokens": 40 * 256}],
            "data": {"seq_len": 32, "validation_sequences": 8},
            "training": {"batch_tokens": 256, "peak_lr": 0.01, "diagnoses": 0},
            "search": {"space": space, "soup": soup, **search},
            "runner": {"kind": "inline", "pack": 1},
        }
    )


def finish(spec: RunSpec, loss: float) -> Result:
    return Result(
        run_id=spec.run_id,
        status=RunStatus.COMPLETED,
        loss=loss,
        loss_by_domain={},
        tokens=1,
        spent_flops=1.0,
        curve=(),
    )


@pytest.mark.parametrize(
    ("changes", "fork"),
    [
        ({"final_lr_fraction": 0.3}, 33),  # the first step of the decay is still at the peak
        ({"steps": 60, "decay_steps": 12}, 33),
        ({"stop_step": 24}, 24),
        ({"phases": (Phase(start_step=20, settings={"peak_lr": 0.001}),)}, 20),
        ({"phases": (Phase(start_step=20, settings={"weight_decay": 0.5}),)}, 20),
        ({"phases": (Phase(start_step=20, mixture={"docs": 1.0}),)}, 20),
        ({"peak_lr": 0.02}, 0),
        ({"weight_decay": 0.2}, 0),
        ({"seed": 1}, 0),
        ({"width": 64}, 0),
        ({"corpus_digest": "1" * 64}, 0),
        ({"optimizer": "lion"}, 0),
        ({"batch_tokens": 2048}, 0),
        ({"mixture": {"docs": 1.0}}, 0),
    ],
)
def test_the_fork_of_two_runs_is_where_they_first_differ(changes: dict[str, Any], fork: int) -> None:
    one, other = make_spec(), make_spec(**changes)
    assert find_fork(one, other) == find_fork(other, one) == fork


def test_runs_that_share_less_than_half_are_not_averaged() -> None:
    phases = [(Phase(start_step=step, settings={"peak_lr": 0.001}),) for step in (4, 19, 20, 30)]
    specs = [make_spec(), *(make_spec(phases=phase) for phase in phases), make_spec(seed=3)]
    pots = [[specs.index(spec) for spec in pot] for pot in gather_pots(specs)]
    assert pots == [[0, 3, 4], [1], [2], [5]]


def test_a_soup_waits_for_all_runs_and_their_states_for_it() -> None:
    study = make_study()
    first = ask_search(study, CORPUS)
    ids = {spec.run_id for spec in first.specs}
    assert len(first.specs) == 3
    assert all(spec.keep_state for spec in first.specs)
    assert first.retained == ids
    assert not first.finished
    losses = [3.2, 3.1, 3.3]
    results = {spec.run_id: finish(spec, loss) for spec, loss in zip(first.specs, losses, strict=True)}
    partly = History(dict(list(results.items())[:2]))
    assert len(ask_search(study, CORPUS, partly).specs) == 3
    then = ask_search(study, CORPUS, History(results))
    soup = then.specs[-1]
    assert (soup.role, soup.soup, len(then.specs)) == ("soup", "greedy", 4)
    assert [results[member.run_id].loss for member in soup.members] == [3.1, 3.2, 3.3]
    assert then.retained == ids
    assert then.finished
    last = ask_search(study, CORPUS, History({**results, soup.run_id: finish(soup, 3.05)}))
    assert not last.retained


def test_before_a_soup_is_asked_for_the_runs_that_it_will_need_are_known() -> None:
    first, second, third = ask_search(make_study(), CORPUS).specs
    alone = third.model_copy(update={"seed": 9})
    found = list_retrained([third], [first, second, alone], lambda spec: spec.run_id == second.run_id)
    assert found == [first]
    assert list_retrained([], [first, alone], lambda spec: False) == []


def test_the_id_of_a_soup_is_that_of_its_members_and_kind() -> None:
    study = make_study()
    results = {spec.run_id: finish(spec, 3.0) for spec in ask_search(study, CORPUS).specs}
    soup = ask_search(study, CORPUS, History(results)).specs[-1]
    assert soup.run_id not in results
    assert soup.run_id != soup.model_copy(update={"soup": "uniform"}).run_id
    assert soup.run_id != soup.model_copy(update={"members": soup.members[:2]}).run_id
    assert RunSpec.model_validate_json(soup.model_dump_json()).run_id == soup.run_id
    assert "members" not in soup.members[0].content()


def test_runs_without_a_common_trunk_are_refused_with_the_reason() -> None:
    with pytest.raises(InputError, match=r"search\.soup: none of the 2 runs shares at least 50% of its steps"):
        ask_search(make_study(space={"peak_lr": [0.01, 0.02]}), CORPUS)


def test_runs_of_which_too_few_ended_are_no_soup() -> None:
    study = make_study()
    first, *others = ask_search(study, CORPUS).specs
    lost = [finish(spec, 3.0).model_copy(update={"status": RunStatus.DIVERGED, "loss": None}) for spec in others]
    results = {result.run_id: result for result in (finish(first, 3.0), *lost)}
    asked = ask_search(study, CORPUS, History(results))
    assert len(asked.specs) == 3
    assert "none of the 1 runs shares at least 50% of its steps" in asked.skipped[-1].reason


@pytest.mark.parametrize(("loss", "verdict"), [(3.05, "the soup is best"), (3.1, "the soup brings nothing over it")])
def test_a_finding_names_what_was_kept_and_what_is_best(loss: float, verdict: str) -> None:
    study = make_study()
    pairs = zip(ask_search(study, CORPUS).specs, [3.2, 3.1, 3.3], strict=True)
    results = {spec.run_id: finish(spec, own) for spec, own in pairs}
    soup = ask_search(study, CORPUS, History(results)).specs[-1]
    best, second, _ = (member.run_id for member in soup.members)
    made = finish(soup, loss).model_copy(update={"reason": f"greedy soup of 2 of 3 runs: {best}, {second}"})
    findings = conclude_search(study, CORPUS, History({**results, soup.run_id: made}))
    assert findings is not None
    (row,) = findings.tables["Soups"]
    assert (row["seed"], row["kept"], row["members"], row["best_run_id"]) == (soup.seed, 2, 3, best)
    told = f"kept 2 of them and came to {loss:.4f}, its best member, run {best}, to 3.1000: {verdict}."
    assert told in findings.sentence


@pytest.mark.live
def test_members_that_were_trained_before_are_trained_again(tmp_path: Path) -> None:
    studies = {"together": [make_study("uniform")], "later": [make_study(""), make_study("uniform")]}
    soups, planned = {}, {}
    for name, launches in studies.items():
        with open_ledger(tmp_path / f"{name}.db", create=True) as ledger:
            for study in launches:
                planned[name], _, _ = describe_plan(study, ledger, probe=False, results=tmp_path / name)
                launch_study(study, ledger, results=tmp_path / name, quiet=True)
            frame = ledger.runs("soup")
            findings = Searching(study, resolve_corpus(study), ledger).conclude()
        (soups[name],) = frame[frame["role"].eq("soup")].to_dict("records")
        members = frame[frame["role"].eq("search")]
        assert findings is not None
        assert findings.tables["Soups"][0]["kept"] == 3
    assert soups["later"]["loss"] == pytest.approx(soups["together"]["loss"], abs=1e-6)
    assert "3 of them trained again" in soups["later"]["reason"]
    assert (soups["together"]["spent_flops"], soups["later"]["spent_flops"]) == (0, members["compute_flops"].sum())
    assert not list((tmp_path / "later" / "soup" / "runs").glob("*/checkpoints"))
    assert planned["later"]["runs_to_train_again"] == 3
    assert planned["later"]["compute_flops"] == pytest.approx(soups["later"]["spent_flops"], rel=0.01)
    assert "runs_to_train_again" not in planned["together"]


@pytest.mark.live
@pytest.mark.parametrize("kind", ["greedy", "uniform"])
def test_a_soup_is_made_and_recorded(kind: str, tmp_path: Path) -> None:
    study = make_study(kind)
    with open_ledger(tmp_path / "ledger.db", create=True) as ledger:
        runner = make_runner(study.runner, workspace=tmp_path)
        execute_study(study, ledger, runner, resolve_corpus(study), ProgressBar(quiet=True))
        frame = ledger.runs("soup")
        findings = Searching(study, resolve_corpus(study), ledger).conclude()
    (soup,) = frame[frame["role"].eq("soup")].to_dict("records")
    members = frame[frame["role"].eq("search")]
    assert (soup["status"], len(members), soup["spent_flops"]) == ("completed", 3, 0)
    assert soup["reason"].startswith(f"{kind} soup of")
    if kind == "greedy":
        assert soup["loss"] <= members["loss"].min() + 1e-6
    assert soup["loss"] != pytest.approx(members["loss"].max(), abs=1e-9)
    assert findings is not None
    assert findings.tables["Soups"][0]["score"] == pytest.approx(soup["loss"])
    excluded = gather_observations(frame).excluded
    assert [item.runs for item in excluded if item.reason == "soups of other runs"] == [1]


def test_nothing_is_added_without_a_soup() -> None:
    study = make_study("")
    asked = ask_search(study, CORPUS)
    assert asked.finished
    assert not asked.retained
    assert conclude_search(study, CORPUS, History()) is None
