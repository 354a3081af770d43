"""Numbers of PyTorch models, for tests/interop. Writes foreign.npz beside this file.

Both sides draw the same weights from here, so that the file holds what the models compute alone:
for each form `logits`, and of the stream entering each block and of what the unembedding reads
the metrics of `stream_metrics`. It needs torch 2.13.0, transformers 5.24.0 and the file
simplified_transformers/model_utils.py of github.com/bobby-he/simplified_transformers at its last
commit, none of which of_jax uses: in an environment of its own, with NumPy,

  python tests/golden/foreign.py FOLDER_OF_THEIR_FILE [FORM ...]

Of given forms alone, the others stay; the folder is read for those that begin with `of_`.

Gains, offsets, windows, caps and eps are all such that a model without them gives other numbers.
"""

import json
import pathlib
import struct
import sys
import zlib
from typing import Any

import numpy as np

TOKENS = np.random.RandomState(0).randint(0, 40, (2, 12))
_VOCAB = 40

_OF = {"format": "simplified_transformers", "vocab_size": _VOCAB, "n_ctx": 12, "n_positions": 12,
       "n_layer": 3, "n_head": 4, "n_embd": 24, "n_inner": 48, "layer_norm_epsilon": 0.02,
       "norm_type": "rmsnorm", "norm_position": "pre", "qk_norm_type": "none",
       "dot_norm_type": "none", "parallel_layers": False, "activation_function": "leaky_relu",
       "lrelu_neg_slope": 0, "attn_block_resid_gain": 1, "attn_block_skip_gain": 1,
       "mlp_block_resid_gain": 1, "mlp_block_skip_gain": 1, "attn_mat_resid_gain": 1,
       "attn_mat_skip_gain": 0, "value_resid_gain": 1, "value_skip_gain": None,
       "first_layer_value_resid_gain": None, "proj_resid_gain": 1, "proj_skip_gain": None,
       "last_layer_proj_resid_gain": None, "centre_attn": False, "centre_attn_gain": 1,
       "trainable_attn_block_gains": False, "trainable_mlp_block_gains": False,
       "trainable_attn_mat_gains": False, "trainable_value_gains": False,
       "trainable_proj_gains": False, "val_proj_init_std": None, "query_init_std": None,
       "key_init_std": None, "val_init_type": "normal", "proj_init_type": "normal",
       "tie_valproj_init": None, "mlp_proj_init_std": None, "resid_pdrop": 0, "attn_pdrop": 0,
       "embd_pdrop": 0}
_OP = {**_OF, "norm_type": "none", "qk_norm_type": "rmsnorm", "attn_block_resid_gain": 0.2,
       "mlp_block_resid_gain": 0.2}
_COMMON = {"vocab_size": _VOCAB, "hidden_size": 32, "num_hidden_layers": 3,
           "num_attention_heads": 4, "intermediate_size": 48, "max_position_embeddings": 16}
_OPT = {"model_type": "opt", "vocab_size": _VOCAB, "hidden_size": 24, "num_hidden_layers": 3,
        "num_attention_heads": 4, "ffn_dim": 48, "max_position_embeddings": 12}
_NEOX = {**_COMMON, "model_type": "gpt_neox", "hidden_act": "gelu", "rotary_pct": 0.5,
         "rotary_emb_base": 300, "layer_norm_eps": 0.02}

# Form -> config.json. Rotary settings are spelled as older and as newer libraries do.
FORMS: dict[str, dict[str, Any]] = {
    "gpt2": {"model_type": "gpt2", "vocab_size": _VOCAB, "n_positions": 12, "n_embd": 24,
             "n_layer": 3, "n_head": 4, "n_inner": None, "activation_function": "gelu_new",
             "layer_norm_epsilon": 0.02},
    "opt": _OPT,
    "opt_350m": {**_OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 16},
    "gpt_neox": _NEOX,
    "gpt_neox_sequential": {**_NEOX, "use_parallel_residual": False, "attention_bias": False},
    "llama": {**_COMMON, "model_type": "llama", "num_key_value_heads": 2, "rms_norm_eps": 0.02,
              "rope_theta": 300.0, "attention_bias": True, "mlp_bias": True},
    "qwen3": {**_COMMON, "model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 12,
              "rms_norm_eps": 0.02, "tie_word_embeddings": True,
              "rope_parameters": {"rope_type": "default", "rope_theta": 300.0}},
    "llama_linear": {**_COMMON, "model_type": "llama", "num_key_value_heads": 2,
                     "rms_norm_eps": 0.02, "rope_theta": 300.0,
                     "rope_scaling": {"type": "linear", "factor": 2.5}},
    "llama_attention_bias": {**_COMMON, "model_type": "llama", "num_key_value_heads": 2,
                             "rms_norm_eps": 0.02, "rope_theta": 300.0, "attention_bias": True},
    "mistral": {**_COMMON, "model_type": "mistral", "num_key_value_heads": 2, "rms_norm_eps": 0.02,
                "rope_theta": 300.0, "sliding_window": 4},
    "qwen2": {**_COMMON, "model_type": "qwen2", "num_key_value_heads": 2, "rms_norm_eps": 0.02,
              "rope_theta": 300.0, "use_sliding_window": True, "sliding_window": 4,
              "max_window_layers": 0, "tie_word_embeddings": True},
    # Three of the four pairs of a head turn; the sequences are longer than the first length.
    "phi3": {**_COMMON, "model_type": "phi3", "num_key_value_heads": 2, "rms_norm_eps": 0.02,
             "rope_theta": 300.0, "partial_rotary_factor": 0.75, "pad_token_id": 0,
             "original_max_position_embeddings": 8, "rope_scaling": {
                 "type": "su", "short_factor": [1.0, 1.1, 1.2], "long_factor": [1.3, 2.0, 3.5],
                 "original_max_position_embeddings": 8}},
    "phi3_short": {**_COMMON, "model_type": "phi3", "num_key_value_heads": 4, "rms_norm_eps": 0.02,
                   "rope_theta": 300.0, "sliding_window": 4, "pad_token_id": 0,
                   "original_max_position_embeddings": 12, "rope_scaling": {
                       "type": "longrope", "short_factor": [1.0, 1.1, 1.2, 2.0],
                       "long_factor": [1.3, 2.0, 3.5, 4.0]}},
    "olmo": {**_COMMON, "model_type": "olmo", "num_key_value_heads": 2, "rope_theta": 300.0,
             "attention_bias": True, "clip_qkv": 0.4},
    "gemma": {**_COMMON, "model_type": "gemma", "num_key_value_heads": 1, "head_dim": 12,
              "rms_norm_eps": 0.02, "rope_theta": 300.0, "hidden_act": "gelu"},
    # The base inside the object, in each family that has one, and other kinds of stretching.
    "qwen3_inside": {**_COMMON, "model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 12,
                     "rms_norm_eps": 0.02, "use_sliding_window": True, "sliding_window": 4,
                     "max_window_layers": 0, "rope_theta": None,
                     "rope_scaling": {"rope_type": "default", "rope_theta": 300.0}},
    "gemma2_inside": {**_COMMON, "model_type": "gemma2", "num_key_value_heads": 2, "head_dim": 12,
                      "rms_norm_eps": 0.02, "query_pre_attn_scalar": 5, "sliding_window": 4,
                      "rope_scaling": {"rope_type": "linear", "factor": 2.5, "rope_theta": 300.0}},
    "olmo2_inside": {**_COMMON, "model_type": "olmo2", "num_key_value_heads": 2,
                     "rms_norm_eps": 0.02, "rope_theta": 9000.0,
                     "rope_scaling": {"type": "llama3", "rope_theta": 300.0, "factor": 8.0,
                                      "low_freq_factor": 0.2, "high_freq_factor": 1.0,
                                      "original_max_position_embeddings": 8}},
    "gpt_neox_inside": {**_COMMON, "model_type": "gpt_neox", "hidden_act": "gelu_fast",
                        "layer_norm_eps": 0.02, "rotary_pct": 1.0, "rotary_emb_base": 9000,
                        "rope_parameters": {"rope_type": "linear", "factor": 2.5,
                                            "rope_theta": 300.0, "partial_rotary_factor": 0.5}},
    "llama_yarn": {**_COMMON, "model_type": "llama", "num_key_value_heads": 2,
                   "rms_norm_eps": 0.02, "rope_scaling": {
                       "rope_type": "yarn", "rope_theta": 300.0, "factor": 4.0, "beta_fast": 1.5,
                       "beta_slow": 0.1, "mscale": 0.7, "mscale_all_dim": 1.4,
                       "original_max_position_embeddings": 8}},
    "mistral_yarn": {**_COMMON, "model_type": "mistral", "num_key_value_heads": 2,
                     "rms_norm_eps": 0.02, "rope_theta": 300.0, "sliding_window": None,
                     "rope_parameters": {
                         "type": "yarn", "factor": None, "attention_factor": 1.7,
                         "truncate": False, "original_max_position_embeddings": 8}},
    "qwen2_dynamic": {**_COMMON, "model_type": "qwen2", "num_key_value_heads": 2,
                      "rms_norm_eps": 0.02, "rope_theta": 300.0, "max_position_embeddings": 8,
                      "rope_scaling": {"type": "dynamic", "factor": 3.0}},
    # Of four pairs in a head of eight one stays, one is in between and two are slowed.
    "llama3": {**_COMMON, "model_type": "llama", "num_key_value_heads": 2, "rms_norm_eps": 0.02,
               "rope_theta": 300.0, "rope_scaling": {
                   "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 0.2,
                   "high_freq_factor": 1.0, "original_max_position_embeddings": 8}},
    "olmo2": {**_COMMON, "model_type": "olmo2", "num_key_value_heads": 2, "rms_norm_eps": 0.02,
              "rope_theta": 300.0},
    "gemma2": {**_COMMON, "model_type": "gemma2", "num_key_value_heads": 2, "head_dim": 12,
               "rms_norm_eps": 0.02, "query_pre_attn_scalar": 5, "sliding_window": 4,
               "attn_logit_softcapping": 2.0, "final_logit_softcapping": 10.0,
               "rope_theta": 300.0, "hidden_activation": "gelu_pytorch_tanh"},
    "of_pre_rmsnorm": _OF,
    "of_pre_ln": {**_OF, "norm_type": "ln", "activation_function": "gelu"},
    "of_post_ln": {**_OF, "norm_type": "ln", "norm_position": "post"},
    "of_parallel": {**_OF, "parallel_layers": True, "attn_block_skip_gain": 0},
    "of_op": _OP,
    "of_op_tanh": {**_OP, "qk_norm_type": "none", "dot_norm_type": "tanh",
                   "trainable_attn_block_gains": True, "trainable_mlp_block_gains": True},
    "of_pre_qk_norm": {**_OF, "qk_norm_type": "rmsnorm", "lrelu_neg_slope": 0.2},
}


def shapes(form: str) -> dict[str, tuple[int, ...]]:
  """Every tensor that the form's own code saves, without constants, by name."""
  config = FORMS[form]
  if config.get("format"):
    return _released_shapes(config)
  family: dict[str, Any] = {"gpt2": _gpt2_shapes, "opt": _opt_shapes, "gpt_neox": _neox_shapes}
  return family.get(config["model_type"], _llama_shapes)(config)


def _gpt2_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
  d = config["n_embd"]
  found = {"wte.weight": (_VOCAB, d), "wpe.weight": (config["n_positions"], d),
           "ln_f.weight": (d,), "ln_f.bias": (d,)}
  for i in range(config["n_layer"]):
    for name, shape in (("ln_1", (d,)), ("ln_2", (d,)), ("attn.c_attn", (d, 3 * d)),
                        ("attn.c_proj", (d, d)), ("mlp.c_fc", (d, 4 * d)),
                        ("mlp.c_proj", (4 * d, d))):
      found |= {f"h.{i}.{name}.weight": shape, f"h.{i}.{name}.bias": shape[-1:]}
  return {f"transformer.{name}": shape for name, shape in found.items()}


def _opt_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
  d, f = config["hidden_size"], config["ffn_dim"]
  e = config.get("word_embed_proj_dim", d)
  found: dict[str, tuple[int, ...]] = {
      "embed_tokens.weight": (_VOCAB, e),
      "embed_positions.weight": (config["max_position_embeddings"] + 2, d)}
  if e != d:
    found |= {"project_in.weight": (d, e), "project_out.weight": (e, d)}
  if config.get("do_layer_norm_before", True):
    found |= {"final_layer_norm.weight": (d,), "final_layer_norm.bias": (d,)}
  for i in range(config["num_hidden_layers"]):
    parts: dict[str, tuple[int, ...]] = {
        "self_attn_layer_norm": (d,), "final_layer_norm": (d,), "fc1": (f, d), "fc2": (d, f)}
    parts |= {f"self_attn.{x}_proj": (d, d) for x in ("q", "k", "v", "out")}
    for name, shape in parts.items():
      found |= {f"layers.{i}.{name}.weight": shape, f"layers.{i}.{name}.bias": shape[:1]}
  return {f"model.decoder.{name}": shape for name, shape in found.items()}


def _neox_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
  d, f = config["hidden_size"], config["intermediate_size"]
  found = {"embed_in.weight": (_VOCAB, d), "final_layer_norm.weight": (d,),
           "final_layer_norm.bias": (d,)}
  for i in range(config["num_hidden_layers"]):
    for name, shape in (
        ("input_layernorm", (d,)), ("post_attention_layernorm", (d,)),
        ("attention.query_key_value", (3 * d, d)), ("attention.dense", (d, d)),
        ("mlp.dense_h_to_4h", (f, d)), ("mlp.dense_4h_to_h", (d, f))):
      found[f"layers.{i}.{name}.weight"] = shape
      if config.get("attention_bias", True) or "attention." not in name:
        found[f"layers.{i}.{name}.bias"] = shape[:1]
  return {**{f"gpt_neox.{name}": shape for name, shape in found.items()},
          "embed_out.weight": (_VOCAB, d)}


def _llama_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
  d, f, kind = config["hidden_size"], config["intermediate_size"], config["model_type"]
  k = config.get("head_dim", d // config["num_attention_heads"])
  biased = {"qwen2": "q_proj k_proj v_proj"}.get(kind, "")
  q, kv = k * config["num_attention_heads"], k * config["num_key_value_heads"]
  found: dict[str, tuple[int, ...]] = {"embed_tokens.weight": (_VOCAB, d)}
  if kind != "olmo":
    found["norm.weight"] = (d,)
  norms = {"olmo": (), "olmo2": ("post_attention_layernorm", "post_feedforward_layernorm"),
           "gemma2": ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm",
                      "post_feedforward_layernorm")}
  over = {"qwen3": (k, k), "olmo2": (q, kv)}
  for i in range(config["num_hidden_layers"]):
    parts: dict[str, tuple[int, ...]] = {"self_attn.o_proj": (d, q), "mlp.down_proj": (d, f)}
    if kind == "phi3":
      parts |= {"self_attn.qkv_proj": (q + 2 * kv, d), "mlp.gate_up_proj": (2 * f, d)}
    else:
      parts |= {"self_attn.q_proj": (q, d), "self_attn.k_proj": (kv, d),
                "self_attn.v_proj": (kv, d), "mlp.gate_proj": (f, d), "mlp.up_proj": (f, d)}
    for name, shape in parts.items():
      found[f"layers.{i}.{name}.weight"] = shape
      if (config.get("attention_bias" if "attn" in name else "mlp_bias")
          or name.rpartition(".")[2] in biased.split()):
        found[f"layers.{i}.{name}.bias"] = shape[:1]
    for name in norms.get(kind, ("input_layernorm", "post_attention_layernorm")):
      found[f"layers.{i}.{name}.weight"] = (d,)
    if kind in over:
      found |= {f"layers.{i}.self_attn.{x}_norm.weight": (size,)
                for x, size in zip("qk", over[kind])}
  found = {f"model.{name}": shape for name, shape in found.items()}
  tied = config.get("tie_word_embeddings", kind in ("gemma", "gemma2"))
  return found if tied else {**found, "lm_head.weight": (_VOCAB, d)}


def _released_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
  d, f, heads = config["n_embd"], config["n_inner"], config["n_head"]
  found: dict[str, tuple[int, ...]] = {
      "wte.weight": (_VOCAB, d), "wpe.weight": (config["n_positions"], d),
      "ln_f.weight": (d,), "ln_f.bias": (d,)}
  for i in range(config["n_layer"]):
    parts: dict[str, tuple[int, ...]] = {
        "attn.qk_attn.weight": (d, 2 * d), "attn.qk_attn.bias": (2 * d,),
        "attn.v_attn.weight": (d, d), "attn.v_attn.bias": (d,), "attn.c_proj.weight": (d, d),
        "attn.c_proj.bias": (d,), "mlp.c_fc.weight": (d, f), "mlp.c_fc.bias": (f,),
        "mlp.c_proj.weight": (f, d), "mlp.c_proj.bias": (d,)}
    parts |= {f"{half}_block_{way}_gain": (1,) for half in ("attn", "mlp")
              for way in ("resid", "skip")}
    parts |= {f"attn.{name}_gain": (1, heads, 1, 1)
              for name in ("attn_mat_resid", "attn_mat_skip", "centre_attn")}
    if config["qk_norm_type"] == "rmsnorm":
      parts |= {f"attn.{x}_norm.scale": (d // heads,) for x in "qk"}
    for norm in ("ln_1", "ln_2"):
      kind = config["norm_type"]
      if kind == "none":
        kind = "ln" if i == 0 and norm == "ln_1" else kind
      if kind == "rmsnorm":
        parts[f"{norm}.scale"] = (d,)
      elif kind == "ln":
        parts |= {f"{norm}.weight": (d,), f"{norm}.bias": (d,)}
    found |= {f"h.{i}.{name}": shape for name, shape in parts.items()}
  return {f"transformer.{name}": shape for name, shape in found.items()}


def weights(form: str) -> dict[str, np.ndarray]:
  """The form's tensors, float32. Gains lie around 1, or around 0 where 1 is added to them."""
  drawn = {}
  for name, shape in shapes(form).items():
    # RandomState's numbers are the same in every version of NumPy.
    noise = np.random.RandomState(zlib.crc32(f"{form} {name}".encode())).randn(*shape)
    if len(shape) == 2:
      table = any(part in name for part in ("wte", "wpe", "embed", "lm_head"))
      value = noise * (0.5 if table else 1.5 / np.sqrt(min(shape)))
    elif name.endswith("resid_gain") and "block" in name and FORMS[form]["norm_type"] == "none":
      value = 0.2 + 0.05 * noise
    elif name.endswith((".scale", "_gain")) or "norm" in name and name.endswith(".weight") or (
        "ln_" in name and name.endswith(".weight")):
      value = 0.3 * noise + (not form.startswith("gemma"))
    elif form.startswith("of_") and "qk_attn" not in name and "ln_" not in name:
      value = 0 * noise  # The biases that their code keeps at zero.
    else:
      value = 0.3 * noise
    drawn[name] = value.astype(np.float32)
  return drawn


def stream_metrics(x_BxTxD: np.ndarray) -> np.ndarray:
  """kurtosis, kurtosis_no_first, rms and max_abs of one site of one layer."""
  x = x_BxTxD.astype(np.float64)
  squares, later = np.mean(x ** 2, (0, 1)), np.mean(x[:, 1:] ** 2, (0, 1))
  return np.array([np.mean(squares ** 2) / np.mean(squares) ** 2,
                   np.mean(later ** 2) / np.mean(later) ** 2,
                   np.sqrt(np.mean(squares)), np.abs(x).max()])


def safetensors(arrays: dict[str, np.ndarray], dtype: str = "F32") -> bytes:
  """A file of that format: float32 arrays as F32, F16 or BF16 (cut, not rounded)."""
  header, content = {}, b""
  for name, array in arrays.items():
    data = {"F32": lambda a: a.tobytes(), "F16": lambda a: a.astype("<f2").tobytes(),
            "BF16": lambda a: (a.view(np.uint32) >> 16).astype("<u2").tobytes()}[dtype](
                np.ascontiguousarray(array))
    header[name] = {"dtype": dtype, "shape": list(array.shape),
                    "data_offsets": [len(content), len(content) + len(data)]}
    content += data
  text = json.dumps(header).encode()
  return struct.pack("<Q", len(text)) + text + content


def save_folder(folder: pathlib.Path, form: str, dtype: str = "F32") -> pathlib.Path:
  """The form's folder, as its users have it."""
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "config.json").write_text(json.dumps(FORMS[form]))
  (folder / "model.safetensors").write_bytes(safetensors(weights(form), dtype))
  return folder


def _record(form: str, model: Any, blocks: Any, run: Any) -> dict[str, np.ndarray]:
  """Runs a PyTorch model that holds the form's weights, with hooks before blocks and head."""
  import torch
  seen: list[np.ndarray] = []

  def keep(module: Any, inputs: Any, keywords: Any) -> None:
    x = inputs[0] if inputs else keywords["hidden_states"]
    seen.append(stream_metrics(x.detach().reshape(*TOKENS.shape, -1).numpy()))

  for module in (*blocks, model.get_output_embeddings()):
    module.register_forward_pre_hook(keep, with_kwargs=True)
  with torch.no_grad():
    logits = run(torch.from_numpy(TOKENS))
  return {f"{form}/logits": logits.numpy(), f"{form}/stream": np.stack(seen)}


def _load_weights(form: str, model: Any) -> None:
  import torch
  state = {name: torch.from_numpy(array) for name, array in weights(form).items()}
  if FORMS[form].get("model_type") == "gpt_neox" and "lm_head.weight" in model.state_dict():
    state["lm_head.weight"] = state.pop("embed_out.weight")
  missing, unexpected = model.load_state_dict(state, strict=False)
  assert not unexpected and set(missing) <= {"lm_head.weight"}, (form, missing, unexpected)
  if missing:
    model.tie_weights()
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight, form


def _hugging_face(form: str) -> dict[str, np.ndarray]:
  from transformers import AutoConfig, AutoModelForCausalLM
  config = AutoConfig.for_model(**FORMS[form])
  model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
  _load_weights(form, model)
  body = model.base_model
  body = getattr(body, "decoder", body)
  blocks = body.h if hasattr(body, "h") else body.layers
  return _record(form, model, blocks, lambda tokens: model(tokens, use_cache=False).logits)


def _released(form: str) -> dict[str, np.ndarray]:
  from model_utils import convertGPT2model
  from transformers import GPT2Config, GPT2LMHeadModel
  config = GPT2Config(**{k: v for k, v in FORMS[form].items() if k != "format"})
  model = convertGPT2model(GPT2LMHeadModel(config), config).float().eval()
  _load_weights(form, model)
  body = model.transformer

  def run(tokens: Any) -> Any:
    import torch

    # What GPT2Model.forward does around the blocks; its own call no longer fits their blocks.
    x = body.wte(tokens) + body.wpe(torch.arange(tokens.shape[1]))
    for block in body.h:
      x = block(x)[0]
    return model.lm_head(body.ln_f(x))

  return _record(form, model, body.h, run)


def main() -> None:
  sys.path.insert(0, sys.argv[1])
  path, chosen = pathlib.Path(__file__).with_suffix(".npz"), sys.argv[2:]
  record: dict[str, np.ndarray] = dict(np.load(path)) if chosen else {}
  for form in chosen or FORMS:
    config = FORMS[form]
    record |= _released(form) if config.get("format") else _hugging_face(form)
    print(form, np.abs(record[f"{form}/logits"]).max(), record[f"{form}/stream"][:, 0])
  np.savez_compressed(path, **record)


if __name__ == "__main__":
  main()
