"""tools/olmo2.py: OLMo2 weights of transformers as a checkpoint of this project, and the names both ways."""

import json

import pytest
import torch
from safetensors.torch import save_file

from checkpoint import load_checkpoint, load_model
from cli import UserError
from model import GPT, config_of
from tools import olmo2

CONFIG = config_of("smoke", 640, n_kv_heads=1)


def saved(folder):
    """A folder as transformers saves it, and the model in it."""
    pytest.importorskip("transformers")
    from transformers import Olmo2ForCausalLM

    theirs = Olmo2ForCausalLM(olmo2.olmo2_config(CONFIG)).eval()
    theirs.save_pretrained(folder)
    return theirs


def test_converted_weights_give_the_same_logits(tmp_path):
    """A folder saved by transformers, converted by the command, loads as a base checkpoint with transformers' logits."""
    theirs = saved(tmp_path / "olmo2")
    out = tmp_path / "olmo2.pt"
    olmo2.main(olmo2.Config(weights=str(tmp_path / "olmo2"), out=str(out), tokenizer="world", tokens=7))
    checkpoint = load_checkpoint(out)
    assert checkpoint["tokens"] == 7 and [entry["stage"] for entry in checkpoint["lineage"]] == ["pretrain"]
    ours, tokens = load_model(checkpoint), torch.randint(600, (2, 40))
    torch.testing.assert_close(ours.logits(ours(tokens)), theirs(tokens).logits, atol=1e-5, rtol=1e-5)


def test_names_come_back():
    """from_olmo2 is the inverse of to_olmo2."""
    state = GPT(CONFIG).init_weights(0).state_dict()
    back = olmo2.from_olmo2(olmo2.to_olmo2(state, CONFIG), CONFIG)
    assert back.keys() == state.keys() and all(torch.equal(back[k], state[k]) for k in state)


def test_what_cannot_be_converted_is_refused(tmp_path):
    """Missing, foreign and misshapen tensors, another architecture, a missing folder, an existing --out: one line each."""
    theirs = olmo2.to_olmo2(GPT(CONFIG).state_dict(), CONFIG)
    with pytest.raises(UserError, match="lack lm_head"):
        olmo2.from_olmo2({k: v for k, v in theirs.items() if k != "lm_head.weight"}, CONFIG)
    with pytest.raises(UserError, match="unknown router"):
        olmo2.from_olmo2(theirs | {"router": torch.zeros(1)}, CONFIG)
    with pytest.raises(UserError, match="model.norm.weight is"):
        olmo2.from_olmo2(theirs | {"model.norm.weight": torch.zeros(3)}, CONFIG)

    def convert(**flags):
        olmo2.main(
            olmo2.Config(
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


HF_CONFIG = {
    "model_type": "olmo2", "vocab_size": 640, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 192, "max_position_embeddings": 256, "num_key_value_heads": 1, "rms_norm_eps": 1e-6,
    "rope_theta": 500000.0, "hidden_act": "silu",
}  # fmt: skip
WEIRD_CONFIGS = {
    "many layers": {"num_hidden_layers": 10**7},
    "no layers": {"num_hidden_layers": 0},
    "negative": {"hidden_size": -64},
    "no heads": {"num_attention_heads": 0},
    "three heads": {"num_attention_heads": 3},
    "words": {"hidden_size": "64"},
    "fraction": {"hidden_size": 64.5},
    "truth": {"num_hidden_layers": True},
    "huge context": {"max_position_embeddings": 10**12},
    "theta 0": {"rope_theta": 0},
    "theta nan": {"rope_theta": float("nan")},
    "theta list": {"rope_theta": [1]},
    "theta huge": {"rope_theta": 10**400},
    "rope a word": {"rope_parameters": "default"},
    "epsilon negative": {"rms_norm_eps": -1},
    "epsilon infinite": {"rms_norm_eps": float("inf")},
    "other width": {"hidden_size": 128},
}
WEIRD_WEIGHTS = {
    "nan": lambda w: w | {"model.norm.weight": w["model.norm.weight"] * float("nan")},
    "infinite": lambda w: w | {"model.norm.weight": w["model.norm.weight"] / 0},
    "integers": lambda w: w | {"lm_head.weight": w["lm_head.weight"].int()},
    "complex": lambda w: w | {"lm_head.weight": w["lm_head.weight"].to(torch.complex64)},
    "float8": lambda w: w | {"lm_head.weight": w["lm_head.weight"].to(torch.float8_e4m3fn)},
    "empty": lambda w: {},
}
WEIRD_FILES = {
    "no json": ("config.json", b"{"),
    "a list": ("config.json", b"[1]"),
    "nested deep": ("config.json", b'{"a": ' + b"[" * 100_000),
    "not utf-8": ("config.json", b"\xff\xfe"),
    "cut weights": ("model.safetensors", b"\x10\x00"),
    "huge header": ("model.safetensors", b"\xff" * 64),
    "no weights": ("model.safetensors", b""),
    "deep header": ("model.safetensors", (200_000).to_bytes(8, "little") + b"[" * 200_000),
}


@pytest.mark.parametrize("name", [*WEIRD_CONFIGS, *WEIRD_WEIGHTS, *WEIRD_FILES])
def test_a_weird_folder_is_one_line(name, tmp_path):
    """Sizes, numbers, weights and files that no OLMo2 has: a UserError of one line, at once, and no checkpoint."""
    config, weights = (
        HF_CONFIG | WEIRD_CONFIGS.get(name, {}),
        olmo2.to_olmo2(GPT(CONFIG).init_weights(0).state_dict(), CONFIG),
    )
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(WEIRD_WEIGHTS.get(name, dict)(weights), tmp_path / "model.safetensors")
    if name in WEIRD_FILES:
        file, content = WEIRD_FILES[name]
        (tmp_path / file).write_bytes(content)
    with pytest.raises(UserError) as error:
        olmo2.main(olmo2.Config(weights=str(tmp_path), out=str(tmp_path / "x.pt"), tokenizer="world"))
    assert "\n" not in str(error.value) and not list(tmp_path.glob("x.pt*"))


def test_the_plain_folder_is_converted(tmp_path):
    """What the weird folders are made from, without what is weird in them."""
    (tmp_path / "config.json").write_text(json.dumps(HF_CONFIG))
    save_file(olmo2.to_olmo2(GPT(CONFIG).init_weights(0).state_dict(), CONFIG), tmp_path / "model.safetensors")
    olmo2.main(olmo2.Config(weights=str(tmp_path), out=str(tmp_path / "x.pt"), tokenizer="world"))
    assert load_model(load_checkpoint(tmp_path / "x.pt")).config == CONFIG
