"""A tokenizer of the `tokenizers` library from what a GGUF file's metadata says."""

from typing import TYPE_CHECKING, Any

from of_jax.errors import UserError

if TYPE_CHECKING:
  from tokenizers import Tokenizer

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# tokenizer.ggml.pre -> how text is cut before merging: GPT-2's way (None), or a pattern.
_PATTERNS = {"gpt-2": None, "smollm": None, "starcoder": None,
             "llama-bpe": _CONTRACTIONS + _WORDS % "{1,3}", "qwen2": _CONTRACTIONS + _WORDS % ""}
# Those that cut before every digit, and then as GPT-2 does.
_SINGLE_DIGITS = ("smollm", "starcoder")
# Those that keep a word whole that is a token, whatever the merges give.
_WHOLE_WORDS = ("llama-bpe",)
_CONTROL = 3  # The token type of begin, end and the like.


def build_tokenizer(metadata: dict[str, Any], where: str) -> "tuple[Tokenizer | None, str]":
  """The tokenizer, or None with a note that says why.

  Raises:
    UserError: token lists that do not make a tokenizer.
  """
  kind, pre = (metadata.get(f"tokenizer.ggml.{key}") for key in ("model", "pre"))
  if kind != "gpt2" or pre not in _PATTERNS:
    return None, (f"its tokenizer (model {kind}, pre {pre}) is not rebuilt; byte-level BPE of "
                  f"{', '.join(_PATTERNS)} is")
  from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
  tokens, merges = (metadata.get(f"tokenizer.ggml.{key}") for key in ("tokens", "merges"))
  types = metadata.get("tokenizer.ggml.token_type", [])
  try:
    if not isinstance(tokens, list) or not isinstance(merges, list):
      raise ValueError("tokens and merges must be lists")
    pairs = [(merge.partition(" ")[0], merge.partition(" ")[2]) for merge in merges]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, pairs, ignore_merges=pre in _WHOLE_WORDS))
    tokenizer.add_special_tokens([
        AddedToken(token, special=True, normalized=False)
        for token, type_ in zip(tokens, types) if type_ == _CONTROL])
    if metadata.get("tokenizer.ggml.add_bos_token"):
      begin = metadata["tokenizer.ggml.bos_token_id"]
      tokenizer.post_processor = processors.TemplateProcessing(
          single=[tokens[begin], "$A"], special_tokens=[(tokens[begin], begin)])
  except Exception as error:  # The library raises bare Exception for whatever it cannot use.
    reason = " ".join(str(error).split())[:100]
    raise UserError(f"{where}: its tokenizer cannot be built: {reason}") from None
  pattern = _PATTERNS[pre]
  byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
  first: list[Any] = []
  if pre in _SINGLE_DIGITS:
    first = [pre_tokenizers.Digits(individual_digits=True)]
  elif pattern is not None:
    first = [pre_tokenizers.Split(Regex(pattern), behavior="isolated")]
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*first, byte_level])
  tokenizer.decoder = decoders.ByteLevel()
  return tokenizer, ""
