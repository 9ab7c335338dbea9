"""What runs that tune their own regularisation came to (`[training.self_tuning]`), told beside what a search found."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from foretune.records import Result, RunSpec
from foretune.search.interface import Findings


def tell_tuned(findings: Findings | None, specs: Sequence[RunSpec], results: Mapping[str, Result]) -> Findings | None:
    """The findings with a table of what each setting moved from and to, by scale; unchanged where none has moved.

    The values are no settings to use without a check: they were tuned in networks whose weights answer to them, and no
    plain run has been trained with them.
    """
    tuning = [spec for spec in specs if spec.training.self_tuning and spec.run_id in results]
    learned = [(spec, results[spec.run_id].learned) for spec in tuning if results[spec.run_id].learned]
    if not learned:
        return findings
    rows = [
        _describe(scale, name, learned)
        for scale in dict.fromkeys(spec.scale for spec, _ in learned)
        for name in dict.fromkeys(name for _, values in learned for name in values)
    ]
    told = " ".join(_tell(row) for row in rows)
    found = findings or Findings("")
    sentence = f"{found.sentence} {told}".strip()
    paths = dict(_list_paths(learned, results))
    return replace(
        found,
        sentence=sentence,
        tables={**found.tables, "Tuned along the runs": rows},
        data={**found.data, "tuned": paths},
    )


def _describe(scale: str, name: str, learned: Sequence[tuple[RunSpec, Mapping[str, float]]]) -> dict[str, Any]:
    found = [(spec, values[name]) for spec, values in learned if spec.scale == scale]
    values = [value for _, value in found]
    tuning = found[0][0].training.self_tuning
    assert tuning is not None, "only runs that tune themselves are told of"
    return {
        "scale": scale,
        "setting": name,
        "from": tuning.start[name],
        "to": statistics.fmean(values),
        "sd_of_runs": statistics.stdev(values) if len(values) > 1 else None,
        "lowest": min(values),
        "highest": max(values),
        "runs": len(values),
    }


def _tell(row: Mapping[str, Any]) -> str:
    spread = "one run" if row["runs"] == 1 else f"{row['runs']} runs, sd {row['sd_of_runs']:.2g}"
    return f"At {row['scale']} {row['setting']} was tuned from {row['from']:.4g} to {row['to']:.4g} ({spread})."


def _list_paths(
    learned: Sequence[tuple[RunSpec, Mapping[str, float]]], results: Mapping[str, Result]
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    for spec, _ in learned:
        yield spec.run_id, [point.model_dump() for point in results[spec.run_id].learned_path]
