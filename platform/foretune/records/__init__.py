"""What passes between the parts: RunSpec (what to train), RunOutcome (what came of it), RunRecord (a table row)."""

from foretune.records.frozen import Frozen
from foretune.records.hashing import PROXY_TRAINER, hash_content, hash_file, hash_module, trainer_of
from foretune.records.outcomes import CurvePoint, Diagnosis, RunOutcome, RunRecord, RunStatus, record_outcome
from foretune.records.specs import (
    CausalLMSpec,
    DataSpec,
    DecoderSpec,
    ExpertsSpec,
    ModelSpec,
    RampPhase,
    RunSpec,
    TrainingSpec,
)

__all__ = [
    "PROXY_TRAINER",
    "CausalLMSpec",
    "CurvePoint",
    "DataSpec",
    "DecoderSpec",
    "Diagnosis",
    "ExpertsSpec",
    "Frozen",
    "ModelSpec",
    "RampPhase",
    "RunOutcome",
    "RunRecord",
    "RunSpec",
    "RunStatus",
    "TrainingSpec",
    "hash_content",
    "hash_file",
    "hash_module",
    "record_outcome",
    "trainer_of",
]
