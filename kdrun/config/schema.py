"""Types of the configuration, and the check that every composed configuration passes before anything loads."""

from __future__ import annotations

import ast
import dataclasses
import io
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kdrun.config.annotations import annotated_type
from kdrun.config.method_rules import method_rules
from kdrun.config.method_schema import MethodSource, is_ours, read_method, yaml_name
from kdrun.config.options import RunConfig
from kdrun.config.settings import KINDS, fault, settings, unknown
from kdrun.errors import ConfigError, one_line, suggest

RESOLVED = {"device": str, "precision": str, "compile": bool, "threads": int, "deterministic": bool}
LARGEST = 1 << 20  # largest config.yaml of a run, in bytes


def check(cfg: DictConfig, begun: bool = False) -> RunConfig:
    """Return the composed configuration as typed objects.

    begun: True for the configuration of an existing run, as in `check_method`. Raises ConfigError (one line) for an
    unknown key, a missing value, a wrong type, a value out of range, or a combination that cannot run.
    """
    _check_references(cfg)
    _check_keys(cfg, RunConfig, "")
    _check_missing(cfg, "")
    try:
        config = OmegaConf.to_object(cfg)
    except OmegaConfBaseException as error:
        raise ConfigError(fault(error)) from error
    assert isinstance(config, RunConfig)
    config.compile, config.graphs = config.compile.lower(), config.graphs.lower()
    for model in (config.teacher, config.student):
        if model.pretrained.lower() in ("true", "false"):
            model.pretrained = model.pretrained.lower()
    check_ranges(config, "")
    config.method = check_method(config.method, begun=begun)
    _check_combinations(config)
    if config.dataset.augment.mixes and not begun:
        _check_mixing(config)
    return config


def _check_references(cfg: DictConfig) -> None:
    """Replace every ${…} by the value that it refers to. Raises ConfigError if there is none."""
    for key, text in _references(OmegaConf.to_container(cfg, resolve=False), ""):
        try:
            OmegaConf.select(cfg, key, throw_on_resolution_failure=True)
        except OmegaConfBaseException as error:
            raise ConfigError(fault(error, key, text)) from error
    OmegaConf.resolve(cfg)


def _references(node: Any, prefix: str) -> Iterator[tuple[str, str]]:
    """Yield (full name, text) of every value that holds ${…}."""
    if isinstance(node, str) and "${" in node:
        yield prefix, node
    elif isinstance(node, dict | list):
        named = isinstance(node, dict)
        for key, value in node.items() if named else enumerate(node):
            inner = f"{prefix}.{key}" if named else f"{prefix}[{key}]"
            yield from _references(value, inner.lstrip("."))


def _check_keys(node: DictConfig, schema: type, prefix: str) -> None:
    """Raise ConfigError for keys that `+key=value` added past Hydra's check."""
    fields = {field.name: field for field in dataclasses.fields(schema)}
    for key in node:
        if key not in fields:
            raise ConfigError(unknown(f"{prefix}{key}"))
        inner = None if OmegaConf.is_missing(node, key) else OmegaConf.get_type(node, str(key))
        if inner is not None and dataclasses.is_dataclass(inner):
            _check_keys(node[key], inner, f"{prefix}{key}.")


def _check_missing(node: DictConfig, prefix: str) -> None:
    for key in node:
        if OmegaConf.is_missing(node, key):
            raise ConfigError(f"{prefix}{key} is not set: give {prefix}{key}=…")
        if isinstance(node[key], DictConfig) and f"{prefix}{key}" != "method":
            _check_missing(node[key], f"{prefix}{key}.")


def check_ranges(options: Any, prefix: str = "") -> None:
    """Raise ConfigError unless every field of a dataclass, and of dataclasses nested in it, obeys its rules."""
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if dataclasses.is_dataclass(value):
            check_ranges(value, f"{prefix}{field.name}.")
        elif value is not None:
            check_value(f"{prefix}{field.name}", value, field.metadata)


def check_value(key: str, value: Any, rules: Mapping[str, Any]) -> None:
    """Raise ConfigError unless `value` (or each number of a list) obeys the rules of `kdrun.config.options.setting`."""
    if isinstance(value, str) and not value.strip():
        raise ConfigError(f"{key}= is empty: give a value, or leave it out for its default.")
    for one in value if isinstance(value, list) else [value]:
        if "choices" in rules and one not in rules["choices"]:
            raise ConfigError(
                f"{key}={one}: choose {' or '.join(rules['choices'])}.{suggest(str(one), rules['choices'])}"
            )
    if "pattern" in rules and not re.fullmatch(rules["pattern"], str(value)):
        raise ConfigError(f"{key}={value}: choose {rules['shows']}.")
    if "length" in rules and len(value) != rules["length"]:
        raise ConfigError(f"{key}={value}: expected {rules['length']} numbers, got {len(value)}.")
    for number in value if isinstance(value, list) else [value]:
        if not isinstance(number, int | float):
            continue
        wrong = (
            (f"at least {rules['low']}" if "low" in rules and number < rules["low"] else "")
            or (f"above {rules['over']}" if "over" in rules and number <= rules["over"] else "")
            or (f"at most {rules['high']}" if "high" in rules and number > rules["high"] else "")
            or (f"below {rules['under']}" if "under" in rules and number >= rules["under"] else "")
            or ("a finite number" if not math.isfinite(number) else "")
        )
        if wrong:
            raise ConfigError(f"{key}={value}: must be {wrong}.")


def check_method(node: Any, prefix: str = "method", begun: bool = False) -> dict[str, Any]:
    """Return the method's node with its values converted, after comparing it with the constructor's parameters.

    begun: True for a run whose user-defined method passed this check when it was trained, and may have moved since.
    """
    if not isinstance(node, dict) or not isinstance(node.get("_target_"), str):
        raise ConfigError("method has no _target_: choose one with method=NAME (kdrun list methods).")
    if begun and not is_ours(node["_target_"]):
        return node
    source, name = read_method(str(node["_target_"])), yaml_name(node)
    kept = {key: node[key] for key in ("_name_", "_target_") if node.get(key) is not None}
    given = {key: value for key, value in node.items() if key not in ("_name_", "_target_")}
    for key in given:
        if key not in source.parameters:
            takes = f" It takes: {', '.join(source.parameters)}." if source.parameters else " It takes none."
            raise ConfigError(f"{prefix}.{key}: {name} has no such setting.{suggest(key, source.parameters)}{takes}")
    for key in source.required:
        if key not in given:
            raise ConfigError(f"{prefix}.{key} is not set: {name} needs it.")
    converted = {key: _convert(key, value, source.parameters[key], prefix) for key, value in given.items()}
    for key, value in converted.items():
        check_value(f"{prefix}.{key}", value, method_rules(key, is_ours(source.target)))
    if source.combines:
        parts = enumerate(converted["parts"])
        converted["parts"] = [_check_part(part, f"{prefix}.parts[{place}]", begun) for place, part in parts]
        if not converted["parts"]:
            raise ConfigError(f"{prefix}.parts is empty: name at least one method, as in 'method.parts=[kd,at]'.")
    _check_weights(converted, source, name, prefix)
    return {**kept, **converted}


def _check_weights(values: dict[str, Any], source: MethodSource, name: str, prefix: str) -> None:
    """Raise ConfigError if the weight of every loss term is 0."""
    terms = [key for key in source.parameters if key.endswith("_weight")]
    weights = [values.get(key, 1.0) for key in terms] + [part["weight"] for part in values.get("parts", ())]
    if "ce_weight" in terms and not any(weights):
        raise ConfigError(f"{prefix}.ce_weight=0: every weight of {name} is 0, so nothing would be trained.")


def _check_part(part: dict[str, Any], prefix: str, begun: bool) -> dict[str, Any]:
    """Return one method of a sum, with its weight."""
    if not isinstance(part, dict):
        raise ConfigError(f"{prefix}={part}: a part is a name or {{method: NAME, weight: 1.0, setting: value}}.")
    weight = part.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise ConfigError(f"{prefix}.weight={weight}: must be a number.")
    check_value(f"{prefix}.weight", weight, method_rules("_weight", ours=True))
    method = {key: value for key, value in part.items() if key != "weight"}
    return {**check_method(method, prefix, begun), "weight": weight}


def _convert(key: str, value: Any, annotation: str, prefix: str) -> Any:
    """Convert `value` to the type of the constructor's annotation, by OmegaConf's rules. Enumerations are
    Literal[...]."""
    if annotation.startswith("Literal["):
        choices = ast.literal_eval(f"[{annotation[8:-1]}]")
        if value not in choices:
            raise ConfigError(f"{prefix}.{key}={value}: must be {' or '.join(map(str, choices))}.")
        return value
    wanted = annotated_type(annotation)
    schema = dataclasses.make_dataclass("Parameter", [(key, wanted)])
    try:
        return OmegaConf.to_container(OmegaConf.structured(schema(value)))[key]  # type: ignore[index,call-overload]
    except OmegaConfBaseException as error:
        reason = f"must be {KINDS[wanted]}." if wanted in KINDS else one_line(error)
        raise ConfigError(f"{prefix}.{key}={value}: {reason}") from error


def _check_combinations(config: RunConfig) -> None:
    """Raise ConfigError for settings that are valid on their own but not together."""
    for prefix, model in (("teacher", config.teacher), ("student", config.student)):
        if model.pretrained != "false" and model.checkpoint is not None:
            raise ConfigError(f"{prefix}.pretrained and {prefix}.checkpoint are both set: choose one.")
        if (model.mean is None) != (model.std is None):
            raise ConfigError(f"{prefix}.mean and {prefix}.std go together: set both or neither.")
    if config.teacher.random and config.teacher.checkpoint is not None:
        raise ConfigError("teacher.random=true and teacher.checkpoint are both set: choose one.")
    data = config.dataset
    if data.normalize == "given" and (data.mean is None or data.std is None):
        raise ConfigError("dataset.mean and dataset.std are not set: set both, or use dataset.normalize=measure.")
    if data.augment.padding >= data.image_size:
        raise ConfigError(f"dataset.augment.crop_padding={data.augment.padding}: must be below image_size.")
    if data.augment.resized_scale[0] > data.augment.resized_scale[1]:
        raise ConfigError(f"dataset.augment.resized_scale={data.augment.resized_scale}: the first must be smaller.")
    if config.pair is not None:
        for role, model in (("teacher", config.teacher), ("student", config.student)):
            expected = getattr(config.pair, role)
            if model.name != expected:
                raise ConfigError(
                    f"pair={config.pair.name} has the {role} {expected}, not {model.name}: leave {role}= or pair= out."
                )


def _check_mixing(config: RunConfig) -> None:
    """Raise ConfigError for mixup or CutMix if the method would learn something wrong from mixed images."""
    augment, node = config.dataset.augment, config.method
    setting = f"dataset.augment.{'mixup' if augment.mixup else 'cutmix'}={augment.mixup or augment.cutmix}"
    if config.batch_size % 2:
        raise ConfigError(f"{setting} mixes images in pairs, but batch_size={config.batch_size} is odd: make it even.")
    if config.teacher_view != "same":
        raise ConfigError(
            f"{setting}: with teacher_view={config.teacher_view} the teacher would see other images than the student; "
            "both see the mixed ones with teacher_view=same."
        )
    for part in [node, *(node["parts"] if read_method(node["_target_"]).combines else ())]:
        ours = is_ours(part["_target_"])
        if read_method(part["_target_"]).takes_mixed:
            continue
        way = "choose another" if ours else "if it uses it only in hard_label_loss, set takes_mixed in its class"
        raise ConfigError(
            f"{setting}: method {yaml_name(part)} uses one label per image, but a mixed image has two; {way}."
        )


def to_yaml(config: RunConfig, resolved: dict[str, Any]) -> str:
    """Return the text of the run's config.yaml: every value, and the `auto` values as resolved on the machine that
    created it."""
    return OmegaConf.to_yaml(OmegaConf.create({**dataclasses.asdict(config), "resolved": resolved}))


def read_config(folder: Path) -> tuple[RunConfig, dict[str, Any]]:
    """Read (configuration, resolved numerics) from a run directory's config.yaml. Raises ConfigError if it is
    damaged."""
    place = folder / "config.yaml"
    try:
        content = plain_yaml(place)
        resolved = content.pop("resolved")
        for key, kind in RESOLVED.items():
            if not isinstance(resolved[key], kind):
                raise ValueError(f"resolved.{key} is {resolved[key]!r}")
        check_value("resolved.threads", resolved["threads"], settings()["threads"].rules)
        merged = OmegaConf.merge(OmegaConf.structured(RunConfig), content)
        assert isinstance(merged, DictConfig)
        return check(merged, begun=True), resolved
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from error
    except Exception as error:  # yaml and OmegaConf raise types of their own
        raise ConfigError(f"{place} cannot be read ({one_line(error)}).") from error


def plain_yaml(place: Path) -> dict[str, Any]:
    """Return the plain values in a run's config.yaml.

    Raises ValueError for content that kdrun never writes there (such as aliases, or references to the environment or to
    other values), and YAML's and the system's own errors.
    """
    if place.stat().st_size > LARGEST:
        raise ValueError(f"it is longer than {LARGEST:,} bytes")
    text = place.read_text()
    if "${" in text:
        raise ValueError("it contains ${…}, but a run's configuration has only plain values")
    events = yaml.parse(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    if any(isinstance(event, yaml.AliasEvent) for event in events):
        raise ValueError("it contains YAML aliases, but a run's configuration has only plain values")
    content = OmegaConf.to_container(OmegaConf.load(io.StringIO(text)))  # numbers as OmegaConf reads them
    if not isinstance(content, dict):
        raise ValueError("it contains no settings")
    return content  # type: ignore[return-value]
