"""What names of several sites stand for, and what a scheme is called."""

import pytest

from of_jax.quantise.scheme import DEFAULT_SITES, Scheme, expand


def test_weights_and_activations_are_the_default() -> None:
  weights, activations = (expand([name], "--sites") for name in ("weights", "activations"))
  assert {*weights, *activations} == set(DEFAULT_SITES) and not set(weights) & set(activations)
  assert not {"final", "unembedding"} & set(DEFAULT_SITES)
  assert expand(["unembedding", "attn_q"], "--sites") == ("attn_q", "unembedding")


@pytest.mark.parametrize("sites, label", (
    (DEFAULT_SITES, "W4A8"),
    (expand(["weights"], ""), "W4"),
    (expand(["activations"], ""), "A8"),
    (("attn_logits", "mlp_hidden"), "A8 at attn_logits, mlp_hidden"),
    (("attn_in", "mlp_up"), "W4A8 at attn_in, mlp_up"),
    (tuple(site for site in DEFAULT_SITES if site != "attn_logits"), "W4A8 without attn_logits"),
    ((*DEFAULT_SITES, "unembedding"), "W4A8 and unembedding")))
def test_what_a_scheme_is_called(sites: tuple[str, ...], label: str) -> None:
  assert Scheme(weight_bits=4, sites=sites).label == label
