"""The record of a study, study.json. Enters: declared claims, planned configs, run directories.
Leaves: one object that says what was claimed, by which rule, and what came out.

It is written before the first run, so that the rules are on disk before any number is.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from of_jax.analysis.runs import Run, find_runs, load_run, read_config
from of_jax.claims import alarms
from of_jax.claims.judge import Claim, Runs, Verdict, unjudged
from of_jax.config import Config, own_code, to_dict
from of_jax.errors import UserError
from of_jax.storage.run_directory import CONFIG, DONE, read_json, write_json

STUDY = "study.json"

# They decide where and how a run is stored or split, not what it computes.
_IRRELEVANT = ("mesh.", "data.cache_dir", "train.tensorboard", "train.wandb_project")
# What may differ from the declaration besides: more or less is measured, the same is trained.
_OBSERVING = (*_IRRELEVANT, "telemetry.", "train.checkpoint_every", "train.keep_checkpoints")

_COMPUTED = ("optim.warmup_steps", "model.beta_attention", "model.beta_mlp", "model.qk_norm",
             "model.mlp_width", "model.position_init_std", "model.kv_heads", "model.mlp_norm",
             "model.softmax_gamma")


def varying(configs: Sequence[Config]) -> list[str]:
  """Finds the dotted fields whose value is not the same in all configs, in order of declaration.

  A branch's gain is left out where it only follows `model.beta`.
  """
  flat = [flatten(c) for c in configs]
  follows = [p for p in ("model.beta_attention", "model.beta_mlp")
             if all(f[p] == f["model.beta"] for f in flat)]
  return [path for path in (flat[0] if flat else ())
          if not path.startswith(_IRRELEVANT) and path not in follows
          and any(f[path] != flat[0][path] for f in flat)]


def flatten(config: Config) -> dict[str, Any]:
  """Flattens a config: dotted path -> value."""
  return {f"{s}.{k}": v for s, fields in to_dict(own_code.shown(config)).items()
          for k, v in fields.items()}


def conflict(path: pathlib.Path, planned: Config) -> str | None:
  """Names what the run directory `path` has set otherwise than planned; None if nothing."""
  if not (path / CONFIG).is_file():
    return None
  # A run that is to be resumed must agree in everything, a finished one in what it computed.
  free = _IRRELEVANT if (path / DONE).exists() else ()
  there, wanted = flatten(read_config(path)), flatten(planned)
  different = [p for p in wanted if there[p] != wanted[p] and not p.startswith(free)]
  # What was typed is named before what was computed from it.
  different.sort(key=lambda p: p in _COMPUTED)
  if not different:
    return None
  field = different[0]
  more = f" and {len(different) - 1} more" if len(different) > 1 else ""
  return f"config.{field}={there[field]}, not {wanted[field]}{more}"


def judge(claims: Iterable[Claim], runs: Runs, previous: Mapping[str, Any] | None = None,
          declared: Mapping[str, Config] | None = None) -> list[dict[str, Any]]:
  """Judges each claim, and gives it with its verdict as study.json holds it.

  A rule that reads otherwise than in `previous` keeps that one beside it, as `rule_at_start`.
  `left_out` lists the runs that the rule does not read, with their numbers.

  Args:
    claims: of the study, with their rules.
    runs: the study's runs by name, as far as they got.
    previous: the study.json that was there before.
    declared: config of each run as the study declares it. A claim that reads a run with other
      settings is inconclusive: its rule was made for the declared ones.
  """
  before = {c["id"]: c.get("rule_at_start", c["rule"])
            for c in (previous or {}).get("claims", [])}
  result = []
  for claim in claims:
    verdict = (_moved(claim, declared or {}, previous) or _undeclared(claim, runs, declared or {})
               or claim.judge(runs))
    entry = {"id": claim.id, "statement": claim.statement, "paper": claim.paper,
             "rule": claim.rule, "verdict": verdict.verdict, "evidence": verdict.evidence,
             "summary": verdict.summary, "left_out": _left_out(claim, runs),
             **_margins(claim, declared or {})}
    if before.get(claim.id, claim.rule) != claim.rule:
      entry["rule_at_start"] = before[claim.id]
    at_start = _at_start(claim, previous)
    if at_start and at_start != entry.get("margins_sha256", at_start):
      entry["margins_sha256_at_start"] = at_start
    result.append(entry)
  return result


def _margins(claim: Claim, declared: Mapping[str, Config]) -> dict[str, Any]:
  """Lists the parts of a claim's rule with their margins, and hashes them with the runs' names."""
  if not {*claim.judge.names} <= {*declared}:
    return {}
  parts = [dataclasses.asdict(test) for test in claim.judge.tests(declared)]
  text = json.dumps([parts, {k: list(v) for k, v in claim.judge.groups.items()}], sort_keys=True)
  return {"margins": parts, "margins_sha256": hashlib.sha256(text.encode()).hexdigest()}


def _moved(claim: Claim, declared: Mapping[str, Config], previous: Mapping[str, Any] | None
           ) -> Verdict | None:
  """Makes the verdict of a rule whose margins are not those of before the runs; None if they are.
  """
  before = _at_start(claim, previous)
  now = _margins(claim, declared).get("margins_sha256")
  if before is None or now is None or before == now:
    return None
  return Verdict("inconclusive", {"reason": "the rule was changed", "margins_sha256": now,
                                  "margins_sha256_at_start": before},
                 "the runs or margins of the rule are not those that were written before the runs "
                 f"(sha256 {now[:12]}, not {before[:12]})")


def _at_start(claim: Claim, previous: Mapping[str, Any] | None) -> str | None:
  """Reads the hash of a claim's margins as it was when the study began; None of older records."""
  for one in (previous or {}).get("claims", []):
    if one["id"] == claim.id:
      found = one.get("margins_sha256_at_start", one.get("margins_sha256"))
      return found if isinstance(found, str) else None
  return None


def _undeclared(claim: Claim, runs: Runs, declared: Mapping[str, Config]) -> Verdict | None:
  """Makes the verdict on runs that were not set as the study declares; None if all were."""
  found = {}
  for name in claim.judge.names:
    if name in runs and name in declared:
      here, wanted = flatten(runs[name].config), flatten(declared[name])
      different = [path for path in wanted
                   if here[path] != wanted[path] and not path.startswith(_OBSERVING)]
      different.sort(key=lambda path: path in _COMPUTED)
      if different:
        field = different[0]
        more = f" and {len(different) - 1} more" if len(different) > 1 else ""
        found[name] = f"not the declared setting: {field}={here[field]}, not {wanted[field]}{more}"
  return unjudged(found) if found else None


def _left_out(claim: Claim, runs: Runs) -> list[dict[str, Any]]:
  """Lists the runs that a claim does not read, with what they came to."""
  return [{"run": name, "final_loss": run.final_loss, "peak_kurtosis": run.peak("kurtosis")}
          for name, run in runs.items() if name not in claim.judge.names]


def describe_runs(planned: Mapping[str, Config], runs: Runs) -> list[dict[str, Any]]:
  """Makes the `runs` list of study.json; numbers are null until a run has them."""
  fields = varying(list(planned.values()))
  return [{
      "name": name, "workdir": name,
      "config_diff": {path: flatten(config)[path] for path in fields},
      **numbers(runs.get(name)),
  } for name, config in planned.items()]


def numbers(run: Run | None) -> dict[str, Any]:
  """Takes from one run the numbers of study.json; null where there is none yet."""
  if run is None:
    return {"final_loss": None, "peak_kurtosis": None, "peak_mmr": None, "seconds": None,
            "finished": False, "alarms": []}
  return {"final_loss": run.final_loss, "peak_kurtosis": run.peak("kurtosis"),
          "peak_mmr": run.peak("mmr"), "seconds": run.seconds, "finished": run.finished,
          "alarms": alarms.read(run.path)}


def load_runs(root: pathlib.Path, names: Iterable[str] | None = None) -> dict[str, Run]:
  """Reads the runs of a folder by name; of `names`, those that exist, in that order."""
  if names is None:
    return {run.name: run for run in map(load_run, find_runs(root))}
  return {n: load_run(root / n) for n in names if (root / n / CONFIG).is_file()}


# What an entry of study.json may have; text where it has it.
_TEXTS = ("rule_at_start", "margins_sha256", "margins_sha256_at_start", "summary", "verdict")


def read(root: pathlib.Path) -> dict[str, Any] | None:
  """Reads the study.json of a folder; None if it has none.

  Raises:
    UserError: it is broken, or no study's record.
  """
  path = root / STUDY
  if not path.is_file():
    return None
  value = read_json(path)
  if not isinstance(value, dict) or not {"study", "scale", "claims", "runs"} <= set(value):
    raise UserError(f"{path}: not a study's record, it needs study, scale, claims and runs")
  for part, keys in (("runs", ("name",)), ("claims", ("id", "rule")), ("ladders", ("id", "sha256")),
                     ("forecasts", ("ladder", "sha256", "written_at"))):
    found = value.get(part, [])
    if not isinstance(found, list) or not all(
        isinstance(one, dict) and all(isinstance(one.get(key), str) for key in keys)
        and all(isinstance(one.get(key, ""), str) for key in _TEXTS) for one in found):
      raise UserError(f"{path}: its {part} are no list of objects with {' and '.join(keys)}")
  for run in value["runs"]:
    if run["name"] in ("", ".", "..") or {*run["name"]} & {*"/\0"}:
      raise UserError(f"{path}: {run['name']} is no name of a run in its folder")
  return value


def write(root: pathlib.Path, value: Mapping[str, Any]) -> None:
  """Writes study.json whole or not at all."""
  write_json(root / STUDY, value)
