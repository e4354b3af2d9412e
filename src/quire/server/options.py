"""Options of the server, beside those of the engine: flags, config files and the reference page are made from these fields."""

import json
from dataclasses import dataclass

from quire.config import option
from quire.errors import ConfigError


@dataclass
class ServerArgs:
    """How to serve. Names are those that users of vLLM type. Raises ConfigError naming the option."""

    host: str = option("127.0.0.1", "address to listen on; 0.0.0.0 lets other machines in")
    port: int = option(8000, "port to listen on; 0 takes a free one")
    api_key: list[str] | None = option(
        None, "key that clients must send for /v1/...; may be repeated (or VLLM_API_KEY)"
    )
    served_model_name: list[str] | None = option(None, "name(s) of the model for clients; default: as given")
    strict_model_name: bool = option(False, "refuse requests for any other model name with 404")
    allowed_origins: list[str] | None = option(None, "web origins that browsers may call from; * = all; default: none")
    shutdown_timeout: float = option(30.0, "seconds that running requests get to finish after SIGTERM")
    engine_step_timeout: float = option(60.0, "seconds after which a step means that the engine hangs: it is replaced")
    api_process_timeout: float = option(
        30.0, "seconds without a sign of the API process after which it counts as hanging and is replaced"
    )
    request_timeout: float | None = option(None, "seconds after which a request fails with 504; default: no limit")
    max_engine_deaths: int = option(5, "engine deaths within 10 minutes after which the server gives up")
    max_logprobs: int = option(20, "most log-probabilities that a request may ask for at a position")
    uvicorn_log_level: str = option(
        "info", "level of the access log", choices=("critical", "error", "warning", "info", "debug", "trace")
    )
    disable_uvicorn_access_log: bool = option(False, "no line for each HTTP request")
    log_format: str = option("text", "of all lines on stderr; json: an object a line", choices=("text", "json"))
    enable_log_requests: bool = option(False, "a line for each request: its id, lengths and parameters, not its text")
    max_log_len: int = option(0, "characters of each prompt that this line may show")
    otlp_traces_endpoint: str | None = option(
        None, "send OpenTelemetry traces to this OTLP/HTTP address, such as http://localhost:4318/v1/traces"
    )
    disable_ui: bool = option(False, "no chat page at / and no /dashboard")
    disable_fastapi_docs: bool = option(False, "no /docs, /redoc and /openapi.json")

    def __post_init__(self) -> None:
        self.allowed_origins = _origins(self.allowed_origins)
        if self.api_key is not None and not all(self.api_key):
            raise ConfigError("--api-key is empty; leave it out to serve without a key")
        if self.request_timeout is not None and not self.request_timeout > 0:
            raise ConfigError(f"--request-timeout is {self.request_timeout}; it must be above 0")
        for name, lowest in (
            ("shutdown_timeout", 0),
            ("engine_step_timeout", 1),
            ("api_process_timeout", 2),
            ("max_engine_deaths", 1),
            ("max_logprobs", 0),
            ("max_log_len", 0),
        ):
            if not getattr(self, name) >= lowest:
                raise ConfigError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be at least {lowest}")


def _origins(values: list[str] | None) -> list[str] | None:
    """Origins given one by one, or as the JSON list that vLLM takes."""
    if values is None or len(values) != 1 or not values[0].lstrip().startswith("["):
        return values
    try:
        found = json.loads(values[0])
    except ValueError:
        raise ConfigError(f"--allowed-origins {values[0]!r} is no JSON list") from None
    if not all(isinstance(origin, str) for origin in found):
        raise ConfigError(f"--allowed-origins {values[0]!r} must hold strings")
    return list(found)
