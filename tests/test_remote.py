"""The same plan through nnsight: here, on fake tensors, and through a server that does not have this package."""

import os
import subprocess
import sys
from pathlib import Path

import beartype  # noqa: F401  nnsight gives every object a `save`, which beartype survives only if it came first
import httpx
import pytest
import torch
from families import EVERY, FAMILIES, family
from nnsight import CONFIG, NNsight, TransformersModel, save
from nnsight.intervention.backends.remote import RemoteError
from nnsight.modeling import huggingface
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, PreTrainedTokenizerFast

from probe.hooks import edited
from probe.interventions.fit import width_at
from probe.interventions.operations import OPERATIONS, Operation
from probe.interventions.plan import compile_plan
from probe.interventions.projection import Cap, Erase, Project
from probe.interventions.replacement import Noise, Replace, Scale, Skip
from probe.interventions.steering import Steer
from probe.positions import At, Before, From, Mask, NotIds, Only, everywhere, generated, last, not_first, prompt
from probe.remote import check_shapes, traced
from probe.remote import generate_under as generated_under
from probe.sites import Site, place_of

WIDTH = 32


def vector(seed: int, width: int = WIDTH) -> torch.Tensor:
    return torch.randn(width, generator=torch.Generator().manual_seed(seed))


def has(model, site) -> bool:
    try:
        place_of(model, site)
    except ValueError:
        return False
    return True


def feature_edits() -> list[Operation]:
    """Every edit of two features: by slices of an encoder, and by a whole one whose features compete."""
    generator = torch.Generator().manual_seed(13)
    encoder_DF, decoder_KD = torch.randn(WIDTH, 8, generator=generator), torch.randn(2, WIDTH, generator=generator) / 6
    shared = {"shift": vector(14) / 6, "decoder": decoder_KD}
    slices = {**shared, "encoder": encoder_DF[:, :2], "bias": vector(15, 2), "threshold": torch.zeros(2)}
    whole = {**shared, "encoder": encoder_DF, "bias": vector(16, 8)}
    value, top = {"value": torch.tensor([-1.0, -0.5])}, {"k": 3, "noise": 1e-5}
    return [
        *(Operation(f"{verb}_features", {**slices, **value}) for verb in ("clamp", "clamp_all", "set")),
        Operation("scale_features", slices, {"factor": -1.0}),
        *(Operation(f"{verb}_top_features", {**whole, **value}, top) for verb in ("clamp", "clamp_all", "set")),
        Operation("scale_top_features", whole, {"factor": 0.0, **top}),
    ]


def every_operation(model) -> dict:
    """Each operation at a block, and some at every other part that the family has."""
    low_rank = torch.linalg.qr(torch.stack([vector(5), vector(6)], 1)).Q
    block = [Project(vector(1)), Cap(vector(2), low=-0.1, high=0.1), Scale(1.1), Noise(0.01, seed=3)]
    edits = {
        Site(1): [*block, Steer(vector(4), scale=0.3), Erase(low_rank, low_rank.T, vector(7))],
        Site(0): Skip(),
        Site(0, side="in"): Steer(vector(8), scale=0.1),
        Site(2): [At(Replace(vector(9)), Only((3,))), At(Skip(), Before(1)), *feature_edits()],
        Site(0, "embedding"): At(Scale(1.5), not_first),
        Site(0, "norm"): Cap(vector(10), high=0.5),
        Site(1, "attention"): At(Steer(vector(11), scale=1.0), prompt),
        Site(1, "attention", "in"): Scale(0.9),
        Site(1, "mlp"): Project(vector(12)),
        Site(2, "mlp", "in"): Noise(0.1, seed=4),
        Site(1, "heads", head=2): Scale(0.0),
    }
    return {site: given for site, given in edits.items() if has(model, site)}


def padded(rows: int = 3, length: int = 7, *, side: str = "right") -> dict[str, torch.Tensor]:
    ids_BT = torch.randint(3, 64, (rows, length), generator=torch.Generator().manual_seed(0))
    column_T = torch.arange(length)
    lengths_B = torch.tensor([length, length - 2, length - 3])[:rows, None]
    mask_BT = column_T < lengths_B if side == "right" else column_T >= length - lengths_B
    return {"input_ids": ids_BT.masked_fill(~mask_BT, 0), "attention_mask": mask_BT.long()}


def under_hooks(model, edits, inputs):
    with torch.no_grad(), edited(model, edits):
        return model(**inputs, use_cache=False).logits


@pytest.fixture(scope="module", params=EVERY)
def case(request):
    """A model of the family, edits, and the plan of those edits."""
    model = family(request.param)
    edits = every_operation(model)
    return model, edits, compile_plan(model, edits)


@pytest.fixture(scope="module")
def llama():
    return family("llama")


def test_every_operation_gives_the_hooks_bits(case):
    model, edits, plan = case
    inputs = padded()
    here = under_hooks(model, edits, inputs)
    assert torch.equal(here, traced(model, plan, inputs))
    with torch.no_grad():
        assert not torch.allclose(here, model(**inputs, use_cache=False).logits)


def test_no_operation_is_left_out():
    steps = compile_plan(family("llama"), every_operation(family("llama"))).steps
    assert {step.operation.name for step in steps} == set(OPERATIONS)


def test_shapes_are_checked_without_weights(case):
    model, edits, plan = case
    places = {(place.name, place.side): place for place in (place_of(model, site) for site in edits)}
    found = check_shapes(model.config, plan)
    assert found == {step.where: width_at(model, places[step.module, step.side]) for step in plan.steps}


@pytest.mark.parametrize(
    "name", [name if name == "mamba" else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_generation_gives_the_hooks_tokens(name):
    model = family(name)
    inputs = padded(2, side="left")
    edits = {
        Site(0, side="in"): At(Steer(vector(8), scale=2.0), generated),
        Site(1): [At(Steer(vector(4), scale=3.0), prompt), At(Scale(1.3), From((6, 4)))],
        Site(2): [At(Project(vector(1)), NotIds((5, 9, 17, 33))), At(Steer(vector(3), scale=4.0), last)],
    }
    settings = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None, "max_new_tokens": 5}
    with edited(model, edits):
        here = model.generate(**inputs, **settings)
    there = generated_under(model, compile_plan(model, edits), inputs, **settings)
    assert torch.equal(here, there)
    assert not torch.equal(here, model.generate(**inputs, **settings))


@pytest.mark.parametrize("settings", [{"use_cache": False}, {"num_beams": 3}, {"eos_token_id": list(range(3, 40))}])
def test_generation_without_cache_with_beams_and_with_an_early_end(llama, settings):
    inputs = padded(2, side="left")
    mask_BT = torch.zeros(2, 9, dtype=torch.bool)
    mask_BT[0, 3:9] = True
    edits = {
        Site(1): [At(Steer(vector(4), scale=3.0), Mask(mask_BT)), At(Scale(1.4), Before((3, 6)))],
        Site(2): At(Steer(vector(2), scale=2.0), NotIds((5, 9, 17))),
        Site(0, "embedding"): At(Scale(1.5), everywhere),
    }
    given = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None, "max_new_tokens": 6, **settings}
    with edited(llama, edits):
        here = llama.generate(**inputs, **given)
    assert torch.equal(here, generated_under(llama, compile_plan(llama, edits), inputs, **given))


def test_a_captured_batch_is_replaced_by_rows(llama):
    inputs = padded()
    activation = torch.randn(3, 7, WIDTH, generator=torch.Generator().manual_seed(1))
    edits = {Site(1): At(Replace(activation), everywhere)}
    plan = compile_plan(llama, edits)
    assert torch.equal(under_hooks(llama, edits, inputs), traced(llama, plan, inputs))
    assert check_shapes(llama, plan) == {"model.layers.1 (out)": WIDTH}


def test_the_model_is_left_as_it_was(llama):
    before = [set(vars(module)) for module in llama.modules()]
    traced(llama, compile_plan(llama, {Site(1): Scale(0.5)}), padded())
    assert [set(vars(module)) for module in llama.modules()] == before


def test_a_vector_of_another_width_is_refused_with_both_widths(llama):
    plan = compile_plan(llama, {Site(1): Steer(vector(1), scale=1.0), Site(2): Scale(2.0)})
    wider = LlamaConfig(**{**llama.config.to_dict(), "hidden_size": 48})
    with pytest.raises(ValueError, match=r"direction of 'add' at model.layers.1 \(out\) has width 32.* have width 48"):
        check_shapes(wider, plan)
    with pytest.raises(ValueError, match=r"GPT2LMHeadModel has no model.layers.1"):
        check_shapes(family("gpt2"), plan)
    with pytest.raises(ValueError, match=r"has no site at model.layers.1"):
        traced(family("gpt2"), plan, padded())


@pytest.fixture(scope="module")
def tokenizer():
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(64)}, unk_token="w3"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", eos_token="w2")


@pytest.fixture(scope="module")
def server(llama, tokenizer, tmp_path_factory):
    """A server process with its own copy of the model, and the client's view of it, which has no weights."""
    folder = tmp_path_factory.mktemp("served") / "llama"
    llama.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    command = [sys.executable, "-I", str(Path(__file__).parent / "remote_server.py"), str(folder)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        url = f"http://127.0.0.1:{process.stdout.readline().strip()}"
        huggingface._ID_CACHE[str(folder)] = "served/llama"  # the hub is not asked how the name is spelled
        CONFIG.APP.REMOTE_LOGGING = False
        yield url, TransformersModel(str(folder), tokenizer=tokenizer, task="text-generation")
        process.stdin.close()
        process.wait()


def test_the_server_gives_the_hooks_bits_without_the_package(llama, server):
    url, client = server
    assert httpx.get(f"{url}/absent").text == "absent"
    assert all(parameter.is_meta for parameter in client._module.parameters())
    edits, inputs = every_operation(llama), padded()
    plan = compile_plan(llama, edits)
    assert torch.equal(under_hooks(llama, edits, inputs), traced(client, plan, inputs, remote=url))


def test_the_server_generates_under_the_plan(llama, server):
    url, client = server
    inputs = padded(2, side="left")
    edits = {Site(1): [At(Steer(vector(4), scale=3.0), generated), At(Scale(1.3), NotIds((5, 9, 17)))]}
    settings = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None, "max_new_tokens": 4}
    with edited(llama, edits):
        here = llama.generate(**inputs, **settings)
    assert torch.equal(here, generated_under(client, compile_plan(llama, edits), inputs, remote=url, **settings))


def test_the_server_refuses_what_is_not_on_its_list(server):
    url, client = server
    step = Operation("scale", {}, {"factor": 2.0})
    inputs = padded()
    with pytest.raises(RemoteError, match=r"Module probe.interventions.operations is not whitelisted .Operation."):
        with client.trace(**inputs, remote=url):
            client.model.layers[1].output = step(client.model.layers[1].output)
    with pytest.raises(RemoteError, match=r"Module json is not whitelisted"), client.trace(**inputs, remote=url):
        save(__import__("json").dumps([]))


def test_a_model_of_this_process_has_no_server(llama, tokenizer):
    plan = compile_plan(llama, {Site(1): Scale(2.0)})
    with pytest.raises(ValueError, match=r"pass an nnsight.TransformersModel"):
        traced(llama, plan, padded(), remote=True)
    with pytest.raises(ValueError, match=r"pass an nnsight.TransformersModel"):
        traced(NNsight(llama), plan, padded(), remote=True)


def test_left_padding_under_a_wrapper_is_refused(server):
    url, client = server
    plan = compile_plan(client._module, {Site(1): Scale(2.0)})
    with pytest.raises(ValueError, match=r"pad on the right"):
        traced(client, plan, padded(side="left"), remote=url)
