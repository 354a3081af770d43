"""Rules of the telemetry section: sites, metrics and cadences that the model has."""

from collections.abc import Sequence

from of_jax.config import values
from of_jax.config.declare import LARGEST_WHOLE
from of_jax.config.declared_metrics import (
    ATTENTION,
    QUANTISED,
    SITES,
    cadences,
    families,
    metrics,
    model_sites,
    names_of,
    user_family,
)
from of_jax.config.kinds import kind_of
from of_jax.config.rules.check import Check
from of_jax.config.rules.fields import default
from of_jax.config.sections import Config, TelemetryConfig
from of_jax.config.sites import name_of, own_sites
from of_jax.errors import nearest


def validate(config: Config, check: Check) -> None:
  """Checks the rules for the telemetry of a resolved config; `check` raises the one that fails."""
  telemetry, kind = config.telemetry, config.model.kind
  for field in ("optimizer", "sites", "metrics", "cadences", "user_metrics",
                "quantised_perplexity_every"):
    path = f"telemetry.{field}"
    check(telemetry.level != "off" or getattr(telemetry, field) == default(path), path,
          "nothing is measured at telemetry.level=off")
  _check_sites(telemetry, (*model_sites(kind), *own_sites(config.model)), check)
  own = [user_family(text) for text in telemetry.user_metrics]
  of_package = {name for metric in metrics().values() for name in names_of(metric)}
  of_user = [name for family in own for metric in family.metrics for name in names_of(metric)]
  for name in of_user:
    check(name not in of_package and of_user.count(name) == 1, "telemetry.user_metrics",
          f"there already is a metric {name}; give it another name")
  for name in telemetry.metrics:
    check(name in of_package or name in of_user, "telemetry.metrics",
          f"{name} is no metric{nearest(name, of_package)}")
    check(name not in metrics() or metrics()[name].family != QUANTISED, "telemetry.metrics",
          f"{name} is measured by telemetry.quantised_perplexity_every, as in "
          "telemetry.quantised_perplexity_every=100")
    family = next((metric.family for metric in metrics().values() if name in names_of(metric)), "")
    check(kind_of(kind).has_attention or not family or families()[family].kind != ATTENTION,
          "telemetry.metrics", f"{name} is of attention, which model.kind={kind} has not")
  check(kind_of(kind).is_quantisable or not telemetry.quantised_perplexity_every,
        "telemetry.quantised_perplexity_every",
        "quantisation is of transformers; perplexity is of tokens")
  _check_cadences(telemetry, kind, check)


def _check_sites(telemetry: TelemetryConfig, present: Sequence[str], check: Check) -> None:
  sites = telemetry.sites
  for site in sites:
    name = name_of(site)
    check(site in present or name != site and name in present and name not in SITES,
          "telemetry.sites", f"{site} is not one of {', '.join(dict.fromkeys(present))}"
          + nearest(name, present))
    check(name == site or name not in sites, "telemetry.sites",
          f"{site} is named twice, as {name} too")
  of_gradients = [name for name in telemetry.metrics
                  if name in metrics() and families()[metrics()[name].family].kind == "gradients"]
  check(not (of_gradients and sites) or bool(set(sites) & set(SITES)), "telemetry.metrics",
        f"{', '.join(of_gradients)}: no gradient reaches what a module sows, as {', '.join(sites)}")


def _check_cadences(telemetry: TelemetryConfig, kind: str, check: Check) -> None:
  apart = [name for name, family in families().items() if family.every]
  for text in telemetry.cadences:
    name, separator, steps = text.partition("=")
    check(bool(separator) and values.whole(steps) is not None, "telemetry.cadences",
          f"{text} is not of the form FAMILY=STEPS, as in {apart[0]}=50")
    check(int(steps) <= LARGEST_WHOLE, "telemetry.cadences",
          f"{text} must be at most {LARGEST_WHOLE:,} steps; 0 is never")
    check(name in apart, "telemetry.cadences", f"{name} is not one of {', '.join(apart)}; what is "
          "measured in the step itself has telemetry.every")
    check([part.partition("=")[0] for part in telemetry.cadences].count(name) == 1,
          "telemetry.cadences", f"{name} is named twice")
  for text in telemetry.cadences:
    name = text.partition("=")[0]
    check(name in cadences(telemetry, kind), "telemetry.cadences",
          f"telemetry.level={telemetry.level} measures nothing of {name}; set telemetry.level=full "
          "or name its metrics in telemetry.metrics")
