"""Names of checkpoint tensors that fill a parameter."""

from quire.weights.weight_map import QKV_GATE_UP, WeightMap

MAP = WeightMap(fuse=QKV_GATE_UP, rename={"decoder.": "model.decoder."})


def test_a_fused_parameter_has_its_members_as_sources() -> None:
    assert MAP.sources("model.layers.0.self_attn.qkv_proj.bias") == tuple(
        f"model.layers.0.self_attn.{name}_proj.bias" for name in "qkv"
    )


def test_any_other_parameter_has_itself() -> None:
    assert MAP.sources("lm_head.weight") == ("lm_head.weight",)
    assert MAP.sources("model.norm.weight") == ("model.norm.weight",)


def test_a_prefix_is_renamed_at_the_beginning_alone() -> None:
    assert MAP.canonical("decoder.layers.0.fc1.weight") == "model.decoder.layers.0.fc1.weight"
    assert MAP.canonical("model.decoder.layers.0.fc1.weight") == "model.decoder.layers.0.fc1.weight"


def test_rotary_frequencies_are_harmless_leftovers() -> None:
    assert MAP.ignored("model.layers.3.self_attn.rotary_emb.inv_freq")
    assert not MAP.ignored("model.layers.3.self_attn.rotary_emb.inv_freq.weight")
