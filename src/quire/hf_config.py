"""HfConfig: strict, typed reading of a checkpoint's config.json, in the key spellings of transformers 4 and 5."""

import builtins
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quire.errors import CheckpointError, ConfigError, UnsupportedModel

_MISSING = object()

# transformers 5 renamed these; either spelling is read.
_ALIASES = {"torch_dtype": "dtype", "dtype": "torch_dtype"}


class HfConfig:
    """A config.json. Each read names the type it expects; a wrong type or an unsupported value is an UnsupportedModel error."""

    def __init__(self, values: dict[str, Any], source: str = "config.json") -> None:
        self.values = values
        self.source = source

    @classmethod
    def from_dir(cls, folder: str | Path, overrides: dict[str, Any] | None = None) -> "HfConfig":
        """Reads FOLDER/config.json; `overrides` (hf_overrides) replace top-level keys."""
        path = Path(folder) / "config.json"
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CheckpointError(f"{path} is missing: {folder} is not a Hugging Face model folder") from None
        except (ValueError, OSError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from None
        if not isinstance(values, dict):
            raise CheckpointError(f"{path} does not hold a JSON object")
        if overrides is not None and not isinstance(overrides, dict):
            raise ConfigError(f"hf_overrides must be an object, not {overrides!r}")
        return cls({**values, **(overrides or {})}, str(path))

    def __contains__(self, key: str) -> bool:
        return self.get(key) is not None

    def get(self, key: str, default: Any = None) -> Any:
        """The raw value, whatever its type; `default` when it is absent or null."""
        value = self.values.get(key)
        if value is None and key in _ALIASES:
            value = self.values.get(_ALIASES[key])
        return default if value is None else value

    def int(self, key: str, default: Any = _MISSING) -> int:
        """An integer; UnsupportedModel when it is absent (and no default is given) or of another type."""
        value = self._typed(key, default, int)
        return value  # type: ignore[no-any-return]

    def float(self, key: str, default: Any = _MISSING) -> float:
        """A number; integers count."""
        value = self._typed(key, default, (int, float))
        return value if value is None else float(value)  # type: ignore[return-value]  # None only as the caller's default

    def bool(self, key: str, default: Any = _MISSING) -> bool:
        """true or false."""
        value = self._typed(key, default, bool)
        return value  # type: ignore[no-any-return]

    def str(self, key: str, default: Any = _MISSING) -> str:
        """A string."""
        value = self._typed(key, default, str)
        return value  # type: ignore[no-any-return]

    def dict(self, key: builtins.str, default: Any = _MISSING) -> dict[Any, Any]:
        """An object."""
        value = self._typed(key, default, dict)
        return value  # type: ignore[no-any-return]

    def require(self, key: builtins.str, *allowed: Any, default: Any = _MISSING) -> None:
        """Refuses the checkpoint unless `key` has one of the values that the model file implements."""
        value = self.get(key, None if default is _MISSING else default)
        if value not in allowed:
            names = ", ".join(map(repr, allowed))
            raise UnsupportedModel(f"{self.source}: {key} is {value!r}; this model implements {names}")

    @property
    def architectures(self) -> Sequence[Any]:
        """Names of the model classes the checkpoint was saved from."""
        value = self.get("architectures", [])
        return value if isinstance(value, list) else []

    def _typed(self, key: Any, default: Any, kind: Any) -> Any:
        value = self.get(key)
        if value is None:
            if default is _MISSING:
                raise UnsupportedModel(f"{self.source}: {key} is missing")
            return default
        wrong_bool = isinstance(value, bool) and kind is not bool
        if wrong_bool or not isinstance(value, kind):
            wanted = kind.__name__ if isinstance(kind, type) else "number"
            raise UnsupportedModel(f"{self.source}: {key} is {value!r}, expected {wanted}")
        return value
