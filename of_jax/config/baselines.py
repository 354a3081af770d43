"""Published ways to fewer outlier features, as configs: what a new one has to beat.

Sizes and rates are the papers'. What a paper does not give is ours, and said so; so is the corpus,
`pypi_code`, for theirs are not at hand.
"""

import dataclasses
from typing import Any

from of_jax.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig
from of_jax.errors import UserError

# He et al. 2024 (2405.19279, App. D, "OPT-125m"): each of the settings keeps those before it.
BLOCKS = ("pre", "gated", "op")
SETTINGS = ("default", "no_dropout", "large_rate", "large_eps", "soap")
NAMES = ("tweo", "osp", *(f"opt_{block}_{setting}" for block in BLOCKS for setting in SETTINGS))


def baseline(name: str) -> Config:
  """The config of a name in NAMES, not resolved.

  Raises:
    UserError: no such name.
  """
  if name == "tweo":
    return _tweo()
  if name == "osp":
    return _osp()
  if name not in NAMES:
    raise UserError(f"{name}: no such baseline; there are {', '.join(NAMES[:2])} and "
                    f"opt_BLOCK_SETTING, BLOCK one of {', '.join(BLOCKS)}, SETTING one of "
                    f"{', '.join(SETTINGS)}")
  _, block, setting = name.split("_", 2)
  return _opt(block, SETTINGS.index(setting))


def _opt(block: str, setting: int) -> Config:
  """OPT-125m as Bondarenko et al. 2023 (2306.12929) train it, and He et al.'s steps from there.

  The first setting is theirs (github.com/Qualcomm-AI-research/outlier-free-transformers, 1e59744):
  dropout of 0.1 on the branches and on nothing else, as OPT has it, embeddings and the MLPs'
  matrices N(0, 0.006^2), norms' gains that decay like matrices while offsets do not, 192 sequences
  of 512, a rate of 4e-4. Attention is replaced after OPT was initialised, so that its matrices and
  offsets, and the gate's matrices, start as torch.nn.Linear makes them. Then without dropout, at a
  rate of 1e-3, with an eps of 1e-5, and with SOAP and the old eps. They train in float16; here
  products are in bfloat16. Their table has a row for padding, which starts at 0 and is never read;
  here every row is a token's.

  `gated` has a gate a head that starts at 0.25 for an input of 0. `op` has trained gains from 0.2,
  LayerNorm on queries and keys, and no norm of the stream. The paper does not say what its
  embedding is multiplied by: here 1 / 0.006, which brings its mean square to 1 as their 50 does
  elsewhere.
  """
  init = 0.006
  blocks: dict[str, dict[str, Any]] = {
      "pre": {}, "gated": {"attention_gate": "head", "attention_gate_init": 0.25},
      "op": {"block": "op", "beta": 0.2, "beta_trainable": True, "qk_norm": "layer",
             "final_norm": False, "embedding_scale": 1 / init}}
  model = ModelConfig(**{
      "width": 768, "depth": 12, "heads": 12, "norm": "layer", "norm_eps": 1e-5, "mlp": "relu",
      "linear_bias": True, "tied_embeddings": True, "final_norm": True, "init_std": init,
      "position_init_std": init, "attention_init": "uniform", "embedding_dropout": 0.0,
      "dropout": 0.0 if setting >= 1 else 0.1, "compute_dtype": "bfloat16", **blocks[block]})
  optim = OptimConfig(
      learning_rate=1e-3 if setting >= 2 else 4e-4, b2=0.95, eps=1e-5 if setting == 3 else 1e-8,
      decay_roles=("embedding", "hidden", "unembedding", "norm"), decay_norm_offsets=False,
      warmup_steps=2_000)
  if setting == 4:
    optim = dataclasses.replace(optim, name="soap", b1=0.95)
  return Config(
      model=model, optim=optim,
      train=TrainConfig(steps=125_000, batch_size=192, sequence_length=512, grad_accumulation=4,
                        log_every=100, eval_every=1_000, checkpoint_every=25_000),
      data=DataConfig(corpus="pypi_code", vocab_size=50_272, eval_sequences=1_024))


def _tweo() -> Config:
  """GPT-2 of 124M parameters with TWEO's loss term (2511.23225) at its weight, threshold and power.

  Batch, length and rate are ours: those of GPT-2's usual reproductions.
  """
  return Config(
      model=ModelConfig(width=768, depth=12, heads=12, norm="layer", norm_eps=1e-5, mlp="gelu",
                        linear_bias=True, tied_embeddings=True, final_norm=True,
                        compute_dtype="bfloat16"),
      optim=OptimConfig(learning_rate=6e-4, b2=0.95, schedule="cosine", final_fraction=0.1,
                        warmup_steps=2_000),
      train=TrainConfig(steps=100_000, batch_size=480, sequence_length=1_024, grad_accumulation=8,
                        tweo_weight=0.01, tweo_threshold=3.0, tweo_power=4.0, log_every=100,
                        eval_every=1_000, checkpoint_every=25_000),
      data=DataConfig(corpus="pypi_code", vocab_size=50_304, eval_sequences=1_024))


def _osp() -> Config:
  """Outlier-Safe Pre-Training's 1.4B model (2506.19697): Muon, SSNorm and embedding projections.

  Momentum 0.95 with Nesterov, an update scaled by 0.2 sqrt(longer side), decay 0.01 and rate 5e-4;
  embeddings are AdamW's, their projections Muon's. Its buffer is a sum where ours is a mean, which
  no orthogonalised update can tell. The hidden width is 8/3 x 2048 rounded up to a multiple of
  128. Steps are those of its runs of 100 billion tokens in batches of a million, which are ours, as
  are warmup, schedule and the embeddings' rate, that of the matrices.
  """
  return Config(
      model=ModelConfig(width=2048, depth=24, heads=16, norm="ss", mlp="swiglu", mlp_width=5_504,
                        positions="rotary", rope_theta=10_000.0, final_norm=True,
                        embedding_projection=True, compute_dtype="bfloat16", remat="full"),
      optim=OptimConfig(name="muon", learning_rate=5e-4, momentum=0.95, nesterov=True,
                        muon_scale="rms", weight_decay=0.01, schedule="wsd"),
      train=TrainConfig(steps=95_368, batch_size=512, sequence_length=2_048, log_every=100,
                        eval_every=1_000, checkpoint_every=10_000),
      data=DataConfig(corpus="pypi_code", vocab_size=49_152, eval_sequences=1_024))
