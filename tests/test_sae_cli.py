"""`probe sae train|rank|suppress|audit`: on the testbed, on own models, and every mistake in one line."""

import json
import re

import pytest

from probe.checkpoints import save_model
from probe.cli import main
from probe.datasets import write_rows
from probe.features.rules import Crisp, CrispRaw, MeanSquareRatio, SquaredMeanRatio
from probe.rows import load
from probe.sae.corpus import encode_windows
from probe.sae.named import NAMES, read_rule, read_rules

SMALL = ["--n-features", "64", "--active", "8", "--steps", "20", "--least-variance", "0.05"]


@pytest.fixture(scope="module")
def places(bed, tmp_path_factory):
    """The testbed as a user's folders: models, rows, and a dictionary that `probe sae train` makes of them."""
    folder = tmp_path_factory.mktemp("sae")
    save_model(bed.original, folder / "model", tokenizer=bed.tokenizer)
    save_model(bed.retrained, folder / "edited", tokenizer=bed.tokenizer)
    write_rows(folder / "forget.jsonl", bed.split.forget_rows[::3])
    write_rows(folder / "retain.jsonl", bed.split.retain_rows[::10])
    return folder


def rows_of(places):
    return ["--forget", str(places / "forget.jsonl"), "--retain", str(places / "retain.jsonl")]


def own(places, bed):
    return ["--original", str(places / "model"), "--sae", str(bed.folder / "sae"), *rows_of(places)]


def whole(out):
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["status"] == "complete"
    assert load(out / "rows.jsonl")
    assert (out / "table.txt").read_text().strip()
    return manifest


def fails(capsys, *arguments, code=2):
    with pytest.raises(SystemExit) as stopped:
        main(["sae", *map(str, arguments)])
    assert stopped.value.code == code
    # Bars of loading come first.
    said = capsys.readouterr().err.rstrip().splitlines()[-1]
    assert said.startswith("probe: ")
    return said


def test_a_dictionary_is_trained_and_ranked_on_own_models(places, tmp_path, capsys):
    out = tmp_path / "trained"
    model = ["--original", str(places / "model"), *rows_of(places)]
    main(
        ["sae", "train", *model, "--layer", "4", "--lr", "3e-3", *SMALL, "--tokens-per-step", "256", "--out", str(out)]
    )
    assert "variance explained" in capsys.readouterr().out
    assert whole(out)["weights"]["original"]
    assert {p.name for p in (out / "sae").iterdir()} >= {"cfg.json", "sae_weights.safetensors", "card.json"}
    ranked = tmp_path / "ranked"
    main(
        ["sae", "rank", *model, "--sae", str(out / "sae"), "--rules", "mean-difference", "attribution", "--top", "5",
         "--view", "2", "--out", str(ranked)]
    )  # fmt: skip
    assert set(json.loads((ranked / "features.json").read_text())) == {"mean-difference", "attribution"}
    page = (ranked / "features.html").read_text()
    assert page.count("<section>") == 2
    assert "http" not in page
    assert "<script" not in page
    assert whole(ranked)["sae"]["site"] == "Site(4)"
    assert {r.quantity for r in load(ranked / "rows.jsonl")} >= {"score", "overlap", "mean_activation"}


def test_f47_a_dictionary_is_trained_on_a_corpus(places, bed, tmp_path, capsys):
    rows = [*bed.split.forget_rows, *bed.split.retain_rows]
    texts = [" ".join(f"{row.question} {row.answer}" for row in rows[i : i + 8]) for i in range(0, 160, 8)]
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n\n".join(texts))
    out = tmp_path / "out"
    train = [
        "train",
        "--original",
        str(places / "model"),
        "--text",
        str(corpus),
        "--layer",
        "4",
        "--lr",
        "3e-3",
        *SMALL,
    ]
    main(["sae", *train, "--tokens-per-step", "256", "--max-length", "64", "--out", str(out)])
    printed = capsys.readouterr().out
    manifest = whole(out)
    assert manifest["data"] == {"text": {"texts": 20}}
    assert set(manifest["files"]) == {"text"}
    # Nothing is cut off: all but the first token of each window (bos) of 18 texts is trained on.
    tokens = sum(map(len, bed.tokenizer(texts, add_special_tokens=False)["input_ids"]))
    trained = int(re.search(r"trained on (\d+) activations, each drawn about", printed)[1])
    assert 0.85 * tokens < trained < 0.95 * tokens
    assert "choose one: a corpus, or question rows" in fails(capsys, *train, *rows_of(places), "--out", tmp_path / "b")
    assert "--text needs --original" in fails(capsys, "train", "--text", corpus, "--out", tmp_path / "b")
    corpus.write_text(texts[0])
    assert "holds one text; every tenth is left out" in fails(capsys, *train, "--out", tmp_path / "b")
    assert "no file at" in fails(capsys, *[*train[:4], tmp_path / "absent", *train[5:]], "--out", tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_f47_windows_hold_every_token_once(bed):
    texts = [" ".join(row.question for row in bed.split.retain_rows[:n]) for n in (1, 3, 9)]
    wanted = bed.tokenizer(texts, add_special_tokens=False)["input_ids"]
    bos = [] if bed.tokenizer.bos_token_id is None else [bed.tokenizer.bos_token_id]
    batch = encode_windows(bed.tokenizer, texts, max_length=16)
    found = [tokens[mask].tolist() for tokens, mask in zip(batch.tokens_BT, batch.attention_BT, strict=True)]
    assert all(window[: len(bos)] == bos and 2 <= len(window) - len(bos) <= 16 - len(bos) for window in found)
    joined = [token for window in found for token in window[len(bos) :]]
    room = 16 - len(bos)
    # A last window of one token has nothing to predict.
    assert joined == [token for s in wanted for token in (s[:-1] if len(s) % room == 1 else s)]
    with pytest.raises(ValueError, match="room for two tokens besides bos"):
        encode_windows(bed.tokenizer, texts, max_length=1 + len(bos))


@pytest.mark.slow
def test_suppression_is_chosen_and_judged_on_different_people(places, bed, tmp_path, capsys):
    out = tmp_path / "out"
    main(
        ["sae", "suppress", *own(places, bed), "--rules", "mean-difference", "--counts", "20", "--scales", "3",
         "--pushes", "0.3", "--gate", "rate", "--retrained", str(places / "edited"), "--out", str(out)]
    )  # fmt: skip
    printed = capsys.readouterr().out
    assert "read as" in printed
    assert "more often than by a model that never knew" in printed
    manifest = whole(out)
    assert set(manifest["weights"]) == {"original", "retrained"}
    found = load(out / "rows.jsonl")
    assert {r.intervention for r in found if r.diagnostic == "sae_choice"} > {"SAE", "random dictionary", "LEACE"}
    assert any(r.quantity.startswith("verdict ") for r in found)
    assert (out / "figures" / "sae_choices.pdf").is_file()
    chosen = json.loads((out / "chosen.json").read_text())
    assert len(chosen["features"]) == 20
    assert chosen["gate"]["name"] == "rate"
    assert 0 <= chosen["gate"]["threshold"] < 1


def test_an_audit_of_two_models(places, bed, tmp_path, capsys):
    out = tmp_path / "out"
    main(
        ["sae", "audit", *own(places, bed), "--unlearned", str(places / "edited"), "--features", "1", "5", "9", "12",
         "--out", str(out)]
    )  # fmt: skip
    assert "features write" in capsys.readouterr().out
    assert json.loads((out / "features.json").read_text()) == {"edited": [1, 5, 9, 12]}
    whole(out)


@pytest.mark.parametrize("command", ["train", "rank", "suppress", "audit"])
def test_half_a_description_is_refused_before_anything_is_loaded(command, tmp_path, capsys):
    said = fails(capsys, command, "--original", "somewhere", "--out", tmp_path / "out")
    assert "missing" in said or "--features" in said
    assert not (tmp_path / "out").exists()


def test_an_sae_of_another_block_is_refused_with_the_numbers(places, bed, tmp_path, capsys):
    said = fails(capsys, "rank", *own(places, bed), "--sae-layer", 0, "--out", tmp_path / "out")
    assert "variance unexplained" in said
    assert not (tmp_path / "out").exists()


def test_features_out_of_range_or_doubled_are_refused(places, bed, tmp_path, capsys):
    audit = ["audit", *own(places, bed), "--unlearned", places / "edited", "--out", tmp_path / "out"]
    assert "feature 99999 does not exist" in fails(capsys, *audit, "--features", "1", "99999")
    assert "feature 3 is given 2 times" in fails(capsys, *audit, "--features", "3", "3")
    assert "belong together" in fails(capsys, *audit, "--features", "3", "--steps", "2")


def test_a_dictionary_off_target_is_not_saved(places, tmp_path, capsys):
    model = ["--original", places / "model", *rows_of(places), "--layer", 4, "--lr", "3e-3", "--tokens-per-step", 256]
    said = fails(capsys, "train", *model, *SMALL[:-1], "0.999", "--out", tmp_path / "out")
    assert "off target" in said
    assert not (tmp_path / "out").exists()
    beyond = [8 if value == 4 else value for value in model]
    assert "blocks 0 to 7" in fails(capsys, "train", *beyond, *SMALL, "--out", tmp_path / "out")


def test_no_dictionary_where_one_is_named(places, tmp_path, capsys):
    arguments = [
        "--original",
        places / "model",
        *rows_of(places),
        "--sae",
        tmp_path / "none",
        "--out",
        tmp_path / "out",
    ]
    assert "no folder" in fails(capsys, "rank", *arguments)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("frequency", "takes a number"),
        ("auroc:1", "takes no number"),
        ("frequncy:0.1", "did you mean 'frequency'"),
        ("frequency:x", "not a number"),
        ("frequency:2", "share of tokens"),
        ("crisp:2.5", "whole"),
    ],
)
def test_rules_that_cannot_be_read(text, said):
    with pytest.raises(ValueError, match=said):
        read_rule(text)


def test_p12_p13_papers_and_released_forms_are_reached_by_name():
    assert read_rule("mean-square-ratio:90") == MeanSquareRatio(90.0)
    assert read_rule("squared-mean-ratio:90") == SquaredMeanRatio(90.0)
    assert read_rule("crisp:30") == Crisp(30)
    assert read_rule("crisp-released:30") == CrispRaw(30)


def test_every_rule_has_a_name():
    for name in NAMES:
        numbers = {"frequency": ":0.01", "mean-square-ratio": ":95", "squared-mean-ratio": ":95", "saeuron": ":99"}
        numbers |= {"crisp": ":30", "crisp-released": ":30"}
        assert read_rule(name + numbers.get(name, "")).role in ("detect", "edit")
    with pytest.raises(ValueError, match="each once"):
        read_rules(("auroc", "auroc"))


@pytest.mark.parametrize("command", ["train", "rank", "suppress", "audit"])
def test_no_flag_of_a_command_is_given_twice(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["sae", command, "--help"])
    assert stop.value.code == 0
    assert "--batch-size" in capsys.readouterr().out
