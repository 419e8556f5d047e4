"""Whatever goes wrong inside a context, the model is afterwards what it was: hooks, weights, gradients, modes, ties."""

import copy
import signal
import sys
import warnings

import pytest
import torch
from conftest import random_batch, tiny_gpt2, tiny_llama

import probe.hooks
import probe.nesting
import probe.weights
from probe.checkpoints import load_model, save_model, weights_hash
from probe.hooks import captured, edited, foreign_hooks, open_edits
from probe.interventions.replacement import Scale, Skip
from probe.positions import At, last, not_first
from probe.sites import Site, blocks
from probe.weights import blended

SITES = (
    *(Site(1, part) for part in ("block", "attention", "mlp", "heads")),
    *(Site(1, part, "in") for part in ("block", "attention", "mlp")),
    Site(0),
    Site(2),
    Site(2, "heads", head=1),
    Site(0, "embedding"),
    Site(0, "norm"),
    Site(0, "norm", "in"),
)
_HOOK_TABLES = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_hooks",
    "_backward_pre_hooks",
)

pytestmark = pytest.mark.filterwarnings("ignore:the model already carries hooks")


class Boom(Exception):
    """What goes wrong."""


def subject(n_layers: int = 3):
    """A tied model with foreign hooks, a frozen weight, a gradient, and modules in different modes."""
    model = tiny_llama(n_layers=n_layers, tie_word_embeddings=True)
    block = blocks(model)[-1]
    for _ in range(2):
        block.register_forward_hook(lambda module, args, output: None)
    block.register_forward_pre_hook(lambda module, args, kwargs: None, with_kwargs=True)
    block.mlp.register_forward_hook(lambda module, args, output: None, always_call=True)
    block.register_full_backward_hook(lambda module, given, taken: None)
    block.self_attn.train()
    blocks(model)[0].mlp.up_proj.weight.requires_grad_(False)
    blocks(model)[0].mlp.down_proj.weight.grad = torch.ones_like(blocks(model)[0].mlp.down_proj.weight)
    return model


def state(model):
    """Everything that a context must leave alone."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return {
        "hooks": [[list(getattr(m, table).items()) for table in _HOOK_TABLES] for m in model.modules()],
        "attributes": [sorted(vars(m)) for m in model.modules()],
        "modes": [m.training for m in model.modules()],
        "objects": {name: id(p) for name, p in parameters.items()},
        "pointers": {name: p.data_ptr() for name, p in parameters.items()},
        "flags": {name: p.requires_grad for name, p in parameters.items()},
        "gradients": {
            name: None if p.grad is None else (id(p.grad), p.grad.sum().item()) for name, p in parameters.items()
        },
        "bits": weights_hash(model),
        "keys": list(model.state_dict()),
    }


@pytest.fixture
def model():
    """A model that must come out of the test as it went in."""
    model = subject()
    before = state(model)
    yield model
    assert state(model) == before
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.is_grad_enabled()


def raiser(error):
    def fail(hidden_BTD):
        raise error

    return fail


@pytest.mark.parametrize("error", [Boom, KeyboardInterrupt])
def test_an_intervention_that_raises_at_any_site_leaves_nothing(model, error):
    inputs = random_batch().inputs
    for site in SITES:
        with pytest.raises(error), captured(model, [site]), edited(model, {site: [Scale(0.5), raiser(error)]}):
            model(**inputs)


@pytest.mark.parametrize("error", [Boom, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_any_exception_leaves_nothing(model, error):
    with pytest.raises(error), captured(model, SITES), edited(model, {Site(1): At(raiser(error), last)}):
        model(**random_batch().inputs)


def test_a_reading_that_raises_leaves_nothing(model):
    for site in SITES:
        with pytest.raises(Boom), captured(model, [site], positions=raiser(Boom)):
            model(**random_batch().inputs)


def test_any_module_of_the_model_may_raise(model):
    inputs = random_batch().inputs

    def fail(module, args):
        raise Boom

    sites = [Site(0), Site(1, "mlp")]
    for module in [m for m in model.modules() if not any(m is inside for inside in blocks(model)[0].modules())]:
        if isinstance(module, torch.nn.ModuleList):
            continue
        foreign = module.register_forward_pre_hook(fail)
        try:
            with pytest.raises(Boom), captured(model, sites, positions=not_first), edited(model, {Site(2): Scale(2.0)}):
                model(**inputs)
        finally:
            foreign.remove()


def test_the_models_own_complaint_leaves_nothing(model):
    with pytest.raises(IndexError), captured(model, SITES), edited(model, {Site(1): Scale(2.0)}):
        model(input_ids=torch.tensor([[10_000]]))
    with pytest.raises(ValueError, match="returned"), edited(model, {Site(1): lambda h: h[..., :3]}):
        model(**random_batch().inputs)


@pytest.mark.parametrize("wrong", [Site(3), Site(0, "heads", head=4), Site(99, "mlp")])
def test_a_set_up_that_fails_half_way_leaves_nothing(model, wrong):
    for context in (
        captured(model, [Site(0), wrong]),
        captured(model, [*SITES, wrong], positions=last),
        edited(model, {Site(0): Scale(2.0), wrong: Scale(2.0)}),
        edited(model, {Site(0): At(Scale(2.0), last), wrong: Scale(2.0)}),
    ):
        with pytest.raises(ValueError, match="does not exist"), context:
            pytest.fail("the body must not run")
    with (
        pytest.raises(ValueError, match="what enters a block"),
        edited(model, {Site(0): Scale(2.0), Site(1, "mlp"): Skip()}),
    ):
        pytest.fail("the body must not run")


def test_ctrl_c_in_a_hooked_forward_leaves_nothing_76(model):
    def press(*args):
        signal.raise_signal(signal.SIGINT)

    inputs = random_batch().inputs
    # A suite that runs in the background of a shell has this signal ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    foreign = blocks(model)[1].mlp.register_forward_hook(press)
    try:
        for context in (
            captured(model, SITES),
            edited(model, {Site(1): Scale(2.0)}),
            blended(model, subject(), [1.0] * 3),
        ):
            with pytest.raises(KeyboardInterrupt), context:
                model(**inputs)
        foreign.remove()
        with pytest.raises(KeyboardInterrupt), edited(model, {Site(1): press}):
            model(**inputs)
    finally:
        foreign.remove()
        signal.signal(signal.SIGINT, before)


def test_a_generator_that_is_closed_dropped_or_thrown_into_leaves_nothing(model):
    before = state(model)

    def passes():
        with (
            edited(model, {Site(1): Scale(2.0)}),
            captured(model, [Site(2)]) as states,
            blended(model, subject(), [0.5] * 3),
        ):
            while True:
                model(**random_batch().inputs)
                yield states

    one = passes()
    assert Site(2) in next(one)
    assert state(model) != before
    one.close()
    assert state(model) == before
    other = passes()
    next(other)
    del other
    assert state(model) == before
    third = passes()
    next(third)
    with pytest.raises(Boom):
        third.throw(Boom())


def test_stopping_early_leaves_nothing_and_each_block_ends_its_own_reading(model):
    inputs = random_batch().inputs
    with captured(model, SITES) as expected:
        model(**inputs)
    for site in SITES:
        with captured(model, [site], stop=True) as states:
            model(**inputs)
            pytest.fail("the forward must not return")
        assert torch.equal(states[site], expected[site])
    reached = []
    with captured(model, [Site(0)], stop=True) as outer:
        with captured(model, [Site(2)], stop=True) as inner:
            model(**inputs)
        reached.append("between")
    assert reached == []
    assert (list(outer), list(inner)) == ([Site(0)], [])
    with captured(model, [Site(2)], stop=True) as outer:
        with captured(model, [Site(0)], stop=True) as inner:
            model(**inputs)
        reached.append("between")
        model(**inputs)
        reached.append("after")
    assert reached == ["between"]
    assert torch.equal(inner[Site(0)], expected[Site(0)])
    assert torch.equal(outer[Site(2)], expected[Site(2)])


def test_nested_contexts_unwind_from_any_depth(model):
    inputs, before, other = random_batch().inputs, state(model), subject()
    theirs = state(other)

    def fail_at(depth):
        with edited(model, {Site(1): Scale(2.0)}):
            if depth == 0:
                raise Boom
            with blended(model, other, [0.0, 0.3, 1.0], 1.0):
                if depth == 1:
                    raise Boom
                with captured(model, SITES, positions=not_first) as states:
                    model(**inputs)
                    assert set(states) == set(SITES)
                    if depth == 2:
                        raise Boom
                    with edited(model, {Site(2, "mlp"): raiser(Boom)}):
                        model(**inputs)

    for depth in range(4):
        with pytest.raises(Boom):
            fail_at(depth)
        assert state(model) == before
        assert state(other) == theirs


def test_one_context_object_cannot_be_entered_twice(model):
    for context in (
        captured(model, [Site(0)]),
        edited(model, {Site(0): Scale(2.0)}),
        blended(model, subject(), [1.0] * 3),
    ):
        with context:
            with pytest.raises((AttributeError, RuntimeError)), context:
                pytest.fail("the body must not run")
        with pytest.raises((AttributeError, RuntimeError)), context:
            pytest.fail("the body must not run")


# Where hooks and weights come and go. In the bodies of the two generators of hooks Python takes no signal at some lines
# where a trace function could raise.
_CHANGING = (
    "_register",
    "_add",
    "_remove",
    "_leave",
    "_open",
    "_count",
    "_refuse_checkpointing",
    "blended",
    "_restore",
)


def interrupted(use, at: int) -> bool:
    """Whether ``use(mark)`` ran so many of the lines that change something; it is interrupted before the last.

    ``mark`` says when the body of ``blended`` is done: no signal comes between its last line and the exit either.
    """
    files = {probe.hooks.__file__, probe.weights.__file__, probe.nesting.__file__}
    seen, done = 0, False

    def mark():
        nonlocal done
        done = True

    def each_line(frame, event, arg):
        nonlocal seen
        if event == "line" and not (done and frame.f_code.co_name == "blended"):
            seen += 1
            if seen == at:
                raise KeyboardInterrupt
        return each_line

    def each_call(frame, event, arg):
        chosen = frame.f_code.co_filename in files and frame.f_code.co_name in _CHANGING
        return each_line if chosen else None

    usual = sys.gettrace()
    sys.settrace(each_call)
    try:
        use(mark)
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(usual)
    return False


def test_ctrl_c_at_any_line_of_setting_up_or_clearing_away_leaves_nothing():
    model, other = subject(1), subject(1)
    before = state(model)

    def reading(mark):
        with captured(model, [Site(0)]):
            pass

    def editing(mark):
        with edited(model, {Site(0, "mlp", "in"): At(Scale(2.0), last)}):
            pass

    def mixing(mark):
        with blended(model, other, [0.5], 1.0):
            mark()

    for use in (reading, editing, mixing):
        at = 1
        while interrupted(use, at):
            assert state(model) == before, f"{use.__name__} leaks when interrupted at its line {at}"
            at += 1
        assert at > 20
        assert state(model) == before


def test_a_copy_made_inside_a_context_says_so_50(model):
    inputs = random_batch().inputs
    with captured(model, [Site(0)]) as states, edited(model, {Site(1): Scale(2.0)}):
        twin = copy.deepcopy(model)
        replica = blocks(model)[1]._replicate_for_data_parallel()
        model(**inputs)
        kept = states[Site(0)]
        with pytest.raises(ValueError, match=r"copy of the model .*copy the model outside the block"):
            twin(**inputs)
        with pytest.raises(ValueError, match="DataParallel"):
            replica(
                states[Site(0)], position_embeddings=model.model.rotary_emb(states[Site(0)], inputs["position_ids"])
            )
        assert states[Site(0)] is kept
    model(**inputs)
    with pytest.raises(ValueError, match="copy of the model"):
        twin(**inputs)
    assert set(foreign_hooks(twin)) - set(foreign_hooks(model)) == {"model.layers.0", "model.layers.1"}
    with pytest.warns(UserWarning, match=r"not ours, at model\.layers\.0, model\.layers\.1"), captured(twin, [Site(2)]):
        pass


def test_hooks_of_a_crashed_cell_are_named_at_entry_49():
    model = tiny_llama()
    assert foreign_hooks(model) == []
    for _ in range(3):  # the cell was run three times
        blocks(model)[1].mlp.register_forward_hook(lambda module, args, output: output * 2)
    blocks(model)[2].register_forward_pre_hook(lambda module, args: None)
    assert foreign_hooks(model) == ["model.layers.1.mlp", "model.layers.2"]
    for context in (captured(model, [Site(0)]), edited(model, {Site(0): Scale(2.0)})):
        with pytest.warns(UserWarning, match=r"not ours, at model\.layers\.1\.mlp, model\.layers\.2; they stay"):
            with context:
                pass
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clean = tiny_llama()
        with captured(clean, [Site(0)]), edited(clean, {Site(0): Scale(2.0)}), captured(clean, [Site(1)]):
            clean(**random_batch().inputs, output_hidden_states=True)


def test_saving_inside_an_edit_warns_that_the_model_lacks_it_51(tmp_path):
    model = tiny_llama()
    before = weights_hash(model)
    with edited(model, {Site(1): Scale(2.0), Site(2, "heads", head=0): Scale(0.0)}), captured(model, [Site(0)]):
        assert open_edits(model) == ["model.layers.1", "model.layers.2.self_attn.o_proj"]
        with pytest.warns(UserWarning, match=r"edit is active at model\.layers\.1.*the saved model lacks it"):
            save_model(model, tmp_path / "edited")
    with warnings.catch_warnings(), captured(model, [Site(0)]):
        warnings.simplefilter("error")
        save_model(model, tmp_path / "read")
        assert open_edits(model) == []
    for name in ("edited", "read"):
        loaded = load_model(tmp_path / name)
        assert weights_hash(loaded) == before
        assert foreign_hooks(loaded) == open_edits(loaded) == []
    model.model.norm.register_forward_hook(lambda module, args, output: None)
    with pytest.raises(ValueError, match="carries hooks"):
        save_model(model, tmp_path / "foreign")


@pytest.mark.parametrize("asked_before", [False, True])
@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_hidden_states_of_the_output_show_the_edit(make, asked_before):
    """transformers records them in hooks of its own, which it adds when they are first asked for."""
    model, inputs = make(), random_batch().inputs
    if asked_before:
        model(**inputs, output_hidden_states=True)
    with edited(model, {Site(0): Scale(3.0)}), edited(model, {Site(0): Scale(0.5), Site(1): Skip()}):
        with captured(model, [Site(0), Site(1)]) as states:
            given = model(**inputs, output_hidden_states=True).hidden_states
    for layer in (0, 1):
        assert torch.equal(given[layer + 1], states[Site(layer)])
