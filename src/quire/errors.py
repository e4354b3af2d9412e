"""Every error that quire raises on purpose, split by who is at fault; the HTTP status follows from the type.

QuireError
├── ClientError                  the caller's request is wrong (4xx); also a ValueError
│   ├── InvalidRequest           400  a bad value; `param` names the field
│   ├── ContextLengthExceeded    400  prompt (+ max_tokens) does not fit the model length
│   ├── Unauthenticated          401  no or wrong API key
│   ├── ModelNotFound            404  the model (or route) does not exist
│   ├── RequestTooLarge          413  the HTTP body is over the limit
│   └── QueueFull                429  too many requests wait; try again later
├── SetupError                   the engine cannot start as asked (exit code 2)
│   ├── ConfigError              a flag or argument is wrong or contradicts another; also a ValueError
│   ├── UnsupportedModel         the architecture, or a config value of it, is not implemented
│   ├── CheckpointError          a file is missing, truncated, mis-shaped or unsafe
│   ├── HubError                 a model could not be downloaded
│   └── MemoryPlanError          weights and KV cache do not fit
└── ServerError                  our fault or the machine's (5xx)
    ├── EngineUnavailable        503  starting, draining, restarting or stuck
    ├── NumericalError           500  the logits of this request became NaN or infinite
    ├── RequestPoisoned          500  this request ended the engine twice
    └── UnsupportedShape         500  no kernel for this shape; the message lists those there are
"""


class QuireError(Exception):
    """Root of all errors raised on purpose. `str(error)` is safe to show to the caller."""

    status = 500
    type = "server_error"
    code: str | None = None
    param: str | None = None


class ClientError(QuireError, ValueError):
    """The caller's fault; nothing is wrong with the engine."""

    status = 400
    type = "invalid_request_error"


class InvalidRequest(ClientError):
    """A field has a value that cannot be honoured.

    message  says what is wrong, with the value, and what is allowed
    param    name of the field at fault, as the caller wrote it
    """

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class ContextLengthExceeded(InvalidRequest):
    """The prompt, or prompt and max_tokens together, are longer than the model length."""

    code = "context_length_exceeded"


class Unauthenticated(ClientError):
    """No API key, or one that this server does not know."""

    status = 401
    code = "invalid_api_key"


class ModelNotFound(ClientError):
    """The named model is not served here."""

    status = 404
    type = "NotFoundError"
    code = "model_not_found"


class RequestTooLarge(ClientError):
    """The HTTP body is over the limit."""

    status = 413


class QueueFull(ClientError):
    """Too many requests wait."""

    status = 429
    type = "rate_limit_error"
    code = "queue_full"


class SetupError(QuireError):
    """The engine cannot start as asked."""


class ConfigError(SetupError, ValueError):
    """A flag or argument is wrong, or contradicts another."""


class UnsupportedModel(SetupError):
    """The architecture, or a value in its config, is not implemented."""


class CheckpointError(SetupError):
    """A checkpoint file is missing, truncated, mis-shaped or unsafe."""


class HubError(SetupError):
    """A model could not be downloaded."""


class MemoryPlanError(SetupError):
    """Weights and KV cache do not fit; the message holds the arithmetic and the flag that mends it."""


class ServerError(QuireError):
    """Our fault or the machine's."""


class EngineUnavailable(ServerError):
    """The engine is starting, draining, restarting or stuck."""

    status = 503
    code = "engine_unavailable"


class NumericalError(ServerError):
    """The logits of this request became NaN or infinite; other requests are not touched."""

    code = "numerical_error"


class RequestPoisoned(ServerError):
    """This request ended the engine twice and is not tried again."""

    code = "request_poisoned"


class UnsupportedShape(ServerError):
    """No kernel for this shape."""
