"""python -m experiments.study --study=scaling_width --scale=smoke --root=DIR

Loss and outlier features against width, Pre-Norm against the Outlier Protected block: five widths,
three seeds, the largest width forecast from the others before it is trained.

Cost: smoke, 30 runs of 150 steps of 4 layers, widths 32 to 128, on two CPU cores; not measured yet,
nor are small, declared for one accelerator, and paper, for several.

Heads are 16 wide at smoke and 64 elsewhere; every width has the same tokens, steps and rate, so
that a width may be further from its best rate than another. Four widths within a factor of three
tell a power, and no offset: the laws have none.

Source of the claims: He et al. 2024, "Understanding and Minimising Outlier Features in Transformer
Training" (arXiv 2405.19279 v2), which has sizes of 130M to 7B and fits no law.
"""

from collections.abc import Mapping, Sequence

from of_jax.claims import growth, rules
from of_jax.claims.judge import Claim
from of_jax.commands.studies import Overrides, Scale
from of_jax.commands.studies.op_block import BLOCKS, PAPER
from of_jax.scaling.ladder import Ladder

SEEDS = (0, 1, 2)
GROWS_BY = 0.2


def name_of(block: str, what: str, size: int, seed: int) -> str:
  """Returns the name of a run: block, size and seed."""
  return f"{block}_{what}{size}_seed{seed}"


def names(block: str, what: str, sizes: Sequence[int]) -> tuple[str, ...]:
  """Lists the runs of a block, small sizes first."""
  return tuple(name_of(block, what, size, seed) for size in sizes for seed in SEEDS)


def runs(what: str, sizes: Mapping[int, Overrides]) -> dict[str, Overrides]:
  """Makes the grid, small sizes first; `sizes` holds what each sets."""
  return {name_of(block, what, size, seed): BLOCKS[block] + fields + (("train.seed", str(seed)),)
          for size, fields in sizes.items() for seed in SEEDS for block in ("pre", "op")}


def ladders(what: str, sizes: Sequence[int], layer: str) -> tuple[Ladder, ...]:
  """Declares loss and kurtosis of both blocks; `layer` says of which layers the kurtosis is."""
  return tuple(
      Ladder(f"{block}_{short}", y, "power", what, names(block, what, sizes), own)
      for block in ("pre", "op") for short, y, own in (
          ("loss", "final_loss", "largest"), ("kurtosis", "peak_kurtosis", layer)))


def claims(what: str, sizes: Sequence[int]) -> tuple[Claim, ...]:
  """Declares what is claimed of the two blocks' kurtosis."""
  largest = max(sizes)
  seeds = ", ".join(map(str, SEEDS))
  table = {block: {size: [name_of(block, what, size, seed) for seed in SEEDS] for size in sizes}
           for block in ("pre", "op")}
  missing = "Inconclusive if a run is missing, unfinished, not finite or read another corpus."
  return (
      Claim(
          "largest", f"At {what} {largest}, peak kurtosis of pre is at least twice that of op.",
          "Section 3: OP lowers peak kurtosis by orders of magnitude at every size tried.",
          f"Peak kurtosis: the largest over layers (stream entering each block) and logged steps. "
          f"Effect: log of pre's over op's, by seed ({seeds}). Reproduced if its 90 % interval "
          f"lies above log 2, not reproduced if below. {missing}",
          rules.larger_peaks(list(zip(table["pre"][largest], table["op"][largest], strict=True)),
                             2, "pre", "op")),
      Claim(
          "grows_faster", f"Peak kurtosis grows faster with {what} in pre than in op.",
          "Section 3 has kurtosis of larger models further from OP's; it fits no law.",
          f"Exponent of a seed: slope of the logarithm of peak kurtosis on that of {what}, by "
          f"least squares over the sizes {', '.join(map(str, sizes))}. Effect: pre's less op's, "
          f"by seed "
          f"({seeds}). Reproduced if its 90 % interval lies above {GROWS_BY:g}, not reproduced if "
          f"below. {missing}",
          growth.grows_faster(table["pre"], table["op"], GROWS_BY, "pre", "op")))


def _scale(config: str, common: Overrides, widths: Sequence[int], head: int) -> Scale:
  return Scale(
      config=config, common=common,
      runs=runs("width", {width: (("model.width", str(width)), ("model.heads", str(width // head)))
                          for width in widths}),
      claims=claims("width", widths), paper=PAPER, ladders=ladders("width", widths, "largest"),
      question="Does width make outlier features worse in Pre-Norm than in the Outlier Protected "
      "block?", answer="grows_faster")


_LONG: Overrides = (("train.log_every", "10"),)
SCALES = {
    "smoke": _scale("experiments/configs/smoke.py", (("model.depth", "4"),),
                    (32, 48, 64, 96, 128), 16),
    "small": _scale("experiments/configs/ladder.py:small",
                    (("data.corpus", "python_stdlib"), *_LONG), (128, 192, 256, 384, 512), 64),
    "paper": _scale("experiments/configs/ladder.py:130m",
                    (("data.corpus", "pypi_code"), ("train.log_every", "20")),
                    (256, 384, 512, 768, 1024), 64)}
