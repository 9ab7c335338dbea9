"""A mixture that is learned while training (ScaleBiO), against the natural one and random search, at equal FLOPs.

On the standard library's source in three domains. What is wanted is a low loss on one of them, `docs`, or in the mean
over all three; every mixture is judged by a plain run from scratch of the same length, on held-out text that nothing
has learned from.
    learned    strategy `bilevel`: one run learns the mixture, a plain one of it is judged; cost: both
    random     as many plain runs of Dirichlet mixtures as that money buys; the best on held-out text is taken, which
               favours it: it is chosen by the very text that judges it
    natural    the mixture of the corpus, one plain run
    wish       the weights of the wanted losses taken for shares, one plain run: what costs no search at all
    cost       training FLOPs over those of one plain run
Each seed draws its own weights, order of text and random mixtures. Real runs; nothing is timed.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from benchmarks.devices import describe_device
from foretune.deriving import CorpusFacts, resolve_run
from foretune.proxies.train import train_run
from foretune.records import RunOutcome, RunSpec
from foretune.resolution import resolve_corpus
from foretune.study import Study, read_study

SEEDS = (0, 1, 2)
WIDTHS = (32, 48)
SEQUENCES, SEQ_LEN, STEPS = 8, 64, 400
PLAIN = {"mixture_learning": None}


def main() -> None:
    """A line for each width and way to choose a mixture."""
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    tokens = STEPS * SEQUENCES * SEQ_LEN
    print(f"{describe_device('float32')}; {len(SEEDS)} seeds, {tokens} tokens a run; mean and range of the loss wanted")
    for objective in ({"docs": 1.0}, {"code": 1.0, "docs": 1.0, "tests": 1.0}):
        for width in WIDTHS:
            compare_ways(width, objective)


def compare_ways(width: int, objective: Mapping[str, float]) -> None:
    """Print all ways for one width and one wish."""
    study = make_study(width, objective)
    corpus = resolve_corpus(study)
    weights = {name: objective.get(name, 0.0) / sum(objective.values()) for name in corpus.mixture}
    found: dict[str, list[tuple[float, float]]] = {}
    learned = []
    for seed in SEEDS:
        with TemporaryDirectory() as folder:
            bench = Bench(study, corpus, weights, seed, Path(folder))
            mixture, paid = bench.learn()
            learned.append(mixture)
            found.setdefault("natural", []).append((bench.judge(corpus.mixture), 1.0))
            found.setdefault("learned", []).append((bench.judge(mixture), paid + 1))
            found.setdefault("random", []).append((bench.search(round(paid + 1)), round(paid + 1)))
            found.setdefault("wish", []).append((bench.judge(weights), 1.0))
    wish = " + ".join(objective)
    for way, measured in found.items():
        losses, costs = zip(*measured, strict=True)
        differences = [loss - natural for loss, (natural, _) in zip(losses, found["natural"], strict=True)]
        print(
            f"width {width:>3}  wanted {wish:<20} {way:>8} {statistics.mean(losses):.4f} "
            f"[{min(losses):.4f}, {max(losses):.4f}]  against natural {statistics.mean(differences):+.4f}  "
            f"cost {statistics.mean(costs):.1f}",
            flush=True,
        )
    for seed, mixture in zip(SEEDS, learned, strict=True):
        print(f"    seed {seed} learned " + ", ".join(f"{name} {share:.3f}" for name, share in mixture.items()))


class Bench:
    """Runs of one seed."""

    def __init__(
        self, study: Study, corpus: CorpusFacts, weights: Mapping[str, float], seed: int, folder: Path
    ) -> None:
        """`weights` of the domains' losses are what is minimised."""
        self._study, self._corpus, self._weights, self._seed, self._folder = study, corpus, weights, seed, folder
        self._flops = self._resolve({**PLAIN}).compute_flops

    def learn(self) -> tuple[dict[str, float], float]:
        """The learned mixture, and its cost in plain runs."""
        spec = self._resolve({})
        return self._train(spec).learned, spec.compute_flops / self._flops

    def judge(self, mixture: Mapping[str, float]) -> float:
        """The objective after a plain run of a mixture, nats per token."""
        outcome = self._train(self._resolve({**PLAIN, "mixture": dict(mixture)}))
        return sum(weight * outcome.loss_by_domain[name] for name, weight in self._weights.items())

    def search(self, runs: int) -> float:
        """The best of so many mixtures drawn evenly from the simplex."""
        generator = np.random.default_rng(self._seed)
        drawn = generator.dirichlet(np.ones(len(self._weights)), runs)
        return min(self.judge(dict(zip(self._weights, shares.tolist(), strict=True))) for shares in drawn)

    def _resolve(self, point: Mapping[str, object]) -> RunSpec:
        return resolve_run(self._study, self._study.scales[0], {**point, "seed": self._seed}, self._corpus)

    def _train(self, spec: RunSpec) -> RunOutcome:
        outcome = train_run(spec, self._folder / spec.run_id, lambda point: None)
        assert outcome.loss is not None, outcome.reason
        return outcome


def make_study(width: int, objective: Mapping[str, float]) -> Study:
    """One rung on the embedded corpus."""
    return read_study(
        {
            "study": {"name": "online-mixtures"},
            "proxy": {"base_width": 32, "head_size": 8, "depth": 2},
            "scales": [{"name": f"w{width}", "width": width, "tokens": STEPS * SEQUENCES * SEQ_LEN}],
            "data": {"seq_len": SEQ_LEN, "validation_sequences": 64, "max_epochs": 100},
            "training": {
                "peak_lr": 2**-6,
                "batch_tokens": SEQUENCES * SEQ_LEN,
                "diagnoses": 0,
                "mixture_learning": {"objective": dict(objective)},
            },
            "search": {"strategy": "bilevel", "space": {"seed": list(SEEDS)}},
        }
    )


if __name__ == "__main__":
    main()
