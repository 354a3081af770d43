"""Provenance of a page's numbers. Enters: runs, study.json's object. Leaves: HTML."""

from collections.abc import Iterable, Mapping
from typing import Any

from of_jax.analysis.runs import Run, read_measurements
from of_jax.report.measured import quantisations
from of_jax.report.tables import text


def section(runs: Mapping[str, Run], study: Mapping[str, Any] | None) -> str:
  """Lists commands, commit, data, devices and versions, each distinct one once."""
  rows: list[tuple[str, Iterable[str]]] = []
  envs = [run.env for run in runs.values()]

  def add(name: str, values: Iterable[Any]) -> None:
    distinct = list(dict.fromkeys(str(v) for v in values if v not in (None, "", {})))
    if distinct:
      rows.append((name, distinct))

  if study is not None:
    add("command of the study", [study.get("command")])
    add("overrides", [f"{k}={v}" for k, v in (study.get("overrides") or {}).items()])
  else:
    add("command", [env.get("command") for env in envs])
  add("commit", [_commit(env.get("git") or {}) for env in envs])
  add("loaded from", [(env.get("loaded_from") or {}).get("path") for env in envs])
  came = [one.get("provenance") or {} for run in runs.values()
          for one in (*read_measurements(run), *quantisations(run))]
  add("measured by", [one.get("command") for one in came])
  add("measured on", [one.get("data") for one in came])
  add("sha256 of that text", [(one.get("text") or {}).get("sha256") for one in came])
  add("digest of the parameters", [one.get("digest") for one in came])
  add("notes", [note for one in came for note in one.get("notes") or ()])
  add("corpus", [env.get("corpus") for env in envs])
  add("corpus sha256", [env.get("corpus_sha256") for env in envs])
  add("tokenizer sha256", [env.get("tokenizer_sha256") for env in envs])
  add("devices", [" ".join(str((env.get("devices") or {}).get(k, ""))
                           for k in ("count", "platform", "kind")).strip() for env in envs])
  add("parameters", [_parameters(env) for env in envs])
  versions: dict[str, list[str]] = {}
  for env in envs:
    for package, version in (env.get("versions") or {}).items():
      if version not in versions.setdefault(package, []):
        versions[package].append(version)
  add("versions", [", ".join(f"{p} {' and '.join(map(str, v))}" for p, v in versions.items())])
  cells = "".join(f"<dt>{text(k)}</dt><dd>{'<br>'.join(map(text, v))}</dd>" for k, v in rows)
  return f'<h2>Provenance</h2><dl class="facts">{cells}</dl>' if cells else ""


def _commit(git: Mapping[str, Any]) -> str:
  commit = str(git.get("commit") or "")
  return commit + (" with uncommitted changes" if commit and git.get("dirty") else "")


def _parameters(env: Mapping[str, Any]) -> str:
  total, rest = env.get("parameters"), env.get("parameters_without_embeddings")
  if not isinstance(total, int):
    return ""
  return f"{total:,}" + (f", of which {rest:,} outside embeddings"
                         if isinstance(rest, int) else "")
