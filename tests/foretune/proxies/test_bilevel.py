"""A mixture that is learned along a run finds a planted optimum, and its run is a plain one but for the weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foretune.corpora import BatchStream, Corpus, take_reference_batches, take_validation_batches
from foretune.errors import InputError
from foretune.proxies.bilevel import BilevelStepper, LearnedShares
from foretune.proxies.learning import ReferenceText
from foretune.proxies.train import train_run, train_runs
from foretune.records import CurvePoint, MixtureLearningSpec, RunOutcome, RunSpec, RunStatus
from foretune.training.packing import pack_key
from foretune_packs import take_batches

MakeRun = Callable[..., RunSpec]
CPU = torch.device("cpu")
QUIET: Callable[[CurvePoint], None] = lambda point: None  # noqa: E731


class Killed(BaseException):
    """Stands for the end of a process in the middle of a run."""


def learn(**overrides: Any) -> MixtureLearningSpec:
    settings = {
        "objective": {"digits": 1.0, "words": 0.0},
        "penalty": 10.0,
        "logit_lr": 0.02,
        "reference_share": 0.5,
        "reference_sequences": 16,
    }
    return MixtureLearningSpec(**{**settings, **overrides})


@pytest.mark.parametrize("penalty", [1.0, 10.0])
def test_the_shares_of_a_planted_problem_are_found(penalty: float) -> None:
    """Domains are points c_i, the loss of a model on one is |x - c_i|^2 / 2, the reference is a point among them.

    A model trained on shares p is at sum p_i c_i, so that the best shares are those that make the reference of the
    points: one solution, since the points are affinely independent.
    """
    points = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)
    planted = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    steps = 1500
    learned = LearnedShares({"a": 0.2, "b": 0.3, "c": 0.5}, learn(penalty=penalty, logit_lr=0.01), steps, CPU)
    w, u = torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    domains = torch.tensor([0, 0, 1, 1, 1, 2, 2, 2, 2, 2])  # as often as sequences come from each
    for step in range(steps):
        weights = learned.weigh(domains).detach()[:, None]
        pulled = (w - planted @ points) / penalty + (weights * (w - points[domains])).mean(dim=0)
        plain = (weights * (u - points[domains])).mean(dim=0)
        losses = [(copy - points[domains]).square().sum(dim=1) / 2 for copy in (w, u)]
        learned.step(losses[0] - losses[1], domains, 1 - step / steps)  # rates decay in a run, too
        w, u = w - 0.1 * pulled, u - 0.1 * plain
    assert learned.shares().tolist() == pytest.approx(planted.tolist(), abs=0.01)
    assert list(learned.path.average().values()) == pytest.approx(planted.tolist(), abs=0.02)
    assert [point.step for point in learned.path.points()][-1] == steps


def test_reference_text_shares_no_token_with_that_which_judges(corpus: Corpus) -> None:
    judging = take_validation_batches(corpus, 32, 8)
    reference = take_reference_batches(corpus, 32, 16, 8)
    for domain, windows in reference.items():
        text = np.asarray(corpus.tokens(domain, "validation"))
        places = np.lib.stride_tricks.sliding_window_view(text, 33)
        judged = {start for row in judging[domain] for start in np.flatnonzero((places == row).all(axis=1)).tolist()}
        learned = [np.flatnonzero((places == row).all(axis=1)).tolist() for row in windows]
        assert windows.shape == (16, 33)
        assert all(any(all(abs(at - other) >= 33 for other in judged) for at in starts) for starts in learned)


def test_a_corpus_that_holds_out_too_little_is_refused_with_what_to_try(corpus: Corpus) -> None:
    most = (len(corpus.tokens("digits", "validation")) - 1) // 32
    with pytest.raises(InputError, match=r"data\.validation_sequences.*lower it"):
        take_reference_batches(corpus, 32, 16, most)


def test_reference_domains_are_drawn_as_their_weights_say(corpus: Corpus, make_run: MakeRun) -> None:
    run = make_run(mixture_learning=learn(objective={"digits": 0.75, "words": 0.25}))
    text, windows = ReferenceText(corpus, run, CPU), take_reference_batches(corpus, 32, 16, 8)
    digits = {row.tobytes() for row in windows["digits"]}
    drawn = [row.numpy().tobytes() in digits for step in range(200) for row in text.draw(step)]
    assert len(drawn) == 200 * 4
    assert np.mean(drawn) == pytest.approx(0.75, abs=0.001)  # of four, three are digits at every step
    assert torch.equal(text.draw(7), text.draw(7))
    assert not torch.equal(text.draw(7), text.draw(8))


def test_the_domains_of_sequences_are_those_of_the_stream(corpus: Corpus) -> None:
    mixture = corpus.resolve_mixture({"digits": 0.3, "words": 0.7})
    stream = BatchStream(corpus, mixture, 32, seed=1)
    domains = stream.domains_of(40, 200)
    is_digits = [
        bool(np.isin(row, np.frombuffer(b"0123456789", np.uint8)).mean() > 0.5) for row in stream.sequences(40, 200)
    ]
    assert is_digits == [domain == list(mixture).index("digits") for domain in domains]


def test_the_text_that_is_asked_for_gains(tmp_path: Path, make_run: MakeRun) -> None:
    outcomes = {}
    for wanted, other in (("digits", "words"), ("words", "digits")):
        learning = learn(objective={wanted: 1.0, other: 0.0}, penalty=1.0, logit_lr=0.05)
        run = make_run(mixture={"digits": 0.5, "words": 0.5}, steps=60, mixture_learning=learning)
        outcomes[wanted] = train_run(run, tmp_path / wanted, QUIET)
    for wanted, outcome in outcomes.items():
        assert outcome.status is RunStatus.COMPLETED
        assert sum(outcome.learned.values()) == pytest.approx(1)
        assert outcome.learned[wanted] > 0.6
        assert outcome.learned_path[-1].values[wanted] > outcome.learned_path[0].values[wanted] > 0.49


def test_the_copy_that_is_reported_is_a_plain_run_while_the_shares_stand_still(
    tmp_path: Path, make_run: MakeRun
) -> None:
    plain = train_run(make_run(), tmp_path / "plain", QUIET)
    still = train_run(make_run(mixture_learning=learn(logit_lr=1e-12)), tmp_path / "still", QUIET)
    assert still.loss_by_domain == pytest.approx(plain.loss_by_domain, abs=1e-4)
    assert still.learned == pytest.approx({"digits": 0.25, "words": 0.75})
    assert still.spent_flops == pytest.approx(3 * (plain.spent_flops or 0))  # two copies, and half as much to refer to


def test_the_copy_that_is_reported_never_sees_the_reference(corpus: Corpus, make_run: MakeRun) -> None:
    runs = [make_run(mixture_learning=learn(penalty=penalty, logit_lr=1e-12)) for penalty in (0.01, 100.0)]
    weights = []
    for run in runs:
        stepper = BilevelStepper(run, corpus, CPU)
        for step in range(5):
            stepper.step(take_batches(corpus, step, run), [0.01])
        weights.append(stepper.state.weights)
    pulled, plain = zip(*weights, strict=True)
    assert torch.allclose(plain[0], plain[1], atol=1e-6)
    assert not torch.allclose(pulled[0], pulled[1], atol=1e-3)


def test_a_killed_run_goes_on_to_the_same_mixture(tmp_path: Path, make_run: MakeRun) -> None:
    run = make_run(mixture_learning=learn(), checkpoint_steps=5)
    whole = train_run(run, tmp_path / "whole", QUIET)

    def die(point: CurvePoint) -> None:
        if point.step >= 12:
            raise Killed

    with pytest.raises(Killed):
        train_run(run, tmp_path / "killed", die)
    again = train_run(run, tmp_path / "killed", QUIET)
    assert (again.loss, again.learned, again.learned_path) == (whole.loss, whole.learned, whole.learned_path)


def test_a_run_that_learns_its_mixture_trains_alone(tmp_path: Path, make_run: MakeRun) -> None:
    runs = [make_run(mixture_learning=learn(), seed=seed) for seed in (0, 1)]
    assert pack_key(runs[0]) != pack_key(runs[1])
    assert runs[0].compute_flops == 3 * make_run().compute_flops


def test_a_lost_run_says_so(tmp_path: Path, make_run: MakeRun) -> None:
    run = make_run(mixture_learning=learn(), peak_lr=1e9, warmup_steps=1, optimizer="sgd", clip_norm=1e9)
    outcomes: list[RunOutcome] = [outcome for _, outcome in train_runs([run], [tmp_path], lambda spec, point: None)]
    assert outcomes[0].status is RunStatus.DIVERGED
    assert outcomes[0].learned == {}
