"""Laws of the mixture on published runs, beside LightGBM (RegMix), the nested pipeline (Ye) and no law of mixtures.

    python -m benchmarks.fitting.mixtures          (LightGBM from the extra `bench`)

RegMix: fitted to 1M proxies, Spearman's rank correlation with the measured losses of 256 other mixtures at 60M.
LightGBM has the published settings (gbdt, at most 1000 trees, learning rate .01, stop after 3); its number of trees
comes from 5-fold cross-validation within the proxies, not from the test runs. Subsets of 64 proxies are drawn with
seeds 0, 1, ...; mean and standard deviation over them. The forms of our laws were chosen by cross-validation within the
1M proxies. Scale: fitted to the smaller runs; mean relative error and mean rank correlation on the larger ones.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from benchmarks.fitting.datasets import read_runs
from scalelaws.engines.nonlinear import Noise, Task, find_best
from scalelaws.laws.joint_mixture import AdditiveMixture, JointMixture
from scalelaws.laws.mixture import DiminishingMixture, LogLinearMixture, MixtureLaw
from scalelaws.laws.nested_mixture import NestedMixture
from scalelaws.mixtures.process import fit_process

SUBSETS = 10
"""Random subsets of 64 proxies."""
Predict = Callable[[pd.DataFrame, str, pd.DataFrame], np.ndarray]
"""Runs, loss column, later runs -> predicted losses of these."""
TOKENS_PER_STEP = 1e6
"""Assumption for mixinglaws_5Mix, which records steps: the laws only need tokens to be proportional to them."""


def shares_of(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[sorted(name for name in frame.columns if name.startswith("mix/"))]


def columns_of(frame: pd.DataFrame) -> dict[str, np.ndarray]:
    scales = {"params_non_embedding": frame.N.to_numpy(float), "tokens": frame.D.to_numpy(float)}
    return {name: values.to_numpy() for name, values in shares_of(frame).items()} | scales


def by_law(law: MixtureLaw) -> Predict:
    """The point fit of a law, as `scalelaws.fit` finds it, without draws."""

    def predict(runs: pd.DataFrame, loss: str, later: pd.DataFrame) -> np.ndarray:
        y = runs[loss].to_numpy()
        bound = law.bind({name.removeprefix("mix/"): 0 for name in shares_of(runs).columns}, y)
        columns = columns_of(runs)
        task = Task(bound, columns, np.log(y), np.ones(len(y)), Noise(0.003))
        values = find_best(task, bound.starts(columns, y))
        return np.exp(bound.evaluate(values[None], columns_of(later))[0][0])

    return predict


def by_process(runs: pd.DataFrame, loss: str, later: pd.DataFrame) -> np.ndarray:
    process = fit_process(shares_of(runs).to_numpy(), runs[loss].to_numpy(), draws=1)
    return np.exp(process.predict(shares_of(later).to_numpy()))


def by_trees(runs: pd.DataFrame, loss: str, later: pd.DataFrame) -> np.ndarray:
    import lightgbm

    settings = {"objective": "regression", "metric": "l2", "learning_rate": 0.01, "seed": 42, "verbose": -1}
    settings |= {"num_threads": 1, "deterministic": True}
    data = lightgbm.Dataset(shares_of(runs).to_numpy(), runs[loss].to_numpy(), free_raw_data=False)
    stop = [lightgbm.early_stopping(3, verbose=False)]
    folds = lightgbm.cv(settings, data, 1000, nfold=5, stratified=False, seed=42, callbacks=stop)
    trees = lightgbm.train(settings, data, len(folds["valid l2-mean"]))
    return np.asarray(trees.predict(shares_of(later).to_numpy()))


def by_scale_alone(runs: pd.DataFrame, loss: str, later: pd.DataFrame) -> np.ndarray:
    """A Chinchilla law for all mixtures alike: the nested law of a single domain."""
    one = [frame.drop(columns=shares_of(frame).columns).assign(**{"mix/all": 1.0}) for frame in (runs, later)]
    return by_law(NestedMixture())(one[0], loss, one[1])


def by_pipeline(runs: pd.DataFrame, loss: str, later: pd.DataFrame) -> np.ndarray:
    """Ye et al.: each run's curve over steps, then each mixture's over sizes, then the mixing law on what these give.

    Exponents are shared: of horizons by all runs, of sizes by all mixtures; found on a grid, the rest is linear. NaN
    where no mixture was trained at two sizes: the pipeline has no way in.
    """
    (size, horizon), keys = (later.N.max(), later.D.max()), list(shares_of(runs).columns)
    curves = [(key, part.D.to_numpy(float), part[loss].to_numpy()) for key, part in runs.groupby(["N", *keys])]
    ends = _extrapolate(curves, horizon)
    sizes = pd.DataFrame([key for key, _, _ in curves], columns=["N", *keys]).assign(end=ends).dropna()
    lines = [(key, part.N.to_numpy(float), part.end.to_numpy()) for key, part in sizes.groupby(keys)]
    table = pd.DataFrame([key for key, _, _ in lines], columns=keys).assign(
        loss=_extrapolate(lines, size), N=size, D=horizon
    )
    if table.loss.isna().all():
        return np.full(len(later), np.nan)
    return by_law(LogLinearMixture())(table.dropna(), "loss", later)


def _extrapolate(curves: list[tuple[object, np.ndarray, np.ndarray]], end: float) -> np.ndarray:
    """E + B x^-b at `end` for each curve, with the b that fits all best."""
    best = (np.inf, np.full(len(curves), np.nan))
    for exponent in np.geomspace(0.05, 1.5, 30):
        error, ends = 0.0, []
        for _, x, y in curves:
            design = np.column_stack([np.ones(len(x)), (x / end) ** -exponent])
            found = np.linalg.lstsq(design, y, rcond=None)[0]
            error += float(((design @ found - y) ** 2).sum())
            ends.append(found.sum() if len(np.unique(x)) > 1 else np.nan)
        best = min(best, (error, np.array(ends)), key=lambda item: item[0])
    return best[1]


def report_regmix() -> None:
    frame = read_runs("regmix").rename(columns=lambda name: name.replace("w_", "mix/", 1))
    losses = [name for name in frame.columns if name.startswith("loss_")]
    small, large = (frame[frame.split == name] for name in ("train_1m", "test_60m"))
    picks = [np.random.default_rng(seed).choice(len(small), 64, replace=False) for seed in range(SUBSETS)]
    procedures: dict[str, Predict] = {
        "LightGBM, published settings": by_trees, "log_linear_mixture": by_law(LogLinearMixture()),
        "diminishing_mixture": by_law(DiminishingMixture()), "process over mixtures": by_process,
    }  # fmt: skip
    print("RegMix, 1M proxies -> 60M, Spearman: Pile-CC; mean of 13 (standard deviation over subsets); CPU s per loss")
    for name, predict in procedures.items():
        for runs in ([small], [small.iloc[pick] for pick in picks]):
            started = time.process_time()
            found = np.array([
                [spearmanr(predict(part, loss, large), large[loss]).statistic for loss in losses] for part in runs
            ])  # fmt: skip
            seconds = (time.process_time() - started) / found.size
            pile, mean = found[:, losses.index("loss_pile_cc")], found.mean(axis=1)
            print(
                f"  {name:30} {len(runs[0]):4} proxies  {pile.mean():.4f} ({pile.std():.4f})  {mean.mean():.4f} "
                f"({mean.std():.4f})  {seconds:.2f}",
                flush=True,
            )


def list_scale_tasks() -> Iterator[tuple[str, pd.DataFrame, list[str], pd.Series, pd.Series]]:
    """What is asked, runs, losses, mask of the fitted runs, mask of the predicted ones."""
    pile = read_runs("pile4_mixtures").rename(columns=lambda name: name.replace("w_", "mix/", 1))
    early = (pile.N <= 2e8) & (pile.D <= 7e9)
    yield "pile4: up to 200M, 7B -> beyond", pile, _list_losses(pile, "loss_"), early, ~early
    slim = read_runs("dmsl_slimpajama").rename(columns=lambda name: name.replace("weight_", "mix/", 1))
    losses, last = [name for name in slim.columns if name.endswith("_loss")], slim.D > 1.99e10
    yield "slimpajama: to 8B -> 20B", slim, losses, slim.D < 8.1e9, last
    yield (
        "slimpajama: 122M, 310M to 6B -> 310M 20B",
        slim,
        losses,
        (slim.N < 2e8) | (slim.D < 6.1e9),
        last & (slim.N > 2e8),
    )
    five = read_runs("mixinglaws_5Mix")
    shares = np.array([name.split("_")[1].split("-")[-5:] for name in five.run], dtype=float)
    five = five.assign(N=five["size"].map({"70M": 7e7, "160M": 1.6e8}), D=five.step * TOKENS_PER_STEP)
    five = five.assign(**{f"mix/{j}": shares[:, j] for j in range(shares.shape[1])})
    early = (five.step <= 30000) & (five.N < 1e8) | (five.step <= 10000)
    late = (five.step == 30000) & (five.N > 1e8)
    yield "5Mix: 70M to 30k, 160M to 10k -> 160M 30k", five, _list_losses(five, "loss_"), early, late


def _list_losses(frame: pd.DataFrame, prefix: str) -> list[str]:
    return [name for name in frame.columns if name.startswith(prefix)]


def report_scales() -> None:
    procedures: dict[str, Predict] = {
        "no law of mixtures (Chinchilla)": by_scale_alone, "nested pipeline (Ye)": by_pipeline,
        "nested_mixture": by_law(NestedMixture()), "additive_mixture": by_law(AdditiveMixture()),
        "joint_mixture": by_law(JointMixture()),
    }  # fmt: skip
    print("Smaller runs -> larger: mean relative error, mean Spearman within the predicted runs")
    for question, frame, losses, early, late in list_scale_tasks():
        print(f"  {question} ({int(early.sum())} -> {int(late.sum())} rows, {len(losses)} losses)")
        for name, predict in procedures.items():
            found = np.array([_score(predict, frame, loss, early, late) for loss in losses])
            rank = np.mean(found[np.isfinite(found[:, 1]), 1]) if np.isfinite(found[:, 1]).any() else np.nan
            print(f"    {name:32} {found[:, 0].mean():.4f}  {rank:.3f}", flush=True)


def _score(predict: Predict, frame: pd.DataFrame, loss: str, early: pd.Series, late: pd.Series) -> tuple[float, float]:
    known = frame[loss].notna()
    later = frame[late & known]
    predicted = predict(frame[early & known], loss, later)
    rank = spearmanr(predicted, later[loss]).statistic if len(set(predicted)) > 1 else np.nan
    return float(np.mean(np.abs(predicted / later[loss] - 1))), float(rank)


def main() -> None:
    report_scales()
    report_regmix()


if __name__ == "__main__":
    main()
