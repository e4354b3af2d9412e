"""generation_config.json: the checkpoint's sampling defaults and end-of-sequence ids."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quire.errors import CheckpointError, ConfigError

# The keys that vLLM takes from the file, and what SamplingParams calls them. Others, do_sample among them, are not sampling
# values: a model that wants greedy answers says temperature 0.
SAMPLING_KEYS = {
    "repetition_penalty": "repetition_penalty",
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "max_new_tokens": "max_tokens",
}
_INTEGERS = ("top_k", "max_new_tokens")


@dataclass(frozen=True)
class GenerationConfig:
    """sampling: defaults of SamplingParams by field name. eos_token_ids: every id that ends a sequence."""

    sampling: dict[str, Any] = field(default_factory=dict)
    eos_token_ids: tuple[int, ...] = ()


def read_generation_config(
    model_dir: str | Path,
    source: str = "auto",
    overrides: dict[str, Any] | None = None,
    tokenizer_eos_id: int | None = None,
) -> GenerationConfig:
    """Defaults of a checkpoint, merged with what the user says.

    source     auto = the model folder's file if it has one; vllm = no file; else a folder that must have one
    overrides  keys of the file (temperature, max_new_tokens, ...; max_tokens too) whose values win over it
    Raises CheckpointError for a broken file, ConfigError for an unknown override.
    Source of the key list: vLLM ModelConfig.get_diff_sampling_param.
    """
    values: dict[str, Any] = {}
    if source != "vllm":
        values = _read(Path(model_dir) if source == "auto" else Path(source).expanduser(), required=source != "auto")
    sampling = _sampling(values, CheckpointError, "generation_config.json")
    sampling.update(_sampling(_checked_overrides(overrides), ConfigError, "override_generation_config"))
    ids = [] if tokenizer_eos_id is None else [tokenizer_eos_id]
    ids += _eos_ids(values.get("eos_token_id"), CheckpointError, "generation_config.json")
    if overrides and "eos_token_id" in overrides:
        ids = _eos_ids(overrides["eos_token_id"], ConfigError, "override_generation_config")
    return GenerationConfig(sampling, tuple(dict.fromkeys(ids)))


def _read(folder: Path, required: bool) -> dict[str, Any]:
    path = folder / "generation_config.json"
    if path.is_file():
        return _json_object(path)
    if required:
        raise ConfigError(f"--generation-config {folder}: there is no generation_config.json in that folder")
    # Without the file, transformers takes the end-of-sequence ids from config.json.
    config = _json_object(folder / "config.json") if (folder / "config.json").is_file() else {}
    return {key: config[key] for key in ("eos_token_id",) if key in config}


def _json_object(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} does not hold a JSON object")
    return values


def _checked_overrides(overrides: dict[str, Any] | None) -> dict[str, Any]:
    allowed = (*SAMPLING_KEYS, "max_tokens", "eos_token_id")
    values = overrides or {}
    if not isinstance(values, dict):
        raise ConfigError(f"override_generation_config must be an object, not {values!r}")
    unknown = [key for key in values if key not in allowed]
    if unknown:
        raise ConfigError(f"override_generation_config: {unknown[0]!r} is not one of {', '.join(allowed)}")
    return {"max_new_tokens" if key == "max_tokens" else key: value for key, value in values.items()}


def _sampling(values: dict[str, Any], error: type[Exception], where: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, name in SAMPLING_KEYS.items():
        value = values.get(key)
        if value is None:
            continue
        kinds = int if key in _INTEGERS else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds) or not math.isfinite(value):
            raise error(f"{where}: {key} must be a number, not {value!r}")
        found[name] = value
    return found


def _eos_ids(value: Any, error: type[Exception], where: str) -> list[int]:
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
        raise error(f"{where}: eos_token_id must be a token id or a list of them, not {value!r}")
    return ids
