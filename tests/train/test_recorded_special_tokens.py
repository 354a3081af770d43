"""A run is not resumed under other special tokens than it began with."""

import json
from pathlib import Path

import pytest

from of_jax.errors import UserError
from of_jax.train import provenance


def test_a_run_keeps_its_special_tokens(tmp_path: Path) -> None:
  described = {"corpus_sha256": "a", "tokenizer_sha256": "b",
               "special_tokens": {"end": 1, "begin": None}}
  for saved in (described, {name: described[name] for name in ("corpus_sha256",
                                                               "tokenizer_sha256")}):
    (tmp_path / "env.json").write_text(json.dumps(saved))
    provenance.check_environment(tmp_path, described, print)
  (tmp_path / "env.json").write_text(json.dumps(
      {**described, "special_tokens": {"end": 2, "begin": None}}))
  with pytest.raises(UserError, match="began with the special tokens .*2.* set config.data.end_to"):
    provenance.check_environment(tmp_path, described, print)
