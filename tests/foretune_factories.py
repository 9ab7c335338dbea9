"""Run specs for tests, made by hand."""

from __future__ import annotations

from typing import Any

from foretune.accounting import choose_ffn_width
from foretune.records import DataSpec, DecoderSpec, RunSpec, SelfTuningSpec, TrainingSpec
from foretune.sections import DataSection


def make_spec(**overrides: Any) -> RunSpec:
    """A small run; `overrides` name fields of RunSpec, DecoderSpec, DataSpec or TrainingSpec, whichever has them."""
    width = overrides.get("width", 32)
    model = {
        "architecture": "decoder",
        "parametrization": "mup",
        "width": width,
        "depth": 2,
        "head_size": 16,
        "ffn_width": choose_ffn_width(width, 8 / 3),
        "vocab_size": 257,
        "base_width": 32,
        "base_depth": 2,
        "base_head_size": 16,
        "base_ffn_width": choose_ffn_width(32, 8 / 3),
        "qk_norm": False,
        "tied_head": False,
        "rope_base": 10_000.0,
    }
    data = {
        "corpus_digest": "0" * 64,
        "seq_len": 64,
        "mixture": {"code": 1.0},
        "validation_sequences": 8,
        "section": DataSection(seq_len=64),
    }
    training = {
        "optimizer": "adamw",
        "schedule": "wsd",
        "peak_lr": 2**-7,
        "batch_tokens": 1024,
        "steps": 40,
        "warmup_steps": 4,
        "decay_steps": 8,
        "final_lr_fraction": 0.0,
        "beta1": 0.9,
        "beta2": 0.95,
        "eps": 1e-8,
        "weight_decay": 0.1,
        "clip_norm": 1.0,
        "accumulation_steps": 1,
        "precision": "float32",
        "evaluations": 4,
        "checkpoint_steps": 0,
    }
    run: dict[str, Any] = {"study": "test", "scale": f"w{width}", "seed": 0}
    kinds = ((model, DecoderSpec), (data, DataSpec), (training, TrainingSpec))
    for name, value in overrides.items():
        homes = [fields for fields, kind in kinds if name in kind.model_fields]
        (homes[0] if homes else run)[name] = value
    return RunSpec(**run, model=DecoderSpec(**model), data=DataSpec(**data), training=TrainingSpec(**training))


def make_self_tuning(**settings: Any) -> SelfTuningSpec:
    """Self-tuning of the dropout, at rates that suit a few hundred steps."""
    usual: dict[str, Any] = {
        "objective": {"digits": 0.25, "words": 0.75},
        "reference_share": 1.0,
        "reference_sequences": 16,
        "start": {"dropout": 0.3},
        "train_steps": 2,
        "tune_steps": 1,
        "warmup_steps": 4,
        "lr": 0.03,
        "width": 0.5,
        "entropy": 1e-3,
    }
    return SelfTuningSpec(**{**usual, **settings})
