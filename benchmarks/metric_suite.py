"""The TOFU suite from one pass per text against one pass per metric, and extraction strength against generation.

The other sides are written here from the published definitions, in the manner of the official codes: every metric runs
the model anew over the rows in file order, padded to the longest of a batch, and takes whole logits; the search for
extraction strength generates up to 200 tokens for every prefix that it tries. Goals: 9 times and 30 times faster.
"""

import argparse

import numpy as np
import torch

from benchmarks.timing import alternating, peak_mib, show
from probe.data import Batch
from probe.metrics.attacks import attack_scores
from probe.metrics.extraction import GREEDY_BARS, generated_extraction_strength
from probe.metrics.memorisation import exact_memorisation, extraction_strength
from probe.metrics.tofu import truth_ratio
from probe.metrics.tokens import token_stats

K = 0.4


def model(vocabulary: int, length: int):
    """A Llama of 4 layers and width 256."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    settings = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 8}
    config = LlamaConfig(vocab_size=vocabulary, max_position_embeddings=length, num_key_value_heads=8, **settings)
    return LlamaForCausalLM(config).eval()


def rows(n: int, vocabulary: int, seed: int = 0, answers: int = 1) -> Batch:
    """Prompts of 24 to 48 tokens, each followed by ``answers`` answers of 8 to 64 tokens and an eos."""
    random = np.random.default_rng(seed)
    sequences, starts = [], []
    for _ in range(n):
        prompt = random.integers(3, vocabulary, random.integers(24, 49)).tolist()
        for _ in range(answers):
            sequences.append([*prompt, *random.integers(3, vocabulary, random.integers(8, 65)).tolist(), 2])
            starts.append(len(prompt))
    longest = max(map(len, sequences))
    tokens_BT = torch.zeros(len(sequences), longest, dtype=torch.long)
    attention_BT, target_BT = torch.zeros_like(tokens_BT, dtype=torch.bool), torch.zeros_like(tokens_BT).bool()
    for i, (ids, start) in enumerate(zip(sequences, starts, strict=True)):
        tokens_BT[i, : len(ids)], attention_BT[i, : len(ids)] = torch.tensor(ids), True
        target_BT[i, start : len(ids)] = True
    return Batch(tokens_BT, target_BT, attention_BT, torch.arange(len(sequences)), torch.tensor(starts))


def _passes(net, batch, size):
    for part in batch.chunks(size):
        with torch.no_grad():
            yield part, net(**part.inputs, use_cache=False).logits


def _losses(net, batch, size):
    found = []
    for part, logits in _passes(net, batch, size):
        labels = part.tokens_BT.masked_fill(~part.target_BT, -100)[:, 1:]
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), labels, reduction="none")
        found.append(loss.sum(1) / (labels != -100).sum(1))
    return torch.cat(found).double().numpy()


def _answers(net, batch, size):
    """Each row's distributions and true tokens at its answer, eos left out."""
    for part, logits in _passes(net, batch, size):
        whole = torch.log_softmax(logits, -1)
        for i in range(len(part)):
            where = part.target_BT[i].nonzero().flatten()[:-1]
            yield whole[i, where - 1], part.tokens_BT[i, where]


def _strength(logp, true):
    predicted = logp.argmax(-1)
    for k in range(len(true)):
        if torch.equal(predicted[k:], true[k:]):
            return 1 - k / len(true)
    return 1 / len(true)


def _lowest(values):
    return -values.sort().values[: max(1, int(K * len(values)))].mean().item()


def _plus_plus(net, batch, size):
    found = []
    # Once for the tokens' log-probabilities, once for the moments.
    for (logp, true), (again, _) in zip(_answers(net, batch, size), _answers(net, batch, size), strict=True):
        p = again.exp()
        mean = (p * again).sum(-1)
        deviation = ((p * again.square()).sum(-1) - mean.square()).clamp(min=1e-6).sqrt()
        found.append(_lowest((logp.gather(-1, true[:, None])[:, 0] - mean) / deviation))
    return np.array(found)


def one_pass_per_metric(net, batch, size):
    """Probability, loss, zlib (its model half), ES, EM, Min-K and Min-K++: eight forwards."""
    loss = _losses(net, batch, size)
    again, third = _losses(net, batch, size), _losses(net, batch, size)
    return {
        "probability": np.exp(-loss),
        "loss": again,
        "zlib": third,
        "strength": np.array([_strength(*pair) for pair in _answers(net, batch, size)]),
        "exact": np.array([(p.argmax(-1) == t).double().mean().item() for p, t in _answers(net, batch, size)]),
        "min_k": np.array([_lowest(p.gather(-1, t[:, None])[:, 0]) for p, t in _answers(net, batch, size)]),
        "min_k_plus_plus": _plus_plus(net, batch, size),
    }


def one_pass(net, batch, size, **ways):
    """The same from one."""
    tokens = token_stats(net, batch, batch_size=size, moments=True, **ways)
    matches, scores = tokens.without_eos().correct, attack_scores(tokens, k=K)
    return {
        "probability": np.exp(-tokens.loss_N),
        "loss": scores["loss"],
        "zlib": tokens.loss_N,
        "strength": np.array([extraction_strength(match, floor="1/L") for match in matches]),
        "exact": np.array([exact_memorisation(match) for match in matches]),
        "min_k": scores["min_k"],
        "min_k_plus_plus": scores["min_k_plus_plus"],
    }


def suite(settings) -> None:
    """The suite on the answers, truth ratios on paraphrased and perturbed answers of a third of the rows, and both."""
    net, size = model(settings.vocabulary, 256), settings.batch
    answers = rows(settings.rows, settings.vocabulary)
    forms = rows(settings.rows // 3, settings.vocabulary, seed=1, answers=6)
    first, others = range(0, len(forms), 6), [i for i in range(len(forms)) if i % 6]
    paraphrased, wrong = forms.select(list(first)), forms.select(others)

    def official_ratios():
        return truth_ratio(_losses(net, paraphrased, size), _losses(net, wrong, size).reshape(-1, 5))

    def ratios(**ways):
        loss = token_stats(net, forms, batch_size=size, **ways).loss_N.reshape(-1, 6)
        return truth_ratio(loss[:, 0], loss[:, 1:])

    expected, found = one_pass_per_metric(net, answers, size), one_pass(net, answers, size)
    for name, values in found.items():
        np.testing.assert_allclose(values, expected[name], rtol=2e-4, atol=2e-6, err_msg=name)
    np.testing.assert_allclose(ratios(), official_ratios(), rtol=1e-5)
    compared = {
        "answers": (lambda: one_pass_per_metric(net, answers, size), lambda: one_pass(net, answers, size)),
        "truth ratios": (official_ratios, ratios),
    }
    seconds = {}
    for name, sides in compared.items():
        named = dict(zip(("one pass per metric", "one pass per text"), sides, strict=True))
        timings = alternating(named, settings.repeats)
        peaks = {side: peak_mib(run) for side, run in named.items()} if name == "answers" else None
        show(f"{name}: {settings.rows} rows, vocabulary {settings.vocabulary}, batches of {size}", timings, peaks)
        print(f"  times faster: {1 / timings['one pass per text'].ratio:.1f}", flush=True)
        seconds[name] = [timings[side].seconds for side in named]
    whole = [seconds["answers"][side] + 3 * seconds["truth ratios"][side] for side in (0, 1)]
    print(f"both, with truth ratios of all rows, times faster: {whole[0] / whole[1]:.1f}", flush=True)


def extraction(settings) -> None:
    """Extraction strength of rows that the model partly follows, by one pass and by searching with generations."""
    net = model(settings.vocabulary, 256)
    random, batch = np.random.default_rng(0), rows(settings.searched, settings.vocabulary)
    prompts = [batch.tokens_BT[i, : batch.prompt_B[i]].tolist() for i in range(len(batch))]
    answers = []
    for prompt in prompts:
        length = int(random.integers(16, 49))
        own = random.integers(3, settings.vocabulary, random.integers(0, length)).tolist()
        ids = torch.tensor([prompt + own])
        with torch.no_grad():
            while ids.shape[1] < len(prompt) + length:
                ids = torch.cat([ids, net(input_ids=ids).logits[:, -1:].argmax(-1)], 1)
        answers.append(ids[0, len(prompt) :].tolist())
    batch = _batch_of(prompts, answers)

    def forced():
        tokens = token_stats(net, batch, batch_size=settings.batch).without_eos()
        return np.array([extraction_strength(match, floor="0") for match in tokens.correct])

    def searched(**ways):
        return generated_extraction_strength(net, prompts, answers, bars=GREEDY_BARS, eos=set(), **ways)

    np.testing.assert_array_equal(forced(), searched())
    sides = {
        "search, up to 200 tokens": lambda: searched(max_length=200),
        "search, no token too many": searched,
        "one teacher-forced pass": forced,
    }
    timings = alternating(sides, settings.searches)
    show(f"extraction strength of {settings.searched} rows, equal on all", timings)
    forced_time = timings["one teacher-forced pass"].seconds
    for name in list(sides)[:2]:
        print(f"  {name}: {timings[name].seconds / forced_time:.1f} times slower than one pass")


def _batch_of(prompts, answers) -> Batch:
    sequences = [[*p, *a, 2] for p, a in zip(prompts, answers, strict=True)]
    longest = max(map(len, sequences))
    tokens_BT = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids in sequences])
    position_T, length_B = torch.arange(longest), torch.tensor([len(ids) for ids in sequences])
    start_B = torch.tensor([len(prompt) for prompt in prompts])
    attention_BT = position_T < length_B[:, None]
    target_BT = attention_BT & (position_T >= start_B[:, None])
    return Batch(tokens_BT, target_BT, attention_BT, torch.arange(len(sequences)), start_B)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--rows", type=int, default=48)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--searched", type=int, default=8)
    parser.add_argument("--searches", type=int, default=2)
    parser.add_argument("--only", choices=["suite", "extraction"])
    settings = parser.parse_args()
    if settings.only != "extraction":
        suite(settings)
    if settings.only != "suite":
        extraction(settings)


if __name__ == "__main__":
    main()
