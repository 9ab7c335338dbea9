"""What diagnoses cost: the same steps with and without them, on one CPU core.

A diagnosed step is dearer by its copies of weights and gradients and by an extra product of queries and keys. Divided
by the steps from one diagnosis to the next it is the share of the time of a run; `diagnosing.LEAST_STEPS` bounds it.
CPU time is measured, not the clock's, and both kinds of step take turns.
"""

from __future__ import annotations

import os
import platform
import statistics
import time

import torch

from benchmarks.places import DEMO
from foretune.corpora import open_corpus
from foretune.proxies.feed import Feed, order_batch
from foretune.proxies.process import reset_process
from foretune.proxies.stepping import Stepper
from foretune.records import RunSpec
from foretune.resolution import resolve_corpus
from foretune.search import ask_search
from foretune.search.verification import expect_verification
from foretune.study import load_study
from foretune.training.diagnosing import LEAST_STEPS

ROUNDS = 15


def main() -> None:
    """One line for each width of the demo study."""
    os.environ["OMP_NUM_THREADS"] = "1"
    study = load_study(DEMO)
    corpus = resolve_corpus(study)
    specs = {spec.scale: spec for spec in [*ask_search(study, corpus).specs, *expect_verification(study, corpus)]}
    print(f"torch {torch.__version__}, {platform.machine()}, 1 thread, CPU time, median of {ROUNDS} pairs of steps")
    print(f"{'width':>6} {'params':>9} {'tokens':>7} {'step, ms':>9} {'diagnosed, ms':>14} {'share of a run':>15}")
    for spec in sorted(specs.values(), key=lambda spec: spec.model.width):
        plain, diagnosed = time_steps(spec)
        share = (diagnosed - plain) / plain / LEAST_STEPS
        size = f"{spec.model.width:>6} {spec.model.shape.params_total:>9} {spec.training.batch_tokens:>7}"
        print(f"{size} {1e3 * plain:>9.2f} {1e3 * diagnosed:>14.2f} {share:>14.2%}")
    print(f"share of a run: at one diagnosis in {LEAST_STEPS} steps, the most that there can be")


def time_steps(spec: RunSpec) -> tuple[float, float]:
    """CPU seconds of a plain and of a diagnosed step."""
    reset_process(spec.seed)
    device = torch.device("cpu")
    corpus = open_corpus(spec.data.section, spec.data.corpus_digest)
    stepper = Stepper([spec], corpus, device, compiled=False)
    feed = Feed(corpus, [spec], device)
    tokens = feed.take([order_batch(spec, 0)])
    feed.close()
    times: dict[bool, list[float]] = {False: [], True: []}
    for number in range(2 * ROUNDS + 2):
        diagnose = number % 2 == 1
        began = time.process_time()
        stepper.update(stepper.measure(tokens, diagnose=diagnose), [0.0])
        times[diagnose].append(time.process_time() - began)
    return statistics.median(times[False][1:]), statistics.median(times[True][1:])


if __name__ == "__main__":
    main()
