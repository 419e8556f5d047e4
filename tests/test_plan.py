"""Plans: the same bits after a round trip through files, and everything that is not exactly a plan refused."""

import json
import struct

import pytest
import torch
from conftest import random_batch, tiny_llama
from families import family
from safetensors.torch import load_file, save_file

from probe.checkpoints import file_hash, weights_hash
from probe.hooks import edited
from probe.interventions.features import Clamp, ScaleFeatures
from probe.interventions.fit import fingerprint
from probe.interventions.operations import OPERATIONS, Operation
from probe.interventions.plan import Plan, PlanStep, compile_plan, load_plan
from probe.interventions.projection import Cap, Erase, Project
from probe.interventions.replacement import Noise, Replace, Scale, Skip
from probe.interventions.steering import Steer
from probe.positions import (
    At,
    Before,
    From,
    Mask,
    NotIds,
    Only,
    Tokens,
    everywhere,
    generated,
    last,
    not_first,
    prompt,
)
from probe.sites import Site

WIDTH = 16


def vector(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*(shape or (WIDTH,)), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def model():
    return tiny_llama()


@pytest.fixture(scope="module")
def batch():
    return random_batch()


@pytest.fixture(scope="module")
def edits(batch):
    """Every operation but the features', and every kind of positions."""
    low_rank = torch.linalg.qr(vector(5, WIDTH, 2)).Q
    return {
        Site(2): [
            Steer(vector(1), scale=0.5),
            At(Project(vector(2), strength=2.0), not_first),
            Cap(vector(3), high=0.2),
        ],
        Site(0): [Skip(), At(Noise(0.1, seed=2**60 + 1), Before((2, 3, 4, 5))), At(Scale(1.5), From(4))],
        Site(1): [
            At(Erase(low_rank, low_rank.T, vector(6)), Only((1, 3))),
            At(Replace(vector(7)), Mask(batch.target_BT)),
        ],
        Site(1, "heads", head=3): At(Scale(0.0), NotIds((5, 9))),
        Site(1, "heads"): At(Scale(1.1), everywhere),
        Site(1, "mlp", "in"): At(Scale(0.5), prompt),
        Site(0, "norm", "in"): At(Steer(vector(8), scale=-1.0), last),
        Site(0, "embedding"): At(Scale(3.0), generated),
        Site(1, side="in"): Replace(vector(9, 4, 10, WIDTH)),
    }


def logits(model, batch, edits):
    with torch.no_grad(), edited(model, edits):
        return model(**batch.inputs, use_cache=False).logits


@pytest.fixture(scope="module")
def plan(model, edits):
    return compile_plan(model, edits)


def test_a_loaded_plan_gives_the_same_bits(model, batch, edits, plan, tmp_path):
    plan.save(tmp_path / "plan")
    loaded = load_plan(tmp_path / "plan", model)
    here = logits(model, batch, edits)
    assert torch.equal(here, logits(model, batch, plan.edits(model)))
    assert torch.equal(here, logits(model, batch, loaded.edits(model)))
    assert not torch.allclose(here, model(**batch.inputs).logits)
    assert loaded.model == plan.model
    again = compile_plan(model, loaded.edits(model))
    assert [(s.where, s.operation.name, s.operation.numbers) for s in again.steps] == [
        (s.where, s.operation.name, s.operation.numbers) for s in plan.steps
    ]


def test_steps_stand_in_the_order_of_execution(plan):
    assert [(s.module.removeprefix("model."), s.side, s.operation.name) for s in plan.steps] == [
        ("embed_tokens", "out", "scale"),
        ("layers.0", "out", "skip"),
        ("layers.0", "out", "noise"),
        ("layers.0", "out", "scale"),
        ("layers.1", "in", "replace"),
        ("layers.1.self_attn.o_proj", "in", "scale"),
        ("layers.1.self_attn.o_proj", "in", "scale"),
        ("layers.1.mlp", "in", "scale"),
        ("layers.1", "out", "erase"),
        ("layers.1", "out", "replace"),
        ("layers.2", "out", "add"),
        ("layers.2", "out", "project"),
        ("layers.2", "out", "cap"),
        ("norm", "in", "add"),
    ]


def test_a_plan_keeps_what_it_was_given(model):
    direction = vector(1)
    plan = compile_plan(model, {Site(1): Steer(direction, scale=1.0)})
    direction.zero_()
    assert torch.equal(plan.steps[0].operation.tensors["direction"], vector(1))


def test_saving_is_all_or_nothing(plan, tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(json, "dumps", broken)
    with pytest.raises(OSError, match=r"disk full"):
        plan.save(tmp_path / "plan")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    plan.save(tmp_path / "plan")
    with pytest.raises(ValueError, match=r"exists already"):
        plan.save(tmp_path / "plan")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["plan", "plan.json", "plan.safetensors"]


def test_what_cannot_be_written_down_is_refused_by_name(model):
    def mine(hidden):
        return hidden * 2

    with pytest.raises(ValueError, match=r"mine at .*has no operation"):
        compile_plan(model, {Site(1): mine})
    with pytest.raises(ValueError, match=r"positions '.*mine' cannot be written down"):
        compile_plan(model, {Site(1): At(Scale(2.0), mine)})
    with pytest.raises(ValueError, match=r"At at .*has no operation"):
        compile_plan(model, {Site(1): At(At(Scale(2.0), prompt), last)})
    with pytest.raises(ValueError, match=r"needs what enters a block"):
        compile_plan(model, {Site(1, "mlp"): Skip()})
    with pytest.raises(ValueError, match=r"direction of 'add' at model.layers.1 \(out\) has width 8, .* width 16"):
        compile_plan(model, {Site(1): Steer(vector(1, 8), scale=1.0)})
    with pytest.raises(ValueError, match=r"layer 9 does not exist"):
        compile_plan(model, {Site(9): Scale(2.0)})


def changed(folder, change):
    """The plan with its JSON changed by hand."""
    found = json.loads((folder / "plan.json").read_text())
    change(found)
    (folder / "plan.json").write_text(json.dumps(found))


def with_tensors(folder, change):
    """The plan with its tensors changed, and the hash in its JSON as well."""
    tensors = load_file(folder / "plan.safetensors")
    change(tensors)
    save_file(tensors, folder / "plan.safetensors")
    changed(folder, lambda found: found.update(tensors=file_hash(folder / "plan.safetensors")))


def set_in(*path, to):
    def change(found):
        for key in path[:-1]:
            found = found[key]
        found[path[-1]] = to

    return change


def drop(*path):
    def change(found):
        for key in path[:-1]:
            found = found[key]
        del found[path[-1]]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_in("stepz", to=[]), "has the key 'stepz', which is unknown; did you mean 'steps'"),
        (drop("model"), "plan.json lacks model"),
        (set_in("version", to=2), "has format version 2; this release reads 1"),
        (set_in("format", to="other"), "is not a plan"),
        (set_in("steps", to={}), "steps must be a list"),
        (set_in("steps", 1, to="skip"), "step 1 must be an object"),
        (set_in("steps", 1, "sites", to=1), "step 1 has the key 'sites', which is unknown; did you mean 'side'"),
        (set_in("steps", 1, "operation", to="skipp"), "operation 'skipp', which is unknown; did you mean 'skip'"),
        (set_in("steps", 1, "operation", to=["skip"]), "which is unknown"),
        (
            set_in("steps", 0, "numbers", "facto", to=1.0),
            "has the key 'facto', which is unknown; did you mean 'factor'",
        ),
        (drop("steps", 0, "numbers", "factor"), "the numbers of step 0 lacks factor"),
        (set_in("steps", 0, "numbers", "factor", to="2"), "factor of .* must be a number, got '2'"),
        (set_in("steps", 0, "numbers", "factor", to=True), "factor of .* must be a number, got True"),
        (set_in("steps", 2, "numbers", "std", to=-1.0), "std of .* must be at least 0"),
        (set_in("steps", 2, "numbers", "seed", to=1.5), "seed of .* must be a whole number"),
        (set_in("steps", 12, "numbers", "low", to="inf"), "low of .* must not be above high"),
        (set_in("steps", 0, "module", to="model.embed"), "has no site at model.embed"),
        (set_in("steps", 1, "module", to="model.layers.7"), "has no site at model.layers.7"),
        (set_in("steps", 0, "side", to="inside"), "a side, in or out"),
        (set_in("steps", 5, "columns", to=[4, 2]), r"columns \[4, 2\]; expected null"),
        (set_in("steps", 5, "columns", to=[0, 3]), "has no site at .*, columns 0 to 3"),
        (set_in("steps", 0, "positions", to="prompt"), "must be null or an object"),
        (set_in("steps", 0, "positions", "kind", to="promt"), "'promt', which is unknown; did you mean 'prompt'"),
        (set_in("steps", 0, "positions", "length", to=1), "has the key 'length', which is unknown"),
        (set_in("steps", 3, "positions", "start", to=-4), "token index -4 is negative"),
        (set_in("steps", 3, "positions", "start", to=1.5), "start 1.5; expected whole numbers"),
        (set_in("model", "layers", to=9), "made for another model .layers 9 against 3"),
        (set_in("model", "weights", to="0"), "made for another model .other weights"),
        (set_in("tensors", to="0"), "is not the file that plan.json was written with"),
    ],
)
def test_a_changed_plan_is_refused(model, plan, tmp_path, change, message):
    plan.save(tmp_path / "plan")
    changed(tmp_path / "plan", change)
    with pytest.raises(ValueError, match=message):
        load_plan(tmp_path / "plan", model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("4.activation"), r"the tensor 'activation' of step 4 \(replace\) is missing"),
        (drop("9.mask"), "need the tensor 'mask'"),
        (set_in("4.other", to=torch.ones(2)), "holds tensors that no step uses: 4.other"),
        (set_in("9.mask", to=torch.ones(2, 2)), "of booleans"),
        (set_in("10.direction", to=torch.full((16,), torch.nan)), "direction of .* must hold finite"),
        (set_in("10.direction", to=torch.ones(16, dtype=torch.long)), "must hold finite floating-point .*int64"),
        (set_in("10.direction", to=torch.zeros(16)), "direction of .* is zero everywhere"),
        (set_in("10.direction", to=torch.ones(8)), "has width 8, the hidden states there have width 16"),
        (set_in("8.left", to=torch.ones(16, 3)), "right of 'erase' .* has 2 entries along K, the tensors beside it 3"),
        (set_in("10.direction", to=torch.ones(1, 16)), r"has shape \(1, 16\); expected the axes D"),
    ],
)
def test_changed_tensors_are_refused(model, plan, tmp_path, change, message):
    plan.save(tmp_path / "plan")
    with_tensors(tmp_path / "plan", change)
    with pytest.raises(ValueError, match=message):
        load_plan(tmp_path / "plan", model)


def test_damaged_files_are_refused(plan, tmp_path):
    plan.save(tmp_path / "plan")
    tensors, words = tmp_path / "plan" / "plan.safetensors", tmp_path / "plan" / "plan.json"
    whole, text = tensors.read_bytes(), words.read_text()
    tensors.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=r"its header expects"):
        load_plan(tmp_path / "plan")
    tensors.write_bytes(b"PK\x03\x04" + struct.pack("<I", 7) + whole)
    with pytest.raises(ValueError, match=r"is a pickle"):
        load_plan(tmp_path / "plan")
    tensors.unlink()
    with pytest.raises(ValueError, match=r"no file .*plan.safetensors"):
        load_plan(tmp_path / "plan")
    tensors.write_bytes(whole)
    for damaged, message in (
        (text[:-5], "is not JSON"),
        (text.replace('"version": 1', '"version": 1, "version": 1'), "the key 'version' twice"),
        (text.replace('"factor": 3.0', '"factor": NaN'), "holds NaN, which is not JSON"),
    ):
        words.write_text(damaged)
        with pytest.raises(ValueError, match=message):
            load_plan(tmp_path / "plan")


def test_another_model_is_refused_unless_meant(model, batch, plan, tmp_path):
    plan.save(tmp_path / "plan")
    twin = tiny_llama(seed=1)
    with pytest.raises(ValueError, match=r"another model \(other weights\); pass allow_other_model=True"):
        load_plan(tmp_path / "plan", twin)
    moved = load_plan(tmp_path / "plan", twin, allow_other_model=True).edits(twin)
    assert torch.isfinite(logits(twin, batch, moved)).all()
    with pytest.raises(ValueError, match=r"dtype float32 against float64"):
        load_plan(tmp_path / "plan", tiny_llama(dtype=torch.float64))
    with pytest.raises(ValueError, match=r"has no site at model.embed_tokens"):
        load_plan(tmp_path / "plan", family("gpt2"), allow_other_model=True)
    with pytest.raises(ValueError, match=r"have width 32"):
        load_plan(tmp_path / "plan", family("llama"), allow_other_model=True)
    with torch.device("meta"):
        empty = tiny_llama()
    with pytest.raises(ValueError, match=r"weights are not loaded"):
        load_plan(tmp_path / "plan", empty)


def test_a_plan_for_a_model_without_weights_fits_any_weights(model, tmp_path):
    with torch.device("meta"):
        empty = tiny_llama()
    plan = compile_plan(empty, {Site(1): Scale(2.0)})
    assert plan.model["weights"] is None
    plan.save(tmp_path / "plan")
    assert len(load_plan(tmp_path / "plan", model).steps) == 1


def test_a_change_of_one_weight_changes_the_fingerprint():
    model = tiny_llama()
    before, exact = fingerprint(model)["weights"], weights_hash(model)
    assert fingerprint(tiny_llama())["weights"] == before
    weight = model.model.layers[1].mlp.down_proj.weight
    with torch.no_grad():
        weight[3, 5] = torch.nextafter(weight[3, 5], torch.tensor(9.0))
    assert weights_hash(model) != exact
    assert fingerprint(model)["weights"] != before


def test_half_precision_and_other_dtypes_survive(tmp_path):
    model = tiny_llama(dtype=torch.bfloat16)
    plan = compile_plan(model, {Site(1): [Steer(vector(1).bfloat16(), scale=2.0), Project(vector(2).double())]})
    plan.save(tmp_path / "plan")
    loaded = load_plan(tmp_path / "plan", model)
    assert [s.operation.tensors["direction"].dtype for s in loaded.steps] == [torch.bfloat16, torch.float64]


def test_an_operation_is_checked_where_it_is_made():
    with pytest.raises(ValueError, match=r"'ad', which is unknown; did you mean 'add'"):
        PlanStep("model.layers.1", "out", Operation("ad"))
    with pytest.raises(ValueError, match=r"the tensors of .* lacks direction"):
        PlanStep("model.layers.1", "out", Operation("add", {}, {"scale": 1.0}))
    assert Plan((), {}).edits(tiny_llama()) == {}


# Features of a sparse autoencoder


def sae(kind: str, *, shift: bool = True, dtype: torch.dtype = torch.float64, **settings):
    from sae_lens import registry

    made, config = registry.get_sae_class(kind)
    found = made(config(d_in=WIDTH, d_sae=24, dtype=str(dtype).split(".")[1], apply_b_dec_to_input=shift, **settings))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in found.named_parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(dtype)
        if name == "threshold":
            parameter.data.abs_()
    return found.requires_grad_(False)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("standard", {}),
        ("standard", {"shift": False}),
        ("jumprelu", {}),
        ("jumprelu", {"shift": False}),
        ("topk", {"k": 3}),
        ("topk", {"k": 5, "shift": False, "rescale_acts_by_decoder_norm": True}),
    ],
)
def test_feature_edits_are_slices(kind, settings, tmp_path):
    found = sae(kind, **settings)
    hidden = torch.randn(3, 7, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for edit in (
        Clamp(found, (2, 20, 7), -3.0),
        Clamp(found, (4, 0), torch.tensor([1.0, -2.0], dtype=torch.float64)),
        ScaleFeatures(found, (11, 3), -2.0),
    ):
        operation = edit.operation()
        torch.testing.assert_close(operation(hidden), edit(hidden), rtol=0, atol=1e-11)
        unchanged = (edit(hidden) == hidden).all(-1)
        assert unchanged.sum() < unchanged.numel()
        assert kind == "standard" or unchanged.any()
        assert torch.equal((operation(hidden) == hidden).all(-1), unchanged)
        assert kind == "topk" or operation.tensors["encoder"].shape == (WIDTH, len(edit.features))
    model = tiny_llama(dtype=torch.float64)
    edits = {Site(1): At(Clamp(found, (2, 20, 7), -3.0), not_first)}
    compile_plan(model, edits).save(tmp_path / "plan")
    loaded = load_plan(tmp_path / "plan", model).edits(model)
    batch = random_batch()
    torch.testing.assert_close(logits(model, batch, loaded), logits(model, batch, edits), rtol=0, atol=1e-6)


def test_feature_edits_that_do_nothing_change_no_bit():
    found = sae("jumprelu", dtype=torch.float32)
    hidden = vector(1, 2, 5, WIDTH)
    assert torch.equal(Clamp(found, (), 1.0).operation()(hidden), hidden)
    assert torch.equal(ScaleFeatures(found, (1,), 1.0).operation()(hidden), hidden)


def test_autoencoders_that_do_not_compile_are_refused_by_name():
    with pytest.raises(ValueError, match=r"the SAE \(gated\) cannot be written down as a plan"):
        Clamp(sae("gated"), (1,), 0.0).operation()
    with pytest.raises(ValueError, match=r"the SAE \(standard\) normalises by layer_norm"):
        Clamp(sae("standard", normalize_activations="layer_norm"), (1,), 0.0).operation()


def test_every_operation_is_covered(plan):
    assert {s.operation.name for s in plan.steps} == {name for name in OPERATIONS if not name.endswith("features")}


def test_positions_of_a_plan_choose_the_same_tokens(batch, plan, tmp_path):
    plan.save(tmp_path / "plan")
    index_BT = batch.attention_BT.long().cumsum(1) - 1
    column_BT = torch.arange(10).expand(4, 10)
    prompt_B = torch.tensor([5, 3, 7, 10])
    tokens = Tokens(index_BT, column_BT, batch.attention_BT, prompt_B, batch.tokens_BT)
    pairs = zip(plan.steps, load_plan(tmp_path / "plan").steps, strict=True)
    for before, after in pairs:
        assert (before.positions is None) == (after.positions is None)
        if before.positions is not None:
            assert torch.equal(before.positions(tokens), after.positions(tokens))
