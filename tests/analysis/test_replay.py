"""Checkpoints of a sharded run, restored on one device: numbers, digests, interventions."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import of_jax
from of_jax import config as config_lib
from of_jax.analysis import evaluation, interventions, replay
from of_jax.analysis.interventions import Intervention
from of_jax.errors import UserError
from of_jax.storage import checkpoint, run_directory
from of_jax.storage.digest import digest
from of_jax.train import train

pytestmark = pytest.mark.xdist_group("replay")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(token_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
  """Three steps on eight devices, with dropout and two micro-batches."""
  fields = {"model.width": 32, "model.depth": 2, "model.heads": 4, "model.embedding_scale": 8,
            "model.final_norm": "true", "model.dropout": 0.1, "train.steps": 3,
            "train.batch_size": 8, "train.sequence_length": 16, "train.grad_accumulation": 2,
            "train.eval_every": 3, "train.checkpoint_every": 3, "train.tensorboard": "false",
            "data.corpus": f"tokens:{token_file}", "data.vocab_size": 64,
            "data.eval_sequences": 16, "optim.warmup_steps": 0, "mesh.data": 2, "mesh.fsdp": 2,
            "mesh.tensor": 2}
  config = config_lib.apply_overrides(
      config_lib.Config(), [(path, str(value)) for path, value in fields.items()])
  workdir = tmp_path_factory.mktemp("replay") / "run"
  train(config, workdir, lambda line: None)
  return workdir


def records(run: Path, split: str) -> list[dict[str, Any]]:
  return [r for r in run_directory.read_lines(run / "metrics.jsonl") if r["split"] == split]


def agrees(found: dict[str, Any], logged: dict[str, Any]) -> None:
  np.testing.assert_allclose(found["loss"], logged["loss"], rtol=1e-5)
  for site, metrics in logged["telemetry"].items():
    assert metrics
    for metric, values in metrics.items():
      np.testing.assert_allclose(found["telemetry"][site][metric], values, rtol=1e-5, atol=1e-6,
                                 err_msg=f"{site} {metric}")


def test_every_checkpoint_gives_what_training_logged(run: Path) -> None:
  """Of the very batch of the next step, dropout and micro-batches included; of the evaluation."""
  logged = records(run, "train")
  assert [r["step"] for r in logged] == [1, 2, 3]
  sites = tuple(logged[0]["telemetry"])
  metrics = tuple(logged[0]["telemetry"]["final"])
  for step in (0, 1, 2):
    model = of_jax.analysis.restore(run, step)
    assert model.step == step and model.is_verified and len(model.digest) % 8 == 0
    agrees(model.measure(model.training_batch(), sites, metrics), logged[step])
  last = of_jax.analysis.restore(run)
  assert last.step == 3
  assert {d for leaf in jax.tree.leaves(last.params) for d in leaf.devices()} == {jax.devices()[0]}
  agrees(last.measure(last.batches(), sites, metrics), records(run, "eval")[-1])
  assert last.digest != of_jax.analysis.restore(run, 2).digest


def test_logits_and_loss(run: Path) -> None:
  """The loss of `measure` is the cross-entropy of `logits`, in NumPy float64."""
  model = replay.restore(run)
  batch = model.batches(count=1)[0]
  logits = np.asarray(model.logits(batch["inputs"]), np.float64)
  shifted = logits - logits.max(-1, keepdims=True)
  log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
  loss = -np.take_along_axis(log_p, batch["targets"][..., None].astype(int), -1).mean()
  found = model.measure([batch], ("final",), ("rms",))
  assert found["loss"] == pytest.approx(loss, rel=1e-5)
  assert found["perplexity"] == pytest.approx(np.exp(loss), rel=1e-4)
  assert found["num_tokens"] == batch["inputs"].size


def plain_digest(x: np.ndarray) -> int:
  """As the docstring of of_jax.storage.digest says, one entry after the other."""
  total = 0
  for i, bits in enumerate(x.ravel().view(np.uint32).tolist()):
    bits = (bits + 0x9E3779B9 * i) % 2 ** 32
    bits = (bits ^ bits >> 16) * 0x85EBCA6B % 2 ** 32
    bits = (bits ^ bits >> 13) * 0xC2B2AE35 % 2 ** 32
    total = (total + (bits ^ bits >> 16)) % 2 ** 32
  return total


def test_digest() -> None:
  rng = np.random.default_rng(0)
  tree = {"a": rng.standard_normal((3, 5, 2)).astype(np.float32), "b": np.zeros((), np.float32)}
  found = digest(tree, 7)
  assert int(found["step"]) == 7
  assert found["params"].tolist() == [plain_digest(tree["a"]), plain_digest(tree["b"])]
  swapped = {**tree, "a": tree["a"][::-1].copy()}
  nudged = {**tree, "a": tree["a"] * np.float32(1 + 2 ** -23)}
  for other in (swapped, nudged):
    assert digest(other, 7)["params"][0] != found["params"][0]


def test_a_checkpoint_that_is_not_what_it_says(run: Path, tmp_path: Path,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
  model = replay.restore(run, 2)
  (tmp_path / "other").mkdir()
  shutil.copy(run / "config.json", tmp_path / "other")
  wrong = {"other step": lambda params, _, step, run: digest(params, step - 1),
           "other parameters": lambda params, _, step, run: digest(
               jax.tree.map(lambda leaf: leaf + 1, params), step)}
  state = {"params": model.params, "opt_state": {"count": jnp.zeros(())}}
  with checkpoint.Checkpoints(tmp_path / "other") as checkpoints:
    for step, of in enumerate(wrong.values(), 2):
      with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "digest_of_state", of)
        checkpoints.save(state, step)
  with pytest.raises(UserError, match="step 2 was written at step 1"):
    replay.restore(tmp_path / "other", 2)
  with pytest.raises(UserError, match="step 3 do not have the digest"):
    replay.restore(tmp_path / "other", 3)
  with pytest.raises(UserError, match="no checkpoint at step 5; there are 0, 1, 2, 3"):
    replay.restore(run, 5)
  config = json.loads((run / "config.json").read_text())
  config["model"]["mlp_width"] = 64
  (tmp_path / "other" / "config.json").write_text(json.dumps(config))
  with pytest.raises(UserError, match=r"mlp/down/kernel of step 2 is .*128.* makes it .*64"):
    replay.restore(tmp_path / "other", 2)


def test_batches_of_tokens(run: Path, token_file: Path) -> None:
  model = replay.restore(run)
  tokens = np.load(token_file)
  # The run's validation tokens, given as a file, are its evaluation set where all is read.
  windows = 16
  held_out = tokens[-len(tokens) // 20:][:windows * 16 + 1]
  batches = replay.token_batches(model.config, held_out, "--tokens=x")
  assert [b["inputs"].shape for b in batches] == [(8, 16)] * 2
  rows = np.concatenate([b["inputs"] for b in batches])
  targets = np.concatenate([b["targets"] for b in batches])
  np.testing.assert_array_equal(rows.ravel(), held_out[:-1])
  np.testing.assert_array_equal(targets.ravel(), held_out[1:])
  # The same windows row by row; three of them fill a batch of three.
  given = np.stack([held_out[16 * i:16 * i + 17] for i in range(3)])
  few, = replay.token_batches(model.config, given, "--tokens=x")
  np.testing.assert_array_equal(few["inputs"], rows[:3])
  np.testing.assert_array_equal(few["targets"], targets[:3])
  padded = replay.token_batches(model.config, held_out[:16 * 9 + 1], "--tokens=x")
  assert [b["weights"].sum() for b in padded] == [128, 16]
  for bad, message in ((np.zeros((0, 9), int), r"holds no windows: it is of shape \(0, 9\)"),
                       (np.zeros(1, int), "windows of 1 tokens; they have 2 to 16"),
                       (np.full(40, 64), r"token 64 is not in \[0, 64\)"),
                       (np.full(40, -1), "token -1"), (np.zeros(40), "holds float64"),
                       (np.zeros((2, 18), int), "windows of 18 tokens; they have 2 to 16")):
    with pytest.raises(UserError, match=message):
      replay.token_batches(model.config, bad, "--tokens=x")


@pytest.mark.parametrize("form", ("windows", "a stream of whole windows", "a short stream"))
def test_every_token_that_is_given_is_measured(run: Path, form: str) -> None:
  """Activations of all tokens and the loss of those that another follows, in NumPy's float64."""
  model = replay.restore(run)
  tokens = np.random.default_rng(1).integers(0, 64, (5, 16))
  given = {"windows": tokens[:, :12], "a stream of whole windows": tokens.ravel(),
           "a short stream": tokens[0, :9]}[form]
  batches = replay.token_batches(model.config, given, "--tokens=x")
  found = model.measure(batches, ("final",), ("kurtosis", "rms"))
  assert found["num_tokens_measured"] == given.size
  rows = given.reshape(-1, min(16, given.shape[-1]))
  predicted = given.size - (len(rows) if form == "windows" else 1)
  assert found["num_tokens"] == predicted
  nats, x = [], []
  for row, behind in zip(rows, [*rows[1:, :1], rows[:0, 0]]):
    logits = np.asarray(model.logits(row[None]), np.float64)[0]
    followed = row[1:] if form == "windows" else np.append(row[1:], behind)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    nats += [-log_p[i, token] for i, token in enumerate(followed)]
    kept, = [kept for _, kept in evaluation.observed(model, [{
        "inputs": row[None].astype(np.int32), "weights": np.ones((1, len(row)), np.float32)}],
        _keep_final)]
    x.append(np.asarray(kept["final"]["x"], np.float64)[0])
  assert len(nats) == predicted and found["loss"] == pytest.approx(np.mean(nats), rel=1e-5)
  square = np.square(np.concatenate(x)).mean(0)
  measured = found["telemetry"]["final"]
  expected = (square ** 2).mean() / square.mean() ** 2
  assert measured["kurtosis"][0] == pytest.approx(expected, rel=1e-5)
  assert measured["rms"][0] == pytest.approx(np.sqrt(square.mean()), rel=1e-5)


def _keep_final(weights: jax.Array) -> Any:
  return lambda site, x, first: {"x": x[0]} if site == "final" else None


def test_the_begin_token_comes_in_front(run: Path) -> None:
  """The same tokens are predicted, from one more; neurons' means take it in."""
  model = replay.restore(run)
  tokens = np.random.default_rng(1).integers(0, 64, (3, 12))
  plain = replay.token_batches(model.config, tokens, "--tokens=x")
  begun, = replay.begin_windows(plain, 7)
  np.testing.assert_array_equal(begun["inputs"][:, 1:], plain[0]["inputs"])
  assert (begun["inputs"][:, 0] == 7).all() and (begun["weights"][:, 0] == 0).all()
  np.testing.assert_array_equal(begun["targets"][:, 1:], plain[0]["targets"])
  np.testing.assert_array_equal(begun["targets"][:, :-1], tokens)
  assert begun["weights"].sum() == 3 * 11 and begun["measured"].sum() == 3 * 13
  by_hand = replay.token_batches(model.config, np.pad(tokens, ((0, 0), (1, 0)),
                                                      constant_values=7), "--tokens=x")
  for ours, theirs in zip(evaluation.neuron_moments(model, [begun], "final"),
                          evaluation.neuron_moments(model, by_hand, "final")):
    np.testing.assert_array_equal(ours, theirs)


def test_what_interventions_do_to_an_array() -> None:
  """Against NumPy float64: at the layer that is named, at the neurons that are, and nowhere else.
  """
  x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 8)), jnp.float32)
  mean = np.array([[1.5, -2], [0.25, 4]], np.float32)
  chosen, wide = [1, 6], np.asarray(x, np.float64)
  sylvester = np.array([[1, 1], [1, -1]]) / np.sqrt(2)
  expected = {
      "zero": np.zeros((2, 3, 2)), "mean": np.broadcast_to(mean[1], (2, 3, 2)),
      "clip": np.clip(wide[..., chosen], -0.5, 0.5),
      "rotate": wide[..., chosen] @ sylvester}
  for kind, value in expected.items():
    one = Intervention(kind, "mlp_in", (1, 6), 1, 0.5 if kind == "clip" else None)
    change = interventions.apply([one], [mean if kind == "mean" else None])
    got = np.asarray(jax.jit(lambda a, layer: change("mlp_in", a, layer))(x, 2))
    np.testing.assert_allclose(got[..., chosen], value, rtol=1e-6, atol=1e-7, err_msg=kind)
    rest = [j for j in range(8) if j not in chosen]
    np.testing.assert_array_equal(got[..., rest], wide[..., rest])
    np.testing.assert_array_equal(change("mlp_in", x, 1), x, err_msg=f"{kind} at another layer")
    np.testing.assert_array_equal(change("mlp_out", x, 2), x, err_msg=f"{kind} at another site")
  matrix = interventions.hadamard(12)
  np.testing.assert_allclose(matrix @ matrix, np.eye(12), atol=1e-12)
  assert set(np.unique(np.abs(matrix)).tolist()) == {0, 0.5}, "three blocks of four"


def test_interventions_in_a_model(run: Path) -> None:
  """Each against the same change made another way."""
  model = replay.restore(run)
  batches = model.batches(count=1)
  watched = ("mlp_hidden", "mlp_out", "final"), ("rms",)
  plain = model.measure(batches, *watched)

  def after(*changes: Intervention, **fields: Any) -> dict[str, Any]:
    changed = fields.get("model", model)
    return evaluation.measure(changed, batches, *watched, (), changes,
                              evaluation.references(model, batches, changes))

  # No hidden unit of the second block, or a down projection of zeros.
  found = after(Intervention("zero", "mlp_hidden", tuple(range(128)), 1))
  without = jax.tree.map(lambda leaf: leaf, model.params)
  kernel = without["stacks"]["0"]["mlp"]["down"]["kernel"]
  without["stacks"]["0"]["mlp"]["down"]["kernel"] = kernel.at[1].set(0)
  cut = dataclasses.replace(model, params=without).measure(batches, *watched)
  assert found["loss"] == pytest.approx(cut["loss"], rel=1e-6) != plain["loss"]
  rms = found["telemetry"]["mlp_out"]["rms"]
  assert rms[1] == 0
  assert rms[0] == pytest.approx(plain["telemetry"]["mlp_out"]["rms"][0], rel=1e-6) != 0
  # Every token predicts alike where what the unembedding reads is its mean: NumPy float64.
  h = np.concatenate([kept["final"]["all"][0] for _, kept in evaluation.observed(
      model, batches, _Keep())]).astype(np.float64)
  mean = h.mean((0, 1))
  logits = mean @ np.asarray(model.params["unembedding"]["kernel"], np.float64)
  log_p = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
  expected = -log_p[batches[0]["targets"]].mean()
  assert after(Intervention("mean", "final", tuple(range(32))))["loss"] == pytest.approx(
      expected, rel=1e-5)
  moments = evaluation.neuron_moments(model, batches, "final")
  np.testing.assert_allclose(moments[0][0], mean, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(moments[1][0], (h ** 2).mean((0, 1)), rtol=1e-5)
  top = evaluation.top_neurons(model, batches, "final", 0, 3)
  assert list(top) == np.argsort(-(h ** 2).mean((0, 1)))[:3].tolist()
  for changes, message in (
      ((Intervention("zero", "final", (32,)),), "neuron 32; there are 0 to 31"),
      ((Intervention("zero", "resid_pre", (1,), 2),), "layer 2; its layers are 0 to 1"),
      ((Intervention("rotate", "final", (1, 2, 3)),), "needs an even number")):
    with pytest.raises(UserError, match=message):
      after(*changes)


class _Keep:
  """Keeps what the unembedding reads; of one small batch only."""

  def __call__(self, weights_BxT: jax.Array) -> Any:
    return lambda site, x, first: {"all": x} if site == "final" else None


@pytest.mark.parametrize("text, message", (
    ("zero", "is not KIND:SITE:LAYER:NEURONS"), ("zap:final:0:1", "zap is not one of zero, mean"),
    ("zero:stream:0:1", "no site stream; there are resid_pre"),
    ("zero:final:x:1", "is not KIND"), ("zero:final:all:top2", "give its number"),
    ("clip:final:0:1", "clip takes a LIMIT too"), ("clip:final:0:1:-3", "a limit above 0")))
def test_interventions_that_cannot_be_read(text: str, message: str) -> None:
  with pytest.raises(UserError, match=message):
    interventions.parse(text)
  assert interventions.parse("clip:mlp_in:all:3,5:1.5") == Intervention(
      "clip", "mlp_in", (3, 5), None, 1.5)


def measure(*arguments: str) -> subprocess.CompletedProcess[str]:
  return subprocess.run([sys.executable, "-m", "experiments.measure", *arguments], cwd=ROOT,
                        text=True, capture_output=True, timeout=600, env=dict(os.environ))


def test_the_binary(run: Path, tmp_path: Path) -> None:
  """Steps, an intervention, the analyses and their figures, in one call."""
  done = measure(f"--run={run}", "--step=0,3", "--batches=1", "--sites=resid_pre,final",
                 "--metrics=kurtosis,rms", "--intervene=zero:resid_pre:1:top2",
                 "--analyse=outlier_dimensions,sparsity,spectra", f"--out={tmp_path / 'out'}")
  assert done.returncode == 0, done.stderr
  names = {p.name for p in (tmp_path / "out").iterdir()}
  assert names == {f"{name}.{kind}" for name in ("measure", "outlier_dimensions", "sparsity",
                                                 "spectra") for kind in ("json", "png", "svg")}
  found = json.loads((tmp_path / "out" / "measure.json").read_text())["steps"]
  assert [entry["step"] for entry in found] == [0, 3]
  for entry in found:
    assert {"loss", "perplexity", "num_tokens", "model", "step", "telemetry", "provenance"} <= set(
        entry)
    assert entry["num_tokens"] == 128 and len(entry["telemetry"]["resid_pre"]["kurtosis"]) == 2
    assert set(entry["telemetry"]) == {"resid_pre", "final"}
    assert entry["provenance"]["digest_agreed"] is True
    changed = entry["after_intervention"]
    assert len(changed["interventions"][0]["neurons"]) == 2 and changed["loss_change"] != 0
    before, after = (of["telemetry"]["resid_pre"]["rms"] for of in (entry, changed))
    assert after[1] < before[1] and after[0] == pytest.approx(before[0], rel=1e-6)
  model = replay.restore(run)
  dimensions = json.loads((tmp_path / "out" / "outlier_dimensions.json").read_text())
  # All 62 held-out windows; the surprisal of their last tokens, from the model's own logits.
  assert dimensions["contexts"] == 62
  spectra = json.loads((tmp_path / "out" / "spectra.json").read_text())["steps"][-1]["matrices"]
  kernel = np.asarray(model.params["stacks"]["0"]["attention"]["query"]["kernel"], np.float64)
  values = np.linalg.svd(kernel[1].reshape(32, 32), compute_uv=False)
  assert spectra["stacks/0/attention/query/kernel"][1]["top_singular_value"] == pytest.approx(
      values[0])
  sparse = json.loads((tmp_path / "out" / "sparsity.json").read_text())
  assert len(sparse["steps"][0]["layers"]) == 2 and sparse["tokens"] == 62 * 16
  assert {"share", "loss", "loss_pruned", "loss_change"} <= set(sparse["pruning"])


@pytest.mark.parametrize("argument, message", (
    ("--step=7", "no checkpoint at step 7; there are 0, 1, 2, 3"),
    ("--metrics=kurtosys", "--metrics=kurtosys: no such name; did you mean kurtosis?"),
    ("--metrics=m4_u1", "--metrics=m4_u1: is measured of steps, in training"),
    ("--user_metrics=DIR/own.py:kurtosis", "there already is a metric kurtosis"),
    ("--user_metrics=DIR/own.py:broken", "broken fails with AttributeError"),
    ("--user_metrics=DIR/none.py:broken", "error: --user_metrics=DIR/none.py:broken: no such"),
    pytest.param("--tokens=DIR/large.npy", "token 64 is not in [0, 64)", marks=pytest.mark.slow),
    pytest.param("--corpus=python_stdlib", "without a tokenizer", marks=pytest.mark.slow),
    pytest.param("--intervene=zero:final:0:99", "neuron 99; there are 0 to 31",
                 marks=pytest.mark.slow)))
def test_a_mistake_of_the_binary_is_one_line_and_leaves_nothing(
    argument: str, message: str, run: Path, tmp_path: Path) -> None:
  np.save(tmp_path / "large.npy", np.full(100, 64))
  (tmp_path / "own.py").write_text(
      "def kurtosis(x):\n  return x.mean()\n\n\ndef broken(x):\n  return x.nothing\n")
  message = message.replace("DIR", str(tmp_path))
  done = measure(f"--run={run}", argument.replace("DIR", str(tmp_path)),
                 f"--out={tmp_path / 'out'}")
  assert done.returncode == 1 and message in done.stderr, done.stderr
  assert done.stderr.startswith("error: ") and len(done.stderr.strip().splitlines()) == 1
  assert not (tmp_path / "out").exists()
