"""What a generation looks like: overlap with the reference, and signs of collapse."""

import math
import unicodedata
import zlib
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import regex

# Scripts written without spaces: each letter, with the marks on it, is a word of its own.
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_WORD = regex.compile(rf"[{_UNSPACED}]\p{{M}}*|(?:(?![{_UNSPACED}])\w)+(?:'(?:(?![{_UNSPACED}])\w)+)*")
_OTHER_SCRIPT = regex.compile(r"(?!\p{Latin})\p{L}")
_APOSTROPHES = str.maketrans("’ʼ＇", "'''")


def words(text: str) -> list[str]:
    """The words of a text of any language, in lower case: letters, digits, marks, and apostrophes inside a word.

    Composed and decomposed letters are the same (NFC), as are typographic and straight apostrophes. Where a script is
    written without spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese), each letter is a word.

    >>> words("Don\u2019t go, caf\u00e9!")
    ["don't", 'go', 'caf\u00e9']
    """
    return _WORD.findall(unicodedata.normalize("NFC", text).lower().translate(_APOSTROPHES))


@dataclass(frozen=True)
class Rouge:
    """ROUGE of one generation against one reference, all in [0, 1]."""

    rouge1_recall: float
    rouge_l_recall: float
    rouge_l_f1: float


def rouge(reference: str, generation: str) -> Rouge:
    """ROUGE-1 and ROUGE-L with the Porter stemmer (Lin 2004), by the rouge-score package, as TOFU and OpenUnlearning.

    That package reads a-z and 0-9 alone. A reference in another script, in which it would find no words and score 0,
    is compared by ``words``, without stemming.

    Args:
        reference: the true answer.
        generation: what the model wrote.

    Returns:
        recalls and F1; all 0 where either text has no words.

    >>> probe.rouge("the town was Rivenna", "Rivenna was the town").rouge1_recall
    1.0
    """
    latin = _OTHER_SCRIPT.search(reference) is None and regex.search("[a-zA-Z0-9]", reference) is not None
    scores = _scorer(latin).score(reference, generation)
    return Rouge(float(scores["rouge1"].recall), float(scores["rougeL"].recall), float(scores["rougeL"].fmeasure))


def rouge_l_recall(reference: str, generation: str) -> float:
    """Longest common subsequence of words (``rouge``), divided by the number of words of the reference.

    >>> probe.rouge_l_recall("the town was Rivenna", "the town Rivenna")
    0.75
    """
    return rouge(reference, generation).rouge_l_recall


@cache
def _scorer(latin: bool) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1", "rougeL"], use_stemmer=True, tokenizer=None if latin else _Words())


class _Words:
    """``words`` as rouge-score asks for them."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


def repetition(tokens: Sequence[Hashable], n: int = 4) -> float:
    """rep-n = 1 - (distinct n-grams) / (n-grams): 0 without repetition, towards 1 in a loop.

    Welleck et al., arXiv 1908.04319 (seq-rep-n, published with n = 4).

    Args:
        tokens: words or token ids of one generation, not a string.
        n: length of the n-grams.

    Returns:
        a number in [0, 1); 0 for fewer than n tokens, an empty text included.

    Raises:
        ValueError: a string, whose letters would be counted, or n below 1.

    >>> probe.repetition("the cat the cat the cat".split(), n=2)
    0.6
    """
    _refuse_string(tokens)
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def token_entropy(tokens: Sequence[Hashable]) -> float:
    """TE = H / log2(n), H = -sum_v f_v log2 f_v over the n generated tokens: low means repetitive.

    Yuan et al., arXiv 2410.08109; n counts all tokens, not the distinct ones.

    Args:
        tokens: token strings or ids of one generation, not a string.

    Returns:
        a number in [0, 1]: 1 if all tokens differ, 0 if all are the same or there is at most one.

    Raises:
        ValueError: a string, whose letters would be counted.
    """
    _refuse_string(tokens)
    n = len(tokens)
    if n <= 1:
        return 0.0
    # (count/n) log2(n/count) keeps every term, and so the sum, at or above 0.
    return sum(count / n * math.log2(n / count) for count in Counter(tokens).values()) / math.log2(n)


def compression_ratio(text: str) -> float:
    """Bytes after zlib divided by bytes before (UTF-8): small means repetitive, above 1 is usual for short texts.

    Args:
        text: one generation.

    Returns:
        the ratio; 1 for an empty text, by definition.
    """
    raw = text.encode("utf-8", errors="surrogatepass")
    return len(zlib.compress(raw)) / len(raw) if raw else 1.0


def _refuse_string(tokens: Any) -> None:
    if isinstance(tokens, str | bytes):
        raise ValueError("tokens is one string, whose letters would be counted; pass words (text.split()) or token ids")


def distinct(texts: Sequence[Sequence[Hashable]], n: int) -> float:
    """distinct-n = (distinct n-grams of all texts) / (n-grams of all texts): small where outputs repeat each other.

    Li et al., arXiv 1510.03055, published with n = 1 and 2. ``1 - repetition`` is the same for one text.

    Args:
        texts: words or token ids of each generation.
        n: length of the n-grams; none crosses from one text to the next.

    Returns:
        a number in [0, 1]; 0 where no text has n tokens.

    Raises:
        ValueError: a string in place of its words, or n below 1.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    for tokens in (texts, *texts):
        _refuse_string(tokens)
    grams = [tuple(tokens[i : i + n]) for tokens in texts for i in range(len(tokens) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0
