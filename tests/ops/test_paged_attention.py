"""The reference of paged_attention: against one dense softmax, and the same bits for a token in any chunk and company."""

from dataclasses import replace

import op_parity
import pytest
import torch

from quire.ops.paged_attention import SPEC, paged_attention


@pytest.mark.parametrize("case", op_parity.SMALL_ATTENTION, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_equals_one_softmax_over_all_keys(case: op_parity.AttentionCase, dtype: torch.dtype) -> None:
    inputs = op_parity.attention_inputs(case, dtype)
    found = paged_attention(**inputs)
    assert found.dtype == dtype and found.is_contiguous()
    bound = 1e-13 if dtype == torch.float64 else SPEC.tolerance[dtype].relative
    assert op_parity.error(found, op_parity.dense_attention(**inputs)) < bound


@pytest.mark.parametrize("case", op_parity.SMALL_ATTENTION, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_token_is_the_same_bits_in_any_chunk_and_company(case: op_parity.AttentionCase, dtype: torch.dtype) -> None:
    inputs = op_parity.attention_inputs(case, dtype)
    together, fwd = paged_attention(**inputs), inputs["fwd"]
    starts = fwd.query_start_loc.tolist()
    for row, (count, length) in enumerate(case[0]):
        for cut in {0, count // 3, count // 2, count - 1} if count else ():
            for begin, end in ((0, cut), (cut, count)):
                if begin == end:
                    continue
                part = slice(starts[row] + begin, starts[row] + end)
                alone = replace(
                    op_parity.only_row(fwd, row, end - begin, length),
                    seq_lens=fwd.seq_lens[row : row + 1] - (count - end),
                )
                found = paged_attention(inputs["q"][part], inputs["kv"], alone, inputs["scale"], inputs["window"])
                assert torch.equal(found, together[part]), (row, begin, end)


def test_padding_sequences_give_zeros() -> None:
    inputs = op_parity.attention_inputs(([(1, 9), (1, 5)], 2, 1, 8, 4, 0), torch.float32)
    inputs["fwd"].seq_lens[1] = 0
    found = paged_attention(**inputs)
    assert found[0].any() and not found[1].any()
