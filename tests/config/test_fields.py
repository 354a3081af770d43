"""Each field is declared once: nothing else in the config repeats its default, range or owner."""

import dataclasses
import re
import typing
from typing import Any

import pytest

from of_jax import variants
from of_jax.config import Config, apply_overrides, fields, replaced, resolve, traits
from of_jax.config.declare import Owner
from of_jax.config.fields import hints
from of_jax.config.rules.optim import all_own_fields
from of_jax.config.values import choices
from of_jax.errors import UserError
from tests.planted import planted

# Settings, each of which leaves some fields without a reader.
BASES: dict[str, dict[str, Any]] = {
    "plain": {}, "no norm": {"model.norm": "none"}, "off": {"telemetry.level": "off"},
    "constant": {"optim.schedule": "constant"},
    "images": {"model.kind": "residual_mlp", "data.corpus": "digits", "train.sequence_length": 1}}
_UNREAD = re.compile(
    "does nothing|is part of|divides no frequency|nothing is measured|set model.qk")
# True of them asks for something else in every model that has it: no default's repetition.
_NEED_ANOTHER = {"model.final_norm", "model.beta_per_channel"}


def others(path: str) -> list[Any]:
  """Values of a field that are not its default; where that is None, nobody has set the field."""
  field = fields()[path]
  default = field.default
  listed = choices(field, hints(path)[field.name])
  if default is None:
    return []
  if listed:
    return [choice for choice in listed if choice != default][:2]
  if isinstance(default, bool):
    return [not default]
  if isinstance(default, (int, float)):
    return [type(default)(number) for number in (default + 1, default / 2)]
  if isinstance(default, tuple):
    return [("embedding",), ("resid_pre",), ("kurtosis",)]
  return []


def refusal(config: Config, base: dict[str, Any]) -> str:
  try:
    resolve(replaced(config, base))
  except UserError as error:
    return str(error)
  return ""


@pytest.mark.parametrize("base", BASES)
def test_a_default_may_change_in_its_declaration_alone(base: str, monkeypatch: pytest.MonkeyPatch
                                                       ) -> None:
  """A value refused for want of a reader is accepted once it is the field's default."""
  assert not refusal(Config(), BASES[base])
  found = set()
  for path, field in fields().items():
    for value in others(path):
      if path in BASES[base] or path in _NEED_ANOTHER:
        continue
      config = replaced(Config(), {path: value})
      if not _UNREAD.search(refusal(config, BASES[base])):
        continue
      found.add(path)
      with monkeypatch.context() as patched:
        patched.setattr(field, "default", value)
        after = refusal(config, BASES[base])
      assert not _UNREAD.search(after), f"a rule repeats the default of {path}: {after}"
  expected = {"plain": "model.norm_gate_rank", "no norm": "model.norm_eps",
              "off": "telemetry.optimizer", "constant": "optim.final_fraction",
              "images": "model.rope_theta"}
  assert expected[base] in found


def test_owners_and_ranges_are_of_fields_that_exist() -> None:
  for path, field in fields().items():
    owner = field.metadata["owner"]
    if owner is not None:
      owning = fields()[owner.path]
      known = choices(owning, hints(owner.path)[owning.name])
      assert {*owner.choices} <= {*known}, path
    numbers = {int, float} & {hints(path)[field.name], *typing.get_args(hints(path)[field.name])}
    assert numbers or not field.metadata["ranges"], path


def test_fields_of_optimisers_are_declared_as_theirs() -> None:
  declared = {path.removeprefix("optim.") for path, field in fields().items()
              if field.metadata["owner"] == Owner("optim.name")}
  assert declared == set(all_own_fields())


@pytest.mark.parametrize("folder", traits.KINDS)
def test_every_trait_is_stated_by_some_file(folder: str) -> None:
  """A trait whose default all files have is one that nobody needs."""
  found = [traits.of(folder, name) for name in variants.names(folder)]
  for field in dataclasses.fields(traits.KINDS[folder]):
    assert len({str(getattr(each, field.name)) for each in found}) > 1, field.name


def test_mlps_are_gated_as_their_classes_are() -> None:
  from of_jax.models.mlps import MLP, GatedMLP
  for name in variants.names(traits.MLPS):
    made = variants.load_class(traits.MLPS, name, MLP)
    assert traits.mlp(name).gated == issubclass(made, GatedMLP), name


@pytest.mark.parametrize("file, text, field, message", (
    ("models/blocks/mine.py", "NORMS = 'some'", "model.block",
     "mine.py:1: NORMS is 'some': not one of required, optional, none"),
    ("models/mlps/mine.py", "GATED = 1", "model.mlp", "mine.py:1: GATED is 1: not true or false"),
    ("models/norms/mine.py", "\nHAS_EPSS = False", "model.norm",
     "mine.py:2: HAS_EPSS is no trait: they are OVER_ANY_AXIS, HAS_EPS, HAS_ROOT, "
     "GAIN_PER_NEURON, ROTATION; did you mean HAS_EPS?"),
    ("optim/optimizers/mine.py", "FIELDS = {'b11': 0.9}", "optim.name",
     "mine.py:1: FIELDS has b11, which config.optim does not declare as a field of optimisers; "
     "did you mean b1?"),
    ("optim/optimizers/mine.py", "IS_ADAM = True", "optim.name", "mine.py:1: states no FIELDS"),
))
def test_a_wrong_trait_is_one_line(file: str, text: str, field: str, message: str,
                                   tmp_path: Any) -> None:
  with planted(tmp_path, {file: text}), pytest.raises(UserError) as caught:
    apply_overrides(Config(), [(field, "mine")])
  assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_variant_without_traits_has_the_careful_ones(tmp_path: Any) -> None:
  with planted(tmp_path, {"models/blocks/mine.py": "", "models/norms/own.py": ""}):
    model = apply_overrides(Config(), [("model.block", "mine"), ("model.norm", "own")]).model
    assert (model.qk_norm, model.mlp_norm, model.beta) == ("none", "none", None)
    for texts, message in (([("model.block", "mine"), ("model.norm", "none")],
                            "model.block=mine is the place of its norms"),
                           ([("model.qk_norm", "own")], "not one of auto, ")):
      with pytest.raises(UserError, match=message):
        apply_overrides(Config(), texts)
