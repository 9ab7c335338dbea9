"""A study: the question, the proxies, the ladder of sizes, the search and the target, read from one TOML file.

Unknown keys are refused with the nearest known name; all errors of a file are reported at once, each with file, key,
rule, value and what to try.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, get_args

import tomli_w
from pydantic import BaseModel, BeforeValidator, Field, ValidationError, model_validator

from foretune.accounting import choose_ffn_width
from foretune.errors import InputError
from foretune.online import find_online_problems
from foretune.sections import (
    BudgetSection,
    DataSection,
    ProxySection,
    RunnerSection,
    ScaleSection,
    SearchSection,
    Section,
    StudySection,
    TargetSection,
    TrainingSection,
    VerificationSection,
    as_tuple,
)
from foretune.settings import find_batch_problems
from foretune.variation import find_space_problems, list_proxies


class Study(Section):
    """A whole study file."""

    study: StudySection
    """What is asked."""
    proxy: ProxySection
    """The small models."""
    scales: Annotated[tuple[ScaleSection, ...], BeforeValidator(as_tuple)] = Field(min_length=1)
    """The ladder of sizes and horizons."""
    data: DataSection = DataSection()
    """Text, tokens and mixture."""
    training: TrainingSection
    """Optimizer and schedule."""
    search: SearchSection
    """Which runs are tried."""
    verification: VerificationSection | None = None
    """Larger runs that check the forecast."""
    runner: RunnerSection = RunnerSection()
    """How runs are executed."""
    budget: BudgetSection = BudgetSection()
    """What it may cost."""
    target: TargetSection | None = None
    """The large run that it is for."""
    trainable: str = ""
    """Your own trainer as `package.module:function`; empty takes the proxies of this package."""

    @model_validator(mode="after")
    def _check_whole(self) -> Study:
        problems = [
            *_proxy_problems(self),
            *_expert_problems(self),
            *_scale_problems(self),
            *_variation_problems(self),
            *find_space_problems(self),
            *find_online_problems(self.training, self.search, self.proxy, self.runner, self.trainable),
            *_reference_problems(self),
        ]
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def snapshot(self) -> dict[str, Any]:
        """The resolved study as plain data, which `read_study` reads back to the same study."""
        plain: dict[str, Any] = _without_none(self.model_dump(mode="json"))
        return plain

    def to_toml(self) -> str:
        """The resolved study as a study file."""
        return tomli_w.dumps(self.snapshot())

    def scale_named(self, name: str) -> ScaleSection:
        """The rung of that name."""
        return next(scale for scale in self.scales if scale.name == name)


def _without_none(value: Any) -> Any:
    """TOML has no null: what is not set is left out."""
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value


def choose_depth(proxy: ProxySection, scale: ScaleSection) -> int:
    """The blocks of a rung: its own depth, or that of the depth rule."""
    if scale.depth:
        return scale.depth
    if proxy.depth_rule == "proportional":
        return max(1, round(proxy.depth * scale.width / proxy.base_width))
    return proxy.depth


PYDANTIC_PART = re.compile(r"function-(before|after)$|literal\[|constrained-")
"""Parts of a location that name a step or a branch of pydantic's own check, and no key of the file."""

EXPERT_ROUNDING = 0.25
"""Most that the inner size of an expert may be off the one that its granularity asks for, relatively (assumption)."""

DECODER_FIELDS = {
    "activation": "hidden_act",
    "qk_norm": "",
    "tied_head": "tie_word_embeddings",
    "rope_base": "rope_parameters",
    "experts": "num_local_experts",
}
"""Fields of `[proxy]` that describe our decoder, with those of most `transformers` configurations in their place."""


def _proxy_problems(study: Study) -> list[str]:
    proxy = study.proxy
    problems = []
    if proxy.across_widths != "fit" and proxy.parametrization == "standard":
        problems.append(
            f"proxy.across_widths: {proxy.across_widths!r} needs a parametrization under which learning rates "
            "transfer, and 'standard' claims none; set parametrization = \"mup\", or leave across_widths out"
        )
    if proxy.architecture == "transformers":
        for name, theirs in DECODER_FIELDS.items():
            if getattr(proxy, name) != type(proxy).model_fields[name].default:
                instead = f"give {theirs} in [proxy.config]" if theirs else "choose a model_type that has it"
                problems.append(f"proxy.{name}: describes the decoder of this package; {instead}")
        if proxy.base_width % proxy.head_size:
            problems.append(
                f"proxy.base_width: must be a multiple of head_size {proxy.head_size}, since the base model is built "
                f"too, got {proxy.base_width}"
            )
    for key, width, head_size in _list_sizes(study):
        if width % head_size == 0 and (width // head_size) % proxy.queries_per_key:
            problems.append(
                f"{key}: {width // head_size} heads of {head_size} cannot share keys in groups of queries_per_key = "
                f"{proxy.queries_per_key}; take a multiple of {proxy.queries_per_key * head_size}"
            )
    return problems


def _list_sizes(study: Study) -> list[tuple[str, int, int]]:
    """The widths of the models, each with its key and its head size."""
    proxy = study.proxy
    sizes = [("proxy.base_width", proxy.base_width, proxy.head_size)]
    return sizes + [
        (f"scales.{item.name}.width", item.width, item.head_size or proxy.head_size) for item in study.scales
    ]


def _expert_problems(study: Study) -> list[str]:
    """Experts are made in multiples of 8, which at small widths may be far from the granularity asked for."""
    experts = study.proxy.experts
    if experts is None:
        return []
    problems = []
    for key, width, _ in _list_sizes(study):
        asked = 2 * width / experts.granularity
        made = choose_ffn_width(width, 2 / experts.granularity)
        if abs(made / asked - 1) > EXPERT_ROUNDING + 1e-9:
            problems.append(
                f"proxy.experts.granularity: {experts.granularity:g} asks for experts of inner size {asked:g} at {key} "
                f"{width}, and they would be {made}, the nearest multiple of 8; take {2 * width / made:g}, or a larger "
                "width"
            )
    return problems


def _head_problems(study: Study) -> list[str]:
    heads = {f"scales.{scale.name}.head_size": scale.head_size for scale in study.scales if scale.head_size}
    return [
        f"{key}: must be even for rotary embeddings, got {head}; nearest: "
        + " or ".join(str(size) for size in (head - 1, head + 1) if size)
        for key, head in {"proxy.head_size": study.proxy.head_size, **heads}.items()
        if head % 2
    ]


def _scale_problems(study: Study) -> list[str]:
    problems = _head_problems(study)
    names = [scale.name for scale in study.scales]
    for name in sorted({name for name in names if names.count(name) > 1}):
        problems.append(f"scales: name {name!r} is used twice; names must differ")
    for scale in study.scales:
        head = scale.head_size or study.proxy.head_size
        if head % 2 == 0 and scale.width % head:
            below, above = scale.width // head * head, (scale.width // head + 1) * head
            nearest = f"{below} or {above}" if below else f"{above}"
            problems.append(
                f"scales.{scale.name}.width: must be a multiple of head_size {head}, got {scale.width}; "
                f"nearest: {nearest}"
            )
        tokens = scale.tokens
        batch = min(study.search.axis("batch_tokens") or (study.training.batch_tokens,))
        if isinstance(tokens, int) and tokens < batch:
            problems.append(
                f"scales.{scale.name}.tokens: {tokens} is fewer than one batch of {batch} tokens; give tokens, "
                "not billions of them"
            )
    return problems


def _variation_problems(study: Study) -> list[str]:
    """What is wrong with the models that the space makes of `[proxy]`, beside what is wrong with that itself."""
    proxies, problems = list_proxies(study)
    for proxy in proxies:
        varied = study.model_copy(update={"proxy": proxy})
        problems += [*_proxy_problems(varied), *_expert_problems(varied)]
    return [line for line in dict.fromkeys(problems) if line not in (*_proxy_problems(study), *_expert_problems(study))]


def _reference_problems(study: Study) -> list[str]:
    problems = []
    names = [scale.name for scale in study.scales]
    if study.verification and study.verification.scale not in names:
        problems.append(f"verification.scale: no such scale {study.verification.scale!r}; scales: {', '.join(names)}")
    elif study.verification and len(names) < 2:
        problems.append("verification.scale: it is held out, so the study needs at least one other scale")
    if study.trainable and not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", study.trainable):
        problems.append(f"trainable: must read package.module:function, got {study.trainable!r}")
    if study.data.repetition_matched and study.target is None:
        problems.append("data.repetition_matched: needs the tokens of the large run; give them as [target] tokens")
    return [*problems, *_point_problems(study, names)]


def _point_problems(study: Study, names: list[str]) -> list[str]:
    problems = []
    for index, point in enumerate(study.search.points):
        key, held_out = f"search.points[{index}]", study.verification and study.verification.scale == point.scale
        if point.scale not in names:
            problems.append(f"{key}.scale: no such scale {point.scale!r}; scales: {', '.join(names)}")
        elif held_out:
            problems.append(f"{key}.scale: {point.scale!r} is held out for verification; choose another scale")
        if point.batch_tokens:
            problems += find_batch_problems(
                f"{key}.batch_tokens", point.batch_tokens, study.training, study.data.seq_len
            )
    return problems


def load_study(path: str | Path) -> Study:
    """Read a study from `study.toml`, or from the folder that holds one; relative data paths start at the file.

    Raises InputError with every problem of the file: key, rule, value, what to try.
    """
    file = Path(path)
    file = file / "study.toml" if file.is_dir() else file
    if not file.is_file():
        raise InputError(f"study file {str(path)!r} not found (looked at {file.resolve()})")
    try:
        raw = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: not valid TOML: {error}; study not loaded") from None
    return read_study(raw, origin=file)


def read_study(raw: dict[str, Any], *, origin: Path | None = None) -> Study:
    """Build a study from the tables of a file; `origin` names the file in errors and anchors relative paths."""
    try:
        study = Study.model_validate(raw)
    except ValidationError as error:
        where = f"{origin}: " if origin else ""
        raise InputError("\n".join(f"{where}{line}" for line in _explain(error))) from None
    return _anchor_paths(study, origin.parent.resolve()) if origin else study


def _anchor_paths(study: Study, folder: Path) -> Study:
    """Make relative paths absolute: workers run in other folders."""

    def anchor(text: str) -> str:
        return str(folder / text) if text and not Path(text).is_absolute() else text

    domains = {
        name: domain.model_copy(update={"path": anchor(domain.path)}) for name, domain in study.data.domains.items()
    }
    is_file = study.data.tokenizer.endswith(".json")
    tokenizer = anchor(study.data.tokenizer) if is_file else study.data.tokenizer
    data = study.data.model_copy(update={"domains": domains, "tokenizer": tokenizer})
    runner = study.runner.model_copy(update={"table": anchor(study.runner.table)})
    replay = study.search.replay
    if replay is not None:
        replay = replay.model_copy(update={"file": anchor(replay.file)})
    search = study.search.model_copy(update={"replay": replay})
    return study.model_copy(update={"data": data, "runner": runner, "search": search})


def _explain(error: ValidationError) -> list[str]:
    """One line a problem: key, rule, value, what to try."""
    lines: list[str] = []
    problems = error.errors()
    for item in problems:
        if item["type"] == "too_short" and any(item["loc"] == other["loc"][:-2] for other in problems):
            continue  # pydantic counts sound items only; what is wrong with the others is said of them
        key = ".".join(str(part) for part in item["loc"] if not PYDANTIC_PART.match(str(part)))
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            lines.append(f"{key}: unknown key; {_nearest_key(item['loc'])}")
        elif item["type"] == "missing":
            lines.append(f"{key}: required, and missing")
        elif item["type"] == "value_error":
            lines += [_prefix(key, line) for line in message.splitlines()]
        else:
            lines.append(f"{key}: {message[0].lower()}{message[1:]}, got {item['input']!r}")
    return lines


def _prefix(key: str, line: str) -> str:
    """Put a section's key before a message, which may itself begin with a key inside that section."""
    inside = re.match(r"[\w.]+: ", line)
    return f"{key}{'.' if inside else ': '}{line}" if key else line


def _nearest_key(location: tuple[int | str, ...]) -> str:
    known = _known_keys(location[:-1])
    close = difflib.get_close_matches(str(location[-1]), known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    model: type[BaseModel] = Study
    for part in location:
        if isinstance(part, str) and part in model.model_fields:
            model = _section_in(model.model_fields[part].annotation) or model
    return sorted(model.model_fields)


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """The section that an annotation such as `tuple[ScaleSection, ...]` or `SurfaceSection | None` speaks of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _section_in(part))), None)
