"""Finding a trainer by name, executing it in this process, and what becomes of what it returns or raises."""

from __future__ import annotations

import ast
import logging
from pathlib import Path

import pytest

from foretune.errors import InputError
from foretune.records import PROXY_TRAINER, CurvePoint, RunOutcome, RunSpec, RunStatus
from foretune.runners import load_trainer, make_runner
from foretune.runners.trainers import describe_error
from foretune.runners.transport import decode_spec, encode_spec
from foretune.sections import DataSection, DomainSection, RunnerSection
from foretune_factories import make_spec
from toy_trainers import observe_process


def execute(trainer: str, workspace: Path, retries: int = 0) -> RunOutcome:
    runner = make_runner(RunnerSection(kind="inline", retries=retries), workspace=workspace)
    ((_, outcome),) = runner.run([make_spec(trainer=f"toy_trainers:{trainer}")], ignore)
    return outcome


def ignore(spec: RunSpec, point: CurvePoint) -> None:
    pass


def test_the_name_of_this_package_is_its_trainer() -> None:
    assert load_trainer(PROXY_TRAINER) is load_trainer("foretune.proxies.train:train_run")


def test_the_digest_of_a_trainers_source_is_not_part_of_its_path() -> None:
    assert load_trainer("math:sqrt#0123456789ab") is load_trainer("math:sqrt")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("replay:0123", "looked up, not trained"),
        ("no_such_package.train:run", "cannot import 'no_such_package.train'"),
        ("math:no_such_function", "'math' must have a function 'no_such_function', found nothing"),
        ("math:pi", "must have a function 'pi', found float 3.14"),
        ("foretune.proxies@1", f"must read package.module:function or {PROXY_TRAINER}"),
        ("", "must read package.module:function"),
    ],
)
def test_unusable_names_are_refused_with_what_was_looked_for(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_trainer(name)


@pytest.mark.parametrize(
    ("trainer", "reason"),
    [
        ("exit_softly", "SystemExit: planted exit (toy_trainers.py:"),
        ("return_nothing", "the trainer must return a RunOutcome, got NoneType"),
        ("return_nan", "a completed run must have a finite loss, got nan"),
        ("return_nan_domain", "the trainer's outcome cannot be written as JSON"),
        ("raise_once", "OSError: planted, passing (toy_trainers.py:"),
    ],
)
def test_what_breaks_the_promise_is_a_failed_run(tmp_path: Path, trainer: str, reason: str) -> None:
    outcome = execute(trainer, tmp_path)
    assert outcome.status is RunStatus.FAILED
    assert outcome.reason.startswith(reason)


def test_inline_tries_again_and_shows_the_traceback(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        assert execute("raise_once", tmp_path, retries=1).status is RunStatus.COMPLETED
    assert "in raise_once" in caplog.text
    assert "OSError: planted, passing" in caplog.text


def test_an_inline_run_puts_the_process_back(tmp_path: Path) -> None:
    before = observe_process()
    first, second = execute("leak", tmp_path), execute("leak", tmp_path)
    assert first.reason.endswith("[]"), "the canary must change all that it looks at"
    assert observe_process() == before
    assert ast.literal_eval(first.device) == ast.literal_eval(second.device)
    assert ast.literal_eval(first.device)["threads"] == 1


def test_a_run_that_leaves_nothing_leaves_no_folder(tmp_path: Path) -> None:
    execute("train_toy", tmp_path)
    assert list((tmp_path / "runs").iterdir()) == []


def test_interrupts_are_not_failures(tmp_path: Path) -> None:
    def interrupt(spec: RunSpec, point: CurvePoint) -> None:
        raise KeyboardInterrupt

    runner = make_runner(RunnerSection(kind="inline"), workspace=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        list(runner.run([make_spec(trainer="toy_trainers:train_toy")], interrupt))


def test_long_messages_are_cut_to_a_line() -> None:
    text = describe_error(ValueError("a\n" * 10_000))
    assert text.startswith("ValueError: a a a")
    assert len(text) < 600


def test_specs_travel_whole() -> None:
    section = DataSection(
        corpus="files", domains={"a": DomainSection(path="/data/a"), "b": DomainSection(dataset="o/n")}, seq_len=64
    )
    spec = make_spec(section=section, peak_lr=0.1 + 0.2, mixture={"a": 1 / 3, "b": 2 / 3})
    assert decode_spec(encode_spec(spec)) == spec
    assert decode_spec(encode_spec(spec)).data.section.domains["b"].dataset == "o/n"
