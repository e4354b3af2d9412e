"""llama.cpp on the shapes of the CPU benchmark, for the figures beside ours: decode of one request and prefill of 512 tokens.

    python benchmarks/cpu_llama_cpp.py [--out benchmarks/results/llama_cpp.json]

Needs `pip install llama-cpp-python gguf` in an environment of its own; writes a GGUF file of random bf16 weights to a temporary folder.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
import shapes

SHAPE, THREADS, NUM_OUT, NUM_PREFILL = "0.5b", 2, 128, 512


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        path = Path(root) / "random.gguf"
        write_gguf(path, shapes.SHAPES[SHAPE])
        llm = llama_cpp.Llama(str(path), n_ctx=2048, n_threads=THREADS, n_threads_batch=THREADS, verbose=False)
        result = {
            "engine": f"llama.cpp (llama-cpp-python {llama_cpp.__version__})",
            "shape": SHAPE,
            "dtype": "bf16",
            "decode_b1_tokens_s": decode(llm),
            "prefill_512_tokens_s": prefill(llm),
        }
    print(json.dumps(result))
    if args.out:
        Path(args.out).write_text(json.dumps(result, indent=1) + "\n")


def decode(llm: Any) -> float:
    """Tokens a second after a prompt of 128, one sequence, median of three."""
    ids = shapes.random_ids(np.random.default_rng(0), 128)
    rates = []
    for _ in range(3):
        llm.reset()
        llm.eval(ids)
        start = time.perf_counter()
        for i in range(NUM_OUT):
            llm.eval([ids[i]])
        rates.append(NUM_OUT / (time.perf_counter() - start))
    return statistics.median(rates)


def prefill(llm: Any) -> float:
    """Prompt tokens a second, median of three."""
    ids = shapes.random_ids(np.random.default_rng(1), NUM_PREFILL)
    rates = []
    for _ in range(3):
        llm.reset()
        start = time.perf_counter()
        llm.eval(ids)
        rates.append(NUM_PREFILL / (time.perf_counter() - start))
    return statistics.median(rates)


def write_gguf(path: Path, size: dict[str, Any]) -> None:
    """A qwen2 GGUF file of random weights, without a tokenizer."""
    writer = gguf.GGUFWriter(str(path), "qwen2")
    heads, kv_heads, hidden = size["num_attention_heads"], size["num_key_value_heads"], size["hidden_size"]
    writer.add_context_length(32768)
    writer.add_embedding_length(hidden)
    writer.add_block_count(size["num_hidden_layers"])
    writer.add_feed_forward_length(size["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    writer.add_vocab_size(size["vocab_size"])
    writer.add_tokenizer_model("none")
    rng = np.random.default_rng(0)

    def matrix(name: str, rows: int, columns: int) -> None:
        values = (rng.standard_normal((rows, columns), dtype=np.float32) * 0.02).view(np.uint32) >> 16
        writer.add_tensor(name, values.astype(np.uint16).view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)

    def vector(name: str, length: int, value: float) -> None:
        writer.add_tensor(name, np.full(length, value, dtype=np.float32))

    head_dim, inner = hidden // heads, size["intermediate_size"]
    matrix("token_embd.weight", size["vocab_size"], hidden)
    vector("output_norm.weight", hidden, 1.0)
    for i in range(size["num_hidden_layers"]):
        block = f"blk.{i}"
        for name, rows in (("q", heads * head_dim), ("k", kv_heads * head_dim), ("v", kv_heads * head_dim)):
            matrix(f"{block}.attn_{name}.weight", rows, hidden)
            vector(f"{block}.attn_{name}.bias", rows, 0.0)
        matrix(f"{block}.attn_output.weight", hidden, heads * head_dim)
        matrix(f"{block}.ffn_gate.weight", inner, hidden)
        matrix(f"{block}.ffn_up.weight", inner, hidden)
        matrix(f"{block}.ffn_down.weight", hidden, inner)
        vector(f"{block}.attn_norm.weight", hidden, 1.0)
        vector(f"{block}.ffn_norm.weight", hidden, 1.0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
