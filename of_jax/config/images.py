"""Corpora of images, as far as their names tell: which they are, and the size of their images."""

# Image corpora whose size is known before they are read: entries of an image, classes.
_IMAGES = {"digits": (64, 10), "mnist": (784, 10), "fashion_mnist": (784, 10),
           "kmnist": (784, 10), "cifar10": (3072, 10), "cifar100": (3072, 100),
           "svhn_cropped": (3072, 10)}
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
