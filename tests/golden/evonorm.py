"""Golden numbers of the authors' EvoNorm, in TensorFlow, and what leads to them.

Made once, in an environment of its own; TensorFlow is no dependency of this project:

  pip install tensorflow-cpu numpy
  git clone https://github.com/tensorflow/tpu   (at commit 7dc921f)
  python tests/golden/evonorm.py --code=tpu/models/official/resnet/resnet_model.py \
    --out=tests/golden/evonorm.npz

`evonorm` reads hidden units [rows, tokens, units]: S0 each token as an image of one pixel, B0 each
row as an image of a column of pixels. The file holds the output, the gradients (`s0/x_gradient`),
and of B0 the running variance after the step and the output in evaluation with it.
"""

import argparse
import sys
import types
from pathlib import Path

import numpy as np

ROWS, TOKENS, UNITS = 3, 5, 70
FORMS = ("s0", "b0")


def inputs() -> dict[str, np.ndarray]:
  """x, dL/dy and the parameters, in float32."""
  rng = np.random.Generator(np.random.PCG64(0))
  found = {"x": rng.normal(size=(ROWS, TOKENS, UNITS)) * np.linspace(0.1, 3, UNITS) + 0.2,
           "gradient": rng.normal(size=(ROWS, TOKENS, UNITS)), "gamma": np.linspace(0.5, 2, UNITS),
           "beta": np.linspace(-1, 1, UNITS), "v": np.linspace(-0.5, 1.5, UNITS)}
  return {name: array.astype(np.float32) for name, array in found.items()}


def main() -> None:
  import tensorflow.compat.v1 as tf

  parser = argparse.ArgumentParser()
  parser.add_argument("--code", type=Path, required=True)
  parser.add_argument("--out", type=Path, required=True)
  flags = parser.parse_args()
  tf.disable_eager_execution()
  sys.modules["resnet_layers"] = types.ModuleType("resnet_layers")
  code = types.ModuleType("resnet_model")
  exec(compile(flags.code.read_text(), str(flags.code), "exec"), code.__dict__)
  given, kept = inputs(), {}
  for form in FORMS:
    shape = (-1, 1, 1, UNITS) if form == "s0" else (ROWS, TOKENS, 1, UNITS)
    with tf.Graph().as_default(), tf.Session() as session:
      x = tf.constant(given["x"])

      def run(training: bool) -> tf.Tensor:
        with tf.variable_scope("one", reuse=tf.AUTO_REUSE):
          with tf.variable_scope("norm", reuse=tf.AUTO_REUSE) as scope:
            def same(*_: object, **__: object) -> object:
              return tf_scope(scope, reuse=tf.AUTO_REUSE)

            tf_scope, code.tf.variable_scope = tf.variable_scope, same
            try:
              image = tf.reshape(x, shape) + tf.zeros([1, 1, 1, UNITS])
              image.set_shape([None if n == -1 else n for n in shape])
              y = code.evonorm(image, training, f"evonorm_{form}", data_format="channels_last")
            finally:
              code.tf.variable_scope = tf_scope
        return tf.reshape(y, given["x"].shape)

      y = run(True)
      variables = {variable.op.name.rpartition("/")[2]: variable
                   for variable in tf.global_variables()}
      session.run(tf.global_variables_initializer())
      for name in ("gamma", "beta", "v"):
        variables[name].load(given[name].reshape(variables[name].shape), session)
      names = ("gamma", "beta", "v")
      gradients = tf.gradients(y, [x, *(variables[name] for name in names)],
                               tf.constant(given["gradient"]))
      values = session.run([y, *gradients])
      for name, value in zip(("y", "x_gradient", *(f"{n}_gradient" for n in names)), values):
        kept[f"{form}/{name}"] = value.reshape(-1) if "_" in name and name[0] != "x" else value
      if form == "b0":
        session.run(tf.get_collection(tf.GraphKeys.UPDATE_OPS))
        kept["b0/variance"] = session.run(variables["moving_variance"]).reshape(-1)
        kept["b0/evaluated"] = session.run(run(False))
  np.savez_compressed(flags.out, **kept)


if __name__ == "__main__":
  main()
