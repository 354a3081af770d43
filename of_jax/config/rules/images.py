"""Rules of models on images, and what is known of image corpora by their names."""

import dataclasses

from of_jax.config.rules.check import Check
from of_jax.config.sections import Config

# Image corpora whose size is known before they are read: entries of an image, classes.
_IMAGES = {"digits": (64, 10), "mnist": (784, 10), "fashion_mnist": (784, 10),
           "kmnist": (784, 10), "cifar10": (3072, 10), "cifar100": (3072, 100),
           "svhn_cropped": (3072, 10)}
# What a residual MLP reads of the sections that it shares with the transformer. Any other field,
# set away from its default, would do nothing.
_RESIDUAL_MLP_READS = {
    "model": {"kind", "norm", "norm_eps", "norm_eps_placement", "width", "depth", "mlp",
              "mlp_width", "final_norm", "beta", "beta_mlp", "beta_trainable",
              "beta_per_channel", "dropout", "embedding_dropout", "init_std", "scan_layers",
              "remat", "compute_dtype", "linear_bias", "mlp_norm", "leaky_relu_slope", "dyt_alpha",
              "power_decay", "power_warmup_steps"},
    "data": {"corpus", "cache_dir", "validation_fraction", "eval_sequences", "whitening",
             "input_size", "classes"}}
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


def validate(config: Config, check: Check) -> None:
  """What a residual MLP needs, and that nothing is set which it does not read."""
  data = config.data

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
