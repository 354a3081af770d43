"""PyTorch's loss and stream over windows of a text, with and without the begin token, for
tests/fidelity/windows.py. Writes windows.json.

It needs PyTorch 2.13 and transformers 5.24, and begins at the project's root:

  python -m tests.golden.windows

Each of MODELS is a form of foreign.py with a tokenizer of special_tokens.py. The text becomes the
tokens that transformers' tokenizer makes of it, and its end token; they are cut into windows of
LENGTH, and the token behind each is its last target. `auto` is what the tokenizer does.
"""

import json
import pathlib
import random
import tempfile
from typing import Any

import numpy as np

from tests.golden import foreign, special_tokens

MODELS = {"llama": "both", "opt": "opt", "gpt2": "gpt2", "gemma2": "sentencepiece",
          "qwen3": "misleading"}
LENGTH = 7
TEXT = "".join(random.Random(3).choices("abcdefnto   ", k=201))


def save_folder(folder: pathlib.Path, form: str) -> pathlib.Path:
  """The form's model, with a tokenizer and the special tokens that this names."""
  special_tokens.save(folder, MODELS[form])
  ids = json.loads((folder / "config.json").read_text())
  foreign.save_folder(folder, form)
  config = foreign.FORMS[form] | {key: ids[key] for key in ("bos_token_id", "eos_token_id")}
  (folder / "config.json").write_text(json.dumps(config))
  return folder


def _measured(model: Any, inputs: np.ndarray, predictions: slice, targets: np.ndarray
              ) -> dict[str, Any]:
  import torch
  body = model.base_model
  body = getattr(body, "decoder", body)
  seen: list[np.ndarray] = []

  def keep(module: Any, given: Any, keywords: Any) -> None:
    x = (given[0] if given else keywords["hidden_states"]).detach()
    seen.append(foreign.stream_metrics(x.reshape(*inputs.shape, -1).numpy()))

  hooks = [block.register_forward_pre_hook(keep, with_kwargs=True)
           for block in (body.h if hasattr(body, "h") else body.layers)]
  with torch.no_grad():
    logits = model(torch.from_numpy(inputs), use_cache=False).logits[:, predictions].double()
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1),
                                             torch.from_numpy(targets).flatten())
  for hook in hooks:
    hook.remove()
  return {"loss": float(loss), "predictions": targets.size, "tokens": inputs.size,
          "kurtosis": [float(one[0]) for one in seen], "max_abs": [float(one[3]) for one in seen]}


def main() -> None:
  from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
  record: dict[str, Any] = {}
  for form in MODELS:
    config = AutoConfig.for_model(**foreign.FORMS[form])
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    foreign._load_weights(form, model)
    with tempfile.TemporaryDirectory() as temporary:
      tokenizer = AutoTokenizer.from_pretrained(save_folder(pathlib.Path(temporary), form))
    plain = tokenizer.encode(TEXT, add_special_tokens=False)
    stream = np.array([*plain, tokenizer.eos_token_id])
    count = (len(stream) - 1) // LENGTH
    windows = np.stack([stream[LENGTH * i:LENGTH * (i + 1) + 1] for i in range(count)])
    inputs, targets = windows[:, :-1].copy(), windows[:, 1:].copy()
    begun = np.pad(inputs, ((0, 0), (1, 0)), constant_values=tokenizer.bos_token_id)
    record[form] = {
        "begins": tokenizer.encode(TEXT)[0] == tokenizer.bos_token_id
        and len(tokenizer.encode(TEXT)) > len(plain),
        "begin": tokenizer.bos_token_id,
        "no": _measured(model, inputs, slice(None), targets),
        "yes": _measured(model, begun, slice(1, None), targets),
        # Each by itself: what follows its last token is not known.
        "given": _measured(model, inputs, slice(None, -1), targets[:, :-1])}
    print(form, record[form])
  pathlib.Path(__file__).with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
  main()
