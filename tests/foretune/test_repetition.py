"""Small runs that repeat every domain as often as the large one will."""

from __future__ import annotations

from typing import Any

import pytest

from foretune.deriving import CorpusFacts, resolve_run
from foretune.errors import InputError
from foretune.planning import find_obstacle
from foretune.study import Study, read_study
from foretune.training.packing import find_trunks
from foretune_factories import make_spec

HELD = {"code": 10_000_000, "docs": 1_000_000}
CORPUS = CorpusFacts("digest", 257, {"code": 0.9, "docs": 0.1}, HELD)


def make_study(target: dict[str, Any] | None, **data: Any) -> Study:
    raw = {
        "study": {"name": "repeat"},
        "proxy": {"base_width": 32, "head_size": 16},
        "scales": [
            {"name": "small", "width": 32, "tokens": "2M"},
            {"name": "large", "width": 32, "tokens": "8M"},
            {"name": "huge", "width": 32, "tokens": "200M"},
        ],
        "data": {"seq_len": 64, **data},
        "training": {"batch_tokens": 4000 * 64, "peak_lr": 0.01},
        "search": {"space": {"seed": [0]}},
    }
    return read_study({**raw, "target": target} if target else raw)


def count_epochs(study: Study, scale: str, shares: dict[str, float]) -> dict[str, float]:
    spec = resolve_run(study, study.scale_named(scale), {"mixture": shares}, CORPUS)
    return {
        name: share * spec.tokens / spec.data.unique_tokens.get(name, HELD[name])
        for name, share in spec.data.mixture.items()
    }


@pytest.mark.parametrize("shares", [{"code": 0.9, "docs": 0.1}, {"code": 0.2, "docs": 0.8}])
def test_every_scale_repeats_as_often_as_the_target_at_any_share(shares: dict[str, float]) -> None:
    study = make_study({"params": "1B", "tokens": "40M"}, repetition_matched=True)
    target = {name: share * 40e6 / HELD[name] for name, share in shares.items()}
    for scale in ("small", "large"):
        assert count_epochs(study, scale, shares) == pytest.approx(target, rel=1e-5)
    plain = make_study({"params": "1B", "tokens": "40M"})
    spec = resolve_run(plain, plain.scales[0], {"mixture": shares}, CORPUS)
    epochs = count_epochs(plain, "small", shares)["docs"]
    assert epochs == pytest.approx(target["docs"] * spec.tokens / 40e6)


def test_the_target_may_hold_other_text_than_the_corpus() -> None:
    held = {"code": "50M", "docs": "2M"}
    study = make_study({"params": "1B", "tokens": "100M", "domain_tokens": held}, repetition_matched=True)
    epochs = count_epochs(study, "small", {"code": 0.5, "docs": 0.5})
    assert epochs == pytest.approx({"code": 1.0, "docs": 25.0}, rel=1e-5)


def test_a_rung_as_long_as_the_target_sees_everything() -> None:
    study = make_study({"params": "1B", "tokens": 200_192_000}, repetition_matched=True)
    assert resolve_run(study, study.scale_named("huge"), {}, CORPUS).data.unique_tokens == {}


def test_the_part_belongs_to_the_identity_of_a_run_and_its_absence_does_not() -> None:
    plain, matched = make_study(None), make_study({"params": "1B", "tokens": "40M"}, repetition_matched=True)
    specs = [resolve_run(study, study.scales[0], {}, CORPUS) for study in (plain, matched)]
    assert specs[0].run_id != specs[1].run_id
    assert "unique_tokens" not in specs[0].content()["data"]
    assert specs[1].content()["data"]["unique_tokens"] == specs[1].data.unique_tokens


def test_epochs_are_counted_on_the_part() -> None:
    study = make_study({"params": "1B", "tokens": "40M"}, repetition_matched=True)
    spec = resolve_run(study, study.scale_named("large"), {"mixture": {"code": 0.5, "docs": 0.5}}, CORPUS)
    assert find_obstacle(spec, study, CORPUS).startswith("20.0 epochs of the 205k tokens of domain docs")


def test_runs_on_different_parts_share_no_trunk() -> None:
    long, short = (make_spec(schedule="wsd", steps=steps, decay_steps=8) for steps in (80, 40))
    assert len(find_trunks([long, short])) == 1
    parts = [
        spec.model_copy(update={"data": spec.data.model_copy(update={"unique_tokens": {"code": tokens}})})
        for spec, tokens in ((long, 8000), (short, 4000))
    ]
    assert not any(len(trunk) > 1 for trunk in find_trunks(parts))


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ({"tokens": "1000M", "domain_tokens": {"docs": 10_000}}, "may see 20 tokens of domain docs"),
        ({"tokens": "3M", "domain_tokens": {"docs": "9M"}}, "must see 6.14M distinct tokens of domain docs"),
        ({"tokens": "40M", "domain_tokens": {"law": "9M"}}, "target.domain_tokens.law: no such domain"),
    ],
)
def test_what_cannot_be_matched_is_refused(target: dict[str, Any], said: str) -> None:
    study = make_study({"params": "1B", **target}, repetition_matched=True)
    with pytest.raises(InputError, match=said):
        resolve_run(study, study.scales[0], {}, CORPUS)


def test_without_a_target_there_is_nothing_to_match() -> None:
    with pytest.raises(InputError, match=r"data\.repetition_matched: needs the tokens of the large run"):
        make_study(None, repetition_matched=True)
