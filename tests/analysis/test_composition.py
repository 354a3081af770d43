"""Composition of heads: a planted channel is found and named, and can be taken out."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from of_jax.analysis import composition
from of_jax.config import Config
from of_jax.errors import UserError
from of_jax.models.functional import build_network

MakeConfig = Callable[..., Config]


def drawn(config: Config) -> dict[str, Any]:
  """Random matrices in place of the fresh parameters, and gains other than one."""
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape) + (leaf.ndim < 3),
                      build_network(config).shapes)


def whole(head: composition.Head) -> tuple[np.ndarray, np.ndarray]:
  """W_OV and W_QK, [width, width]."""
  return head.value @ head.out, head.query @ head.key.T


@pytest.fixture
def config(make_config: MakeConfig) -> Config:
  return make_config(model__width=96, model__heads=4, model__head_dim=8, model__depth=2)


def test_scores_are_their_definitions(config: Config) -> None:
  """Against the matrices themselves; the squares of components add up by their singular values."""
  heads = composition.heads_of(config, drawn(config))
  by_name = {head.name: head for head in heads}
  assert len(heads) == 8 and list(by_name)[5] == "1.1"
  found = composition.scores(heads)
  assert len(found) == 4 * 4 * 3
  for pair in found:
    (ov, _), (later_ov, qk) = whole(by_name[pair["from"]]), whole(by_name[pair["to"]])
    read = {"q": qk, "k": qk.T, "v": later_ov}[pair["kind"]]
    wanted = np.linalg.norm(ov @ read) / np.linalg.norm(ov) / np.linalg.norm(read)
    assert pair["score"] == pytest.approx(wanted, rel=1e-9)
    _, s, v = np.linalg.svd(ov)
    each = np.linalg.norm(v[:8] @ read, axis=1) / np.linalg.norm(read)
    np.testing.assert_allclose(pair["component_scores"], each, rtol=1e-6)
    assert pair["component"] == each.argmax()
    assert pair["score"] ** 2 == pytest.approx(
        (s[:8] ** 2 * each ** 2).sum() / (s ** 2).sum(), rel=1e-6)
  scores = [pair["score"] for pair in found]
  assert np.mean(scores) == pytest.approx(96 ** -0.5, rel=0.1)


def planted(config: Config) -> dict[str, Any]:
  """Head 1.2's queries read what 0.1 writes by its component 5, and little else of note."""
  params = drawn(config)
  _, _, right = composition.heads_of(config, params)[1].components()
  attention, rng = params["stacks"]["0"]["attention"], np.random.default_rng(1)
  gain = params["stacks"]["0"]["attention_norm"]["scale"][1]
  size = np.linalg.norm(attention["query"]["kernel"][1, :, 2])
  direction = rng.standard_normal(8)
  attention["query"]["kernel"][1, :, 2] += 2 * size * np.outer(
      right[5] / gain, direction / np.linalg.norm(direction))
  return params


def test_a_planted_channel_is_found_among_all_pairs(config: Config) -> None:
  before = {(p["from"], p["to"], p["kind"]): p
            for p in composition.scores(composition.heads_of(config, drawn(config)))}
  found = composition.composition(config, planted(config))
  first, second = found["by_component"][:2]
  key = (first["from"], first["to"], first["kind"])
  assert key == ("0.1", "1.2", "q") and first["component"] == 5
  assert first["component_score"] > 0.6 > 2 * second["component_score"]
  others = np.delete(first["component_scores"], 5)
  assert before[key]["component_score"] < 0.25 and others.max() < 0.25
  assert first["score"] < first["component_score"] / 2, "the whole matrix hides it"
  assert found["random"] == pytest.approx(96 ** -0.5)


def test_a_component_is_taken_out_alone(config: Config) -> None:
  params = planted(config)
  changed = composition.without_component(config, params, "0.1", 5)
  heads, new = (composition.heads_of(config, p) for p in (params, changed))
  u, s, v = np.linalg.svd(whole(heads[1])[0])
  np.testing.assert_allclose(whole(new[1])[0],
                             whole(heads[1])[0] - s[5] * np.outer(u[:, 5], v[5]), atol=1e-9 * s[0])
  for i in (0, 2, 3, 4, 6):
    np.testing.assert_array_equal(new[i].out, heads[i].out)
  pair = next(p for p in composition.scores(new)
              if (p["from"], p["to"], p["kind"]) == ("0.1", "1.2", "q"))
  assert pair["score"] < 0.15
  doubled = composition.heads_of(config, composition.without_component(
      config, params, "0.1", 5, scale=2))[1]
  assert np.linalg.norm(v[5] @ doubled.out.T) == pytest.approx(
      2 * np.linalg.norm(v[5] @ heads[1].out.T))


def test_heads_share_keys_and_values_in_groups(make_config: MakeConfig) -> None:
  config = make_config(model__depth=2, model__kv_heads=2, model__norm="none")
  params = drawn(config)
  heads = composition.heads_of(config, params)
  np.testing.assert_array_equal(heads[3].key, params["stacks"]["0"]["attention"]["key"]["kernel"][
      0, :, 1])
  np.testing.assert_array_equal(heads[2].value, heads[3].value)


@pytest.mark.parametrize("fields, message", (
    ({"model__attention": "linear"}, "attention=linear: composition is of matrices"),
    ({"model__block": "post"}, "block=post: a norm stands between"),
    ({"model__attention_values": "input"}, "attention_values=input"),
    ({"model__sigma_reparam": "attention"}, "sigma_reparam=attention")), ids=str)
def test_models_without_such_matrices_are_refused(fields: dict[str, Any], message: str,
                                                  make_config: MakeConfig) -> None:
  with pytest.raises(UserError, match=message):
    composition.heads_of(make_config(**fields), {})


def test_what_there_is_not_is_named(config: Config) -> None:
  for head, component, message in (("2.0", 0, "head=2.0: the model has 0.0, 0.1, 0.2 to 1.3"),
                                   ("0.1", 8, "component=8: head 0.1 has 0 to 7")):
    with pytest.raises(UserError, match=message):
      composition.without_component(config, drawn(config), head, component)
