"""The mixture that a swarm which exists recommends: planted optima, published runs, and runs that do not compare."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from foretune.cli import main
from foretune.errors import InputError
from foretune.ledger.importing import read_runs
from foretune.search.mixing import swarms
from foretune.search.mixing.swarms import REGRESSIONS, gather_swarm, recommend_from_swarm
from planting.mixtures import DOMAINS, sample_shares
from scalelaws import find_best_mixture, fit_domains, read_domains

FLOOR, STEEP = 1.5, 2.0


def plant_swarm(path: Path, **columns: Any) -> Path:
    """Each domain's loss falls with its own share alone, by a log-linear law: the even mixture is best for all."""
    shares = sample_shares(40)
    table = {f"w_{name}": shares[:, j] for j, name in enumerate(DOMAINS)}
    table |= {f"loss_{name}": FLOOR + np.exp(-STEEP * shares[:, j]) for j, name in enumerate(DOMAINS)}
    pd.DataFrame({**table, "N": 1e6, "D": 1e9, **columns}).to_csv(path, index=False)
    return path


def ask(capsys: pytest.CaptureFixture[str], path: Path, *words: str) -> Any:
    assert main(["mixture", "--runs", str(path), "--format", "json", *words]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("law", REGRESSIONS)
def test_the_planted_optimum_is_recommended(tmp_path: Path, capsys: pytest.CaptureFixture[str], law: str) -> None:
    answer = ask(capsys, plant_swarm(tmp_path / "swarm.csv"), "--law", law)
    for name in DOMAINS:
        assert answer["mixture"][name]["value"] == pytest.approx(1 / 3, abs=0.03)
    assert answer["objective"]["value"] == pytest.approx(FLOOR + np.exp(-STEEP / 3), rel=0.005)
    assert (answer["law"], answer["runs"], answer["params"], answer["tokens"]) == (law, 40, 1e6, 1e9)


def test_weights_bounds_and_repetition_shape_the_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two losses with weights v and 1 - v: shares differ by ln(v / (1 - v)) / steep (Lagrange's condition)."""
    swarm, (first, second, third) = plant_swarm(tmp_path / "swarm.csv"), DOMAINS
    words = ["--law", "log_linear_mixture", "--objective", f"{first}=0.6", "--objective", f"{second}=0.4"]
    free = {name: item["value"] for name, item in ask(capsys, swarm, *words)["mixture"].items()}
    assert free[first] - free[second] == pytest.approx(np.log(1.5) / STEEP, abs=0.02)
    assert free[third] == pytest.approx(0, abs=0.01)
    capped = ask(capsys, swarm, *words, "--tokens", "1T", "--domain-tokens", f"{first}=50B", "--max-epochs", "2")
    assert capped["mixture"][first]["value"] == pytest.approx(2 * 50 / 1000)
    answer = ask(capsys, swarm, *words, "--minimum", f"{third}=0.2", "--maximum", f"{second}=0.1")
    held = answer["mixture"]
    assert (held[third]["value"], held[second]["value"]) == pytest.approx((0.2, 0.1))
    (tried,) = (item["mixture"] for item in answer["comparisons"])
    assert tried[second] > 0.1
    assert "best tried lies outside of the bounds: it is shown for what they cost" in answer["warnings"]


def read_regmix(path: Path, runs: int) -> pd.DataFrame:
    """The first 1M proxies of RegMix, written to `path` too."""
    folder = Path(os.environ.get("FORETUNE_PUBLIC_DATA") or Path(__file__).parents[4] / ".." / "shared" / "data")
    if not (folder / "regmix.csv").is_file():
        pytest.skip(f"the public data is not here: no {folder / 'regmix.csv'}; set FORETUNE_PUBLIC_DATA")
    frame = pd.read_csv(folder / "regmix.csv")
    some = frame[frame.split == "train_1m"].head(runs)
    some.to_csv(path, index=False)
    return some


def test_every_interval_holds_its_share(tmp_path: Path) -> None:
    """Among 17 domains the optimum in the mean is outside of the optima of single draws here and there."""
    read_regmix(tmp_path / "regmix.csv", 24)
    swarm = gather_swarm(read_runs(tmp_path / "regmix.csv"))
    found = recommend_from_swarm(swarm, weights={"arxiv": 1.0, "github": 1.0}, maximum={"arxiv": 0.2}, seed=3)
    for share in found.best.shares.values():
        assert share.low is not None
        assert share.high is not None
        assert share.low <= share.value <= share.high


def test_the_answer_is_that_of_scalelaws_on_published_runs(tmp_path: Path) -> None:
    some = read_regmix(tmp_path / "regmix.csv", 48)
    swarm = gather_swarm(read_runs(tmp_path / "regmix.csv"))
    found = recommend_from_swarm(swarm, weights={"pile_cc": 1.0}, maximum={"github": 0.1}, seed=3)
    named = some.rename(columns=lambda name: name.replace("w_", "mix/", 1))
    runs = read_domains(named, {"pile_cc": "loss_pile_cc"})
    direct = find_best_mixture(fit_domains("process", runs, seed=3), maximum={"github": 0.1}, seed=3)
    assert found.best.mixture == pytest.approx(direct.mixture, abs=1e-3)
    assert found.best.objective.value == pytest.approx(direct.objective.value, rel=1e-5)


def test_runs_of_several_sizes_are_refused_until_one_is_chosen(tmp_path: Path) -> None:
    sizes = ["small"] * 30 + ["large"] * 10
    path = plant_swarm(tmp_path / "swarm.csv", N=[1e6] * 30 + [6e7] * 10, size=sizes)
    frame = read_runs(path, {"size": "scale"})
    with pytest.raises(InputError, match=r"of 2 sizes or horizons, .*1M on 1B tokens \(30 runs\).*--scale NAME"):
        gather_swarm(frame)
    assert len(gather_swarm(frame, scale="large").frame) == 10
    with pytest.raises(InputError, match="--scale huge: no runs of it; there are small, large"):
        gather_swarm(frame, scale="huge")


def test_runs_that_tell_too_little_are_counted(tmp_path: Path) -> None:
    table = pd.read_csv(plant_swarm(tmp_path / "swarm.csv"))
    table.loc[0, f"loss_{DOMAINS[0]}"] = np.nan
    table.loc[1, [f"loss_{name}" for name in DOMAINS]] = np.nan
    table.loc[2, [f"w_{name}" for name in DOMAINS]] = np.nan
    table.to_csv(tmp_path / "swarm.csv", index=False)
    swarm = gather_swarm(read_runs(tmp_path / "swarm.csv"))
    assert {item.reason: item.runs for item in swarm.excluded} == {
        "without a mixture": 1,
        "completed without some of the losses": 1,
        "diverged, so that they have no loss": 1,
    }
    assert len(swarm.frame) == 37


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--objective", "poems=1"], "--objective poems: no such loss; the runs have"),
        (["--objective", f"{DOMAINS[0]}=0"], "--objective: weights must be >= 0, one at least above 0"),
        (["--objective", f"{DOMAINS[0]}=-1"], "--objective: weights must be >= 0"),
        (["--maximum", f"{DOMAINS[0]}=30"], "maximum: a share must lie between 0 and 1 (0.3 for 30 %)"),
        (["--natural", f"{DOMAINS[0]}=0.5"], "--natural: shares must be >= 0 and add up to 1"),
        (["--objective", "poems"], "--objective: must read LOSS=WEIGHT, got 'poems'"),
        (["--maximum", "poems=0.5"], "there is no domain 'poems'"),
        (["--maximum", f"{DOMAINS[0]}=most"], f"--maximum {DOMAINS[0]}: must be a number, got 'most'"),
        (["--minimum", f"{DOMAINS[0]}=0.7", "--minimum", f"{DOMAINS[1]}=0.7"], "the bounds leave no mixture"),
        (["--minimum", f"{DOMAINS[0]}=0.1", "--minimum", f"{DOMAINS[0]}=0.2"], "is given twice"),
        (["--tokens", "1T"], "a cap on repetition needs both"),
    ],
)
def test_wrong_questions_are_refused(
    tmp_path: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(swarms, "fit_domains", None)  # every one of them is refused before a fit, which takes minutes
    path = plant_swarm(tmp_path / "swarm.csv")
    assert main(["mixture", "--runs", str(path), "--law", "log_linear_mixture", *words]) == 2
    assert said in capsys.readouterr().err


def test_the_table_says_what_it_rests_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    even = [word for name in DOMAINS for word in ("--natural", f"{name}={1 / 3}")]
    path = plant_swarm(tmp_path / "swarm.csv")
    assert main(["mixture", "--runs", str(path), "--law", "log_linear_mixture", *even]) == 0
    told = capsys.readouterr().out
    assert "log_linear_mixture of 40 runs of 1_000_000 parameters on 1_000_000_000 tokens" in told
    assert "not told apart from natural" in told
    assert "train it beside the natural mixture at a larger one" in told


def test_other_questions_point_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = plant_swarm(tmp_path / "swarm.csv")
    for words in (["--pool", "mixture"], []):
        assert main(["fit", "--runs", str(path), "--law", "chinchilla", *words]) == 2
        assert "`foretune mixture`" in capsys.readouterr().err
