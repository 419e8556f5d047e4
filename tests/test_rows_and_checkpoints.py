"""Rows on disk, and loading and saving of models; numbers name rows of the bad-input list."""

import json
import math
import subprocess
import sys

import pytest
import torch
from conftest import tiny_llama

from probe.checkpoints import (
    check_different,
    check_tokenizer,
    check_usable,
    load_model,
    load_tokenizer,
    save_model,
    weights_hash,
)
from probe.cli import main
from probe.model_files import check_safetensors
from probe.rows import Row, append, load
from probe.weights import blended, check_same_architecture


def test_rows_round_trip_with_any_text(tmp_path):
    rows = [Row("RMU\u2028", "g_effect", "effect", 0.1, layer=3), Row("é", "x", "y", None)]
    append(tmp_path / "rows.jsonl", rows)
    append(tmp_path / "rows.jsonl", rows[:1])
    assert load(tmp_path / "rows.jsonl") == [*rows, rows[0]]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_is_labelled_never_written(tmp_path, bad):
    append(tmp_path / "rows.jsonl", [Row("a", "b", "c", bad)])
    assert "NaN" not in (tmp_path / "rows.jsonl").read_text()
    assert load(tmp_path / "rows.jsonl")[0].status == "nonfinite"


def test_a_torn_line_is_left_out_and_repaired_13(tmp_path):
    path = tmp_path / "rows.jsonl"
    row = Row("a", "b", "c", 1.0)
    append(path, [row])
    path.write_bytes(path.read_bytes() + b'{"interv')
    assert load(path) == [row]
    append(path, [row])
    assert load(path) == [row, row]


def test_rows_of_another_version_are_refused(tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"intervention": "a", "colour": 1}) + "\n")
    with pytest.raises(ValueError, match="unknown fields"):
        load(tmp_path / "rows.jsonl")


def test_save_and_load_is_bit_exact(tmp_path):
    model = tiny_llama()
    save_model(model, tmp_path)
    assert weights_hash(load_model(tmp_path)) == weights_hash(model)


def test_pickles_are_refused_with_the_way_out_67(tmp_path):
    with pytest.raises(ValueError, match=r"is a pickle.*save_pretrained"):
        load_model(tmp_path / "model.bin")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ValueError, match="is a pickle"):
        load_model(tmp_path)


def test_truncated_weights_name_both_sizes_65(tmp_path):
    save_model(tiny_llama(), tmp_path)
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match=f"has {len(whole) - 100} bytes, its header expects {len(whole)}"):
        load_model(tmp_path)
    path.write_bytes(whole[:6])
    with pytest.raises(ValueError, match="not a safetensors file"):
        check_safetensors(path)


def test_a_flipped_byte_changes_the_hash_66(tmp_path):
    model = tiny_llama()
    save_model(model, tmp_path)
    path = tmp_path / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(bytes(data))
    assert weights_hash(load_model(tmp_path)) != weights_hash(model)


@pytest.mark.parametrize("name", ["./absent", "/absent/model", "absent"])
def test_a_missing_folder_is_no_hub_name_18(name):
    with pytest.raises(ValueError, match="no folder at"):
        load_model(name)


def test_identical_models_are_refused_48():
    with pytest.raises(ValueError, match="original and the unlearned model are identical"):
        check_different(tiny_llama(), tiny_llama(), ("original", "unlearned"))


def test_other_architectures_are_refused_44_46():
    model = tiny_llama()
    with pytest.raises(ValueError, match="vocab_size: 48 and 50"):
        check_same_architecture(model, tiny_llama(vocab_size=50))
    # Every shape agrees, the heads do not: loading such weights succeeds silently.
    other = tiny_llama(num_attention_heads=8, num_key_value_heads=4, head_dim=2)
    model_2 = tiny_llama(num_attention_heads=4, num_key_value_heads=2, head_dim=4)
    with pytest.raises(ValueError, match="num_attention_heads: 4 and 8"), blended(model_2, other, [1.0, 1.0, 1.0]):
        pass


def test_tied_embeddings_are_blended_once_43():
    model, other = tiny_llama(0, tie_word_embeddings=True), tiny_llama(1, tie_word_embeddings=True)
    before = weights_hash(model)
    with blended(model, other, [0.0] * 3, alpha_rest=0.5):
        mixed = 0.5 * tiny_llama(0, tie_word_embeddings=True).lm_head.weight + 0.5 * other.lm_head.weight
        torch.testing.assert_close(model.lm_head.weight, mixed)
        assert model.lm_head.weight is model.model.embed_tokens.weight
    assert weights_hash(model) == before


def test_nan_weights_and_foreign_tokenizers_are_refused(shared):
    tokenizer = load_tokenizer(shared / "models" / "stories260K")
    model = load_model(shared / "models" / "stories260K")
    check_usable(model, tokenizer)
    with pytest.raises(ValueError, match="ids up to 511, the model embeds 48"):
        check_usable(tiny_llama(), tokenizer)
    next(model.parameters()).data[0, 0] = math.nan
    with pytest.raises(ValueError, match="holds NaN"):
        check_usable(model, tokenizer)
    other = load_tokenizer(shared / "models" / "stories260K")
    other.add_tokens(["<new>"])
    with pytest.raises(ValueError, match="512 and 513 entries"):
        check_tokenizer(tokenizer, other)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["figures", "absent"], "no rows at absent"),
        (["report", "--original", "x"], "--forget, --retain missing"),
        (["report", "--original", "x", "--forget", "absent.json", "--retain", "y"], "no file at absent.json"),
    ],
)
def test_mistakes_give_one_line_and_exit_code_two(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.strip().splitlines()) == 1


def test_a_process_ends_with_the_code_and_no_traceback(tmp_path):
    (tmp_path / "file").write_text("")
    done = subprocess.run(
        [sys.executable, "-m", "probe", "report", "--out", str(tmp_path / "file" / "run")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "cannot write to" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_and_import_are_light():
    """By what they import: seconds would depend on what else the machine does."""
    heavy = ("torch", "matplotlib", "sae_lens", "transformers", "scipy", "numpy", "sklearn", "nnsight")
    code = f"""
import sys, probe.cli
try:
    probe.cli.main(["--help"])
finally:
    print([name for name in {heavy} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "doctor" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"
