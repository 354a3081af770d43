"""The size ladder and the settings of the papers, as configs.

Sizes are those of He et al. 2024 (2405.19279, App. D) where it has one; `tiny` and `small` are
ours, for a laptop and for one accelerator.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from of_jax.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig

SIZES = ("tiny", "small", "130m", "320m", "1b", "7b", "released", "released_op", "released_tanh",
         "released_qk_norm", "released_post", "released_parallel")

# He et al. scale the embedding so that the first block reads a mean square near 1.
_PAPER_SCALE = 50.0


def preset(name: str) -> Config:
  """The config of a name in SIZES, with the Pre-Norm block; not resolved.

  `model.block=op` turns any of them into the Outlier Protected model: the paper's gain of 0.3
  (130m) and its relatives are set with `model.beta`, whose default follows the depth.
  """
  makers: dict[str, Callable[[], Config]] = {
      "tiny": _tiny, "small": _small, "130m": _codeparrot_130m, "320m": _languini_320m,
      "1b": _fineweb_1b, "7b": _fineweb_7b, "released": _released_code,
      "released_op": _released_op, "released_tanh": _released_tanh,
      "released_qk_norm": lambda: _with_model(_released_code(), qk_norm="rms"),
      "released_post": lambda: _with_model(_released_code(), block="post_released"),
      "released_parallel": lambda: _with_model(_released_code(), block="parallel")}
  return makers[name]()


def smoke() -> Config:
  """A model that shows outlier features after about a minute on two cores.

  The embedding scale of 8 leaves the tokens' representations correlated at first, and He et
  al. 2024 (Sec. 4) find that outliers grow where signal propagation is poor. The warmup is 20 of
  the 150 steps where their 5 % would be 8: after so short a one the norm-free stream of the OP
  block was seen to jump from an RMS of 0.2 to 40 within the warmup (seed 0).
  """
  return Config(
      model=ModelConfig(width=128, depth=6, heads=4, embedding_scale=8.0, position_init_std=0.02),
      optim=OptimConfig(learning_rate=1e-2, warmup_fraction=0.13),
      train=TrainConfig(steps=150, batch_size=16, sequence_length=128, eval_every=25,
                        checkpoint_every=50, checkpoint_log_base=4),
      data=DataConfig(corpus="python_stdlib", vocab_size=4096))


MLP_SCALES = ("smoke", "small", "paper")


def residual_mlp(scale: str) -> Config:
  """The residual MLP on images of He et al. 2024 (App. D, "CIFAR-10") at a scale of MLP_SCALES.

  `paper`: 6 Pre-Norm layers of width 1024, PCA-whitened inputs, batch 2048, 200 epochs (4,883
  steps of 50,000 images), Adam at 3e-3 without decay, 200 warmup steps, then a cosine. The paper
  does not give the norm, the initialisation and the clipping: here LayerNorm, matrices of
  variance 1 / width, and none. `smoke` and `small` are ours, for a laptop on data that PyPI has
  and for one accelerator.
  """
  width, batch, steps, warmup, corpus, evaluated, every = {
      "smoke": (128, 256, 600, 60, "digits", 256, 50),
      "small": (512, 1024, 4_000, 200, "fashion_mnist", 10_000, 200),
      "paper": (1024, 2048, 4_883, 200, "tfds:cifar10", 10_000, 244)}[scale]
  return Config(
      model=ModelConfig(kind="residual_mlp", width=width, depth=6, norm="layer", norm_eps=1e-5,
                        init_std=width ** -0.5),
      optim=OptimConfig(learning_rate=3e-3, weight_decay=0.0, clip_norm=None, schedule="cosine",
                        warmup_steps=warmup),
      train=TrainConfig(steps=steps, batch_size=batch, sequence_length=1, eval_every=every,
                        checkpoint_every=every * 4, checkpoint_log_base=4),
      data=DataConfig(corpus=corpus, validation_fraction=0.2, eval_sequences=evaluated))


def _tiny() -> Config:
  return Config(
      model=ModelConfig(width=64, depth=2, heads=2, embedding_scale=_PAPER_SCALE),
      optim=OptimConfig(learning_rate=3e-3),
      train=TrainConfig(steps=200, batch_size=8, sequence_length=64),
      data=DataConfig(vocab_size=4096))


def _small() -> Config:
  return Config(
      model=ModelConfig(width=384, depth=6, heads=6, embedding_scale=_PAPER_SCALE),
      optim=OptimConfig(learning_rate=1e-3),
      train=TrainConfig(steps=10_000, batch_size=32, sequence_length=128, eval_every=500,
                        checkpoint_every=1_000),
      data=DataConfig(vocab_size=32_768))


def _codeparrot_130m() -> Config:
  """App. D, "CodeParrot": 6 layers, no final norm, untied, 80K steps of 32 x 128 tokens."""
  return Config(
      model=ModelConfig(width=768, depth=6, heads=12, norm="layer", norm_eps=1e-5,
                        embedding_scale=_PAPER_SCALE),
      optim=OptimConfig(learning_rate=1e-3),
      train=TrainConfig(steps=80_000, batch_size=32, sequence_length=128, log_every=100,
                        eval_every=1_000, checkpoint_every=10_000),
      data=DataConfig(corpus="pypi_code", vocab_size=50_304, eval_sequences=1_024))


def _languini_320m() -> Config:
  """App. D, "Languini": 24 layers of 1,024, rotary, GELU, tied, clip 0.5, 512 tokens."""
  return Config(
      model=ModelConfig(width=1024, depth=24, heads=16, norm="layer", norm_eps=1e-5, mlp="gelu",
                        positions="rotary", tied_embeddings=True, final_norm=True,
                        embedding_scale=_PAPER_SCALE, compute_dtype="bfloat16", remat="dots"),
      optim=OptimConfig(learning_rate=1e-3, clip_norm=0.5, warmup_steps=1_000),
      train=TrainConfig(steps=50_000, batch_size=128, sequence_length=512, log_every=100,
                        eval_every=1_000, checkpoint_every=10_000),
      data=DataConfig(corpus="pypi_code", vocab_size=32_768, eval_sequences=1_024))


def _fineweb(width: int, depth: int, steps: int, batch: int, rate: float) -> Config:
  """App. D, "FineWeb-Edu": LLaMA-like with a GELU MLP of one hidden layer, QK-RMSNorm, cosine."""
  return Config(
      model=ModelConfig(width=width, depth=depth, heads=width // 128, norm="rms", mlp="gelu",
                        positions="rotary", qk_norm="rms", final_norm=True,
                        embedding_scale=_PAPER_SCALE, compute_dtype="bfloat16", remat="full"),
      optim=OptimConfig(learning_rate=rate, schedule="cosine"),
      train=TrainConfig(steps=steps, batch_size=batch, sequence_length=4096, log_every=10,
                        eval_every=1_000, checkpoint_every=5_000),
      data=DataConfig(corpus="pypi_code", vocab_size=32_768, eval_sequences=1_024))


def _fineweb_1b() -> Config:
  return _fineweb(width=2048, depth=24, steps=50_000, batch=440, rate=1e-3)


def _fineweb_7b() -> Config:
  return _fineweb(width=4096, depth=32, steps=20_000, batch=72, rate=3e-4)


def _released_code() -> Config:
  """github.com/bobby-he/simplified_transformers, as far as it is not the setup of the text.

  GPT-2 with tied embeddings and its final LayerNorm: 12 layers, RMSNorm with eps outside the root,
  no embedding scale, positions of the tokens' standard deviation, a bias on queries and keys
  alone; 4 micro-batches of 32, and 40,000 steps as in its README.
  """
  paper = _with_model(
      _codeparrot_130m(), depth=12, norm="rms", norm_eps_placement="outside_rms",
      embedding_scale=1.0, position_init_std=0.02, qk_bias=True, tied_embeddings=True,
      final_norm=True, final_norm_kind="layer")
  return dataclasses.replace(paper, train=dataclasses.replace(
      paper.train, steps=40_000, batch_size=128, grad_accumulation=4))


def _released_op() -> Config:
  """Its op.yaml: a fixed gain of 0.2, QK-RMSNorm, and a LayerNorm on block 0's attention input.

  Its embedding is not scaled, so that block 0 needs the norm. A final norm is kept.
  """
  return _with_model(_released_code(), block="op", beta=0.2, first_attention_norm=True)


def _released_tanh() -> Config:
  """Its Outlier Protected form with a tanh cap at its default of 30 in place of QK-norm."""
  return _with_model(_released_op(), qk_norm="none", attention_cap=30.0)


def _with_model(config: Config, **fields: Any) -> Config:
  return dataclasses.replace(config, model=dataclasses.replace(config.model, **fields))
