"""python -m experiments.study --study=norms --scale=smoke --root=DIR

Norms, their kinds and places: thirteen blocks on the same tokens, one page.

Cost: smoke, 13 runs of 150 steps, 33 minutes on two CPU cores that were busy with other work, about
one minute a run where nothing else runs. small is declared for one accelerator; its cost is not
measured yet.

Every run has one learning rate, so that a block which wants another one is not at its best here;
the op_block study compares at the best of several. None has a norm before the unembedding, which
is the setup of the outlier-feature paper; the papers of peri, mix and layernorm_scaling have one.

Should print, at smoke, peak kurtosis and final loss: pre 18.9 and 4.279 (as in the op_block study,
whose runs of seed 0 this and op are), op 2.07 and 4.000, pre_layer 14.8 and 4.260, pre_srms 25.7
and 4.304, peri 3.08 and 4.151, post 1.86 and 6.510, pre_qk_norm 6.99 and 4.299, pre_down_scaled
1.73 and 4.206, gated_norm 23.9 and 4.159, layernorm_scaling 9.35 and 4.060, output 2.90 and 4.108,
mix 1.93 and 3.910, parallel 10.7 and 4.289. Reproduced: every_norm, qk_norm, peri,
layernorm_scaling. Not reproduced: post (it learns nothing at this rate), down_scaled (its kurtosis
is below op's), gated_norm.

Source of the paper's numbers, unless another is named: He et al. 2024, "Understanding and
Minimising Outlier Features in Transformer Training" (arXiv 2405.19279 v2).
"""

from collections.abc import Sequence

from of_jax.claims import rules
from of_jax.claims.judge import Claim
from of_jax.commands.studies import BEYOND, Overrides, Scale
from of_jax.commands.studies.op_block import PAPER

VARIANTS: dict[str, Overrides] = {
    "pre": (),
    "op": (("model.block", "op"), ("model.beta", "0.3")),
    "pre_layer": (("model.norm", "layer"),),
    "pre_srms": (("model.norm", "srms"),),
    "peri": (("model.block", "peri"),),
    "post": (("model.block", "post"),),
    "pre_qk_norm": (("model.qk_norm", "rms"),),
    "pre_down_scaled": (("model.beta", "0.1"), ("model.beta_trainable", "true")),
    "gated_norm": (("model.block", "gated_norm"),),
    "layernorm_scaling": (("model.block", "layernorm_scaling"),),
    "output": (("model.block", "output"), ("model.qk_norm", "rms")),
    "mix": (("model.block", "mix"),),
    "parallel": (("model.block", "parallel"),),
}
_OPEN = f"{BEYOND} Inconclusive if a run is missing, unfinished, not finite or read another corpus."


def _name(variant: str, seed: int) -> str:
  return f"{variant}_seed{seed}"


def _each(seeds: Sequence[int]) -> str:
  return f"for every one of the seeds {', '.join(map(str, seeds))}"


def _pairs(seeds: Sequence[int], *of: tuple[str, str]) -> list[tuple[str, str]]:
  """Run names of each (variant, variant) at each seed."""
  return [(_name(a, s), _name(b, s)) for a, b in of for s in seeds]


def _peak(what: str) -> str:
  return f"the largest {what} over layers (stream entering each block) and logged steps"


def _claims(seeds: Sequence[int]) -> list[Claim]:
  return [*_growth_claims(seeds), *_remedy_claims(seeds), *_size_claims(seeds),
          _gated_norm_claim(seeds)]


def _growth_claims(seeds: Sequence[int]) -> list[Claim]:
  """Claims on where outlier features grow."""
  each = _each(seeds)
  return [
      Claim(
          "every_norm", "Pre-Norm grows outlier features with any norm, and with no norm at all "
          "(op) there are few.",
          "Section 3, Figure 2: they emerge with LayerNorm, RMSNorm and SRMSNorm alike, so neither "
          "gains nor centring cause them; OP lowers peak kurtosis by orders of magnitude.",
          f"Peak kurtosis: {_peak('kurtosis')}. Factors, {each}, by which that of pre, of "
          f"pre_layer "
          f"and of pre_srms exceeds that of op; margin 3. {_OPEN}",
          rules.smaller_peaks(
              _pairs(seeds, *(("op", v) for v in ("pre", "pre_layer", "pre_srms"))), "op",
              factor=3)),
      Claim(
          "post", "Post-Norm grows outlier features too.",
          "Section 3: they emerge in all Pre- and Post-Norm variants.",
          f"Factor, {each}, by which the peak kurtosis of post exceeds that of op; margin 2. "
          f"{_OPEN}",
          rules.smaller_peaks(_pairs(seeds, ("op", "post")), "op", factor=2)),
  ]


def _remedy_claims(seeds: Sequence[int]) -> list[Claim]:
  """Claims on what the paper lowers outlier features with."""
  each = _each(seeds)
  return [
      Claim(
          "qk_norm", "QK-norm alone lowers outlier features.",
          "Section 5 and Table 4: with QK-norm only, Pre-LN's peak kurtosis is below 10.",
          f"Factor, {each}, by which the peak kurtosis of pre exceeds that of pre_qk_norm; margin "
          f"{rules.SMALLER:g}. {_OPEN}",
          rules.smaller_peaks(_pairs(seeds, ("pre_qk_norm", "pre")), "pre with QK-norm")),
      Claim(
          "down_scaled",
          "Down-scaled residuals lower outlier features, and op lowers them further.",
          "Section 3: Pre-LN with a trained gain that starts at 0.1 has a peak kurtosis about 10 "
          "times lower, still above OP's, and loses about 0.2 in perplexity.",
          f"Factors, {each}, by which the peak kurtosis of pre exceeds that of pre_down_scaled, "
          f"and "
          f"that of pre_down_scaled op's; margin {rules.SMALLER:g}. {_OPEN}",
          rules.smaller_peaks(
              _pairs(seeds, ("pre_down_scaled", "pre"), ("op", "pre_down_scaled")),
              "the more regulated block")),
  ]


def _size_claims(seeds: Sequence[int]) -> list[Claim]:
  """Claims on how large the stream's activations become."""
  each = _each(seeds)
  return [
      Claim(
          "peri", "Peri-LN keeps the stream's activations smaller than Pre-LN.",
          "Kim et al. 2025 (2502.02732), abstract: activations are massive in Pre-LN and moderate "
          "in Peri-LN, at 400M to 3.2B parameters.",
          f"Factor, {each}, by which {_peak('max |x|')} of pre exceeds that of peri; margin "
          f"{rules.SMALLER:g}. {_OPEN}",
          rules.smaller_peaks(_pairs(seeds, ("peri", "pre")), "peri", metric="max_abs")),
      Claim(
          "layernorm_scaling", "Scaling the norm by 1 / sqrt(layer) keeps the stream smaller.",
          "Sun et al. 2025 (2502.05795), abstract: it mitigates the growth of the output variance "
          "over depth that Pre-LN has.",
          f"Factor, {each}, by which {_peak('RMS')} of pre exceeds that of layernorm_scaling; "
          f"margin {rules.SMALLER:g}. {_OPEN}",
          rules.smaller_peaks(_pairs(seeds, ("layernorm_scaling", "pre")), "layernorm_scaling",
                               metric="rms")),
  ]


def _gated_norm_claim(seeds: Sequence[int]) -> Claim:
  return Claim(
      "gated_norm", "Gates behind the norm lower outlier features.",
      "\"A Unified View of Attention and Residual Sinks\" (2601.22966), abstract: outliers "
      "serve the norm to rescale the rest; gates do this in their place.",
      f"Factor, {_each(seeds)}, by which the peak kurtosis of pre exceeds that of gated_norm; "
      f"margin {rules.SMALLER:g}. {_OPEN}",
      rules.smaller_peaks(_pairs(seeds, ("gated_norm", "pre")), "gated_norm"))


def _scale(config: str, common: Overrides, seeds: Sequence[int]) -> Scale:
  return Scale(
      config=config, common=(("model.norm", "rms"), *common),
      runs={_name(variant, seed): (*own, ("train.seed", str(seed)))
            for seed in seeds for variant, own in VARIANTS.items()},
      claims=_claims(seeds), paper=PAPER,
      question="Do outlier features grow in a Pre-Norm block whatever its norm, and not without "
      "one?")


SCALES = {
    "smoke": _scale("experiments/configs/smoke.py", (), [0]),
    "small": _scale("experiments/configs/ladder.py:small",
                    (("data.corpus", "python_stdlib"), ("train.log_every", "10")), [0, 1]),
}
