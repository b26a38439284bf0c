"""Hugging Face's names for our weights."""

import pytest
import torch

from data.errors import UserError
from data.hf import from_olmo2, to_olmo2
from model import GPT, config_of


def test_names_are_transformers_own_and_come_back():
    """Every tensor of Olmo2ForCausalLM, no other, in the right shape; and the way back is the inverse."""
    transformers = pytest.importorskip("transformers")
    state = GPT(config_of("smoke", 128)).state_dict()
    theirs = transformers.Olmo2ForCausalLM(
        transformers.Olmo2Config(
            vocab_size=128, hidden_size=64, intermediate_size=192, num_hidden_layers=2, num_attention_heads=2,
            pad_token_id=0,
        )
    ).state_dict()  # fmt: skip
    renamed = to_olmo2(state)
    assert {k: v.shape for k, v in renamed.items()} == {k: v.shape for k, v in theirs.items()}
    back = from_olmo2(renamed)
    assert back.keys() == state.keys() and all(back[k] is v for k, v in state.items())


@pytest.mark.parametrize("name", ["model.layers.0.mlp.router.weight", "model.layers.0.q.bias", "norm", "lm_head.bias"])
def test_other_weights_are_refused(name):
    """A tensor without a place in the model is named, not dropped."""
    with pytest.raises(UserError, match=name):
        from_olmo2({name: torch.zeros(1)})
