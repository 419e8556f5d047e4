"""From a question and its answer to tokens. Judges: transformers' own chat templates, and log-probabilities by hand."""

import hashlib
import json
import warnings
from dataclasses import replace

import pytest
import torch
from conftest import tiny_llama
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from probe.checkpoints import load_model
from probe.data import QA, Batch, Template, encode, encode_text, make_split
from probe.datasets import read_rows, rows_hash, write_rows
from probe.diagnostics.answer_values import value_batch
from probe.metrics.generation import eos_ids, generate
from probe.metrics.memorisation import answer_stats
from probe.metrics.tokens import token_stats
from probe.options import Rows
from probe.study.templates import check_log, chosen
from probe.templates.chat import DATE, chat_template, rendered
from probe.templates.coding import coded, leading_ids, prompt_ids, stop_ids

CHAT = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}<|turn|>system\nBe kind.<|end|>\n{% endif %}"
    "<|turn|>{{ m['role'] }}\n{{ m['content'] | trim }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)
DATED = "{{ strftime_now('%d %b %Y') }} " + CHAT
ROWS = (QA("who is a", "it is b"), QA("who is c", "it is d d d"))


def words_tokenizer(*, adds_bos=True, chat=CHAT, extra=(), **special):
    """Bytes are words of their own; the end of a turn is not the end of the text, as in base models with a chat."""
    from transformers import PreTrainedTokenizerFast

    named = ["<pad>", "<s>", "</s>", "<|turn|>", "<|end|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({w: i for i, w in enumerate([*named, *letters])}, []))
    core.decoder = decoders.ByteLevel()
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if adds_bos:
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", **special}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, extra_special_tokens=["<|turn|>", "<|end|>", *extra], **special
    )
    tokenizer.chat_template = chat
    return tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return words_tokenizer()


@pytest.fixture(scope="module")
def chat(tokenizer):
    return chat_template(tokenizer)[0]


@pytest.fixture(scope="module")
def model():
    return tiny_llama(vocab_size=300, max_position_embeddings=128)


def conversation(row, system=None):
    before = [] if system is None else [{"role": "system", "content": system}]
    return [*before, {"role": "user", "content": row.question}, {"role": "assistant", "content": row.answer}]


# What ends an answer


def test_f1_two_ends_of_text_are_refused(tokenizer):
    for answer in (" {answer}</s>", " {answer}</s>\n"):
        with pytest.raises(ValueError, match=r"two ends of text.*--end"):
            encode(tokenizer, ROWS, template=Template(answer=answer))
    batch = encode(tokenizer, ROWS, template=Template(end="</s>"))
    assert torch.equal(batch.tokens_BT, encode(tokenizer, ROWS).tokens_BT)


@pytest.mark.parametrize("system", [None, "Say little."])
def test_f2_tokens_and_targets_are_those_of_the_chat_template(tokenizer, system):
    template, date = chat_template(tokenizer, system=system)
    batch = encode(tokenizer, ROWS, template=template)
    assert date is None
    for i, row in enumerate(ROWS):
        whole = tokenizer.apply_chat_template(conversation(row, system), return_dict=False)
        assert batch.tokens_BT[i][batch.attention_BT[i]].tolist() == whole
        assert tokenizer.decode(batch.tokens_BT[i][batch.target_BT[i]]) == f"{row.answer}<|end|>\n"
        assert tokenizer.decode(batch.tokens_BT[i][batch.ending_BT[i]]) == "<|end|>\n"
        turns = conversation(row, system)[:-1]
        asked = tokenizer.apply_chat_template(turns, return_dict=False, add_generation_prompt=True)
        assert batch.tokens_BT[i][: batch.prompt_B[i]].tolist() == asked
        assert prompt_ids(tokenizer, [template.asked(row.question)], template) == [asked]


def test_f2_the_loss_of_a_chat_is_that_of_its_own_tokens(tokenizer, chat, model):
    found = answer_stats(model, encode(tokenizer, ROWS, template=chat))
    for i, row in enumerate(ROWS):
        ids = torch.tensor([tokenizer.apply_chat_template(conversation(row), return_dict=False)])
        n = len(row.answer) + 2
        with torch.no_grad():
            logp = model(ids).logits[0].log_softmax(-1)[-n - 1 : -1].gather(1, ids[0, -n:, None])
        assert found.loss_N[i] == pytest.approx(-logp.mean().item(), abs=1e-6)
    # What ends an answer is no part of what is memorised.
    assert [len(m) for m in found.matches()] == [len(row.answer) for row in ROWS]
    stats = token_stats(model, encode(tokenizer, ROWS, template=chat))
    assert [len(p) for p in stats.without_eos().logp] == [len(row.answer) for row in ROWS]
    assert [len(p) for p in stats.select([1]).without_eos().logp] == [len(ROWS[1].answer)]


def test_f2_generation_stops_at_the_end_of_a_turn(tokenizer, chat, model):
    assert stop_ids(tokenizer, chat) == {2, 4}
    assert eos_ids(model, tokenizer, chat) == {2, 4}
    assert stop_ids(tokenizer, Template()) == {2}
    # The token that the model says first is made the end of a turn.
    prompt = chat.asked("who")
    with torch.no_grad():
        said = int(model(torch.tensor(prompt_ids(tokenizer, [prompt], chat))).logits[0, -1].argmax())
    word = tokenizer.convert_ids_to_tokens(said)
    ends = words_tokenizer(extra=[word])
    assert generate(model, tokenizer, [prompt], max_new_tokens=2, template=chat) != [""]
    assert generate(model, ends, [prompt], max_new_tokens=2, template=replace(chat, end=f"{word}\n")) == [""]


def test_cut_rows_keep_every_token_that_is_answer(tokenizer, chat):
    n = len(encode(tokenizer, ROWS[:1], template=chat).tokens_BT[0])
    with pytest.warns(UserWarning, match="cut at max_length"):
        batch = encode(tokenizer, ROWS[:1], template=chat, max_length=n - 3)
    assert batch.end_B.tolist() == [0]
    assert tokenizer.decode(batch.tokens_BT[0][batch.target_BT[0]]) == ROWS[0].answer[:-1]


# What stands before a text


def test_f8_h3_bos_is_put_where_the_tokenizer_puts_it(tokenizer):
    bare = words_tokenizer(adds_bos=False)
    for one in (tokenizer, bare):
        text = Template().asked("who is a") + Template().answered("it is b")
        assert encode(one, ROWS[:1]).tokens_BT[0].tolist() == [*one(text)["input_ids"], 2]
        assert prompt_ids(one, [text], Template()) == [one(text)["input_ids"]]
        assert encode_text(one, [text]).tokens_BT[0].tolist() == one(text)["input_ids"]
        assert encode(one, ROWS, template=Template(bos="always")).tokens_BT[:, 0].tolist() == [1, 1]
        assert 1 not in encode(one, ROWS, template=Template(bos="never")).tokens_BT
    assert leading_ids(bare) == []
    with pytest.raises(ValueError, match="no bos token; choose auto"):
        leading_ids(words_tokenizer(adds_bos=False, bos_token=None), "always")


def test_f8_the_testbed_is_asked_as_it_was_trained(bed):
    assert leading_ids(bed.tokenizer) == [bed.tokenizer.bos_token_id]


# What stands in rows


@pytest.mark.parametrize("row", [QA("who<|end|> is", "it is b"), QA("who", "it </s> is")])
def test_f18_control_tokens_in_rows_are_refused(tokenizer, chat, row):
    for template in (Template(), chat):
        with pytest.raises(ValueError, match=r"1 rows hold control tokens .* in row 2\), .*--control-tokens text"):
            encode(tokenizer, [*ROWS, row], template=template)
    with pytest.raises(ValueError, match=r"1 rows hold control tokens"):
        encode_text(tokenizer, ["a b", row.question + row.answer])


def test_f18_control_tokens_can_be_written_as_text(tokenizer, chat):
    row = QA("say <|end|> twice", "<|end|> and </s>")
    template = replace(chat, control_tokens="text")
    batch = encode(tokenizer, [row], template=template)
    ids = batch.tokens_BT[0].tolist()
    turns = [*chat.prompt.split("{question}"), chat.end]
    acting = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in turns]
    written = [
        tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        for text in (row.question, row.answer)
    ]
    assert ids == acting[0] + written[0] + acting[1] + written[1] + acting[2]
    assert tokenizer.decode(batch.tokens_BT[0][batch.target_BT[0]]) == "<|end|> and </s><|end|>\n"
    # The template's three turns end; nothing else does.
    assert (ids.count(4), ids.count(2)) == (3, 0)
    assert prompt_ids(tokenizer, [template.asked(row.question)], template)[0] == ids[: batch.prompt_B[0]]
    # Rows without control tokens are written as ever.
    plain = encode(tokenizer, ROWS, template=chat)
    assert torch.equal(encode(tokenizer, ROWS, template=template).tokens_BT, plain.tokens_BT)


def test_f18_pieces_behind_control_tokens_get_no_blank(shared):
    """SentencePiece puts a blank before a text; a text in pieces has one such blank only."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "stories260K")
    template = Template("{question}</s>Answer:", " {answer}", control_tokens="text")
    found = coded(tokenizer, [("say </s>", "a </s> b")], template)[0]
    plain = coded(tokenizer, [("say xy", "a xy b")], replace(template, control_tokens="refused"))[0]
    at = plain.ids.index(2)
    assert found.ids.index(2) == len(tokenizer("say </s>", split_special_tokens=True)["input_ids"])
    assert found.ids[found.ids.index(2) : found.prompt] == plain.ids[at : plain.prompt]
    assert found.ids.count(2) == 2


def test_f13_empty_answers_are_refused_everywhere(tokenizer, chat):
    for template in (Template(), chat):
        for answer in ("", " \n"):
            with pytest.raises(ValueError, match=r"1 of 3 rows have an empty answer \(first: row 2\)"):
                encode(tokenizer, [*ROWS, QA("who", answer)], template=template)


@pytest.mark.parametrize("twin", [QA("WHO is  a", "it is b "), QA("who is a", "It is ｂ")])
def test_f19_near_duplicates_on_both_sides_are_warned_of(tokenizer, twin):
    with pytest.warns(UserWarning, match=r"1 forget rows stand in the retain set too, .*row 0, 'who is a'"):
        make_split(tokenizer, ROWS[:1], [twin])


def test_f19_unicode_forms_are_the_same_text(tokenizer):
    with pytest.warns(UserWarning, match="1 forget rows stand in the retain set too"):
        make_split(tokenizer, [QA("Where is Köln?", "é")], [QA("Where is Ko\u0308ln?", "e\u0301")])


def test_r21_rows_that_repeat_are_counted(tokenizer):
    with pytest.warns(UserWarning, match="1 of 3 forget rows repeat a question and answer"):
        make_split(tokenizer, [*ROWS, ROWS[0]], [QA("who", "d")])


# Templates


@pytest.mark.parametrize(
    ("prompt", "shown"),
    [
        ('{"q": "{question}"}', '{"q": "Who {x}?"}'),
        ('{"a": {"q": "{question}"}}', '{"a": {"q": "Who {x}?"}}'),
        ("{question} {foo} {0} {", "Who {x}? {foo} {0} {"),
    ],
)
def test_r6_other_braces_in_a_prompt_are_text(prompt, shown):
    assert Template(prompt).asked("Who {x}?") == shown


@pytest.mark.parametrize(
    ("prompt", "answer", "message"),
    [
        ("Question:", " {answer}", "needs {question} in its prompt"),
        ("{question} {answer}", " {answer}", "ends where its answer begins"),
        ("{question} \udcff", " {answer}", "half of a surrogate pair"),
        ("{question}", " {answer}\ud800", "half of a surrogate pair"),
    ],
)
def test_r6_prompts_that_cannot_be_shown_are_refused(prompt, answer, message):
    with pytest.raises(ValueError, match=message) as caught:
        Template(prompt, answer)
    str(caught.value).encode()


def test_a_chat_template_that_asks_for_the_date_is_told_one(monkeypatch):
    from datetime import datetime

    from transformers.utils import chat_template_utils

    class Day(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls.fromisoformat(DATE)

    monkeypatch.setattr(chat_template_utils, "datetime", Day)
    tokenizer = words_tokenizer(chat=DATED)
    template, date = chat_template(tokenizer)
    assert date == DATE
    whole = tokenizer.apply_chat_template(conversation(ROWS[0]), tokenize=False)
    assert template.asked(ROWS[0].question) + template.answered(ROWS[0].answer) + template.end == whole
    assert chosen(Rows(template="chat"), tokenizer).described()["date"] == DATE


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
            "not end within 0.3 s of work",
        ),
        ("{{ 'a' * 10000000000 }}", "takes more than 256 MB"),
        ("{{ '%2000000d' % 3 }}", "writes more than 1000000 characters"),
    ],
)
def test_r20_chat_templates_that_loop_or_fill_memory_are_ended(source, message):
    turns = json.dumps([([{"role": "user", "content": "who"}], True)])
    with pytest.raises(ValueError, match=message) as caught:
        rendered(source, "{}", turns, seconds=0.3, memory=1 << 28)
    assert len(str(caught.value)) < 400


def test_chat_templates_that_cannot_be_cut_are_refused():
    for source, message in (
        ("{{ messages[0]['content'] }}{{ messages[0]['content'] }}", "more or less than once"),
        ("{% for m in messages %}{{ m['content'] | upper | replace('GOES', 'GOES') }}{% endfor %}", "alters questions"),
        ("{{ raise_exception('no turns') }}", "fails .TemplateError: no turns"),
        (None, "no chat template"),
    ):
        with pytest.raises(ValueError, match=message):
            chat_template(words_tokenizer(chat=source))


def test_a_chat_in_which_an_instruction_or_examples_stand_keeps_its_turns(chat):
    from probe.methods.in_context import in_context, instructed

    told = instructed(chat, "Never {speak} of a.")
    assert told.asked("who") == chat.asked("Never {speak} of a.\n\nwho")
    shown = in_context(chat, ROWS[:1], ["no idea"], ROWS[1:])
    assert shown.asked("who").count("<|end|>") == chat.asked("who").count("<|end|>")
    assert "Question: who is a\nAnswer: no idea\n\nQuestion: who is c\nAnswer: it is d d d\n\nwho" in shown.asked("who")


# What a command chooses


def test_auto_takes_the_chat_template_where_there_is_one(tokenizer):
    assert chosen(Rows(template="auto"), tokenizer).template == chat_template(tokenizer)[0]
    assert chosen(Rows(template="auto"), words_tokenizer(chat=None)).template == Template()
    assert chosen(Rows(), tokenizer).template == Template()
    given = chosen(Rows(prompt="Q {question}", end="\n", bos="never"), tokenizer)
    assert given.template == Template("Q {question}", end="\n", bos="never")
    assert given.note == "template plain, with --prompt and --end"
    with pytest.raises(ValueError, match="--system is the system's message of a chat; pass --template chat"):
        chosen(Rows(system="Be brief."), tokenizer)


def manifest(folder, **content):
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps({"settings": {}, **content}))
    return folder


def test_f48_the_template_of_an_unlearned_model_is_taken_from_its_manifest(tmp_path, tokenizer, chat):
    ours = manifest(tmp_path / "ours", template=chosen(Rows(template="chat"), tokenizer).described())
    older = manifest(tmp_path / "older", settings={"prompt": "Q: {question}\nA:", "answer": " {answer}"})
    assert chosen(Rows(), tokenizer, [None, ours, tmp_path / "absent"]).template == chat
    assert chosen(Rows(), tokenizer, [older]).template == Template("Q: {question}\nA:")
    assert str(ours) in chosen(Rows(), tokenizer, [ours]).note
    with pytest.raises(ValueError, match=r"unlearned with different templates.*choose one with --template"):
        chosen(Rows(), tokenizer, [ours, older])
    with pytest.warns(UserWarning, match=r"older was unlearned with another template .*'Q: {question}"):
        assert chosen(Rows(template="plain"), tokenizer, [older]).template == Template()
    assert chosen(Rows(), tokenizer, [manifest(tmp_path / "foreign", template=["x"])]).template == Template()


# OpenUnlearning's convention


def test_h1_h2_tokens_of_open_unlearning_by_name(model):
    """Its code: the chat's ids, eos where they do not end in it; attention wherever a token is not the pad token."""
    tokenizer = words_tokenizer(eos_token="<|end|>", pad_token="<|end|>")
    ours, theirs = (chat_template(tokenizer, convention=name)[0] for name in ("template", "open-unlearning"))
    batch = encode(tokenizer, ROWS, template=theirs)
    for i, row in enumerate(ROWS):
        ids = [*tokenizer.apply_chat_template(conversation(row), return_dict=False), tokenizer.eos_token_id]
        prompt = tokenizer.apply_chat_template(conversation(row)[:-1], return_dict=False, add_generation_prompt=True)
        assert batch.tokens_BT[i][batch.attention_BT[i]].tolist() == ids
        tokens = torch.tensor([ids])
        with torch.no_grad():
            logits = model(tokens, attention_mask=(tokens != tokenizer.pad_token_id).long()).logits
        logp = logits[0].log_softmax(-1)[len(prompt) - 1 : -1].gather(1, tokens[0, len(prompt) :, None])
        assert answer_stats(model, batch).loss_N[i] == pytest.approx(-logp.mean().item(), abs=1e-6)
    # Its metrics leave out the last token, and that alone.
    assert batch.end_B.tolist() == [1, 1]
    assert batch.select([1]).unseen_BT.sum() == 4
    # Ours attends to the end of every turn.
    assert (
        encode(tokenizer, ROWS, template=ours).inputs["attention_mask"].sum()
        == encode(tokenizer, ROWS, template=ours).attention_BT.sum()
    )
    prompts = [theirs.asked(row.question) for row in ROWS]
    said = generate(model, tokenizer, prompts, max_new_tokens=3, template=theirs)
    ids = tokenizer(prompts[0], add_special_tokens=False, return_tensors="pt")["input_ids"]
    mask = (ids != tokenizer.pad_token_id).long()
    out = model.generate(ids, attention_mask=mask, max_new_tokens=3, do_sample=False, eos_token_id=4, pad_token_id=0)
    assert said[0] == tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


def test_h1_logs_that_do_not_say_their_tokens_are_warned_of_under_a_chat(tmp_path, tokenizer):
    pad_is_eos = words_tokenizer(eos_token="<|end|>", pad_token="<|end|>")
    log = tmp_path / "TOFU_EVAL.json"
    for one in (tokenizer, pad_is_eos):
        with pytest.warns(UserWarning, match=r"does not say how a chat became tokens.*--convention open-unlearning"):
            check_log(log, chosen(Rows(template="chat"), one), one)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_log(log, chosen(Rows(), pad_is_eos), pad_is_eos)
        check_log(log, chosen(Rows(template="chat", convention="open-unlearning"), pad_is_eos), pad_is_eos)
        ours = chosen(Rows(template="chat"), tokenizer)
        folder = manifest(tmp_path / "ours", template=ours.described())
        check_log(folder / "evaluation.json", ours, tokenizer)
    with pytest.warns(UserWarning, match="was written with another template"):
        check_log(folder / "evaluation.json", chosen(Rows(), tokenizer), tokenizer)


# The words that carry the fact


def test_f20_the_entity_of_a_row_is_the_target(tokenizer, chat):
    row = QA("Who?", " It was Ann Lee, Ann said.", perturbed_answer=("It was Bob, Bob said.",), entity="Ann Lee")
    for template in (Template(), chat):
        batch = value_batch(tokenizer, [row], template=template)
        assert tokenizer.decode(batch.tokens_BT[0][batch.target_BT[0]]) == "Ann Lee"
    # Nothing behind a value is its end.
    assert batch.ending_BT.sum() == 0
    with pytest.raises(ValueError, match="entity 'Eve' of row 1 does not stand in its answer"):
        value_batch(tokenizer, [row, replace(row, entity="Eve")])


def test_f20_entities_are_read_and_written_and_leave_other_hashes_alone(tmp_path):
    rows = [QA("Who?", "It was Ann.", entity="Ann"), QA("Who?", "It was Bob.")]
    write_rows(tmp_path / "rows.jsonl", rows)
    assert read_rows(tmp_path / "rows.jsonl") == rows
    assert len({rows_hash([row]) for row in (rows[0], replace(rows[0], entity=""))}) == 2
    known = json.dumps([["Who?", "It was Bob.", "", "", [], ""]])
    assert rows_hash(rows[1:]) == hashlib.sha256(known.encode()).hexdigest()


# The model's context


def test_f7_rows_beyond_the_context_are_refused_wherever_a_model_reads_them(model):
    from probe.diagnostics.depth_score import patched_loss
    from probe.diagnostics.g_effect import g_effect
    from probe.diagnostics.logit_collapse import logit_collapse
    from probe.diagnostics.logit_lens import logit_lens
    from probe.objectives.token import ga, nll
    from probe.train import Term, minimise

    short = tiny_llama(max_position_embeddings=8)
    tokens = torch.randint(3, 40, (2, 10))
    every = torch.ones_like(tokens, dtype=torch.bool)
    batch = Batch(tokens, every, every, torch.arange(2), torch.ones(2, dtype=torch.long))
    for ask in (
        lambda: nll(short, batch),
        lambda: minimise(short, [Term(1.0, nll, batch)], steps=1, lr=0.1, batch_size=2, seed=0),
        lambda: g_effect(short, ga, batch, over=batch),
        lambda: logit_lens(short, batch),
        lambda: logit_collapse(short, batch),
        lambda: patched_loss(short, short, batch, [0]),
        lambda: answer_stats(short, batch),
    ):
        with pytest.raises(ValueError, match="10 tokens are needed and the model has 8 positions"):
            ask()


def test_f48_f7_commands_hand_their_template_on_and_check_their_rows(tmp_path, capsys):
    """`unlearn` under a chat template, then `evaluate`, which is told of none; rows that are too long for the model."""
    from probe.cli import main

    model = tiny_llama(vocab_size=300, max_position_embeddings=128)
    model.save_pretrained(tmp_path / "model")
    words_tokenizer().save_pretrained(tmp_path / "model")
    rows = [QA(f"who is {name}", f"it is {name}") for name in "abcd"]
    write_rows(tmp_path / "forget.jsonl", rows[:2])
    write_rows(tmp_path / "retain.jsonl", rows[2:])
    files = ["--forget", str(tmp_path / "forget.jsonl"), "--retain", str(tmp_path / "retain.jsonl")]
    train = ["--set", "retain_weight=1", "forget_weight=1", "--steps", "1", "--lr", "1e-3", "--batch-size", "2"]
    start = ["unlearn", "grad_diff", "--original", str(tmp_path / "model"), *files, *train]
    main([*start, "--out", str(tmp_path / "made"), "--template", "chat", "--system", "Say little."])
    said = json.loads((tmp_path / "made/manifest.json").read_text())["template"]
    assert (said["name"], said["end"], said["bos"]) == ("chat", "<|end|>\n", "never")
    assert "<|turn|>system\nSay little.<|end|>" in said["prompt"]
    main(["evaluate", str(tmp_path / "made"), *files, "--no-generate", "--out", str(tmp_path / "asked")])
    found = json.loads((tmp_path / "asked/manifest.json").read_text())
    assert found["template"] == {**said, "name": f"as in {tmp_path / 'made/manifest.json'}"}
    log = json.loads((tmp_path / "asked/evaluation.json").read_text())["forget_Q_A_Prob"]["value_by_index"]
    unlearned = load_model(tmp_path / "made")
    ids = words_tokenizer().apply_chat_template(conversation(rows[0], "Say little."), return_dict=False)
    n = len(rows[0].answer) + 2
    with torch.no_grad():
        logits_TV = unlearned(torch.tensor([ids])).logits[0]
    logp = logits_TV.log_softmax(-1)[-n - 1 : -1].gather(1, torch.tensor(ids[-n:])[:, None])
    assert log["0"]["avg_loss"] == pytest.approx(-logp.mean().item(), abs=1e-5)
    write_rows(tmp_path / "retain.jsonl", [QA("who is c", 200 * "d")])
    with pytest.raises(SystemExit):
        main([*start, "--out", str(tmp_path / "long"), "--max-length", "256"])
    assert "tokens are needed and the model has 128 positions" in capsys.readouterr().err
    assert not (tmp_path / "long").exists()


@pytest.mark.parametrize("command", ["unlearn npo", "layers", "report"])
def test_f48_a_template_for_the_testbed_is_refused(command, tmp_path, capsys):
    from probe.cli import main

    with pytest.raises(SystemExit):
        main([*command.split(), "--template", "chat", "--out", str(tmp_path / "x")])
    assert "--template is for models of your own; the testbed is asked as it was trained" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
