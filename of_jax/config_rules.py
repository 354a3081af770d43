"""What a resolved config must satisfy: ranges of single fields, and combinations."""

import dataclasses
import math
from typing import TYPE_CHECKING

from of_jax.errors import UserError

if TYPE_CHECKING:
  from of_jax.config import Config

ROLES = ("embedding", "hidden", "unembedding", "gain", "norm", "bias")

# Image corpora whose size is known before they are read: entries of an image, classes.
_IMAGES = {"digits": (64, 10), "mnist": (784, 10), "fashion_mnist": (784, 10),
           "kmnist": (784, 10), "cifar10": (3072, 10), "cifar100": (3072, 100),
           "svhn_cropped": (3072, 10)}
# What a residual MLP reads of the sections that it shares with the transformer. Any other field,
# set away from its default, would do nothing.
_RESIDUAL_MLP_READS = {
    "model": {"kind", "norm", "norm_eps", "norm_eps_placement", "width", "depth", "mlp",
              "mlp_width", "final_norm", "beta", "beta_mlp", "beta_trainable",
              "beta_per_channel", "dropout", "init_std", "scan_layers", "remat",
              "compute_dtype"},
    "data": {"corpus", "cache_dir", "validation_fraction", "eval_sequences", "whitening",
             "input_size", "classes"}}
_FOR_IMAGES = "is part of model.kind=residual_mlp and does nothing in transformer"
IMAGE_CORPORA = "digits, fashion_mnist, fashion_mnist:PATH, cifar10:PATH or tfds:NAME"


def image_shape(corpus: str) -> tuple[int, int] | None:
  """(entries of an image, classes) of a corpus of images; None where its name does not tell."""
  kind, _, rest = corpus.partition(":")
  return _IMAGES.get(rest.partition(":")[0] if kind == "tfds" else kind)


def holds_images(corpus: str) -> bool:
  """Whether the name is that of images, or of a TFDS data set, which may be either."""
  kind, _, rest = corpus.partition(":")
  return (corpus in ("digits", "fashion_mnist")
          or kind in ("fashion_mnist", "cifar10", "tfds") and bool(rest))


def _require(condition: bool, path: str, config: "Config", what: str) -> None:
  if not condition:
    section, name = path.split(".")
    raise UserError(f"config.{path}={getattr(getattr(config, section), name)}: {what}")


_AT_LEAST_ONE = (
    "model.width", "model.depth", "model.heads", "model.mlp_width", "train.steps",
    "train.batch_size", "train.sequence_length", "train.grad_accumulation", "train.log_every",
    "train.eval_every", "train.checkpoint_every", "data.eval_sequences", "data.input_size",
    "telemetry.every")
_AT_LEAST_TWO = ("train.checkpoint_log_base", "data.classes")
_POSITIVE = ("model.rope_theta", "model.embedding_scale", "model.attention_cap",
             "model.mlp_input_scale", "optim.clip_norm")
_NOT_NEGATIVE = ("model.norm_eps", "model.init_std", "model.position_init_std", "optim.eps",
                 "optim.learning_rate", "optim.weight_decay", "optim.warmup_steps",
                 "train.z_loss", "train.seed", "data.begin_token_id", "data.end_token_id")
_FRACTIONS = ("optim.warmup_fraction", "optim.decay_fraction", "optim.final_fraction")
_BELOW_ONE = ("model.dropout", "optim.momentum", "optim.b1", "optim.b2")


def validate(config: "Config") -> None:
  """Ranges, then combinations. The first that fails is raised."""
  model, optim, train, data, mesh = (
      config.model, config.optim, config.train, config.data, config.mesh)

  def check(condition: bool, path: str, what: str) -> None:
    _require(condition, path, config, what)

  for path in _AT_LEAST_ONE + _AT_LEAST_TWO + _POSITIVE + _NOT_NEGATIVE + _FRACTIONS + _BELOW_ONE:
    section, name = path.split(".")
    value = getattr(getattr(config, section), name)
    if value is None:
      continue
    check(path not in _AT_LEAST_ONE or value >= 1, path, "must be at least 1")
    check(path not in _AT_LEAST_TWO or value >= 2, path, "must be at least 2")
    check(path not in _POSITIVE or value > 0, path, "must be above 0")
    check(path not in _NOT_NEGATIVE or value >= 0, path, "must not be negative")
    check(path not in _FRACTIONS or 0 <= value <= 1, path, "must lie between 0 and 1")
    check(path not in _BELOW_ONE or 0 <= value < 1, path, "must be at least 0 and below 1")

  if model.kind == "transformer":
    check(model.width % model.heads == 0, "model.heads",
          f"does not divide model.width={model.width}; "
          f"nearest that does: {_nearest_divisor(model.width, model.heads)}")
    check(model.positions != "rotary" or (model.width // model.heads) % 2 == 0, "model.heads",
          "rotary positions need an even head dimension (width / heads)")
  for path, value, default in (("model.mlp_input_scale", model.mlp_input_scale, 1.0),
                               ("model.first_attention_norm", model.first_attention_norm, False)):
    check(model.block == "op" or value == default, path,
          f"is part of model.block=op and does nothing in {model.block}")
  check(not model.beta_trainable or model.beta_attention is not None
        or model.beta_mlp is not None, "model.beta_trainable",
        "there is no gain to train; set model.beta")
  check(not model.beta_per_channel or model.beta_trainable, "model.beta_per_channel",
        "does nothing to fixed gains; set model.beta_trainable=true")
  check(train.seed < 2 ** 31, "train.seed", "must be below 2147483648")

  for path, roles in (("optim.decay_roles", optim.decay_roles),
                      ("optim.train_roles", optim.train_roles)):
    unknown = [r for r in roles if r not in ROLES]
    check(not unknown, path,
          f"{', '.join(unknown)} is not a parameter role; they are {', '.join(ROLES)}")
  check(bool(optim.train_roles), "optim.train_roles",
        f"nothing would be trained; give some of {', '.join(ROLES)}")
  check(optim.momentum == 0 or optim.name == "sgd", "optim.momentum",
        f"is part of optim.name=sgd and does nothing in {optim.name}")
  assert optim.warmup_steps is not None
  check(optim.warmup_steps <= train.steps, "optim.warmup_steps",
        f"the warmup is longer than the training, train.steps={train.steps}")
  check(train.batch_size % train.grad_accumulation == 0, "train.grad_accumulation",
        f"does not divide train.batch_size={train.batch_size}")

  check(0 < data.validation_fraction < 1, "data.validation_fraction",
        "must lie above 0 and below 1")
  (_check_images if model.kind == "residual_mlp" else _check_tokens)(config)

  for axis in ("data", "fsdp", "tensor"):
    check(getattr(mesh, axis) == -1 or getattr(mesh, axis) >= 1, f"mesh.{axis}",
          "must be at least 1, or -1 for the devices that are left")
  check((mesh.data, mesh.fsdp, mesh.tensor).count(-1) <= 1, "mesh.data",
        "only one mesh axis can be -1")
  ways = math.prod(n for n in (mesh.data, mesh.fsdp) if n != -1)
  check_batch_splits(config, ways)
  assert model.mlp_width is not None
  split = [("model.mlp_width", model.mlp_width)]
  if model.kind == "transformer":
    split += [("model.heads", model.heads), ("data.vocab_size", data.vocab_size)]
  for path, size in split:
    check(mesh.tensor < 2 or size % mesh.tensor == 0, "mesh.tensor",
          f"does not divide {path}={size}")
  check(mesh.fsdp < 2 or model.width % mesh.fsdp == 0, "mesh.fsdp",
        f"does not divide model.width={model.width}")


def _check_tokens(config: "Config") -> None:
  """What a transformer needs of the data section."""
  data = config.data

  def check(condition: bool, path: str, what: str) -> None:
    _require(condition, path, config, what)

  check(data.vocab_size >= 2, "data.vocab_size", "must be at least 2")
  check(not holds_images(data.corpus) or data.corpus.startswith("tfds:"), "data.corpus",
        "holds images; they are for model.kind=residual_mlp")
  kind, _, rest = data.corpus.partition(":")
  check(data.corpus in ("python_stdlib", "pypi_code")
        or (kind in ("text", "tfds", "tokens") and bool(rest)), "data.corpus",
        "not python_stdlib, pypi_code, text:PATH, tfds:NAME or tokens:PATH")
  for path in ("data.input_size", "data.classes"):
    check(getattr(data, path.split(".")[1]) is None, path, _FOR_IMAGES)
  check(data.whitening == "pca", "data.whitening", _FOR_IMAGES)
  if kind == "tokens":
    for path in ("data.begin_token_id", "data.end_token_id"):
      token = getattr(data, path.split(".")[1])
      check(token is None or token < data.vocab_size, path,
            f"is not below data.vocab_size={data.vocab_size}")
  else:
    check(data.vocab_size >= 258 or bool(data.tokenizer), "data.vocab_size",
          "a byte-level BPE needs at least 258: the bytes, end-of-text and begin")
    check(data.begin_token_id is None, "data.begin_token_id", "only for data.corpus=tokens:PATH")
    check(data.end_token_id is None, "data.end_token_id", "only for data.corpus=tokens:PATH")


def _check_images(config: "Config") -> None:
  """What a residual MLP needs, and that nothing is set which it does not read."""
  data = config.data

  def check(condition: bool, path: str, what: str) -> None:
    _require(condition, path, config, what)

  for section, read in _RESIDUAL_MLP_READS.items():
    part = getattr(config, section)
    for field in dataclasses.fields(part):
      check(field.name in read or getattr(part, field.name) == field.default,
            f"{section}.{field.name}",
            "is part of model.kind=transformer and does nothing in residual_mlp")
  check(config.train.sequence_length == 1, "train.sequence_length",
        "must be 1 for model.kind=residual_mlp: an image is one token")
  check(config.train.z_loss == 0, "train.z_loss",
        "is part of cross-entropy; model.kind=residual_mlp has a squared error")
  check("unembedding" in config.optim.train_roles, "optim.train_roles",
        "leaves out unembedding, which starts at zero in model.kind=residual_mlp: nothing before "
        "it would get a gradient")
  check(holds_images(data.corpus), "data.corpus", f"holds no images; use {IMAGE_CORPORA}")
  known = image_shape(data.corpus)
  for path, value in (("data.input_size", data.input_size), ("data.classes", data.classes)):
    check(value is not None, path, f"must be given for {data.corpus}, which is not known here")
  if known is not None:
    pixels, classes = known
    assert data.input_size is not None
    check(data.input_size <= pixels, "data.input_size",
          f"an image of {data.corpus} has {pixels} entries")
    check(data.classes == classes, "data.classes", f"{data.corpus} has {classes}")
    check(data.whitening == "pca" or data.input_size == pixels, "data.input_size",
          f"leaves out principal components; data.whitening=none needs all {pixels} entries")


def check_batch_splits(config: "Config", ways: int) -> None:
  """Raises UserError unless `ways` devices can share a micro-batch and the evaluation set."""
  micro = config.train.batch_size // config.train.grad_accumulation
  if micro % ways:
    what = "train.batch_size" if config.train.grad_accumulation == 1 else \
        "train.batch_size / train.grad_accumulation"
    raise UserError(
        f"config.{what}={micro}: cannot be split over the mesh's data x fsdp = {ways} devices; "
        f"nearest that can: {max(1, round(micro / ways)) * ways * config.train.grad_accumulation}")


def _nearest_divisor(number: int, near: int) -> int:
  return min((n for n in range(1, number + 1) if number % n == 0), key=lambda n: abs(n - near))
