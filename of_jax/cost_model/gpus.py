"""NVIDIA's GPUs and what NVIDIA publishes of them, also as the text that XLA's compiler reads.

A GPU that is not here is described to the compiler by a GpuTargetConfigProto in text form. Enters:
nothing. Leaves: the GPUs by name. Imports no jax.
"""

import dataclasses

from of_jax.cost_model.accelerator import Accelerator

_MIB = 2 ** 20


@dataclasses.dataclass(frozen=True)
class Gpu(Accelerator):
  """A kind of GPU on its SXM board, with the figures that NVIDIA states, see Accelerator.

  A GB of memory is 10^9 bytes here. What the card has beyond it, a few GiB, is about what CUDA,
  cuDNN and NCCL keep for themselves.

  Attributes:
    tf32_flops: dense, a second; float32 is rounded to TF32 for matrix products, as XLA does unless
      told otherwise.
    nvlink_bandwidth: bytes a second that one GPU sends to others of its host: half of "total".
    network_bandwidth: bytes a second that the network card of one GPU sends.
    device_kind: its name to the driver, and so jax's `device_kind`.
    capability: major number of the compute capability; the minor one is 0.
    cores: streaming multiprocessors, with `lanes` of float32 each.
    clock_ghz: boost clock.
    l2_bytes: of the cache that all cores share.
    shared_bytes: of a core's shared memory. One thread block takes all but the KiB that CUDA
      reserves.
  """

  tf32_flops: float
  nvlink_bandwidth: float
  network_bandwidth: float
  device_kind: str
  capability: int
  cores: int
  lanes: int
  clock_ghz: float
  l2_bytes: int
  shared_bytes: int

  def matrix_seconds(self, flops: int, wide_flops: int) -> float:
    """Computes it as of an Accelerator: products of float32 at the peak of TF32."""
    return (flops - wide_flops) / self.flops + wide_flops / self.tf32_flops

  def send_seconds(self, sent: float, in_host: int, spans_hosts: bool) -> float:
    """Computes it as of an Accelerator, by NVLink or by the network.

    There are as many rings at once as a group has GPUs in a host. Each carries its share of the
    bytes, and leaves a host by the network card of another GPU.
    """
    network = in_host * self.network_bandwidth
    return sent / (min(self.nvlink_bandwidth, network) if spans_hosts else self.nvlink_bandwidth)

  def target(self) -> str:
    """Writes XLA's GpuTargetConfigProto of this GPU as text.

    The figures that are the same for all are limits of CUDA's programming model, in the table
    "Technical specifications per compute capability" of the CUDA C++ programming guide.
    """
    # Of 9.0 and 10.0 the instructions of the tensor cores are in the set named 9.0a and 10.0a.
    extension = "ACCELERATED_FEATURES" if self.capability >= 9 else "NONE"
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: {48 * 1024}
  shared_memory_per_core: {self.shared_bytes}
  shared_memory_per_block_optin: {self.shared_bytes - 1024}
  threads_per_core_limit: 2048
  core_count: {self.cores}
  fpus_per_core: {self.lanes}
  block_dim_limit_x: {2 ** 31 - 1}
  block_dim_limit_y: {2 ** 16 - 1}
  block_dim_limit_z: {2 ** 16 - 1}
  memory_bandwidth: {round(self.hbm_bandwidth)}
  l2_cache_size: {self.l2_bytes}
  clock_rate_ghz: {self.clock_ghz}
  device_memory_size: {self.hbm_bytes}
  cuda_compute_capability {{ major: {self.capability} feature_extension: {extension} }}
  registers_per_core_limit: {2 ** 16}
  registers_per_block_limit: {2 ** 16}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{self.device_kind}"
"""


# GPUs that NVLink joins in one host.
GPUS_PER_HOST = 8
# Hosts of the largest cluster that can be named here.
MOST_HOSTS = 512
GPUS = {
    # NVIDIA A100 Tensor Core GPU data sheet, SXM 80 GB: peaks, memory, NVLink. NVIDIA A100 Tensor
    # Core GPU Architecture (white paper): cores, clock, L2, shared memory. DGX A100 data sheet: a
    # network card of 200 Gb/s for each GPU.
    "a100": Gpu(
        device_kind="NVIDIA A100-SXM4-80GB", capability=8, flops=312e12, tf32_flops=156e12,
        hbm_bytes=80 * 10 ** 9, hbm_bandwidth=2039e9, nvlink_bandwidth=300e9,
        network_bandwidth=25e9, cores=108, lanes=64, clock_ghz=1.41, l2_bytes=40 * _MIB,
        shared_bytes=164 * 1024),
    # NVIDIA H100 Tensor Core GPU data sheet, SXM, without sparsity: peaks, memory, NVLink. NVIDIA
    # H100 Tensor Core GPU Architecture (white paper): cores, L2, shared memory, and the clock, at
    # which the tensor cores of 132 cores have that peak. DGX H100 data sheet: 400 Gb/s a GPU.
    "h100": Gpu(
        device_kind="NVIDIA H100 80GB HBM3", capability=9, flops=989e12, tf32_flops=494.5e12,
        hbm_bytes=80 * 10 ** 9, hbm_bandwidth=3350e9, nvlink_bandwidth=450e9,
        network_bandwidth=50e9, cores=132, lanes=128, clock_ghz=1.83, l2_bytes=50 * _MIB,
        shared_bytes=228 * 1024),
    # NVIDIA H200 Tensor Core GPU data sheet, SXM: an H100 with other memory. DGX H200 data sheet.
    "h200": Gpu(
        device_kind="NVIDIA H200", capability=9, flops=989e12, tf32_flops=494.5e12,
        hbm_bytes=141 * 10 ** 9, hbm_bandwidth=4800e9, nvlink_bandwidth=450e9,
        network_bandwidth=50e9, cores=132, lanes=128, clock_ghz=1.83, l2_bytes=50 * _MIB,
        shared_bytes=228 * 1024),
    # NVIDIA DGX B200 data sheet, an eighth of it: 1,440 GB, 64 TB/s, NVLink of 14.4 TB/s, 400 Gb/s
    # a GPU. NVIDIA HGX B200 (web page), dense: peaks. NVIDIA Blackwell tuning guide: L2 and shared
    # memory. The driver of the card: cores and clock, which NVIDIA's pages leave out.
    "b200": Gpu(
        device_kind="NVIDIA B200", capability=10, flops=2250e12, tf32_flops=1125e12,
        hbm_bytes=180 * 10 ** 9, hbm_bandwidth=8000e9, nvlink_bandwidth=900e9,
        network_bandwidth=50e9, cores=148, lanes=128, clock_ghz=1.965, l2_bytes=126 * _MIB,
        shared_bytes=228 * 1024),
}
