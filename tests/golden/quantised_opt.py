"""Numbers of Bondarenko et al.'s quantised OPT, for tests/quantise. Writes quantised_opt.npz beside
this file.

Both sides draw the same weights from here, so that the file holds tokens, what the model loses, and
of each quantiser the range, the step and the whole numbers that it gives. It needs their repository
(github.com/Qualcomm-AI-research/outlier-free-transformers at commit 1e59744), and torch 2.13.0,
transformers 4.31.0, SciPy and NumPy 2.4 in an environment of its own:

  python tests/golden/quantised_opt.py FOLDER_OF_THEIR_REPOSITORY

Of timm, which their code imports for a nonlinearity that no OPT has, an empty stand-in is enough.
Their script's settings are those of its README for OPT under `fp32_head`, at three pairs of bits.
"""

import pathlib
import sys
import types
import zlib
from typing import Any

import numpy as np

WIDTH, HEADS, LAYERS, HIDDEN, VOCAB, LENGTH = 32, 4, 2, 64, 48, 24
CONFIG = {"model_type": "opt", "vocab_size": VOCAB, "hidden_size": WIDTH,
          "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "ffn_dim": HIDDEN,
          "max_position_embeddings": LENGTH, "word_embed_proj_dim": WIDTH, "dropout": 0.0}
# Model -> what its gains' outlier is, whether norms stand in front of the branches, and the seed of
# the windows. With seed 0 a tie in the first, that the last bits of a float32 decide, is broken the
# other way by our products, and changes the ranges of what follows.
MODELS = {"plain": (1.0, True, 1), "outlier": (25.0, True, 0), "post": (1.0, False, 0)}
BITS = {"W8A8": (8, 8), "W4A8": (4, 8), "W6A6": (6, 6)}
# A neuron whose gain is large in every norm that a linear map reads.
NEURON = 5


def config(model: str) -> dict[str, Any]:
  """Returns the config.json of a model."""
  return {**CONFIG, "do_layer_norm_before": MODELS[model][1]}


def weights(model: str) -> dict[str, np.ndarray]:
  """Draws every tensor of a model, by the name that it has in their checkpoints."""
  outlier, before, _ = MODELS[model]

  def draw(name: str, shape: tuple[int, ...], std: float, mean: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    return (mean + std * rng.standard_normal(shape)).astype(np.float32)

  found = {"embed_tokens.weight": draw("tokens", (VOCAB, WIDTH), 0.6),
           # The first two rows are for padding. No position reads them: small, they decide nothing.
           "embed_positions.weight": np.concatenate([
               np.zeros((2, WIDTH), np.float32), draw("positions", (LENGTH, WIDTH), 0.3)])}
  norms = ["final_layer_norm"] if before else []
  for i in range(LAYERS):
    at = f"layers.{i}"
    norms += [f"{at}.self_attn_layer_norm", f"{at}.final_layer_norm"]
    for part, shape in (("self_attn.q_proj", (WIDTH, WIDTH)), ("self_attn.k_proj", (WIDTH, WIDTH)),
                        ("self_attn.v_proj", (WIDTH, WIDTH)),
                        ("self_attn.out_proj", (WIDTH, WIDTH)), ("fc1", (HIDDEN, WIDTH)),
                        ("fc2", (WIDTH, HIDDEN))):
      found[f"{at}.{part}.weight"] = draw(f"{at}.{part}", shape, 1.5 * shape[1] ** -0.5)
      found[f"{at}.{part}.bias"] = draw(f"{at}.{part}.bias", shape[:1], 0.1)
  for name in norms:
    found[f"{name}.weight"] = draw(name, (WIDTH,), 0.1, 1.0)
    found[f"{name}.bias"] = draw(f"{name}.bias", (WIDTH,), 0.1)
  for i in range(LAYERS) if outlier != 1 else ():
    for norm, readers in (("self_attn_layer_norm", ("q", "k", "v")), ("final_layer_norm", ())):
      for kind in ("weight", "bias"):
        found[f"layers.{i}.{norm}.{kind}"][NEURON] *= outlier
      for reader in [f"self_attn.{x}_proj" for x in readers] or ["fc1"]:
        found[f"layers.{i}.{reader}.weight"][:, NEURON] /= outlier
  return {f"model.decoder.{name}": value for name, value in found.items()}


def _site(name: str, before: bool) -> tuple[str, int]:
  """Returns our site and the layer from 0 of one of their quantisers of activations."""
  parts = name.removeprefix("model.decoder.").split(".")
  if parts[0] != "layers":
    return {"embed_sum_act_quantizer": "resid_pre", "final_layer_norm": "final"}[parts[0]], 0
  layer, own = int(parts[1]), parts[-1]
  leaving = ("resid_pre", layer + 1) if layer + 1 < LAYERS else ("resid_post", 0)
  site = {
      "attn_scores_act_quantizer": "attn_scores", "attn_probs_act_quantizer": "attn_weights",
      "context_act_quantizer": "attn_context", "q_proj": "attn_q", "k_proj": "attn_k",
      "v_proj": "attn_v", "out_proj": "attn_out", "fc1_act": "mlp_hidden", "fc2": "mlp_out",
      "self_attn_layer_norm": "attn_in" if before else "resid_mid",
      "self_attn_res_act_quantizer": "resid_mid" if before else "attn_sum",
      "final_layer_norm": "mlp_in" if before else "", "ffn_res_act_quantizer": (
          "" if before else "mlp_sum")}[own]
  return (site, layer) if site else leaving


def _model(model: str) -> Any:
  """Builds their OPT, with their attention, as their validation script does."""
  import torch
  from transformers import OPTConfig, OPTForCausalLM
  from transformers_language.models.bert_attention import AttentionGateType
  from transformers_language.models.opt_attention import OPTAttentionWithExtras
  settings = OPTConfig(**{k: v for k, v in config(model).items() if k != "model_type"})
  built = OPTForCausalLM(settings).eval()
  drawn = {name: torch.tensor(value) for name, value in weights(model).items()}
  missing, unknown = built.load_state_dict(drawn, strict=False)
  assert missing == ["lm_head.weight"] and not unknown, (missing, unknown)
  for layer in built.model.decoder.layers:
    theirs = OPTAttentionWithExtras(WIDTH, HEADS, is_decoder=True,
                                    attn_gate_type=AttentionGateType.none)
    theirs.load_state_dict(layer.self_attn.state_dict(), strict=False)
    layer.self_attn = theirs
  return built.eval()


def _sampled(model: Any, seed: int) -> np.ndarray:
  """Draws windows from the model itself, so that it predicts them as well as it can."""
  import torch
  generator = torch.Generator().manual_seed(seed)
  tokens = torch.randint(0, VOCAB, (24, 1), generator=generator)
  with torch.no_grad():
    for _ in range(LENGTH - 1):
      chances = torch.softmax(model(input_ids=tokens).logits[:, -1], -1)
      tokens = torch.cat([tokens, torch.multinomial(chances, 1, generator=generator)], 1)
  return tokens.numpy()


def _loss(model: Any, tokens: np.ndarray) -> float:
  import torch
  with torch.no_grad():
    losses = [float(model(input_ids=torch.tensor(row[None]), labels=torch.tensor(row[None])).loss)
              for row in tokens]
  return float(np.mean(losses))


def _quantised(model: Any, weight_bits: int, activation_bits: int, tokens: np.ndarray) -> Any:
  """Quantises as their validation script does with --quant_setup fp32_head."""
  import torch
  from quantization.range_estimators import OptMethod, RangeEstimators
  from transformers_language.models.quantized_opt import QuantizedOPTForCausalLM
  from transformers_language.quant_configs import get_quant_config
  from transformers_language.utils import pass_data_for_range_estimation, val_qparams
  settings = get_quant_config()
  settings.act_quant.num_batches = 4
  settings.quant.n_bits, settings.quant.n_bits_act = weight_bits, activation_bits
  settings.quant.quant_setup = "fp32_head"
  settings.quant.weight_quant_method = RangeEstimators.MSE
  settings.quant.weight_opt_method = OptMethod.grid
  settings.act_quant.options["percentile"] = 99.999
  settings.act_quant.quant_method = RangeEstimators.running_minmax
  built = QuantizedOPTForCausalLM(model, **{**val_qparams(settings), "quant_dict": {}})
  built.set_quant_state(weight_quant=True, act_quant=True)
  pass_data_for_range_estimation([{"input_ids": torch.tensor(rows)} for rows in
                                  tokens.reshape(4, -1, LENGTH)], built, True, 4)
  built.fix_ranges()
  built.set_quant_state(weight_quant=True, act_quant=True)
  return built.eval()


def _record(model: Any, tokens: np.ndarray, before: bool) -> dict[str, np.ndarray]:
  """Records ranges, steps, and the whole numbers for one window."""
  import torch
  from quantization.quantization_manager import QuantizationManager
  found: dict[str, np.ndarray] = {}

  def record(key: str, manager: Any, of_weights: bool) -> Any:
    def keep(module: Any, inputs: Any, output: Any) -> None:
      whole = manager.quantizer.to_integer_forward(inputs[0])
      found[f"{key}/codes"] = whole.numpy().astype(np.int16)
      if not of_weights:
        ends = (manager.range_estimator.current_xmin, manager.range_estimator.current_xmax)
        found[f"{key}/range"] = np.asarray([float(end) for end in ends])
      found[f"{key}/step"] = np.asarray(float(manager.quantizer.scale))

    return keep

  for name, module in model.named_modules():
    if isinstance(module, QuantizationManager):
      if name.endswith("weight_quantizer"):
        key = name.removeprefix("model.decoder.").removesuffix(".weight_quantizer")
      else:
        site, layer = _site(name.removesuffix(".activation_quantizer"), before)
        key = f"{site}/{layer}"
      module.register_forward_hook(record(key, module, name.endswith("weight_quantizer")))
  # Weights are rounded again then, which were kept.
  model.set_quant_state(weight_quant=True, act_quant=True)
  with torch.no_grad():
    model(input_ids=torch.tensor(tokens[:1]))
  return found


def _import_theirs(folder: str) -> None:
  """Imports what they have of enums and of timm, as Python 3.11 and no timm need it."""
  import enum

  import torch
  import transformers  # noqa: F401  (First, for it looks for timm itself.)
  sys.path.insert(0, folder)
  for name in ("timm", "timm.models", "timm.models.layers", "timm.models.layers.activations_me"):
    sys.modules[name] = types.ModuleType(name)
  for name, of in (("Swish", "layers"), ("SwishMe", "layers.activations_me")):
    setattr(sys.modules[f"timm.models.{of}"], name, type(name, (torch.nn.Module,), {}))
  # Their flags hold tuples, which newer flags may not; no two are ever combined.
  import quantization.utils as theirs

  class Options(enum.Enum):
    cls = property(lambda option: option.value.cls)

  theirs.BaseEnumOptions = theirs.ClassEnumOptions = Options


def main() -> None:
  import torch
  torch.set_num_threads(1)
  _import_theirs(sys.argv[1])
  found: dict[str, np.ndarray] = {}
  for name, (_, before, seed) in MODELS.items():
    tokens = _sampled(_model(name), seed)
    calibration, evaluation = tokens[:16], tokens[16:]
    plain = _loss(_model(name), evaluation)
    found |= {f"{name}/tokens": tokens.astype(np.int16), f"{name}/loss": np.asarray(plain)}
    for label, bits in BITS.items():
      quantised = _quantised(_model(name), *bits, calibration)
      loss = _loss(quantised, evaluation)
      print(f"{name} {label}: loses {loss - plain:.4f} nats a token")
      recorded = {"loss": np.asarray(loss), **_record(quantised, evaluation, before)}
      found |= {f"{name}/{label}/{key}": value for key, value in recorded.items()}
  np.savez_compressed(pathlib.Path(__file__).with_suffix(".npz"), **found)  # type: ignore


if __name__ == "__main__":
  main()
