"""data/hf.py: OLMo2 weights of transformers as a checkpoint of this project, and the names both ways."""

import json

import pytest
import torch

from cli import UserError
from data import hf
from model import GPT, config_of
from runtime import load_checkpoint, load_model

CONFIG = config_of("smoke", 640, n_kv_heads=1)


def saved(folder):
    """A folder as transformers saves it, and the model in it."""
    pytest.importorskip("transformers")
    from transformers import Olmo2ForCausalLM

    theirs = Olmo2ForCausalLM(hf.olmo2_config(CONFIG)).eval()
    theirs.save_pretrained(folder)
    return theirs


def test_converted_weights_give_the_same_logits(tmp_path):
    """A folder saved by transformers, converted by the command, loads as a base checkpoint with transformers' logits."""
    theirs = saved(tmp_path / "olmo2")
    out = tmp_path / "olmo2.pt"
    hf.main(hf.Config(weights=str(tmp_path / "olmo2"), out=str(out), tokenizer="world", tokens=7))
    checkpoint = load_checkpoint(out)
    assert checkpoint["tokens"] == 7 and [entry["stage"] for entry in checkpoint["lineage"]] == ["pretrain"]
    ours, tokens = load_model(checkpoint), torch.randint(600, (2, 40))
    torch.testing.assert_close(ours.logits(ours(tokens)), theirs(tokens).logits, atol=1e-5, rtol=1e-5)


def test_names_come_back():
    """from_olmo2 is the inverse of to_olmo2."""
    state = GPT(CONFIG).init_weights(0).state_dict()
    back = hf.from_olmo2(hf.to_olmo2(state, CONFIG), CONFIG)
    assert back.keys() == state.keys() and all(torch.equal(back[k], state[k]) for k in state)


def test_what_cannot_be_converted_is_refused(tmp_path):
    """Missing, foreign and misshapen tensors, another architecture, a missing folder, an existing --out: one line each."""
    theirs = hf.to_olmo2(GPT(CONFIG).state_dict(), CONFIG)
    with pytest.raises(UserError, match="lack lm_head"):
        hf.from_olmo2({k: v for k, v in theirs.items() if k != "lm_head.weight"}, CONFIG)
    with pytest.raises(UserError, match="unknown router"):
        hf.from_olmo2(theirs | {"router": torch.zeros(1)}, CONFIG)
    with pytest.raises(UserError, match="model.norm.weight is"):
        hf.from_olmo2(theirs | {"model.norm.weight": torch.zeros(3)}, CONFIG)

    def convert(**flags):
        hf.main(
            hf.Config(
                **{"weights": str(tmp_path / "olmo2"), "out": str(tmp_path / "new.pt"), "tokenizer": "world"} | flags
            )
        )

    with pytest.raises(UserError, match="no such folder"):
        convert()
    saved(tmp_path / "olmo2")
    (tmp_path / "old.pt").write_bytes(b"x")
    with pytest.raises(UserError, match="exists"):
        convert(out=str(tmp_path / "old.pt"))
    path = tmp_path / "olmo2/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "llama"}))
    with pytest.raises(UserError, match="model_type is 'llama'"):
        convert()
    assert not (tmp_path / "new.pt").exists()
