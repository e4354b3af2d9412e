"""Models on the GPU in bfloat16 against transformers in float32 on the same weights; the error is printed, and bounded by that of
transformers in bfloat16."""

import engines
import pytest
import torch
import transformers

from quire import LLM, SamplingParams

COMMON = {
    "vocab_size": 500, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 1024, "initializer_range": 0.08, "bos_token_id": 0, "eos_token_id": 1,
    "pad_token_id": 2,
}  # fmt: skip
CONFIGS = {
    "qwen2": lambda: transformers.Qwen2Config(**COMMON),
    "qwen3": lambda: transformers.Qwen3Config(**COMMON, head_dim=64),
    "llama": lambda: transformers.LlamaConfig(**COMMON),
    "mistral": lambda: transformers.MistralConfig(**COMMON, sliding_window=48),
    "opt": lambda: transformers.OPTConfig(
        vocab_size=500, hidden_size=256, word_embed_proj_dim=256, ffn_dim=512, num_hidden_layers=4, num_attention_heads=4,
        max_position_embeddings=1024, init_std=0.08, bos_token_id=0, eos_token_id=1, pad_token_id=2,
    ),
}  # fmt: skip
LENGTHS = [1, 2, 17, 64, 65, 300, 700]
NEW_TOKENS = 24


def reference_logprobs(model: torch.nn.Module, ids: list[int]) -> torch.Tensor:
    """Log-probabilities [T, V] after each token."""
    with torch.inference_mode():
        return model(torch.tensor([ids], device="cuda")).logits[0].float().log_softmax(-1)


@pytest.mark.parametrize("family", list(CONFIGS))
def test_close_to_float32(family, tmp_path, note):
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[family]()).to(torch.bfloat16).eval()
    model.save_pretrained(tmp_path, safe_serialization=True)
    inputs = engines.prompts(LENGTHS, seed=3, vocab=500)
    params = SamplingParams(
        temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True, detokenize=False, logprobs=0, prompt_logprobs=0
    )
    options = {
        "load_format": "auto",
        "max_model_len": 1024,
        "num_gpu_blocks_override": 400,
        "max_num_batched_tokens": 256,
    }
    with engines.engine(str(tmp_path), **options) as llm:
        outputs = llm.generate(inputs, params, use_tqdm=False)
        llm.reset_prefix_cache()  # now without log-probabilities of prompts: the last layer computes few rows
        firsts = llm.generate(inputs, params.clone(prompt_logprobs=None, max_tokens=1), use_tqdm=False)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.bfloat16, attn_implementation="eager"
    )
    narrow = loaded.eval().cuda()
    theirs_of = {n: reference_logprobs(narrow, full_ids(o)) for n, o in enumerate(outputs)}
    wide = narrow.float()
    ours, theirs, gaps, few = [], [], [], []
    for n, output in enumerate(outputs):
        ids = full_ids(output)
        exact = reference_logprobs(wide, ids)
        for position, logprob in chosen_logprobs(output):
            expected = exact[position - 1, ids[position]].item()
            ours.append(abs(logprob - expected))
            theirs.append(abs(theirs_of[n][position - 1, ids[position]].item() - expected))
        [(token, entry)] = firsts[n].outputs[0].logprobs[0].items()
        few.append(abs(entry.logprob - exact[len(ids) - NEW_TOKENS - 1, token].item()))
        for position in range(len(ids) - NEW_TOKENS, len(ids)):
            gaps.append((exact[position - 1].max() - exact[position - 1, ids[position]]).item())
    mean_ours, mean_theirs = sum(ours) / len(ours), sum(theirs) / len(theirs)
    note(
        f"{family}: log-probabilities of {len(ours)} tokens against float32: mean error {mean_ours:.4f}, worst {max(ours):.4f} "
        f"(transformers in bfloat16: {mean_theirs:.4f}, {max(theirs):.4f}); greedy tokens at most {max(gaps):.4f} below the best"
    )
    assert len(ours) == sum(n - 1 for n in LENGTHS) + NEW_TOKENS * len(LENGTHS)
    assert mean_ours <= 1.25 * mean_theirs + 1e-3
    assert max(ours) <= 2 * max(theirs) + 1e-2
    assert max(gaps) <= 2 * max(theirs) + 1e-2
    assert max(few) <= 2 * max(theirs) + 1e-2


def full_ids(output) -> list[int]:
    return [*output.prompt_token_ids, *output.outputs[0].token_ids]


def chosen_logprobs(output) -> list[tuple[int, float]]:
    """(position, log-probability of the token there), of the prompt and of what was generated."""
    prompt = list(enumerate(output.prompt_logprobs))[1:]
    generated = list(enumerate(output.outputs[0].logprobs, start=len(output.prompt_token_ids)))
    ids = full_ids(output)
    return [(position, entry[ids[position]].logprob) for position, entry in prompt + generated]


def test_the_bundled_model_answers():
    with LLM(max_model_len=512, gpu_memory_utilization=0.3) as llm:
        assert llm.model_config.device == "cuda"
        questions = ["What is the capital of France?", "浙江的省会在哪里？"]
        conversations = [[{"role": "user", "content": question}] for question in questions]
        answers = llm.chat(conversations, SamplingParams(temperature=0, max_tokens=48), use_tqdm=False)
    texts = [answer.outputs[0].text for answer in answers]
    assert "Paris" in texts[0] and "杭州" in texts[1], texts


def test_seven_billion_parameters_generate(tmp_path):
    folder = engines.shapes.write_config("7b", tmp_path)
    with engines.engine(folder) as llm:
        tokens = engines.greedy(llm, engines.prompts([5, 900, 2500]), [12, 30, 3])
    assert [len(ids) for ids in tokens] == [12, 30, 3]
    assert len(set(tokens[1])) > 1
