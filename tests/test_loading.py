"""Models are loaded whole or refused with a reason, and saved whole or not at all."""

import copy
import json
import struct
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from conftest import tiny_gpt2, tiny_llama
from safetensors.torch import load_file, save_file

from probe import checkpoints
from probe.checkpoints import check_usable, load_model, load_tokenizer, save_model, weights_hash
from probe.cli import main
from probe.model_files import INDEX, WEIGHTS
from probe.train.adapters import lora


@pytest.fixture
def folder(tmp_path):
    save_model(tiny_llama(), tmp_path / "model")
    return tmp_path / "model"


def rewritten(folder: Path, change) -> None:
    """Let ``change`` work on the saved tensors."""
    tensors = load_file(folder / WEIGHTS)
    save_file(change(tensors), folder / WEIGHTS, metadata={"format": "pt"})


def configured(folder: Path, **fields) -> None:
    config = json.loads((folder / "config.json").read_text()) | fields
    (folder / "config.json").write_text(json.dumps(config))


def sharded(folder: Path) -> dict[str, str]:
    """The folder's model in several files; which tensor is in which."""
    model = load_model(folder)
    (folder / WEIGHTS).unlink()
    model.save_pretrained(folder, max_shard_size=10_000)
    return json.loads((folder / INDEX).read_text())["weight_map"]


def without(*names):
    return lambda tensors: {name: t for name, t in tensors.items() if name not in names}


# --- weights that are not there -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("model.layers.1.mlp.up_proj.weight"), r"1 missing, model\.layers\.1\.mlp\.up_proj\.weight for one"),
        (without("model.embed_tokens.weight"), r"1 missing, model\.embed_tokens\.weight for one"),
        (without("lm_head.weight"), r"1 missing, lm_head\.weight for one"),
        (
            lambda tensors: {f"net.{name}": t for name, t in tensors.items()},
            "30 missing, .*; 30 not of this model, net",
        ),
        (lambda tensors: {}, "30 missing, lm_head"),
        (lambda tensors: tensors | {"model.extra": torch.ones(2)}, r"1 not of this model, model\.extra for one"),
        (
            lambda tensors: tensors | {"model.norm.weight": torch.ones(8)},
            r"1 of another shape, model\.norm\.weight \(8,\) for \(16,\) for one",
        ),
    ],
    ids=["a tensor", "the embedding", "the head", "a prefix", "all", "one too many", "a shape"],
)
def test_r1_weights_that_lack_or_do_not_belong_are_never_made_up(folder, change, message):
    rewritten(folder, change)
    with pytest.raises(
        ValueError, match=f"not those of a LlamaForCausalLM as config.json describes it: .*{message}"
    ) as e:
        load_model(folder)
    assert len(str(e.value)) < 400


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "gpt2"}, "GPT2LMHeadModel.*40 missing"),
        ({"model_type": "bert"}, "BertLMHeadModel.*60 missing"),
        ({"num_hidden_layers": 2}, r"9 not of this model, model\.layers\.2"),
        ({"num_hidden_layers": 4}, r"9 missing, model\.layers\.3"),
        ({"num_hidden_layers": 0}, "27 not of this model"),
        ({"num_hidden_layers": -1}, "27 not of this model"),
        ({"intermediate_size": 24}, r"9 of another shape, .*\(16, 32\) for \(16, 24\)"),
    ],
    ids=str,
)
def test_r1_r3_a_config_of_another_model_is_refused(folder, fields, message):
    configured(folder, **fields)
    with pytest.raises(ValueError, match=message):
        load_model(folder)


def test_r1_names_that_a_family_declares_are_left_aside(folder, tmp_path):
    """Tied weights under either name, buffers of older releases, GPT-2 without its head's prefix."""
    tied = tiny_llama(tie_word_embeddings=True)
    save_model(tied, tmp_path / "tied")
    assert "lm_head.weight" not in load_file(tmp_path / "tied" / WEIGHTS)
    assert weights_hash(load_model(tmp_path / "tied")) == weights_hash(tied)
    rewritten(tmp_path / "tied", lambda t: {n.replace("model.embed_tokens", "lm_head"): v for n, v in t.items()})
    assert weights_hash(load_model(tmp_path / "tied")) == weights_hash(tied)
    rewritten(tmp_path / "tied", without("lm_head.weight"))
    with pytest.raises(ValueError, match="missing"):
        load_model(tmp_path / "tied")
    before = weights_hash(load_model(folder))
    rewritten(folder, lambda tensors: tensors | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)})
    assert weights_hash(load_model(folder)) == before
    gpt2 = tiny_gpt2(dtype=torch.float32)
    save_model(gpt2, tmp_path / "gpt2")
    mask = {"h.0.attn.bias": torch.ones(1, 1, 4, 4)}
    rewritten(tmp_path / "gpt2", lambda t: {n.removeprefix("transformer."): v for n, v in t.items()} | mask)
    assert weights_hash(load_model(tmp_path / "gpt2")) == weights_hash(gpt2)


@pytest.fixture(scope="module")
def lacking(bed, tmp_path_factory):
    """A model without its final norm, with a tokenizer and rows."""
    folder = tmp_path_factory.mktemp("lacking")
    save_model(tiny_llama(vocab_size=1024), folder / "model", tokenizer=bed.tokenizer)
    rewritten(folder / "model", without("model.norm.weight"))
    for name, rows in (("f.jsonl", bed.split.forget_rows[:8]), ("r.jsonl", bed.split.retain_rows[:8])):
        lines = [{k: v for k, v in asdict(row).items() if v} for row in rows]
        (folder / name).write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder


@pytest.mark.parametrize(
    "command",
    [
        "doctor {0}",
        "unlearn ga --original {0} {1} --steps 1 --lr 1 --batch-size 2",
        "report --original {0} {1}",
        "evaluate {0} {1}",
        "verdict {0} --original {0} --forget {2}",
        "layers --original {0} --unlearned {0} {1}",
        "g-effect --original {0} --objective ga {1}",
        "sae train --original {0} {1} --layer 1 --active 2 --n-features 8 --steps 1 --lr 1 --least-variance 0",
    ],
    ids=lambda command: command.split()[0],
)
def test_r1_every_command_refuses_them(lacking, tmp_path, capsys, command):
    data = f"--forget {lacking / 'f.jsonl'} --retain {lacking / 'r.jsonl'} --out {tmp_path / 'out'}"
    with pytest.raises(SystemExit) as stopped:
        main(command.format(lacking / "model", data, lacking / "f.jsonl").split())
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert "the weights are not those of a LlamaForCausalLM as config.json describes it: 1 missing" in told
    assert stopped.value.code == 2
    assert not list(tmp_path.rglob("*.safetensors"))


def test_r1_only_one_place_loads_models():
    root = Path(checkpoints.__file__).parent
    users = {p.relative_to(root).as_posix() for p in root.rglob("*.py") if "from_pretrained(" in p.read_text()}
    assert users == {"checkpoints.py", "dictionaries/folders.py"}


# --- shards and headers ---------------------------------------------------------------------------------------


def test_r1_r20_an_index_names_safetensors_beside_it_and_nothing_else(folder):
    expected = weights_hash(load_model(folder))
    named = sharded(folder)
    assert len(set(named.values())) > 1
    assert weights_hash(load_model(folder)) == expected
    first = next(iter(named))
    outside = folder.parent / "outside.safetensors"
    (folder / named[first]).rename(outside)
    for place, message in (
        (named[first], f"{named[first]} is missing; copy"),
        ("../outside.safetensors", "expected the name of a file in the same folder"),
        (str(outside), "expected the name of a file in the same folder"),
        ("..", "expected the name of a file in the same folder"),
        (3, "is in 3; expected the name"),
        ("pytorch_model.bin", r"is in 'pytorch_model\.bin'; .*is a pickle, which can run code"),
    ):
        (folder / INDEX).write_text(json.dumps({"weight_map": named | {first: place}}))
        with pytest.raises(ValueError, match=message):
            load_model(folder)
    for content in ("[]", "3", '{"weight_map": []}', '{"weight_map": {}}', "{"):
        (folder / INDEX).write_text(content)
        with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json"):
            load_model(folder)


def entry(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"3",
        b"[" * 100_000,
        b"\xff",
        {"w": 3},
        {"w": {"dtype": "F32", "shape": [1]}},
        {"w": entry("F99")},
        {"w": entry(), "v": entry()},
        {"w": entry(shape=[-1])},
        {"w": entry(shape=[2])},
        {"w": entry(offsets=[4, 0])},
        {"w": entry(offsets=[0, "4"])},
        {"w": entry(), "__metadata__": 3},
    ],
    ids=lambda header: str(header)[:40],
)
def test_r2_a_broken_header_is_named_with_its_fault(folder, header):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(4))
    with pytest.raises(
        ValueError, match=r"model\.safetensors (is not a safetensors file \(|has \d+ bytes, its header)"
    ):
        load_model(folder)


# --- configs, tokenizers, places ------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["[]", "null", "3", '"llama"', "true", "{", "{}"])
def test_r3_a_config_that_is_no_description_is_refused(folder, content):
    (folder / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config\.json (holds|is not JSON)|save it anew .*Unrecognized model"):
        load_model(folder)


@pytest.mark.parametrize("field", ["hidden_size", "num_attention_heads", "vocab_size", "hidden_act", "rope_parameters"])
@pytest.mark.parametrize("value", [None, -1, 0, "sixteen", 16.5, [16]], ids=str)
def test_r3_a_setting_without_meaning_is_no_traceback(folder, field, value):
    configured(folder, **{field: value})
    if (field, value) == ("rope_parameters", None):  # its default
        return
    with pytest.raises(ValueError, match=r"save it anew with save_pretrained \(\w+: |of another shape") as caught:
        load_model(folder)
    assert len(str(caught.value)) < 400 + len(str(folder))


def test_r3_infinity_in_a_config_is_what_some_families_write(folder):
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace("{", '{"time_step_limit": [0.0, Infinity],', 1))
    load_model(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "config.json"])
@pytest.mark.parametrize("content", ["[]", "null", "3", "{"])
def test_r4_a_tokenizer_that_is_no_description_is_named_by_its_file(bed, tmp_path, name, content):
    bed.tokenizer.save_pretrained(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=rf"{name} (holds|is not JSON)"):
        load_tokenizer(tmp_path)


def test_r4_ids_without_a_place_and_special_tokens_that_are_none_are_refused(bed, tmp_path):
    bed.tokenizer.save_pretrained(tmp_path)
    plain = json.loads((tmp_path / "tokenizer.json").read_text())
    vocabulary = plain["model"]["vocab"]
    odd = plain | {"model": plain["model"] | {"vocab": vocabulary | {next(iter(vocabulary)): -1}}}
    for name, content in (("tokenizer.json", odd), ("tokenizer_config.json", {"eos_token": 3}), ("tokenizer.json", {})):
        bed.tokenizer.save_pretrained(tmp_path)
        (tmp_path / name).write_text(json.dumps(content))
        with pytest.raises(ValueError, match="has no tokenizer that can be read; copy it"):
            load_tokenizer(tmp_path)


def test_r4_doctor_asks_for_an_eos_token(bed):
    endless = copy.deepcopy(bed.tokenizer)
    endless.eos_token = None
    with pytest.raises(ValueError, match="the tokenizer has no eos token"):
        check_usable(bed.original, endless)


@pytest.mark.parametrize(
    "fields",
    [
        {"attn_implementation": "owner/kernel"},
        {"_attn_implementation": "owner/kernel"},
        {"attn_implementation": {"": "owner/kernel"}},
        {"text_config": {"experts_implementation": "owner/kernel@main:function"}},
        {"transformers_weights": "adapter_model.bin"},
    ],
    ids=str,
)
def test_r20_a_config_fetches_no_code_and_names_no_other_weights(folder, fields):
    configured(folder, **fields)
    with pytest.raises(
        ValueError, match=r"config\.json: .*(which would fetch code from the hub|for the weights; remove it)"
    ):
        load_model(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("adapter_config.json", b"{}", "is an adapter's, .*merge it first"),
        ("shard-00001-model-00001-of-00001.safetensors", b"", "part of a distributed checkpoint"),
    ],
)
def test_r13_what_would_be_loaded_beside_the_weights_is_refused(folder, name, content, message):
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_model(folder)


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
def test_r21_a_path_with_a_slash_that_does_not_exist_is_told_as_a_path(tmp_path, monkeypatch, load):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ValueError, match=r"no folder at runs/modle .resolved to /.*runs/modle., and no .* from the hub"
    ):
        load("runs/modle")


def test_r1_r21_a_model_of_the_hub_is_checked_as_a_folder_is(folder, tmp_path, monkeypatch):
    """Without a network: the hub's cache, as a download leaves it."""
    cached = tmp_path / "hub" / "models--owner--model"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0" * 40)
    expected = weights_hash(load_model(folder))
    (cached / "snapshots").mkdir()
    folder.rename(snapshot := cached / "snapshots" / ("0" * 40))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert weights_hash(load_model("owner/model")) == expected
    configured(snapshot, attn_implementation="owner/kernel")
    with pytest.raises(ValueError, match="which would fetch code"):
        load_model("owner/model")


# --- saving ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["save_pretrained", "moving"])
def test_a_save_that_is_cut_off_leaves_nothing_that_can_be_loaded(folder, monkeypatch, stage):
    """Over another model in several files: never some of this and some of that."""
    sharded(folder)
    model = tiny_llama(1)
    if stage == "moving":
        replace, moved = Path.replace, []

        def cut_off(self, target):
            moved.append(self)
            if len(moved) == 2:
                raise KeyboardInterrupt
            return replace(self, target)

        monkeypatch.setattr(Path, "replace", cut_off)
    else:
        monkeypatch.setattr(model, "save_pretrained", lambda part: (_ for _ in ()).throw(KeyboardInterrupt))
    before = weights_hash(load_model(folder))
    with pytest.raises(KeyboardInterrupt):
        save_model(model, folder)
    assert not list(folder.glob(".*"))
    if stage == "moving":
        with pytest.raises(ValueError, match=r"no \.safetensors file"):
            load_model(folder)
    else:
        assert weights_hash(load_model(folder)) == before
    monkeypatch.undo()
    save_model(model, folder)
    assert weights_hash(load_model(folder)) == weights_hash(model)
    assert [p.name for p in folder.glob("*.safetensors*")] == [WEIGHTS]


def test_r13_adapters_are_not_saved_as_a_model(tmp_path):
    pytest.importorskip("peft")
    adapted = lora(tiny_llama(), rank=2, alpha=4.0, targets=["q_proj"], seed=0)
    for model in (adapted, adapted.base_model.model):
        with pytest.raises(ValueError, match=r"carries adapters \(at .*q_proj\); call its merge_and_unload"):
            save_model(model, tmp_path / "adapted")
    merged = adapted.merge_and_unload()
    save_model(merged, tmp_path / "merged")
    assert weights_hash(load_model(tmp_path / "merged")) == weights_hash(merged)


# In a process of its own, where types are not checked, as a user has it.
_OPENED_WRONGLY = """
import sys, probe
cases = [
    ({"template": "chatt"}, "--template must be one of auto, plain, chat, llama2, llama3, phi; got 'chatt'"),
    ({"bos": "no"}, "--bos must be one of auto, always, never"),
    ({"control_tokens": "kept"}, "--control-tokens must be one of refused, text"),
    ({"dtype": "int8"}, "--dtype must be one of float32, bfloat16, float16; got 'int8'"),
    ({"limit": "x"}, "--limit must be a whole number from 1 to 2147483647, got x"),
    ({"templat": "chat"}, "probe.open has no argument 'templat'; did you mean 'template'"),
]
for changes, said in cases:
    try:
        probe.open("nowhere", forget="f", retain="r", **changes)
    except (ValueError, TypeError) as error:
        assert said in str(error), error
    else:
        sys.exit(f"{changes} were taken")
for changes in ({"limit": 0}, {"dtype": "int8"}):
    try:
        probe.testbed(**changes)
    except ValueError as error:
        assert "must be" in str(error), error
    else:
        sys.exit(f"{changes} were taken")
"""


def test_studies_are_not_opened_with_options_that_do_not_exist():
    ended = subprocess.run([sys.executable, "-c", _OPENED_WRONGLY], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
