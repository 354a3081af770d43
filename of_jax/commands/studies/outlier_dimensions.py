"""python -m experiments.study --study=outlier_dimensions --scale=smoke --root=DIR

Outlier dimensions of the final representation: when they form, and what they do to predictions.

Cost: smoke, 2 runs of 150 steps, each followed by an analysis of its eight checkpoints; 20 min 52 s
on two x86-64 cores that other programs used at the same time (2026-11-23). small is declared for
one accelerator; its cost is not measured yet.

The model is the smoke setting's Pre-Norm with a norm before the unembedding, which the analysed
models all have and whose gain is one of the two things that are said to boost the dimensions. The
rules were written before any run of this study.

Printed there, steps 0, 1, 4, 16, 50, 64, 100, 150: outlier dimensions 0, 0, 0, 1, 1, 2, 0, 0 of
seed 0 and 0, 0, 0, 1, 1, 1, 0, 1 of seed 1, of 128; final losses 5.427 and 5.508, peak kurtosis
11.2 and 16.2. So they come early and go again: "appear" is not reproduced, and the other claims are
inconclusive, since seed 0 has none at the end. Models of the paper have billions of parameters, and
150 steps are few.

Source of the claims: Macocco et al. 2025, "Outlier dimensions favor frequent tokens in language
models" (arXiv 2503.21718), cited below as the paper. The rule of detection, the ablations and what
is measured are those of its published code; what it found is taken from notes on it, not from its
text, and stands here without numbers.
"""

from of_jax.claims import checkpoints as rules
from of_jax.claims.judge import Claim
from of_jax.commands.studies import BEYOND, Scale

PAPER = {"model.width": "4,096 and more", "model.depth": "32 and more",
         "data.corpus": "each model's own; analysed on WikiText-103",
         "train.sequence_length": "contexts of 100 words", "optim.name": "Adam's kin"}
_OPEN = f"{BEYOND} Inconclusive if a run is missing, unfinished, not finite or was not analysed"


def _name(seed: int) -> str:
  return f"pre_final_norm_seed{seed}"


def _scale(config: str, common: tuple[tuple[str, str], ...], seeds: tuple[int, ...], until: int
           ) -> Scale:
  names = [_name(seed) for seed in seeds]
  each = f"for every one of the seeds {', '.join(map(str, seeds))}, at the last checkpoint,"
  return Scale(
      config=config, figure="outlier_dimensions",
      question="Do outlier dimensions of the final representation form early in training?",
      common=(("model.norm", "rms"), ("model.final_norm", "true"), *common),
      runs={_name(seed): (("train.seed", str(seed)),) for seed in seeds},
      claims=(
          Claim(
              "appear", "Outlier dimensions of the final representation form early in training.",
              "They appear early in the training of pythia-12b.",
              "A dimension is an outlier if its median magnitude over 512 held-out contexts, at "
              "their last token, exceeds the 0.99 quantile of all magnitudes there. Effect: "
              f"the share of the seeds {', '.join(map(str, seeds))} in which there is none at step "
              f"0 and at least one at every checkpoint from step {until} on, its interval exact; "
              f"margin a half. {_OPEN}.",
              rules.dimensions_appear(names, until)),
          Claim(
              "ablation", "Without its outlier dimensions a model predicts worse; without as many "
              "other dimensions it hardly does.",
              "Accuracy falls by several points without them and barely moves without as many "
              "random ones.",
              f"Effect, {each} what zeroing the outlier dimensions before the unembedding adds to "
              "the mean surprisal of the token that comes, less 5 times what zeroing as many "
              "random "
              "others does (absolute, mean of five draws); margin 0.05 nats. "
              "Surprisal decides since 512 contexts resolve accuracy to two points only; accuracy "
              f"is reported. {_OPEN}, or if there is no outlier dimension.",
              rules.ablation_hurts(names, 0.05, 5)),
          Claim(
              "frequent", "Outlier dimensions alone predict a few frequent tokens.",
              "A model of its outlier dimensions alone predicts a handful of very frequent tokens.",
              f"Two parts, {each} the factor by which predictions from all dimensions are more "
              "distinct tokens than those from the outlier dimensions alone, margin 5; and that by "
              "which the mean share of the training tokens is larger of the latter, no less than "
              f"1 / {rules.MORE:g}. {_OPEN}, or if there is no outlier "
              "dimension.",
              rules.alone_they_predict_few(names, 0.2)),
          Claim(
              "boost", "The last MLP's down projection and the final norm's gain boost them.",
              "Both are larger for outlier dimensions.",
              f"Two factors, {each} by which the median over the outlier dimensions of the norm of "
              "the down projection's column, and of the gain's magnitude, exceeds their median "
              "over "
              f"all dimensions; margin {rules.MORE:g}. {_OPEN}, or if there is no outlier "
              f"dimension.",
              rules.boosted(names, ("down_projection", "final_norm_gain")))),
      paper=PAPER, analyses=("outlier_dimensions",))


SCALES = {
    "smoke": _scale("experiments/configs/smoke.py", (), (0, 1), 64),
    "small": _scale("experiments/configs/ladder.py:small",
                    (("data.corpus", "python_stdlib"), ("train.log_every", "10")), (0, 1, 2), 4096),
}
