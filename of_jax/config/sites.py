"""Sites of a variant's own: names under which its module sows, declared without importing jax.

The file of a block, norm, MLP, softmax or gate states `SITES = ("my_site",)` at its top, and its
class calls `self.sow(nnx.Intermediate, "my_site", x)`; see of_jax.models.sow.
"""

import dataclasses
import functools

from of_jax import user_code, variants
from of_jax.config.declared_metrics import ATTENTION, SITES
from of_jax.config.sections import ModelConfig


def chosen_files(model: ModelConfig) -> tuple[tuple[str, str], ...]:
  """Lists the files of variants that a resolved model is made of: (folder, name), each once."""
  found = [(folder, name) for field in dataclasses.fields(model)
           if (folder := field.metadata["folder"])
           and ((name := getattr(model, field.name)) in variants.names(folder)
                or user_code.is_own(name))]
  return tuple(dict.fromkeys(found))


def own_sites(model: ModelConfig) -> tuple[str, ...]:
  """Lists the sites that the files of a model's variants declare, beyond those of every model.

  Raises:
    BadVariant: a declaration that is not a tuple of identifiers, or takes a name of the package.
  """
  return tuple(dict.fromkeys(site for file in chosen_files(model) for site in _own(*file)))


def every_own_site() -> tuple[str, ...]:
  """Lists the sites that any variant declares, chosen or not."""
  return tuple(dict.fromkeys(
      site for folder in variants.FOLDERS for name in variants.names(folder)
      for site in _own(folder, name)))


def name_of(site: str) -> str:
  """Strips a site of the place of the module that sows it, if that stands in front.

  `attention_norm.my_site` is what the block's attribute `attention_norm` sows as `my_site`.
  """
  return site.rpartition(".")[2]


@functools.cache
def _own(folder: str, name: str) -> tuple[str, ...]:
  declared = variants.literal(folder, name, "SITES", ())
  if not isinstance(declared, tuple) or not all(
      isinstance(site, str) and site.isidentifier() for site in declared):
    raise variants.fault(folder, name, "SITES", 'is not a tuple of names, as in ("my_site",)')
  taken = set(declared) & {*SITES, ATTENTION}
  if taken and folder in variants.FOLDERS:
    raise variants.fault(folder, name, "SITES", f"has {', '.join(sorted(taken))}, a site of "
                         "every model; give it another name")
  return tuple(site for site in declared if site not in SITES)
