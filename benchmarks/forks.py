"""Five horizons from one trunk, beside five separate runs: losses and compute, through the same trainer.

Real text, schedule wsd with a warm-up in tokens. The losses may differ by the rounding of sums; the forks cost one
trunk and five decays.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from benchmarks.devices import describe_device
from foretune.proxies.train import train_runs
from foretune.records import RunOutcome, RunSpec
from foretune.resolution import resolve_corpus
from foretune.search import ask_search
from foretune.study import read_study

HORIZONS = (204_800, 307_200, 409_600, 614_400, 819_200)


def main() -> None:
    """Train both ways and print them side by side."""
    specs = resolve_horizons()
    print(f"{describe_device('float32')}; width {specs[0].model.width}, {specs[0].training.batch_tokens} tokens a step")
    forked, forked_seconds = train(specs, share_trunks=True)
    alone, alone_seconds = train(specs, share_trunks=False)
    print(f"{'tokens':>8} {'forked loss':>12} {'alone':>10} {'difference':>11} {'FLOPs forked':>13} {'alone':>10}")
    for spec in specs:
        one, other = forked[spec.run_id], alone[spec.run_id]
        assert one.loss is not None, one.reason
        assert other.loss is not None, other.reason
        print(
            f"{spec.training.tokens:>8} {one.loss:>12.6f} {other.loss:>10.6f} {one.loss - other.loss:>11.1e} "
            f"{one.spent_flops:>13.4g} {other.spent_flops:>10.4g}"
        )
    spent = sum(outcome.spent_flops or 0.0 for outcome in forked.values())
    whole = sum(outcome.spent_flops or 0.0 for outcome in alone.values())
    print(f"compute {spent:.4g} against {whole:.4g} FLOPs: {spent / whole:.3f}")
    print(f"wall {forked_seconds:.1f} against {alone_seconds:.1f} s, one process: {forked_seconds / alone_seconds:.3f}")


def resolve_horizons() -> list[RunSpec]:
    """The same model at every horizon."""
    study = read_study(
        {
            "study": {"name": "forks"},
            "proxy": {"base_width": 32, "head_size": 8, "depth": 2},
            "scales": [{"name": f"d{tokens}", "width": 32, "tokens": tokens} for tokens in HORIZONS],
            "data": {"seq_len": 128},
            "training": {"batch_tokens": 2048, "warmup": 20_480, "decay": 0.2, "diagnoses": 0},
            "search": {"space": {"peak_lr": [2**-6]}},
        }
    )
    return list(ask_search(study, resolve_corpus(study)).specs)


def train(specs: list[RunSpec], *, share_trunks: bool) -> tuple[dict[str, RunOutcome], float]:
    """The outcomes by run id, and the seconds; runs that share no trunk train one after another."""
    began = time.perf_counter()
    packs = [specs] if share_trunks else [[spec] for spec in specs]
    with tempfile.TemporaryDirectory() as folder:
        outcomes = {
            spec.run_id: outcome
            for pack in packs
            for spec, outcome in train_runs(
                pack, [Path(folder) / spec.run_id for spec in pack], lambda *_: None, share_trunks=share_trunks
            )
        }
    return outcomes, time.perf_counter() - began


if __name__ == "__main__":
    main()
