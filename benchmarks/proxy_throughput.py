"""Tokens per second of one proxy on one CPU core, beside a plain PyTorch loop over the same matrix shapes.

The baseline is the least that such a model must compute: its matrix products, forward and backward, on the same torch,
one thread. The ratio says how much of a core the trainer leaves to anything else.
"""

from __future__ import annotations

import os
import platform
import statistics
import time

import torch

from benchmarks.places import DEMO
from foretune.proxies.train import measure_throughput
from foretune.records import RunSpec
from foretune.resolution import resolve_corpus
from foretune.search import ask_search
from foretune.search.verification import expect_verification
from foretune.study import load_study

ROUNDS = 5


def main() -> None:
    """One line for each width of the demo study."""
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    study = load_study(DEMO)
    corpus = resolve_corpus(study)
    specs = {spec.scale: spec for spec in [*ask_search(study, corpus)[0], *expect_verification(study, corpus)]}
    print(f"torch {torch.__version__}, {platform.machine()}, 1 thread, median of {ROUNDS} rounds in turn")
    print(f"{'width':>6} {'params':>9} {'tokens/s':>10} {'GFLOP/s':>9} {'products only, tokens/s':>24} {'ratio':>6}")
    for spec in sorted(specs.values(), key=lambda spec: spec.model.width):
        pairs = [(measure_throughput(spec, steps=5), time_products(spec)) for _ in range(ROUNDS)]
        step, products = (statistics.median(values) for values in zip(*pairs, strict=True))
        report(spec, step, products)


def report(spec: RunSpec, step: float, products: float) -> None:
    """Print one width."""
    tokens, shape = spec.training.batch_tokens, spec.model.shape
    flops = shape.flops_per_token(spec.data.seq_len) * tokens / step / 1e9
    print(
        f"{shape.width:>6} {shape.params_non_embedding:>9} {tokens / step:>10.0f} {flops:>9.2f} "
        f"{tokens / products:>24.0f} {products / step:>6.2f}"
    )


def time_products(spec: RunSpec, steps: int = 5) -> float:
    """Seconds for the matrix products of one optimizer step, three for each weight: forward and two backward."""
    shape, tokens = spec.model.shape, spec.training.batch_tokens
    d, f = shape.width, shape.ffn_width
    sizes = [(d, 3 * d), (d, d), (d, 2 * f), (f, d)] * shape.depth + [(d, shape.vocab_size)]
    layers = [torch.randn(fan_in, fan_out, requires_grad=True) for fan_in, fan_out in sizes]
    inputs = [torch.randn(tokens, fan_in, requires_grad=True) for fan_in, _ in sizes]
    grads = [torch.randn(tokens, fan_out) for _, fan_out in sizes]
    times = []
    for _ in range(steps):
        started = time.perf_counter()
        for weight, x, grad in zip(layers, inputs, grads, strict=True):
            torch.autograd.grad(x @ weight, (x, weight), grad)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


if __name__ == "__main__":
    main()
