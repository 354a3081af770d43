"""python -m experiments.study --study=optimisers --scale=smoke --root=DIR

One Pre-Norm model under different optimisers: same tokens, same seed, stated learning rates each.

Cost: smoke, 16 runs of 150 steps, 47 minutes on two CPU cores that were busy with other work. small
is declared for one accelerator; its cost is not measured yet.

lion, adamp, sinkgd and nap stand in the table and in no claim: no paper says what to expect of
their outlier features.

The rates are round numbers around what each optimiser's authors use, three times apart, decided
before any run, but for SGD's: at 1 and 0.3 it diverged, which is why they are a tenth. It has no
clipping: a gradient of norm 1 and a rate of Adam's would move nothing.

Should print, at smoke, peak kurtosis and final loss: adamw 18.9 and 4.279 (at 3e-3 2.96 and 4.287),
soap 3.09 and 4.011 (3.37 and 4.208), muon 1.75 and 3.853 (1.78 and 4.194), sgd 3.39 and 5.309 (3.35
and 6.171), rotated_adafactor 2.95 and 3.905, shampoo 2.79 and 4.439, adafactor 3.54 and 4.078, lion
2.75 and 4.478, adamp 19.4 and 4.265, sinkgd 2.36 and 3.994, nap 4.64 and 4.030, adamw_eps 6.12 and
4.153.
All claims but the last are reproduced; that is inconclusive, SGD having learnt too little.

Source of the claims: He et al. 2024, "Understanding and Minimising Outlier Features in Transformer
Training" (arXiv 2405.19279 v2), cited below as the paper.
"""

from collections.abc import Mapping, Sequence

from of_jax.claims import rules
from of_jax.claims.judge import Claim
from of_jax.commands.studies import BEYOND, Overrides, Scale

# Name of a run's optimiser -> fields, learning rates.
OPTIMIZERS: dict[str, tuple[Overrides, tuple[str, ...]]] = {
    "adamw": ((("optim.name", "adamw"),), ("1e-2", "3e-3")),
    "soap": ((("optim.name", "soap"),), ("1e-2", "3e-3")),
    "muon": ((("optim.name", "muon"), ("optim.muon_scale", "rms")), ("1e-2", "3e-3")),
    "sgd": ((("optim.name", "sgd"), ("optim.clip_norm", "none"), ("optim.weight_decay", "0")),
            ("1e-1", "3e-2")),
    "rotated_adafactor": ((("optim.name", "rotated_adafactor"),), ("1e-2",)),
    "shampoo": ((("optim.name", "shampoo"),), ("3e-3",)),
    "adafactor": ((("optim.name", "adafactor"),), ("1e-2",)),
    "lion": ((("optim.name", "lion"),), ("1e-3",)),
    "adamp": ((("optim.name", "adamp"),), ("1e-2",)),
    "sinkgd": ((("optim.name", "sinkgd"), ("optim.lr_multipliers", "hidden=0.1")), ("1e-2",)),
    "nap": ((("optim.name", "adamw"), ("optim.projection_every", "1")), ("1e-2",)),
    "adamw_eps": ((("optim.name", "adamw"), ("optim.eps", "1e-4")), ("1e-2",)),
}

# Nats a token above which an optimiser learnt too little for its outliers to say anything.
_WORSE_BY = 0.3

PAPER = {
    "model.width": "768", "model.depth": "6", "model.embedding_scale": "50",
    "model.norm": "SRMSNorm", "data.corpus": "CodeParrot", "data.vocab_size": "about 50,000",
    "train.batch_size": "4096 (sequences or tokens is not established)",
    "optim.learning_rate": "0.001", "optim.schedule": "wsd, 5 % warmup, 20 % decay",
}


def _name(optimizer: str, rate: str, seed: int) -> str:
  return f"{optimizer}_lr{rate}_seed{seed}"


def _runs(seeds: Sequence[int]) -> dict[str, Overrides]:
  # The first rate of all before the second, so that what is there early already compares them.
  return {_name(optimizer, rates[i], seed):
          fields + (("optim.learning_rate", rates[i]), ("train.seed", str(seed)))
          for seed in seeds for i in range(2) for optimizer, (fields, rates) in OPTIMIZERS.items()
          if i < len(rates)}


def _best_rate_claim(optimizer: str, factor: float, seeds: Sequence[int], statement: str,
                     paper: str) -> Claim:
  def table(name: str) -> dict[str, list[str]]:
    return {f"learning rate {rate}": [_name(name, rate, seed) for seed in seeds]
            for rate in OPTIMIZERS[name][1]}

  return Claim(
      f"{optimizer}_kurtosis", statement, paper,
      "Best rate of an optimiser: of its two, the one whose final validation loss, averaged over "
      f"seeds {', '.join(map(str, seeds))}, is lowest. Two parts, at the best rates, which are "
      "chosen again for each set of seeds: the factor by which the peak kurtosis (largest over "
      f"layers and logged steps) of adamw exceeds that of {optimizer}, margin {factor:g}; and "
      f"{optimizer}'s final validation loss less adamw's, no more than {rules.NO_WORSE:g} nats. "
      f"{BEYOND} Inconclusive if a run is missing, unfinished, not finite or read another "
      "corpus.",
      rules.outliers_at_best(table("adamw"), table(optimizer), factor, "adamw", optimizer))


def _pair_claim(name: str, optimizer: str, rate: str, others: Sequence[tuple[str, str]],
                seeds: Sequence[int], statement: str, paper: str,
                also: Mapping[str, Sequence[tuple[str, str]]] | None = None) -> Claim:
  """Declares that `optimizer` at `rate` peaks below each of `others`, (optimizer, rate)."""
  pairs = [(_name(optimizer, rate, s), _name(*other, s)) for other in others for s in seeds]
  listed = " and ".join(f"{other} at {its}" for other, its in others)
  return Claim(
      name, statement, paper,
      f"Factor, seeds {', '.join(map(str, seeds))}, by which the peak kurtosis (largest over "
      f"layers and logged steps) of {listed} exceeds that of {optimizer} at learning rate {rate}; "
      f"margin {rules.SMALLER:g}. {BEYOND} Inconclusive if its final validation loss is more than "
      f"{_WORSE_BY:g} "
      "above theirs, or if a run is missing, unfinished, not finite or read another corpus.",
      rules.smaller_peaks(pairs, f"{optimizer} at learning rate {rate}", worse_by=_WORSE_BY,
                          also=also))


def _scale(config: str, common: Overrides, seeds: Sequence[int], factor: float) -> Scale:
  return Scale(
      config=config, common=common, runs=_runs(seeds),
      question="Does a non-diagonal optimiser, SOAP, prevent outlier features at no worse loss?",
      claims=(
          _best_rate_claim(
              "soap", factor, seeds,
              "SOAP, Adam in Shampoo's eigenbasis, grows smaller outlier features than AdamW at no "
              "worse loss, each at the better of two learning rates.",
              "Section 5: non-diagonal preconditioning (SOAP, Shampoo, AdaFactor in Shampoo's "
              "eigenbasis) strongly reduces outlier features without hurting convergence."),
          _pair_claim(
              "rotation", "rotated_adafactor", "1e-2",
              [("adafactor", "1e-2"), ("adamw", "1e-2")], seeds,
              "AdaFactor in Shampoo's eigenbasis grows smaller outlier features than AdaFactor "
              "and AdamW, all at learning rate 1e-2.",
              "Section 5 and figure 8: AdaFactor grows them as AdamW does, its rotated form does "
              "not."),
          _best_rate_claim(
              "muon", factor, seeds,
              "Muon, which is not diagonal, grows smaller outlier features than AdamW at no worse "
              "loss, each at the better of two learning rates.",
              "Section 5, of SOAP and Shampoo. The paper has no Muon; Muon is Shampoo without "
              "accumulation."),
          _pair_claim(
              "shampoo", "shampoo", "3e-3", [("adamw", "3e-3")], seeds,
              "Shampoo grows smaller outlier features than AdamW, both at learning rate 3e-3: its "
              "updates are as large as AdamW's.",
              "Section 5: Shampoo reduces them as SOAP does."),
          _pair_claim(
              "eps", "adamw_eps", "1e-2", [("adamw", "1e-2")], seeds,
              "At learning rate 1e-2 a larger eps of AdamW, 1e-4 for 1e-8, gives smaller outlier "
              "features.",
              "Section 5: monotone from 1e-6 to 3e-4 at 130M, three seeds."),
          _pair_claim(
              "learning_rate", "adamw", "3e-3", [("adamw", "1e-2")], seeds,
              "AdamW at learning rate 3e-3 grows smaller outlier features than at 1e-2.",
              "Section 5: 1e-3 to 3e-4 at 130M at no loss of final convergence.",
              also={name: [(_name(name, rates[1], s), _name(name, rates[0], s)) for s in seeds]
                    for name, (_, rates) in OPTIMIZERS.items()
                    if len(rates) > 1 and name != "adamw"}),
          _pair_claim(
              "sgd", "sgd", OPTIMIZERS["sgd"][1][0], [("adamw", "1e-2")], seeds,
              f"SGD at learning rate {OPTIMIZERS['sgd'][1][0]} grows smaller outlier features than "
              "AdamW at 1e-2.",
              "Section 5: on CIFAR-10, an MLP's kurtosis falls under SGD where it peaks near 40 "
              "under Adam.")),
      paper=PAPER)


SCALES = {
    "smoke": _scale("experiments/configs/smoke.py", (("train.steps", "150"),), [0], 2),
    "small": _scale("experiments/configs/ladder.py:small",
                    (("train.steps", "10000"), ("train.log_every", "10"),
                     ("model.norm", "srms"), ("optim.schedule", "wsd")), [0, 1, 2], 5),
}
