"""Which mixtures are trained at the larger scales before one is told to use what is recommended."""

from __future__ import annotations

import pytest

from foretune.resolution import resolve_corpus
from foretune.search.mixing.course import Advice, Course
from foretune.search.mixing.strategy import CLOSE, list_checks
from foretune.study import read_study

NATURAL = {"code": 0.25, "docs": 0.25, "web": 0.5}
FOUND = {"code": 0.5, "docs": 0.25, "web": 0.25}


def make_course() -> Course:
    scales = [{"name": f"w{width}", "width": width, "tokens": "1M"} for width in (64, 128, 192)]
    study = read_study(
        {
            "study": {"name": "mix"},
            "proxy": {"base_width": 64, "head_size": 16},
            "scales": scales,
            "data": {"mixture": NATURAL, "seq_len": 64},
            "training": {"batch_tokens": 4096, "peak_lr": 0.01},
            "search": {
                "strategy": "mixture",
                "runs": 16,
                "space": {"mixture": {}, "seed": [0, 1]},
                "mixture": {"check_scales": ["w128", "w192"]},
            },
            "runner": {"kind": "replay", "surface": {"mixing": {name: {name: -1.0} for name in NATURAL}}},
        }
    )
    return Course(study, resolve_corpus(study))


def advise(shares: dict[str, float], best: dict[str, float]) -> Advice:
    numbers = dict.fromkeys(("loss", "loss_sd", "noise_sd", "gain", "gain_sd", "probability", "best_loss"), 0.5)
    told = {"shares": shares, "low": shares, "high": shares, "best": best, "message": ""}
    return Advice.model_validate({"searched": 16, "planned": 16, **told, **numbers})


def shift(shares: dict[str, float], by: float) -> dict[str, float]:
    return {**shares, "code": shares["code"] + by, "web": shares["web"] - by}


@pytest.mark.parametrize(
    ("shares", "best", "checked"),
    [
        (FOUND, {"code": 0.1, "docs": 0.8, "web": 0.1}, ["recommended", "natural", "best observed"]),
        (FOUND, shift(FOUND, 2 * CLOSE), ["recommended", "natural", "best observed"]),
        (FOUND, shift(FOUND, CLOSE / 2), ["recommended", "natural"]),
        (FOUND, shift(NATURAL, CLOSE / 2), ["recommended", "natural"]),
        (shift(NATURAL, CLOSE / 2), {}, ["recommended", "natural"]),
        (NATURAL, FOUND, ["recommended", "best observed"]),
    ],
)
def test_each_mixture_is_checked_once(shares: dict[str, float], best: dict[str, float], checked: list[str]) -> None:
    trials = list_checks(make_course(), advise(shares, best))
    assert [(trial.scale, trial.mixture, trial.seed) for trial in trials] == [
        (scale, name, seed) for scale in ("w128", "w192") for name in checked for seed in (0, 1)
    ]
