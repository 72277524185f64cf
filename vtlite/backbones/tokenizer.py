"""From texts to token numbers: words for our own two-tower model, byte pairs for published CLIPs.

Both give int64 [C, context]: start token, text, end token, then zeros. The end token has the
largest number of the vocabulary, so a model finds it without knowing its tokenizer:
`tokens.argmax(-1)`.
"""

from __future__ import annotations

import gzip
import html
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vtlite.storage import VTError, atomic_write, said

PAD, UNKNOWN, START, END = "<pad>", "<unknown>", "<start>", "<end>"
BYTE_PAIRS = 49152 - 256 - 2  # merges that CLIP's vocabulary of 49,408 tokens uses


def words_of(text: str) -> list[str]:
    """Lower-case words and single punctuation marks: "A man's shoe" -> a, man, ', s, shoe."""
    return re.findall(r"\w+|[^\w\s]", text.lower().replace("’", "'"))


class WordTokenizer:
    """One token a word; `vocabulary` lists all tokens by number, the four special ones included.

    A word that is not listed becomes the unknown token.
    """

    def __init__(self, vocabulary: Sequence[str], context: int = 16) -> None:
        if tuple(vocabulary[:3]) != (PAD, UNKNOWN, START) or vocabulary[-1] != END:
            raise VTError(
                f"expected a vocabulary that begins with {PAD}, {UNKNOWN}, {START} and ends with "
                f"{END}, found {[*vocabulary[:3], *vocabulary[-1:]]}; make it with WordTokenizer.of"
            )
        self.vocabulary, self.context = tuple(vocabulary), context
        self.number = {word: i for i, word in enumerate(self.vocabulary)}

    @classmethod
    def of(cls, texts: Iterable[str], context: int = 16) -> WordTokenizer:
        """The tokenizer of all words that occur in `texts`, in alphabetical order."""
        words = sorted({word for text in texts for word in words_of(text)})
        return cls((PAD, UNKNOWN, START, *words, END), context)

    @classmethod
    def load(cls, path: Path, context: int = 16) -> WordTokenizer:
        """Read a vocabulary, one token a line."""
        if not path.is_file():
            raise VTError(f"expected the vocabulary {path}, found no file; fetch it again")
        return cls(path.read_text(encoding="utf-8").split("\n")[:-1], context)

    def save(self, path: Path) -> None:
        with atomic_write(path) as temporary:
            temporary.write_text("\n".join(self.vocabulary) + "\n", encoding="utf-8")

    def numbers(self, text: str) -> list[int]:
        return [self.number.get(word, self.number[UNKNOWN]) for word in words_of(text)]

    def __call__(self, texts: Sequence[str], truncate: bool = False) -> Tensor:
        """Texts -> int64 [C, context]; `VTError` for one that is too long, unless `truncate`."""
        _expect_texts(texts)
        start, end = self.number[START], self.number[END]
        numbers = [self.numbers(text) for text in texts]
        return _table(texts, numbers, start, end, self.context, truncate)


class BPETokenizer:
    """CLIP's byte pairs (Sennrich et al., ACL 2016, arXiv 1508.07909): the bytes of a word are
    merged pair by pair, always the pair that stands first in the list of merges.

    `merges` is the file that OpenAI published, `bpe_simple_vocab_16e6.txt` (gzipped or not).
    """

    def __init__(self, merges: str | Path, context: int = 77) -> None:
        path = Path(merges)
        if not path.is_file():
            raise VTError(
                f"expected a file of byte pair merges, found no file {path}; it is "
                "bpe_simple_vocab_16e6.txt.gz of github.com/openai/CLIP"
            )
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode("utf-8")
        pairs = [tuple(line.split()) for line in text.split("\n")[1 : BYTE_PAIRS + 1]]
        if len(pairs) < BYTE_PAIRS or any(len(pair) != 2 for pair in pairs):
            raise VTError(
                f"expected {BYTE_PAIRS:,} pairs in {path}, found something else; it is damaged or "
                "of another tokenizer"
            )
        self.letters, self.context = _letters(), context
        symbols = [*self.letters.values(), *(f"{letter}</w>" for letter in self.letters.values())]
        vocabulary = [*symbols, *("".join(pair) for pair in pairs), START, END]
        self.number = {symbol: i for i, symbol in enumerate(vocabulary)}
        self.rank = {pair: i for i, pair in enumerate(pairs)}

    def numbers(self, text: str) -> list[int]:
        text = " ".join(html.unescape(html.unescape(text)).split()).lower()
        # contractions; letters; one digit; anything else but spaces
        words = re.findall(r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|(?:[^\w\s]|_)+", text)
        return [self.number[part] for word in words for part in self._merged(word)]

    def _merged(self, word: str) -> list[str]:
        parts = [self.letters[byte] for byte in word.encode("utf-8")]
        parts[-1] += "</w>"
        while len(parts) > 1:
            pairs = list(pairwise(parts))
            best = min(pairs, key=lambda pair: self.rank.get(pair, BYTE_PAIRS))
            if best not in self.rank:
                break
            merged, i = [], 0
            while i < len(parts):
                joined = tuple(parts[i : i + 2]) == best
                merged.append("".join(best) if joined else parts[i])
                i += 2 if joined else 1
            parts = merged
        return parts

    def __call__(self, texts: Sequence[str], truncate: bool = False) -> Tensor:
        """Texts -> int64 [C, context]; `VTError` for one that is too long, unless `truncate`."""
        _expect_texts(texts)
        numbers = [self.numbers(text) for text in texts]
        return _table(texts, numbers, self.number[START], self.number[END], self.context, truncate)


def published_tokenizer(vocabulary: int, context: int) -> Any:
    """open_clip's tokenizer for a model of CLIP's vocabulary, where that package is installed;
    otherwise None, and a `BPETokenizer` has to be set by hand."""
    if vocabulary != BYTE_PAIRS + 2 * 256 + 2:
        return None
    try:
        import open_clip
    except ImportError:
        return None
    return BPETokenizer(Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz", context)


def _letters() -> dict[int, str]:
    """A printable letter for each byte, in the order of CLIP's vocabulary."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {
        byte: chr(256 + i) for i, byte in enumerate(others)
    }


def _expect_texts(texts: Any) -> None:
    if isinstance(texts, str):
        raise VTError(f"expected a list of texts, found the text {texts!r}; write [{texts!r}]")
    listed = isinstance(texts, list | tuple)
    if not listed or (others := [text for text in texts if not isinstance(text, str)]):
        found = said(others[0]) if listed else said(texts)
        raise VTError(f"expected a list of texts, found {found}; give one text for each row")


def _table(
    texts: Sequence[str],
    numbers: list[list[int]],
    start: int,
    end: int,
    context: int,
    truncate: bool,
) -> Tensor:
    tokens = torch.zeros(len(texts), context, dtype=torch.long)
    for row, text, found in zip(tokens, texts, numbers, strict=True):
        if len(found) > context - 2 and not truncate:
            raise VTError(
                f"expected at most {context - 2} tokens in a text, found {len(found)} in "
                f"{text!r}; shorten it"
            )
        found = [start, *found[: context - 2], end]
        row[: len(found)] = torch.tensor(found)
    return tokens
