"""Who judges meaning: callables that the caller gives, two loaders of models, and two plain stand-ins that say so.

Nothing here is fetched unless a hub name is written down, and every result carries the judge's name.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from probe.checkpoints import load_tokenizer, load_whole
from probe.metrics.text import rouge_l_recall
from probe.model_files import cached_folder, check_folder, named_folder

# Texts -> one vector each; (premise, hypothesis) pairs -> whether, or how probably, each is entailed.
Embed = Callable[[list[str]], Any]
Entail = Callable[[list[tuple[str, str]]], Any]
# (question, answer) -> two scores in [0, 1].
Judge = Callable[[list[tuple[str, str]]], Any]

# Named in arXiv 2410.08109.
PUBLISHED_EMBEDDER = "sentence-transformers/paraphrase-MiniLM-L6-v2"
PUBLISHED_NLI = "sileod/deberta-v3-base-tasksource-nli"


@dataclass(frozen=True)
class Embedder:
    """A way to turn texts into vectors, and the name it goes by in results."""

    name: str
    embed: Embed

    def __call__(self, texts: list[str]) -> Any:
        return self.embed(texts)


@dataclass(frozen=True)
class Entailer:
    """A way to say whether a premise entails a hypothesis, and the name it goes by in results."""

    name: str
    entails: Entail

    def __call__(self, pairs: list[tuple[str, str]]) -> Any:
        return self.entails(pairs)


def tfidf_embedder() -> Embedder:
    """Word and word-pair weights (TF-IDF, scikit-learn) of the texts that are compared: no model, nothing but words.

    Its cosine is 0 between a text and a paraphrase without common words. Offline, and named "tfidf" in results.
    """

    def embed(texts: list[str]) -> Any:
        from sklearn.feature_extraction.text import TfidfVectorizer

        if not any(text.strip() for text in texts):
            return np.zeros((len(texts), 1))
        # Single letters and digits count as words; the default pattern drops them.
        return TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\w+|[^\w\s]").fit_transform(texts).toarray()

    return Embedder("tfidf", embed)


def rouge_entailer(*, share: float) -> Entailer:
    """Premise "entails" hypothesis if it holds at least ``share`` of its words in order (ROUGE-L recall).

    It knows nothing of meaning, negation included, and is named "rouge-based" in results, not entailment.

    Raises:
        ValueError: a share outside (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"share is a ROUGE-L recall to reach and must lie in (0, 1], got {share}")

    def entails(pairs: list[tuple[str, str]]) -> list[bool]:
        return [rouge_l_recall(hypothesis, premise) >= share for premise, hypothesis in pairs]

    return Entailer(f"rouge-based (ROUGE-L recall >= {share:g})", entails)


def sentence_embedder(
    folder_or_name: str | Path, *, from_hub: bool = False, batch_size: int = 32, device: str = "cpu"
) -> Embedder:
    """The mean of a transformer's last hidden states over real tokens, as sentence-transformers' MiniLM models pool.

    Args:
        folder_or_name: a local folder, or a name: of the local cache, or of the hub with ``from_hub``.
            ``PUBLISHED_EMBEDDER`` is the one of arXiv 2410.08109.
        from_hub: whether the model may be downloaded. Without it nothing is.
        batch_size: texts per pass.
        device: where it runs.

    Raises:
        FileNotFoundError: the model is not there (the message says how to get it).
        ValueError: weights that are a pickle, missing or another model's, or a pooling that is declared to be another
            than the mean.

    >>> embed = probe.sentence_embedder("folder-of-an-embedder")  # doctest: +SKIP
    """
    from transformers import AutoModel

    _refuse_other_pooling(Path(folder_or_name))
    model, tokenizer = _loaded(AutoModel, folder_or_name, from_hub)
    model = model.to(device).eval()

    def embed(texts: list[str]) -> np.ndarray:
        found = []
        for start in range(0, len(texts), batch_size):
            coded = tokenizer(texts[start : start + batch_size], padding=True, truncation=True, return_tensors="pt")
            coded = {name: values.to(device) for name, values in coded.items()}
            with torch.no_grad():
                hidden_BTD = model(**coded).last_hidden_state.float()
            weight_BT1 = coded["attention_mask"][..., None].float()
            found.append((hidden_BTD * weight_BT1).sum(1) / weight_BT1.sum(1).clamp(min=1))
        return torch.cat(found).cpu().numpy() if found else np.zeros((0, 1))

    return Embedder(_name(folder_or_name), embed)


def nli_judge(
    folder_or_name: str | Path, *, from_hub: bool = False, batch_size: int = 32, device: str = "cpu"
) -> Entailer:
    """A classifier of sentence pairs; a pair is entailed if the label "entailment" is the most probable.

    Args:
        folder_or_name: as for ``sentence_embedder``; ``PUBLISHED_NLI`` is the one of arXiv 2410.08109 and 2510.07626.
        from_hub: whether the model may be downloaded. Without it nothing is.
        batch_size: pairs per pass.
        device: where it runs.

    Raises:
        FileNotFoundError: the model is not there (the message says how to get it).
        ValueError: weights that are a pickle, missing or another model's, or not exactly one label called entailment.

    >>> judge = probe.nli_judge("folder-of-an-nli-model")  # doctest: +SKIP
    """
    from transformers import AutoModelForSequenceClassification

    model, tokenizer = _loaded(AutoModelForSequenceClassification, folder_or_name, from_hub)
    model = model.to(device).eval()
    labels = {int(i): str(label) for i, label in model.config.id2label.items()}
    wanted = [i for i, label in labels.items() if label.lower() == "entailment"]
    if len(wanted) != 1:
        raise ValueError(f"{folder_or_name} has the labels {list(labels.values())}; one must be called 'entailment'")

    def entails(pairs: list[tuple[str, str]]) -> list[bool]:
        found: list[bool] = []
        for start in range(0, len(pairs), batch_size):
            premises, hypotheses = zip(*pairs[start : start + batch_size], strict=True)
            coded = tokenizer(list(premises), list(hypotheses), padding=True, truncation=True, return_tensors="pt").to(
                device
            )
            with torch.no_grad():
                found += (model(**coded).logits.argmax(-1) == wanted[0]).tolist()
        return found

    return Entailer(_name(folder_or_name), entails)


def _name(folder_or_name: str | Path) -> str:
    """A folder's own name, for its path means nothing elsewhere."""
    return Path(folder_or_name).name if Path(folder_or_name).is_dir() else str(folder_or_name)


def _loaded(family: Any, folder_or_name: str | Path, from_hub: bool) -> tuple[Any, Any]:
    try:
        where = named_folder(folder_or_name)
        folder = where if isinstance(where, Path) else cached_folder(where, download=from_hub)
    except ValueError as error:
        tried = "asked the hub" if from_hub else "looked for a folder and in the local cache"
        raise FileNotFoundError(
            f"no model {folder_or_name} ({tried}): download it and pass its folder, or pass from_hub=True where the "
            "hub can be reached"
        ) from error
    check_folder(folder)
    return load_whole(family, folder), load_tokenizer(folder)


def _refuse_other_pooling(folder: Path) -> None:
    import json

    declared = folder / "1_Pooling" / "config.json"
    if declared.is_file() and not json.loads(declared.read_text(encoding="utf-8")).get(
        "pooling_mode_mean_tokens", True
    ):
        raise ValueError(f"{folder} pools in another way than by the mean of its tokens; pass a callable of your own")
