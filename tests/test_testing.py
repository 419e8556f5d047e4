"""The conformance suite that users run: it passes what is sound and names what is not."""

from contextlib import redirect_stdout
from io import StringIO

import pytest
import torch
from conftest import tiny_llama
from families import family
from transformers import AutoModelForCausalLM

from probe.cli import main
from probe.hooks import edited, foreign_hooks
from probe.interventions.operations import Operation
from probe.interventions.projection import Project
from probe.interventions.replacement import Noise, Scale, Skip
from probe.sites import Site, blocks
from probe.testing import Check, CheckReport, check_intervention, check_model
from probe.testing.model import PROMPTS, rows_for


def outcome(report, name):
    return next(check.outcome for check in report.checks if check.name == name)


def names(report, outcome):
    return {check.name for check in report.checks if check.outcome == outcome}


CHECKPOINTED = "edits that checkpointing replays are refused"
REFUSALS = {"a compiled copy is refused", "a copy without weights is refused", CHECKPOINTED}


@pytest.mark.parametrize(
    ("name", "absent"),
    [
        ("llama", set()),
        ("bloom", set()),
        (
            "mamba",
            {
                *("site: attention in", "site: attention out", "site: mlp in", "site: mlp out"),
                *("site: heads out", "site: heads, one", "attention and mlp sum to the block"),
                CHECKPOINTED,
            },
        ),
    ],
)
def test_a_sound_model_passes_and_what_it_lacks_is_said(name, absent):
    report = check_model(family(name))
    report.raise_for_failure()
    assert names(report, "absent") == absent
    assert names(report, "passed") >= REFUSALS - absent
    assert names(report, "refused") == set()
    assert not report.failed


def test_the_testbed_passes_with_its_tokenizer(bed):
    report = check_model(bed.original, bed.tokenizer)
    report.raise_for_failure()
    assert "every token id has an embedding" in report.table()


def test_half_precision_and_a_limit_on_copies():
    report = check_model(tiny_llama(dtype=torch.bfloat16), largest=100)
    report.raise_for_failure()
    assert outcome(report, "gradients") == "absent"


def test_a_hook_that_acts_only_while_decoding_is_caught():
    model = tiny_llama()

    def double(module, args, output):
        return 2 * output if output.shape[1] == 1 else output

    blocks(model)[1].register_forward_hook(double)
    report = check_model(model)
    failed = {check.name for check in report.failed}
    assert {"hooks of others", "generation with a cache", "generation with a cache, edited"} <= failed
    # What does not decode is right, and the hook is still the user's.
    assert {"padding", "captured equals hidden_states", "left as it was"} <= names(report, "passed")
    assert len(foreign_hooks(model)) == 1
    with pytest.raises(AssertionError, match="hooks of others"):
        report.raise_for_failure()


def test_a_module_that_a_forward_passes_by_is_caught():
    model = tiny_llama()
    for block in blocks(model):
        block.mlp.forward = lambda x: x
        block.forward = lambda hidden_states, **kwargs: hidden_states + 0.1
    failed = {check.name for check in check_model(model).failed}
    assert {"site: mlp out", "site: attention out"} <= failed


def test_broken_weights_are_caught():
    model = tiny_llama()
    with torch.no_grad():
        model.model.norm.weight[3] = float("nan")
    report = check_model(model)
    assert "weights and tokenizer" in {check.name for check in report.failed}


def test_models_without_weights_or_compiled_are_refused():
    with pytest.raises(ValueError, match="meta"):
        check_model(tiny_llama().to("meta"))
    with pytest.raises(ValueError, match="compile"):
        check_model(torch.compile(tiny_llama()))


@pytest.mark.parametrize(
    ("make", "absent"),
    [
        (lambda width: Project(torch.linspace(-1, 1, width)), set()),
        (lambda width: Skip(), set()),
        (lambda width: Noise(0.5, seed=1), {"order of rows", "generation"}),
        (lambda width: lambda h: h * 0.5, {"plan"}),
        (lambda width: Operation("scale", {}, {"factor": 0.5}), {"plan"}),
    ],
    ids=["project", "skip", "noise", "function", "operation"],
)
def test_a_sound_intervention_passes(make, absent):
    report = check_intervention(make, tiny_llama())
    report.raise_for_failure()
    assert names(report, "absent") == absent


def in_place(h):
    return h.mul_(0.5)


class Counting:
    def __init__(self):
        self.calls = 0

    def __call__(self, h):
        self.calls += 1
        return h + self.calls


BROKEN = {
    "rows are independent": lambda h: h - h.mean(0, keepdim=True),
    "tokens are independent": lambda h: h - h.mean(1, keepdim=True),
    "input unchanged": in_place,
    "shape, dtype and device": lambda h: h.double(),
    "gradients": lambda h: h.detach() * 0.5,
    "bfloat16": lambda h: h + torch.ones(h.shape[-1]),
    "float16": lambda h: h * 1e9,
    "repeats itself": Counting(),
    "generation": lambda h: h - h.mean(1, keepdim=True),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_intervention_fails_the_check_that_names_its_fault(name):
    report = check_intervention(lambda width: BROKEN[name], tiny_llama())
    assert name in {check.name for check in report.failed}, report.table()


def test_the_table_has_a_line_a_check_and_counts():
    report = CheckReport("thing", (Check("one", "passed", "fine"), Check("longer", "failed", "not fine")))
    assert report.table().splitlines() == [
        "thing",
        "passed  one     fine",
        "failed  longer  not fine",
        "2 checks: 1 passed, 1 failed",
    ]
    assert report.failed == (report.checks[1],)


@pytest.fixture(scope="module")
def saved(bed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("doctor") / "model"
    tiny_llama(vocab_size=len(bed.tokenizer)).save_pretrained(folder)
    bed.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def shown(saved):
    """What the doctor prints of a sound model."""
    with redirect_stdout(StringIO()) as out:
        main(["doctor", str(saved)])
    return out.getvalue()


def test_the_doctor_prints_the_table_and_exits_0(shown):
    assert "every token id has an embedding" in shown
    assert shown.splitlines()[-1] == "30 checks: 30 passed"


def test_f37_an_edit_that_a_norm_would_cancel_is_not_taken_for_one_that_does_not_reach():
    model = tiny_llama(rms_norm_eps=5e-12)  # the norm gives one of the rows back bit for bit when it is halved
    rows = rows_for(model, None)
    with torch.no_grad(), edited(model, {Site(0, "norm", "in"): Scale(0.5)}):
        halved = rows.real(rows.logits(), "right", rows.rows)
    bare = rows.real(rows.logits(), "right", rows.rows)
    assert sum(torch.equal(ours, theirs) for ours, theirs in zip(halved, bare, strict=True)) == 1
    assert outcome(check_model(model), "edits reach every row") == "passed"


def test_f37_the_doctor_names_options_that_there_are(saved, shown, capsys):
    main(["doctor", str(saved), "--largest", "100"])
    limited = capsys.readouterr().out
    for text, says in ((limited, "more than largest (100): not copied to float64"), (shown, "in float64")):
        assert says in next(line for line in text.splitlines() if " gradients " in line)
        assert not any(line.startswith("refused") for line in text.splitlines())


def test_f44_the_doctor_prints_special_tokens_template_and_norms_by_block(saved, shown, bed):
    shown = shown.splitlines()
    token = bed.tokenizer
    said = f"bos {token.bos_token_id} {token.bos_token!r}; eos {token.eos_token_id} {token.eos_token!r}"
    assert next(line for line in shown if line.startswith("tokens:")).startswith(f"tokens: {said}")
    assert any(line.endswith("no chat template") for line in shown)
    model = AutoModelForCausalLM.from_pretrained(saved)
    rows = [torch.tensor([token(text)["input_ids"]]) for text in PROMPTS]
    states = [model(row, output_hidden_states=True).hidden_states[1][0, 1:] for row in rows]
    first = torch.cat(states).norm(dim=-1).median()
    assert f"hidden-state norms after blocks 0 to 2: {first:.3g} " in next(line for line in shown if "norms" in line)


def test_the_doctor_exits_1_on_a_failure(saved, tmp_path, capsys):
    model = tiny_llama(vocab_size=20)
    with torch.no_grad():
        model.lm_head.weight[0, 0] = float("inf")
    model.save_pretrained(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["doctor", str(tmp_path)])
    assert stop.value.code == 1
    assert "lm_head.weight holds NaN or infinity" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["doctor", "./nowhere"], "no folder"),
        (["doctor", "{saved}", "--device", "toaster"], "device 'toaster' cannot be used here"),
    ],
)
def test_a_users_mistake_exits_2_with_one_line(arguments, says, saved, capsys):
    with pytest.raises(SystemExit) as stop:
        main([word.replace("{saved}", str(saved)) for word in arguments])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.rstrip().count("\n") == 0
