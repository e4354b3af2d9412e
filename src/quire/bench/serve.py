"""`quire bench serve` from its options to its report."""

import asyncio
import json
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from quire import env
from quire.bench.datasets import WORDS, EstimatedTexts, Sample, Texts, TokenizedTexts, samples
from quire.bench.http import Client, HttpError
from quire.bench.load import Load, Record
from quire.bench.options import ServeBenchArgs, pairs, settings
from quire.bench.plot import svg
from quire.bench.report import summarize, table
from quire.errors import ConfigError, EngineUnavailable, ServerError
from quire.hub import resolve_tokenizer
from quire.text.tokenizer import Tokenizer

CALIBRATION_WORDS = 200


def run(args: ServeBenchArgs) -> int:
    """Measures a server and prints the table. Returns 0, or 1 when a request failed. Raises QuireError when it cannot be measured."""
    records, elapsed_s, model = _run_loop(args)
    summary = summarize(
        records, elapsed_s, metrics=args.metrics, percentiles=args.percentiles, limits_ms=args.limits_ms
    )
    print(table(summary, args.metrics, args.percentiles, _heading(args)))
    for text, count in summary["errors"].items():
        print(f"{count} requests failed: {text}", file=sys.stderr)
    result = {
        "date": time.strftime("%Y%m%d-%H%M%S"),
        "model_id": model,
        "base_url": args.url,
        **settings(args),
        **summary,
    }
    result |= pairs(args.metadata)
    if args.save_result or args.save_detailed or args.append_result:
        _save(args, result, records)
    if args.plot:
        _write(
            Path(args.plot),
            svg(records, f"{model}: {summary['completed']} requests, {summary['output_throughput']:.0f} tokens/s"),
        )
    return 1 if summary["failed"] else 0


def _run_loop(args: ServeBenchArgs) -> tuple[list[Record], float, str]:
    if sys.platform != "win32":
        import uvloop  # not there on Windows

        return uvloop.run(_measure(args))
    return asyncio.run(_measure(args))


async def _measure(args: ServeBenchArgs) -> tuple[list[Record], float, str]:
    key = args.api_key or env.api_key()
    client = Client(args.url, {**({"Authorization": f"Bearer {key}"} if key else {}), **args.headers})
    try:
        model = args.served_model_name or args.model or await _first_model(client, args)
        quiet = Load(client, args, model, lambda record: None)
        found = samples(args, await _texts(args, quiet))
        for sample in found[: args.num_warmups]:
            _check_warm_up(await quiet.send(sample), args)
        with tqdm(total=len(found), disable=args.disable_tqdm, dynamic_ncols=True, unit="req") as bar:
            load = Load(client, args, model, lambda record: _advance(bar))
            began = time.perf_counter()
            records = await load.run(found)
            elapsed_s = time.perf_counter() - began
        return records, elapsed_s, model
    finally:
        client.close()


async def _first_model(client: Client, args: ServeBenchArgs) -> str:
    try:
        status, body = await client.request("GET", "/v1/models")
    except HttpError as error:
        raise EngineUnavailable(f"no server answers at {args.url} ({error}); start one with `quire serve`") from None
    try:
        return str(json.loads(body)["data"][0]["id"])
    except (ValueError, KeyError, IndexError, TypeError):
        raise ConfigError(f"{args.url}/v1/models answered {status} and lists no model; give --model") from None


async def _texts(args: ServeBenchArgs, load: Load) -> Texts:
    """How prompts are made: with the tokenizer, or by asking the server how many tokens some words take."""
    if args.tokenizer is not None:
        return TokenizedTexts(Tokenizer.from_dir(resolve_tokenizer(args.tokenizer)))
    words = random.Random(0).choices(WORDS, k=CALIBRATION_WORDS)
    few, many = [
        await load.send(Sample(" ".join(words[:n]), 1, n)) for n in (CALIBRATION_WORDS // 2, CALIBRATION_WORDS)
    ]
    for record in (few, many):
        _check_warm_up(record, args)
    # The difference of two counts leaves out what a chat template adds.
    return EstimatedTexts(max(0.1, (many.num_prompt_tokens - few.num_prompt_tokens) / (CALIBRATION_WORDS / 2)))


def _check_warm_up(record: Record, args: ServeBenchArgs) -> None:
    if record.error is not None:
        raise ServerError(f"{args.url}{args.path} failed on a first request: {record.error}")


def _heading(args: ServeBenchArgs) -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    if args.max_concurrency:
        rows.append(("Maximum request concurrency:", args.max_concurrency))
    if args.request_rate != float("inf"):
        rows.append(("Request rate configured (RPS):", args.request_rate))
    return rows


def _save(args: ServeBenchArgs, result: dict[str, Any], records: Sequence[Record]) -> None:
    if args.save_detailed:
        result = {**result, "requests": [_detail(record, records) for record in records]}
    model = result["model_id"].split("/")[-1]
    rate = f"{args.request_rate:g}qps" + (f"-concurrency{args.max_concurrency}" if args.max_concurrency else "")
    name = args.result_filename or f"{args.label or args.backend}-{rate}-{model}-{result['date']}.json"
    text = (
        json.dumps(result, ensure_ascii=False)
        if args.append_result
        else json.dumps(result, indent=2, ensure_ascii=False)
    )
    _write(Path(args.result_dir or ".") / name, text + "\n", append=args.append_result)


def _detail(record: Record, records: Sequence[Record]) -> dict[str, Any]:
    origin = min(r.began_s for r in records)
    latencies = {"ttft_ms": record.ttft_s * 1000, "e2el_ms": record.e2el_s * 1000} if record.token_s else {}
    return {
        "start_s": record.began_s - origin,
        "input_len": record.num_prompt_tokens,
        "output_len": record.num_output_tokens,
        **latencies,
        "itls_ms": [gap * 1000 for gap in record.itl_s],
        "generated_text": "".join(record.texts),
        "error": record.error,
    }


def _write(path: Path, text: str, append: bool = False) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a" if append else "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None
    print(f"wrote {path}")


def _advance(bar: Any) -> None:
    bar.update(1)
