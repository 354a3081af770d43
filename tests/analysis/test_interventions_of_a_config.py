"""Interventions are held against a config before anything is loaded."""

import pytest

from of_jax.analysis.interventions import check_config, parse
from of_jax.errors import UserError
from tests.analysis.synthetic import config

WIDTH, HIDDEN = config().model.width, config().model.mlp_width


@pytest.mark.parametrize("text, message", (
    ("zero:resid_pre:6:1", "layer 6; its layers are 0 to 5"),
    (f"zero:resid_pre:0:{WIDTH}", f"neuron {WIDTH}; there are 0 to {WIDTH - 1}"),
    ("mean:final:1:0", "layer 1; its layers are 0 to 0"),
    (f"zero:mlp_hidden:all:{HIDDEN}", f"neuron {HIDDEN}; there"),
    (f"zero:attn_out:1:top{WIDTH + 1}", f"neuron {WIDTH}; there are"),
    ("zero:attn_q:6:0", "layer 6")))
def test_what_a_model_does_not_have(text: str, message: str) -> None:
  with pytest.raises(UserError, match=message):
    check_config(parse(text), config())


@pytest.mark.parametrize("text", (
    "zero:resid_pre:5:1", "zero:final:0:0", f"zero:mlp_hidden:all:{WIDTH}", "zero:attn_k:0:999",
    f"zero:resid_pre:0:top{WIDTH}", "clip:mlp_in:all:3:1.5"))
def test_what_it_has(text: str) -> None:
  check_config(parse(text), config())
