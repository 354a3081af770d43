"""Builder of a tokenizer of the `tokenizers` library from a GGUF file's metadata."""

from typing import TYPE_CHECKING, Any

from of_jax.data.special_tokens import SpecialTokens
from of_jax.data.tokenizer import quiet_panics
from of_jax.errors import refusing

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
# Byte-level ones that begin a text with the begin token unless the file says otherwise.
_BEGUN = ("llama-bpe",)
# Token types: what a text is made of; the unknown token; begin, end and the like; a user's own.
_ORDINARY, _UNKNOWN, _CONTROL, _OWN = 1, 2, 3, 4
_SPACE = "\u2581"
# Ways to cut a token in two are tried, which takes time that grows with the square of its length.
_LONGEST_TOKEN, _LONGEST_TOKENS = 1_024, 20_000_000


def build_tokenizer(metadata: dict[str, Any], where: str) -> "tuple[Tokenizer | None, str]":
  """Builds the tokenizer, or gives None with a note that says why.

  Raises:
    UserError: token lists that do not make a tokenizer.
  """
  kind, pre = (metadata.get(f"tokenizer.ggml.{key}") for key in ("model", "pre"))
  with refusing(where, "its tokenizer cannot be built"), quiet_panics():
    if kind == "llama":
      # SentencePiece cuts them out of the text before anything else.
      if _OWN in list(metadata.get("tokenizer.ggml.token_type", ())):
        return None, ("its tokenizer has tokens of a user's own beside SentencePiece's and is not "
                      "rebuilt")
      tokenizer = _sentencepiece(metadata)
    elif kind == "gpt2" and pre in _PATTERNS:
      tokenizer = _byte_level(metadata, pre)
    else:
      return None, (f"its tokenizer (model {kind}, pre {pre}) is not rebuilt; SentencePiece's of "
                    f"LLaMA and byte-level BPE of {', '.join(_PATTERNS)} are")
    _add_special_tokens(tokenizer, metadata)
  return tokenizer, ""


def special_tokens_of(metadata: dict[str, Any]) -> SpecialTokens:
  """Finds the special tokens, by the defaults of llama.cpp where the file is silent."""
  kind, pre = (metadata.get(f"tokenizer.ggml.{key}") for key in ("model", "pre"))
  usual = (2, 1) if kind == "llama" else (None, None)
  end, begin = (_token(metadata, f"tokenizer.ggml.{key}_token_id", default)
                for key, default in zip(("eos", "bos"), usual))
  begins = metadata.get("tokenizer.ggml.add_bos_token", kind == "llama" or pre in _BEGUN)
  tokens = metadata.get("tokenizer.ggml.tokens")
  return SpecialTokens(end, begin, bool(begins)).within(
      len(tokens) if isinstance(tokens, list) else 0)


def _token(metadata: dict[str, Any], key: str, default: int | None) -> int | None:
  """Reads the id of a token; None where there is none."""
  value = metadata.get(key, default)
  if value is None:
    return None
  if type(value) is not int or not 0 <= value < 1 << 32:
    raise ValueError(f"{key}={str(value)[:40]}: must be the id of a token")
  return value


def _byte_level(metadata: dict[str, Any], pre: str) -> "Tokenizer":
  from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
  merges = metadata.get("tokenizer.ggml.merges")
  if not isinstance(merges, list):
    raise ValueError("merges must be a list")
  pairs = [(merge.partition(" ")[0], merge.partition(" ")[2]) for merge in merges]
  tokenizer = Tokenizer(models.BPE(_vocabulary(metadata), pairs, ignore_merges=pre in _WHOLE_WORDS))
  pattern = _PATTERNS[pre]
  byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
  first: list[Any] = []
  if pre in _SINGLE_DIGITS:
    first = [pre_tokenizers.Digits(individual_digits=True)]
  elif pattern is not None:
    first = [pre_tokenizers.Split(Regex(pattern), behavior="isolated")]
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*first, byte_level])
  tokenizer.decoder = decoders.ByteLevel()
  return tokenizer


def _sentencepiece(metadata: dict[str, Any]) -> "Tokenizer":
  """Builds SentencePiece's BPE: of neighbours whose union is a token, the best-scored merges first.

  Spaces are written as U+2581, one is put in front of the text, and what no token spells becomes
  tokens of its bytes. A token that can be made of two pairs gives two merges, one after the other,
  as in transformers' conversion; SentencePiece would take the left one in the text.
  """
  from tokenizers import Tokenizer, decoders, models, normalizers
  vocabulary = _vocabulary(metadata)
  scores, types = (list(metadata.get(f"tokenizer.ggml.{key}", ())) for key in (
      "scores", "token_type"))
  if not len(scores) == len(types) == len(vocabulary):
    raise ValueError("tokens, scores and token_type must be lists of one length")
  ordinary = {token: i for token, i in vocabulary.items() if types[i] == _ORDINARY}
  merges = [(-scores[i], ordinary[token[:cut]], ordinary[token[cut:]], token, cut)
            for token, i in ordinary.items() for cut in range(1, len(token))
            if token[:cut] in ordinary and token[cut:] in ordinary]
  pairs = [(token[:cut], token[cut:]) for *_, token, cut in sorted(merges)]
  unknown = next((token for token, i in vocabulary.items() if types[i] == _UNKNOWN), None)
  tokenizer = Tokenizer(models.BPE(vocabulary, pairs, unk_token=unknown, fuse_unk=True,
                                   byte_fallback=True))
  spaced = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
  tokenizer.normalizer = normalizers.Sequence([
      *([normalizers.Prepend(_SPACE)] if spaced else []), normalizers.Replace(" ", _SPACE)])
  tokenizer.decoder = decoders.Sequence([
      decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(),
      *([decoders.Strip(" ", 1, 0)] if spaced else [])])
  return tokenizer


def _vocabulary(metadata: dict[str, Any]) -> dict[str, int]:
  tokens = metadata.get("tokenizer.ggml.tokens")
  if not isinstance(tokens, list):
    raise ValueError("tokens must be a list")
  longest = max(map(len, tokens), default=0)
  if longest > _LONGEST_TOKEN or sum(map(len, tokens)) > _LONGEST_TOKENS:
    raise ValueError(f"a token of {longest:,} characters; one has at most {_LONGEST_TOKEN:,}, and "
                     f"all together {_LONGEST_TOKENS:,}")
  return {token: i for i, token in enumerate(tokens)}


def _add_special_tokens(tokenizer: "Tokenizer", metadata: dict[str, Any]) -> None:
  """Adds control tokens, and begin and end token around a text where the file asks for them."""
  from tokenizers import AddedToken, processors
  tokens = metadata["tokenizer.ggml.tokens"]
  tokenizer.add_special_tokens([
      AddedToken(token, special=True, normalized=False)
      for token, type_ in zip(tokens, metadata.get("tokenizer.ggml.token_type", []))
      if type_ == _CONTROL])
  special = special_tokens_of(metadata)
  ends = bool(metadata.get("tokenizer.ggml.add_eos_token", False))
  for name, one, is_added in (("bos", special.begin, metadata.get("tokenizer.ggml.add_bos_token")),
                              ("eos", special.end, ends)):
    if is_added and one is None:
      raise ValueError(f"add_{name}_token without a {name}_token_id that is a token")
  before = [special.begin] if special.begins and special.begin is not None else []
  behind = [special.end] if ends and special.end is not None else []
  if before or behind:
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[*(tokens[i] for i in before), "$A", *(tokens[i] for i in behind)],
        special_tokens=[(tokens[i], i) for i in {*before, *behind}])
