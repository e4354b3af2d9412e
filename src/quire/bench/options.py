"""Options of `quire bench serve`; names and defaults are those of `vllm bench serve` where both have them."""

import json
import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any
from urllib.parse import urlsplit

from quire.config import option
from quire.errors import ConfigError

DATASETS = ("chat", "random", "sharegpt", "prefix_repetition", "shared-prefix", "custom")
FILES = ("sharegpt", "custom")
# Beginnings of options' names, and the data sets that they are for.
OPTIONS_OF = {
    "chat": ("chat",), "random": ("random",), "sharegpt": ("sharegpt",), "custom": ("custom",),
    "prefix_repetition": ("prefix_repetition", "shared-prefix"),
}  # fmt: skip
METRICS = ("ttft", "tpot", "itl", "e2el")
GOODPUT_METRICS = ("ttft", "tpot", "e2el")
CHAT_ENDPOINT = "/v1/chat/completions"
TEXT_ENDPOINT = "/v1/completions"


@dataclass
class ServeBenchArgs:
    """What to send, how fast, and what to report. Raises ConfigError naming the option."""

    model: str | None = option(None, "model to ask for; default: the first that the server lists")
    served_model_name: str | None = option(None, "the model's name in requests, when it is not --model")
    tokenizer: str | None = option(
        None, "folder or hub name of the model's tokenizer, for prompts of exact lengths; default: lengths by the server's count"
    )  # fmt: skip
    backend: str = option(
        "openai", "openai-chat: chat completions; openai and vllm: what the data set is made for",
        choices=("openai", "openai-chat", "vllm"), aliases=("--endpoint-type",),
    )  # fmt: skip
    base_url: str | None = option(
        None, "address of the server, such as http://127.0.0.1:8000; wins over --host and --port"
    )
    host: str = option("127.0.0.1", "the server's host")
    port: int = option(8000, "the server's port")
    endpoint: str | None = option(None, f"path to post to; default: {CHAT_ENDPOINT} for chats, else {TEXT_ENDPOINT}")
    api_key: str | None = option(None, "the server's key; default: QUIRE_API_KEY or VLLM_API_KEY")
    header: list[str] | None = option(None, "further headers, as NAME=VALUE")
    dataset_name: str = option(
        "chat", "chat: log-normal lengths; random: fixed ones; prefix_repetition: many prompts with few beginnings; default: what the "
        "other options are for, else chat",
        choices=DATASETS,
    )  # fmt: skip
    dataset_path: str | None = option(
        None, 'file of the data set: ShareGPT\'s JSON, or lines of {"prompt": ...} for custom'
    )
    num_prompts: int = option(1000, "requests to send")
    request_rate: float = option(math.inf, "requests a second; inf = all at once")
    burstiness: float = option(1.0, "1 = Poisson arrivals; below 1 in bursts, above 1 evenly (gamma-distributed gaps)")
    max_concurrency: int | None = option(None, "most requests under way at once")
    ramp_up_strategy: str | None = option(None, "how the rate grows", choices=("linear", "exponential"))
    ramp_up_start_rps: float | None = option(None, "rate of the first request")
    ramp_up_end_rps: float | None = option(None, "rate of the last request")
    num_warmups: int = option(1, "requests sent and awaited before the clock starts")
    chat_input_len: int = option(220, "chat: mean prompt tokens")
    chat_output_len: int = option(200, "chat: mean output tokens")
    random_input_len: int = option(1024, "random: prompt tokens")
    random_output_len: int = option(128, "random: output tokens")
    random_range_ratio: float = option(0.0, "random: lengths are uniform in 1 ± this, times the length")
    random_prefix_len: int = option(0, "random: tokens that all prompts begin with, beside --random-input-len")
    sharegpt_output_len: int | None = option(None, "sharegpt: output tokens; default: as long as the answer on file")
    custom_output_len: int = option(256, "custom: output tokens; -1 = each line's output_tokens")
    prefix_repetition_prefix_len: int = option(256, "prefix_repetition: tokens of each beginning")
    prefix_repetition_suffix_len: int = option(256, "prefix_repetition: tokens after it")
    prefix_repetition_num_prefixes: int = option(10, "prefix_repetition: different beginnings")
    prefix_repetition_output_len: int = option(128, "prefix_repetition: output tokens")
    ignore_eos: bool = option(False, "outputs are as long as asked for; the server must know the field ignore_eos")
    temperature: float | None = option(None, "default: the server's own")
    top_p: float | None = option(None, "default: the server's own")
    top_k: int | None = option(None, "default: the server's own")
    logprobs: int | None = option(None, "log-probabilities a token to ask for")
    extra_body: dict[str, Any] | None = option(None, "JSON: further fields of every request")
    goodput: list[str] | None = option(
        None, "limits in ms, such as ttft:200 tpot:50 e2el:5000; requests within all of them count"
    )
    percentile_metrics: str = option("ttft,tpot,itl,e2el", "comma-separated: which latencies to report")
    metric_percentiles: str = option("90,99", "comma-separated: their percentiles")
    request_timeout: float = option(6 * 3600, "seconds after which a request counts as failed")
    trust_remote_code: bool = option(
        False, "accepted from older scripts: nothing of the model but its tokenizer is read"
    )
    seed: int = option(0, "of prompts, lengths and arrivals")
    save_result: bool = option(False, "write a JSON file")
    save_detailed: bool = option(False, "with each request's figures in it")
    append_result: bool = option(False, "add a line to the file, do not replace it")
    result_dir: str | None = option(None, "folder of the file; default: the current one")
    result_filename: str | None = option(None, "its name; default: made of rate, model and date")
    label: str | None = option(None, "a word for the file")
    metadata: list[str] | None = option(None, "KEY=VALUE pairs for the file")
    plot: str | None = option(None, "file for a picture of the run (SVG)")
    disable_tqdm: bool = option(False, "no progress bar")
    headers: dict[str, str] = field(init=False, repr=False)
    limits_ms: dict[str, float] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.headers = dict(_pair(text, "--header") for text in self.header or ())
        self.limits_ms = _limits(self.goodput or ())
        self._check_numbers()
        self._check_ramp()
        if self.is_chat and self.endpoint and not self.endpoint.endswith("/chat/completions"):
            raise ConfigError(f"--backend openai-chat and --endpoint {self.endpoint} exclude each other; leave one out")
        if self.dataset_name in FILES and not self.dataset_path:
            raise ConfigError(f"--dataset-name {self.dataset_name} needs --dataset-path FILE")

    @property
    def is_chat(self) -> bool:
        """The backend says that requests are chats."""
        return self.backend == "openai-chat"

    @property
    def path(self) -> str:
        """Where requests go."""
        chats = self.is_chat or (self.dataset_name == "chat" and self.backend == "openai")
        return self.endpoint or (CHAT_ENDPOINT if chats else TEXT_ENDPOINT)

    @property
    def url(self) -> str:
        """The server's address, without a path that belongs to the endpoint. Raises ConfigError."""
        text = (self.base_url or f"http://{self.host}:{self.port}").rstrip("/")
        parts = urlsplit(text)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"--base-url is {self.base_url!r}; an address such as http://127.0.0.1:8000 is needed")
        return text.removesuffix("/v1")

    @property
    def percentiles(self) -> list[float]:
        """As asked for. Raises ConfigError."""
        return _numbers(self.metric_percentiles, "--metric-percentiles", 0, 100)

    @property
    def metrics(self) -> list[str]:
        """Names of the latencies to report. Raises ConfigError."""
        names = [name.strip() for name in self.percentile_metrics.split(",") if name.strip()]
        for name in names:
            if name not in METRICS:
                raise ConfigError(f"--percentile-metrics has {name!r}; there are {', '.join(METRICS)}")
        return names

    def _check_numbers(self) -> None:
        lowest: dict[str, float] = {
            "num_prompts": 1, "num_warmups": 0, "chat_input_len": 1, "chat_output_len": 1, "random_input_len": 1,
            "random_output_len": 1, "random_prefix_len": 0, "prefix_repetition_prefix_len": 0,
            "prefix_repetition_suffix_len": 1, "prefix_repetition_num_prefixes": 1, "prefix_repetition_output_len": 1,
            "max_concurrency": 1, "sharegpt_output_len": 1,
        }  # fmt: skip
        for name, low in lowest.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise ConfigError(f"--{name.replace('_', '-')} is {value}; it must be at least {low:g}")
        for name in ("request_rate", "burstiness", "request_timeout"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be above 0")
        if not 0 <= self.random_range_ratio < 1:
            raise ConfigError(f"--random-range-ratio is {self.random_range_ratio}; it must be at least 0 and below 1")
        _ = self.percentiles, self.metrics, self.url

    def _check_ramp(self) -> None:
        ends = (self.ramp_up_start_rps, self.ramp_up_end_rps)
        if self.ramp_up_strategy is None:
            if ends != (None, None):
                raise ConfigError(
                    "--ramp-up-start-rps and --ramp-up-end-rps need --ramp-up-strategy linear or exponential"
                )
            return
        if not all(rate is not None and 0 < rate < math.inf for rate in ends):
            raise ConfigError("--ramp-up-strategy needs --ramp-up-start-rps and --ramp-up-end-rps, both above 0")
        if self.request_rate != math.inf:
            raise ConfigError("--request-rate and --ramp-up-strategy exclude each other")


def with_meant_dataset(args: ServeBenchArgs, given: Collection[str]) -> ServeBenchArgs:
    """The same with the data set that the given options are for, where none is named: `--random-input-len 9` alone means random."""
    kinds = {kind for kind in map(_kind_of, given) if kind is not None}
    return replace(args, dataset_name=kinds.pop()) if "dataset_name" not in given and len(kinds) == 1 else args


def without_effect(args: ServeBenchArgs) -> Iterator[tuple[str, str]]:
    """Options that do nothing beside the others, each with the reason."""
    for option_ in fields(args):
        kind = _kind_of(option_.name)
        if kind is not None and args.dataset_name not in OPTIONS_OF[kind]:
            yield option_.name, f"is for --dataset-name {kind}, and the data set is {args.dataset_name}"
    if args.dataset_name not in FILES:
        yield "dataset_path", f"is for --dataset-name {' or '.join(FILES)}, and {args.dataset_name} is made up"
    if not (args.save_result or args.save_detailed or args.append_result):
        for name in ("result_dir", "result_filename", "label", "metadata"):
            yield name, "is for the file that --save-result writes; give that too"
    # A sweep over rates that ends with inf may say 1, which is usual, for all of them.
    if args.request_rate == math.inf and args.ramp_up_strategy is None and args.burstiness != 1.0:
        yield "burstiness", "is for arrivals at a --request-rate, and all requests are sent at once"


def _kind_of(name: str) -> str | None:
    """The data set that an option is for, if it is for one."""
    return next((kind for kind in OPTIONS_OF if name.startswith(f"{kind}_")), None)


def settings(args: ServeBenchArgs) -> dict[str, Any]:
    """The options as they go into a result file: all but secrets."""
    hidden = {"api_key", "header", "headers", "limits_ms", "metadata"}
    values = {name: value for name, value in vars(args).items() if name not in hidden}
    return {name: "inf" if value == math.inf else value for name, value in values.items()}


def pairs(words: list[str] | None) -> dict[str, str]:
    """--metadata as a mapping."""
    return dict(_pair(text, "--metadata") for text in words or ())


def _pair(text: str, flag: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise ConfigError(f"{flag} is {json.dumps(text)}; NAME=VALUE is needed")
    return name, value


def _numbers(text: str, flag: str, low: float, high: float) -> list[float]:
    try:
        found = [float(word) for word in text.split(",")]
    except ValueError:
        raise ConfigError(f"{flag} is {text!r}; comma-separated numbers are needed") from None
    if not all(low <= number <= high for number in found):
        raise ConfigError(f"{flag} is {text!r}; each must be from {low:g} to {high:g}")
    return found


def _limits(words: Any) -> dict[str, float]:
    limits = {}
    for word in words:
        name, _, value = word.partition(":")
        try:
            limits[name] = float(value)
        except ValueError:
            raise ConfigError(f"--goodput is {word!r}; NAME:MILLISECONDS is needed, such as ttft:200") from None
        if name not in GOODPUT_METRICS or not limits[name] >= 0:
            raise ConfigError(
                f"--goodput is {word!r}; there are {', '.join(GOODPUT_METRICS)}, with limits of 0 ms or more"
            )
    return limits
