"""python -m experiments.study --study=relu_sparsity --scale=smoke --root=DIR

Activity of a ReLU transformer's hidden units, layer by layer and over training.

Cost: smoke, 2 runs of 150 steps with MLPs of 1,024 units, each followed by an analysis of its eight
checkpoints; 16 min 36 s on two x86-64 cores that other programs used at the same time (2026-11-23).
small is declared for one accelerator; its cost is not measured yet.

The rules were written before any run of this study. Shares in a batch are over 8,192 tokens, the
paper's batch; how many tokens are read decides them, and the width of the layers too, so that the
paper's own numbers are not expected at a thirtieth of its width.

Printed there: shares of units active in 8,192 tokens, by layer: 100, 28, 22, 34, 42, 42 % of seed 0
and 95, 42, 35, 31, 45, 57 % of seed 1, so that "layers_differ" is not reproduced: the first layer
uses more than the others, where the paper's uses less. Reproduced are "token_use" (50 % to 3.6 %
and to 2.5 %), "death" (up to 70 % and 61 % of a layer's units; of the dead, up to 53 % and 80 %
revive between two checkpoints) and "prunable" (70 % are rare; without them the loss changes by
-0.0002 and -0.0001 nats). Final losses 4.072 and 4.118, peak kurtosis 12.4 and 9.29.

Source of the claims: Wild & Anderson 2024, "Uncovering Layer-Dependent Activation Sparsity Patterns
in ReLU Transformers" (arXiv 2407.07848), cited below as the paper: its abstract and the captions
of its figures, not its text.
"""

from of_jax.claims import checkpoints as rules
from of_jax.claims.judge import Claim
from of_jax.commands.studies import BEYOND, Scale

PAPER = {"model.mlp_width": "32,768", "model.depth": "6", "model.mlp": "relu"}
_OPEN = f"{BEYOND} Inconclusive if a run is missing, unfinished, not finite or was not analysed."


def _name(seed: int) -> str:
  return f"relu_seed{seed}"


def _scale(config: str, common: tuple[tuple[str, str], ...], seeds: tuple[int, ...]) -> Scale:
  names = [_name(seed) for seed in seeds]
  each = f"for every one of the seeds {', '.join(map(str, seeds))}"
  return Scale(
      config=config, figure="sparsity",
      question="Does the first layer of a ReLU transformer use far fewer of its units than the "
      "last?",
      common=(("model.mlp", "relu"), *common),
      runs={_name(seed): (("train.seed", str(seed)),) for seed in seeds},
      claims=(
          Claim(
              "layers_differ", "The first layer uses far fewer of its units than the last.",
              "Abstract: at convergence layer 0 uses 13.3 % of its 32,768 units in a batch of "
              "8,192 tokens, layer 5 uses 95.6 %.",
              f"Factor, {each}, at the last checkpoint, by which the share of hidden units that "
              "are not zero for at least one of 8,192 held-out tokens is larger in the last layer "
              f"than in layer 0; margin 2. {_OPEN[:-1]}, or if either layer has no active unit.",
              rules.first_layer_uses_less(names, 0.5)),
          Claim(
              "token_use", "The share of units active for a token falls over training.",
              "Captions: token-level use falls gradually.",
              f"Factor, {each}, by which the share of hidden units that are not zero for a "
              "held-out token, mean over tokens and layers, is larger at step 0 than at the last "
              f"checkpoint; margin {rules.MORE:g}. {_OPEN}",
              rules.token_use_falls(names)),
          Claim(
              "death", "Units die in training.",
              "Abstract: units are turned off, which training dynamics drive rather than chance.",
              f"Dead: zero for all 16,384 held-out tokens. Effect, {each}: growth of the share "
              "of dead units from step 0 to the last checkpoint in the layer where it grows most; "
              "margin 0.01. "
              "The largest share of dead units that revive between two checkpoints is reported. "
              + _OPEN,
              rules.units_die(names, 0.01)),
          Claim(
              "prunable", "Many units can be removed at little cost.",
              "Abstract: many units can be pruned with minimal effect.",
              "Rare: active for less than 1 % of the first half of the held-out tokens. Two "
              f"parts, {each}, at the last checkpoint: the share of hidden units that are rare, "
              "margin a tenth; and what setting them to zero adds to the loss on the second half, "
              "no more than 0.01 nats. "
              + _OPEN,
              rules.prunable(names, 0.1, 0.01))),
      paper=PAPER, analyses=("sparsity",))


SCALES = {
    "smoke": _scale("experiments/configs/smoke.py", (("model.mlp_width", "1024"),), (0, 1)),
    "small": _scale("experiments/configs/ladder.py:small",
                    (("data.corpus", "python_stdlib"), ("train.log_every", "10"),
                     ("model.mlp_width", "8192")), (0, 1)),
}
