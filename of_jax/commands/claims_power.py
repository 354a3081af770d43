"""Simulates the rules of claims: how often they are wrong, how often they see what is there.

  python -m experiments.claims_power --count=1000 --out=FILE.json

Prints a table: of every claim of every study, where the truth lies at the margins of its rule, the
percent of sets of made data in which it is called reproduced and not reproduced, and, where the
truth lies at twice the margins, the percent in which it is called reproduced. Trains nothing.
"""

from absl import flags

from of_jax.commands import cli, studies

_COUNT = flags.DEFINE_integer("count", 400, "sets of made data for each number", lower_bound=10,
                              upper_bound=1_000_000)
_STUDIES = flags.DEFINE_list("studies", [], "names; default all")
flags.DEFINE_string("scale", "smoke", "of the studies")
flags.DEFINE_string("out", "", "file for the numbers, as JSON")


def main() -> None:
  """Simulates, prints and leaves the table."""
  out = cli.output_file("out")
  scales = {name: studies.load(name, flags.FLAGS.scale)
            for name in _STUDIES.value or studies.names()}
  from of_jax.claims import simulate
  from of_jax.storage.run_directory import write_json
  print(simulate.HEAD)
  rows = simulate.table({name: (scale.claims, studies.configs(scale))
                         for name, scale in scales.items()}, _COUNT.value,
                        lambda row: print(simulate.as_table(row), flush=True))
  print(f"\n{len(rows)} claims, {_COUNT.value} sets of data for each number. False verdicts to "
        "expect, were the truth at every margin: "
        + ", ".join(f"{simulate.false_verdicts(rows, n):.1f} with "
                    f"{f'{n} seeds' if n else 'the seeds declared'}"
                    for n in (None, *simulate.SEEDS)))
  if out is not None:
    write_json(out, {"count": _COUNT.value, "rows": rows})


if __name__ == "__main__":
  cli.run(main)
