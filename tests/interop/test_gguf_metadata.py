"""Metadata of GGUF files: what acts is refused, what does not is listed."""

from pathlib import Path
from typing import Any

import pytest

from of_jax.errors import UserError
from of_jax.interop import open_source
from of_jax.interop.source import Source
from tests.golden import foreign
from tests.interop.test_gguf import converted, gguf_bytes


def opened(path: Path, form: str, change: dict[str, Any]) -> Source:
  fields, arrays = converted(form, foreign.FORMS[form])
  path.write_bytes(gguf_bytes({**fields, **change}, arrays))
  return open_source(path)


@pytest.mark.parametrize("form, change, message", (
    ("llama", {"llama.logit_scale": 0.5}, r"llama.logit_scale=0.5 \(must be 1\): changes the func"),
    ("llama", {"llama.attention.causal": False}, r"llama.attention.causal=false \(must be true\)"),
    ("qwen3", {"qwen3.attention.causal": False, "qwen3.residual_scale": 2.0},
     "qwen3.attention.causal=false .*, qwen3.residual_scale=2.0"),
    ("llama", {"llama.attention.scale": 0.1}, r"attention.scale=0.1.* \(must be 0 or 0.353553\)"),
    ("llama", {"llama.attn_logit_softcapping": 50.0}, "llama.attn_logit_softcapping=50"),
    ("llama", {"llama.attention.sliding_window": 8}, "llama.attention.sliding_window=8"),
    ("llama", {"llama.attention.value_length": 4}, r"value_length=4 \(must be 8\)"),
    ("llama", {"llama.rope.scaling.type": "yarn"}, "rope.scaling.type=yarn: of_jax has linear"),
    ("llama", {"llama.rope.scaling.attn_factor": 1.5}, "llama.rope.scaling.attn_factor=1.5"),
    ("llama", {"llama.expert_count": 8, "llama.expert_used_count": 2}, "llama.expert_count=8"),
    ("llama", {"llama.vocab_size": 99}, r"llama.vocab_size=99 \(must be 40\)"),
    # Of no version of the format yet, but its name says enough.
    ("llama", {"llama.attention.new_scale": 2.0}, "llama.attention.new_scale=2.0: changes"),
    ("llama", {"general.type": "adapter"}, "general.type=adapter: not a whole model"),
    ("llama", {"split.count": 2}, "split.count=2: one of several files"),
), ids=str)
def test_what_acts_is_refused_in_one_line(form: str, change: dict[str, Any], message: str,
                                          tmp_path: Path) -> None:
  with pytest.raises(UserError, match=message) as error:
    opened(tmp_path / "x.gguf", form, change)
  assert "\n" not in str(error.value)


def test_what_does_nothing_is_taken_and_the_rest_listed(tmp_path: Path) -> None:
  inert = {"llama.attention.causal": True, "llama.logit_scale": 1.0, "llama.attention.scale": 0.0,
           "llama.attention.sliding_window": 16, "llama.vocab_size": 40, "llama.expert_count": 0,
           "llama.attention.value_length": 8, "llama.rope.scaling.type": "none",
           "general.name": "x", "general.type": "model"}
  source = opened(tmp_path / "x.gguf", "llama", {
      **inert, "llama.pooling_type": 1, "quantize.imatrix.file": "y", "llama.colour": "blue"})
  assert source.unread == ("llama.colour", "llama.pooling_type", "quantize.imatrix.file")
  assert source.config() == opened(tmp_path / "y.gguf", "llama", {}).config()
