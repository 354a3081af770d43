"""python -m experiments.study --study=op_block --scale=smoke --root=DIR

Pre-Norm against the Outlier Protected block: same tokens, same seeds, each at its best rate.

Cost: smoke, 10 runs of 150 steps, aimed at 12 minutes on two CPU cores. small and paper are
declared for one accelerator and for several; their cost is not measured yet.

The warmup of the smoke setting and the averaging over seeds in the first claim were fixed after
pilot runs of seed 0, before the run that the README shows.

Should print, at smoke: a peak kurtosis of 12 to 19 for pre and near 2 for op (reached when the
warmup ends; 1.2 later) at learning rate 1e-2 and embedding scale 8, validation losses near 4.2
and 4.0. The README has the table of one whole run. A verdict against a claim is a result like
any other.

Source of the paper's numbers: He et al. 2024, "Understanding and Minimising Outlier Features in
Transformer Training" (arXiv 2405.19279 v2), cited below as the paper.
"""

from collections.abc import Mapping, Sequence

from of_jax.claims import growth, rules
from of_jax.claims.judge import Claim
from of_jax.commands.studies import BEYOND, Overrides, Scale

# The OP block needs no norm setting: it has none. Its gain is the paper's for this setup.
BLOCKS: dict[str, Overrides] = {
    "pre": (("model.block", "pre"), ("model.norm", "rms")),
    "pre_layer": (("model.block", "pre"), ("model.norm", "layer")),
    "pre_srms": (("model.block", "pre"), ("model.norm", "srms")),
    "op": (("model.block", "op"), ("model.beta", "0.3")),
}

QUESTION = "Does the Outlier Protected block prevent outlier features, at no worse loss?"

# The paper's default setup (its appendix D), for the page's list of what differs.
PAPER = {
    "model.width": "768", "model.depth": "6", "model.embedding_scale": "50",
    "model.mlp": "relu", "data.corpus": "CodeParrot", "data.vocab_size": "about 50,000",
    "train.steps": "80,000", "train.batch_size": "32", "train.sequence_length": "128",
    "optim.learning_rate": "0.001", "optim.warmup_steps": "4,000 (5 %)",
}


def name_of(block: str, rate: str, scale: str, seed: int) -> str:
  """Returns the name of a run: block, learning rate, embedding scale and seed."""
  return f"{block}_lr{rate}_scale{scale}_seed{seed}"


def run_of(block: str, rate: str, scale: str, seed: int) -> tuple[str, Overrides]:
  """Returns a run's name and its overrides of the study's base config."""
  return name_of(block, rate, scale, seed), BLOCKS[block] + (
      ("optim.learning_rate", rate), ("model.embedding_scale", scale), ("train.seed", str(seed)))


def _op_claim(pre: str, scale: str, rates: Sequence[str], seeds: Sequence[int], factor: float,
              paper: str, also: Mapping[str, str] | None = None) -> Claim:
  def table(block: str) -> dict[str, list[str]]:
    return {f"learning rate {r}": [name_of(block, r, scale, s) for s in seeds] for r in rates}

  count = len(rates) * len(seeds) * 2
  return Claim(
      "op_kurtosis" if pre == "pre" else f"op_kurtosis_{pre}",
      f"At embedding scale {scale}, peak kurtosis of {pre} is at least {factor:g} times that of "
      f"op, each at the best of the learning rates {', '.join(rates)}, and op's loss is not worse.",
      paper,
      f"Best rate of a block: of {', '.join(rates)}, the one whose final validation loss, "
      f"averaged over seeds {', '.join(map(str, seeds))}, is lowest. Peak kurtosis: the largest "
      "over layers (stream entering each block) and logged steps. Two parts, at the best "
      f"rates, which are chosen again for each set of seeds: the factor by which the peak of {pre} "
      f"exceeds op's, margin {factor:g}; and op's final validation loss less that of {pre}, no "
      f"more than {rules.NO_WORSE:g} nats. {BEYOND} Inconclusive if any of the {count} runs is "
      f"missing, unfinished, not finite or read another corpus.",
      rules.outliers_at_best(table(pre), table("op"), factor, pre, also=also))


def _rate_claim(block: str, scale: str, low: str, high: str, seeds: Sequence[int]) -> Claim:
  def pairs(block: str) -> list[tuple[str, str]]:
    return [(name_of(block, low, scale, s), name_of(block, high, scale, s)) for s in seeds]

  return Claim(
      "learning_rate",
      f"In block {block} at embedding scale {scale}, learning rate {low} gives smaller outlier "
      f"features than {high}.",
      "Section 5: 1e-3 to 3e-4 at 130M lowers kurtosis at no loss of final convergence.",
      f"Factor by which the peak kurtosis of {block} at learning rate {high} exceeds that at "
      f"{low}, embedding scale {scale}, seeds {', '.join(map(str, seeds))}; margin "
      f"{rules.SMALLER:g}. {BEYOND} Inconclusive if a run is missing, unfinished, not finite or "
      f"read another corpus. The same "
      "pairs of other blocks are reported, they do not decide.",
      rules.smaller_peaks(pairs(block), f"learning rate {low}",
                          also={other: pairs(other) for other in BLOCKS if other != block}))


def _smoke() -> Scale:
  # Ordered so that what is there after an interruption already compares the blocks.
  order = [("pre", "1e-2", "8", 0), ("op", "1e-2", "8", 0), ("pre", "1e-2", "50", 0),
           ("op", "1e-2", "50", 0), ("pre", "1e-2", "8", 1), ("op", "1e-2", "8", 1),
           ("pre", "3e-3", "8", 0), ("op", "3e-3", "8", 0), ("pre", "3e-3", "8", 1),
           ("op", "3e-3", "8", 1)]
  small, large = name_of("pre", "1e-2", "8", 0), name_of("pre", "1e-2", "50", 0)
  return Scale(
      config="experiments/configs/smoke.py",
      common=(("train.steps", "150"),),
      runs=dict(run_of(*r) for r in order),
      claims=(
          _op_claim("pre", "8", ["1e-2", "3e-3"], [0, 1], 5,
                    "Section 3: OP lowers peak kurtosis by orders of magnitude at equal loss, at "
                    "width 768, embedding scale 50, 80,000 steps of learning rate 1e-3.",
                    also={name_of(block, "1e-2", "50", 0): f"{block} at embedding scale 50"
                          for block in ("pre", "op")}),
          Claim(
              "embedding_scale",
              "In block pre at learning rate 1e-2 the embedding scale decides whether outlier "
              "features appear in 150 steps: at 8 they do, at the paper's 50 they do not.",
              "Section 4: poor signal propagation (high input correlation) goes with high "
              "kurtosis. The paper trains at 50 for 80,000 steps and does not compare scales.",
              f"Two parts: the factor by which the peak kurtosis of {small} exceeds that of "
              f"{large}, margin 5; and the latter, below 2. {BEYOND} Inconclusive if either is "
              f"missing, unfinished, not "
              "finite or read another corpus. The op run at scale 50 is reported, it does not "
              "decide.",
              rules.outliers_need_small_scale(small, large, factor=5, ceiling=2, also={
                  name_of("op", "1e-2", "8", 0): "op at embedding scale 8",
                  name_of("op", "1e-2", "50", 0): "op at embedding scale 50",
                  name_of("pre", "3e-3", "8", 0): "pre at embedding scale 8 and learning rate "
                                                  "3e-3"})),
          _rate_claim("pre", "8", "3e-3", "1e-2", [0, 1])),
      paper=PAPER, question=QUESTION)


def _small() -> Scale:
  order = [(b, r, "50", s) for s in (0, 1) for r in ("1e-3", "3e-3")
           for b in ("pre", "op", "pre_srms")]
  rates, seeds = ["1e-3", "3e-3"], [0, 1]
  paper = ("Section 3: OP lowers peak kurtosis by orders of magnitude at equal loss, for every "
           "norm of the Pre-Norm block, at width 768 and 80,000 steps.")
  return Scale(
      config="experiments/configs/ladder.py:small",
      common=(("data.corpus", "python_stdlib"), ("train.steps", "10000"),
              ("train.log_every", "10")),
      runs=dict(run_of(*r) for r in order),
      claims=(_op_claim("pre", "50", rates, seeds, 10, paper),
              _op_claim("pre_srms", "50", rates, seeds, 10, paper),
              _rate_claim("pre", "50", "1e-3", "3e-3", seeds)),
      paper=PAPER, question=QUESTION)


def _paper() -> Scale:
  # One seed of all blocks first: after a quarter of the time the claim has its first evidence.
  order = [(b, "1e-3", "50", s) for s in (0, 1) for b in BLOCKS]
  order += [(b, "3e-4", "50", s) for s in (0, 1) for b in ("pre", "op")]
  paper = ("Figure 2 and section 3: every Pre-Norm variant grows outlier features; OP cuts peak "
           "kurtosis by orders of magnitude at equal loss and equal speed of convergence.")
  pre_blocks = [b for b in BLOCKS if b != "op"]
  pre = [name_of(b, "1e-3", "50", s) for b in pre_blocks for s in (0, 1)]
  return Scale(
      config="experiments/configs/ladder.py:130m",
      common=(("data.corpus", "pypi_code"), ("train.steps", "80000"), ("train.log_every", "20")),
      runs=dict(run_of(*r) for r in order),
      claims=(
          *(_op_claim(b, "50", ["1e-3"], [0, 1], 100, paper) for b in pre_blocks),
          Claim(
              "pre_growth", "Outlier features grow by four orders of magnitude in every Pre-Norm "
              "variant.",
              "Figure 2: peak kurtosis of the Pre-Norms lies more than 4 orders of magnitude "
              "above its initial value.",
              "Factor, in the six pre runs at learning rate 1e-3, by which peak kurtosis less 1 "
              "exceeds the largest kurtosis over layers at the first logged step, less 1; margin "
              f"1e4. {BEYOND} Kurtosis cannot exceed the width, 768, so four orders can only be "
              "meant above the smallest value, 1. Inconclusive if a run is missing, unfinished, "
              "not finite or read another corpus.",
              growth.growth(pre, 1e4)),
          Claim(
              "srms_highest", "Of the Pre-Norm variants, SRMSNorm, which has no parameters, has "
              "the highest kurtosis.",
              "Figure 2: Pre-SRMSNorm is the highest.",
              "Factors, at learning rate 1e-3, by which the peak kurtosis of pre_srms exceeds "
              f"that of pre and of pre_layer; margin {rules.SMALLER:g}. {BEYOND} Inconclusive if "
              f"a run is missing, "
              "unfinished, not finite or read another corpus.",
              rules.smaller_peaks(
                  [(name_of(b, "1e-3", "50", s), name_of("pre_srms", "1e-3", "50", s))
                   for b in ("pre", "pre_layer") for s in (0, 1)], "the norm with a gain")),
          _rate_claim("pre", "50", "3e-4", "1e-3", [0, 1])),
      paper=PAPER, question=QUESTION)


SCALES = {"smoke": _smoke(), "small": _small(), "paper": _paper()}
