"""An accelerator as far as a program's cost depends on it, whoever made it. Imports no jax."""

import dataclasses

GIB = 2 ** 30


@dataclasses.dataclass(frozen=True)
class Accelerator:
  """A kind of chip, on which matrix products of all types are as fast unless it says otherwise.

  Attributes:
    flops: dense bfloat16, a second.
    hbm_bytes: of memory.
    hbm_bandwidth: bytes a second.
  """

  flops: float
  hbm_bytes: int
  hbm_bandwidth: float

  def matrix_seconds(self, flops: int, wide_flops: int) -> float:
    """Computes the seconds of matrix products, at the peak for each type that has its own.

    Args:
      flops: of all of them.
      wide_flops: of products of float32, among them.
    """
    return flops / self.flops

  def send_seconds(self, sent: float, in_host: int, spans_hosts: bool) -> float:
    """Seconds in which a chip sends its part of a collective.

    Args:
      sent: bytes.
      in_host: chips of a group that stand in one host.
      spans_hosts: whether a group has chips of several hosts.
    """
    raise NotImplementedError
