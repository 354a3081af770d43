"""python -m experiments.study --study=scaling_depth --scale=smoke --root=DIR

Loss and outlier features against depth, Pre-Norm against the Outlier Protected block: five depths,
three seeds, the largest depth forecast from the others before it is trained.

Cost: smoke, 30 runs of 150 steps of width 64, 2 to 12 layers, on two CPU cores; not measured yet,
nor are small, declared for one accelerator, and paper, for several.

Kurtosis is the mean over layers, its largest value over logged steps: the largest of more layers
grows with depth by itself.

Source of the claims: He et al. 2024, "Understanding and Minimising Outlier Features in Transformer
Training" (arXiv 2405.19279 v2), which has models of 6 to 32 layers and fits no law.
"""

from collections.abc import Sequence

from of_jax.commands.studies import Overrides, Scale
from of_jax.commands.studies.op_block import PAPER
from of_jax.commands.studies.scaling_width import claims, ladders, runs


def _scale(config: str, common: Overrides, depths: Sequence[int]) -> Scale:
  return Scale(
      config=config, common=common,
      runs=runs("depth", {depth: (("model.depth", str(depth)),) for depth in depths}),
      claims=claims("depth", depths), paper=PAPER, ladders=ladders("depth", depths, "mean"),
      question="Does depth make outlier features worse in Pre-Norm than in the Outlier Protected "
      "block?", answer="grows_faster")


SCALES = {
    "smoke": _scale("experiments/configs/smoke.py", (("model.width", "64"),), (2, 3, 4, 8, 12)),
    "small": _scale("experiments/configs/ladder.py:small",
                    (("data.corpus", "python_stdlib"), ("train.log_every", "10")),
                    (3, 4, 6, 9, 12)),
    "paper": _scale("experiments/configs/ladder.py:130m",
                    (("data.corpus", "pypi_code"), ("train.log_every", "20")),
                    (3, 6, 9, 12, 18))}
