"""Made-up input of every kind that is read: never a traceback, never a silent drop, every refusal a short line.

The ordinary suite runs some hundred cases that are the same each time. The slow test draws new ones for
``PROBE_FUZZ_MINUTES`` minutes (3 by default); ``PROBE_FUZZ_SEED`` is where it begins. A failure prints the input.
"""

import io
import json
import math
import os
import re
import shutil
import time
import tomllib
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from safetensors.torch import save as tensors_saved

from probe.cli import main
from probe.commands.sweep import jobs
from probe.data import QA
from probe.datasets import FIELDS, read_rows
from probe.dictionaries.folders import load_dictionary
from probe.methods.catalogue import methods
from probe.open_unlearning.log import read_log
from probe.open_unlearning.recomputed import recomputed
from probe.sweep.command import run_file
from probe.sweep.file import read_sweep

MINUTES = float(os.environ.get("PROBE_FUZZ_MINUTES", "3"))
SEED = int(os.environ.get("PROBE_FUZZ_SEED", "0"))

# What a remedy sounds like.
REMEDY = re.compile(
    r"; |expected|choose|pass |must |known:|missing|remove|did you mean|take |needs|holds no|no file|write|give|read:"
)


def refusal(error, place):
    """The message of a refusal, which names its place and what to do on one short line."""
    said = " ".join(str(error).split())
    assert len(said) < 400, said
    assert str(place) in said or place.name in said, said
    assert REMEDY.search(said), said


def accepted(read, place, refusals=(ValueError, FileNotFoundError)):
    """What a reader gives, or None where it refuses as it should. Anything else that is raised is a failure."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return read()
    except refusals as error:
        refusal(error, place)
        return None


# Values

odd_texts = st.sampled_from(
    ["", " ", "\t\n", "\u2028", "\x00", "\x1f", "\ufeff", "{question}", "<|im_end|>", "nan", "a" * 3000, "🦊", "é"]
)
texts = st.text(max_size=20) | odd_texts
full = texts.filter(lambda text: text.strip())
numbers = st.integers() | st.floats() | st.sampled_from([0, -1, 10**30, 10**400, 1e308, -0.0, 5e-324])
scalars = st.none() | st.booleans() | numbers | texts
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=6
)
# What no strategy of texts gives, but files hold.
raw_json = st.sampled_from(
    ['"\\ud83d"', "1" * 5000, "[" * 3000, "{" * 3000, "NaN", "-Infinity", '{"a":1,"a":2}', "1e999", "nul", '"', "", "'"]
)
as_json = values.map(lambda value: json.dumps(value).encode())
pieces = st.binary(min_size=1, max_size=6) | st.sampled_from([b"\n", b'"', b"}", b"[", b",", b"\xff\xfe", b"\0"])


@st.composite
def mangled(draw, whole):
    """Bytes with some cut out, put in, changed, doubled or cut off."""
    data = bytearray(draw(whole))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        width = draw(st.integers(1, 8))
        how = draw(st.sampled_from(["delete", "insert", "flip", "double", "cut"]))
        if how == "delete":
            del data[at : at + width]
        elif how == "insert":
            data[at:at] = draw(pieces)
        elif how == "flip" and at < len(data):
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "double":
            data[at:at] = data[at : at + 40]
        elif how == "cut":
            del data[at:]
    return bytes(data)


# Rows

rows = st.fixed_dictionaries(
    {"question": full, "answer": full},
    optional={
        "paraphrased_question": texts | st.none(),
        "paraphrased_answer": texts | st.none(),
        "perturbed_answer": st.lists(full, max_size=3) | full | st.none(),
        "group": texts | st.integers(-(10**9), 10**9) | st.none() | st.booleans(),
        "id": values.filter(lambda value: "inf" not in repr(value) and "nan" not in repr(value)),
    },
)


def row_of(record):
    """A record as the row that it must come back as."""
    wrong = record.get("perturbed_answer") or ()
    plain = {name: record.get(name) or "" for name in FIELDS[:4]}
    group = record.get("group")
    return QA(
        **plain,
        perturbed_answer=(wrong,) if isinstance(wrong, str) else tuple(wrong),
        group="" if group is None else str(group),
        entity=record.get("entity") or "",
    )


@st.composite
def rows_file(draw, records):
    """Rows as people write them: lines or an array, with and without escapes, blank lines, a byte-order mark."""
    written = [json.dumps(record, ensure_ascii=draw(st.booleans())) for record in records]
    end = draw(st.sampled_from(["\n", "\r\n", "\n\n", "\n \n"]))
    text = f"[{','.join(written)}]" if draw(st.booleans()) else end.join(written) + draw(st.sampled_from(["", end]))
    return (b"\xef\xbb\xbf" if draw(st.booleans()) else b"") + text.encode()


def rows_come_back(folder, data):
    records = data.draw(st.lists(rows, min_size=1, max_size=5))
    path = folder / "rows.jsonl"
    path.write_bytes(data.draw(rows_file(records)))
    assert read_rows(path) == [row_of(record) for record in records]


def judged_rows(raw):
    """What the standard library makes of a file of rows."""
    text = raw.decode("utf-8-sig")
    if text.lstrip().startswith("["):
        return json.loads(text)
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def rows_are_read_or_refused(folder, data):
    path = folder / "rows.jsonl"
    good = st.lists(rows, min_size=1, max_size=4).flatmap(rows_file)
    field = st.sampled_from([*FIELDS, "qestion", "perturbed_answers"])
    strange = st.tuples(rows, field, scalars | values).map(lambda it: json.dumps({**it[0], it[1]: it[2]}))
    lines = st.lists(strange | values.map(json.dumps) | raw_json | rows.map(json.dumps), max_size=5)
    raw = data.draw(mangled(good) | lines.map(lambda them: "\n".join(them).encode(errors="replace")) | good)
    path.write_bytes(raw)
    found = accepted(lambda: read_rows(path), path)
    if found is not None:
        assert found == [row_of(record) for record in judged_rows(raw)]


# Logs

PLAIN = ["Q_A_Prob", "Q_A_PARA_Prob", "Q_A_ROUGE"]
LISTS = ["Q_A_PERT_Prob"]
SETS = ["forget", "retain", "ra", "wf"]
shares = st.floats(0, 1, allow_subnormal=False)


@st.composite
def logs(draw):
    """A log as OpenUnlearning writes it: the same samples in every metric of a set."""
    log = {}
    for on in draw(st.lists(st.sampled_from(SETS), min_size=1, unique=True)):
        n, k = draw(st.integers(1, 4)), draw(st.integers(1, 3))
        for name in PLAIN:
            fields = ("rouge1_recall", "rougeL_f1", "rougeL_recall") if "ROUGE" in name else ("prob", "avg_loss")
            by = {str(i): {field: draw(shares) for field in fields} for i in range(n)}
            log[f"{on}_{name}"] = {"agg_value": draw(shares), "value_by_index": by}
        by = {str(i): {field: [draw(shares) for _ in range(k)] for field in ("prob", "avg_loss")} for i in range(n)}
        log[f"{on}_Q_A_PERT_Prob"] = {"agg_value": None, "value_by_index": by}
    return log


def logs_are_read_whole(folder, data):
    path, log = folder / "TOFU_EVAL.json", data.draw(logs())
    path.write_text(json.dumps(log, indent=data.draw(st.sampled_from([None, 4]))))
    found = read_log(path)
    assert found.results == log
    for name, result in log.items():
        field = "rougeL_recall" if "ROUGE" in name else "prob"
        wanted = np.array([sample[field] for sample in result["value_by_index"].values()])
        np.testing.assert_array_equal(found.samples(name, field), wanted)
        assert found.mean(name, field) == pytest.approx(wanted.mean())
    numbers_of = recomputed(found)
    for on in {name.split("_")[0] for name in log}:
        probabilities = [one["prob"] for one in log[f"{on}_Q_A_Prob"]["value_by_index"].values()]
        assert numbers_of[f"{on}_Q_A_Prob"] == pytest.approx(np.mean(probabilities))


names = texts | st.sampled_from(["0.0", "-1", "1e3", "7", "٣", "avg_loss", "value_by_index"])


@st.composite
def spoilt(draw, whole):
    """A JSON value with something in it replaced, renamed or taken out."""
    value = json.loads(json.dumps(draw(whole)))
    for _ in range(draw(st.integers(1, 2))):
        at = value
        while isinstance(at, dict | list) and at:
            key = draw(st.sampled_from(sorted(at))) if isinstance(at, dict) else draw(st.integers(0, len(at) - 1))
            inner = at[key]
            if not isinstance(inner, dict | list) or not inner or draw(st.integers(0, 3)) == 0:
                how = draw(st.sampled_from(["value", "drop", "name"]))
                if how == "value":
                    at[key] = draw(values)
                elif how == "drop":
                    del at[key]
                elif isinstance(at, dict):
                    at[draw(names)] = at.pop(key)
                break
            at = inner
    return value


def logs_are_read_or_refused(folder, data):
    path = folder / "TOFU_EVAL.json"
    raw = data.draw(
        spoilt(logs()).map(lambda it: json.dumps(it).encode())
        | mangled(logs().map(lambda it: json.dumps(it).encode()))
        | as_json
        | raw_json.map(str.encode)
    )
    path.write_bytes(raw)
    found = accepted(lambda: read_log(path), path)
    if found is None:
        return
    kept = json.loads(raw.decode("utf-8-sig"), parse_constant=lambda name: None)
    # Logs of TOFU's first code, which are brought into another layout, are named by files.
    assert found.results == kept or any(name.endswith(".json") for name in kept)
    numbers_of = accepted(lambda: recomputed(found), path)
    assert numbers_of is None or all(isinstance(one, float) for one in numbers_of.values())


# Dictionaries

WIDTH, SIZE = 4, 6
TYPES = [torch.int64, torch.bool, torch.bfloat16, torch.complex64, torch.float64]


def arrays(**shapes):
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


LAYOUTS = {
    "sae-lens": (
        {"architecture": "topk", "k": 2, "d_in": WIDTH, "d_sae": SIZE, "dtype": "float32", "device": "cpu",
         "apply_b_dec_to_input": True, "rescale_acts_by_decoder_norm": True, "reshape_activations": "none",
         "normalize_activations": "none", "metadata": {"hook_name": "blocks.1.hook_resid_post"}},
        "cfg.json", "sae_weights.safetensors",
        arrays(W_enc=(WIDTH, SIZE), W_dec=(SIZE, WIDTH), b_enc=(SIZE,), b_dec=(WIDTH,)),
    ),
    "sparsify": (
        {"d_in": WIDTH, "num_latents": SIZE, "k": 2},
        "cfg.json", "sae.safetensors",
        {**arrays(W_dec=(SIZE, WIDTH), b_dec=(WIDTH,)), "encoder.weight": torch.ones(SIZE, WIDTH),
         "encoder.bias": torch.zeros(SIZE)},
    ),
    "gemma scope": (
        {"architecture": "jump_relu", "hf_hook_point_in": "model.layers.1"},
        "config.json", "params.safetensors",
        arrays(w_enc=(WIDTH, SIZE), w_dec=(SIZE, WIDTH), b_enc=(SIZE,), b_dec=(WIDTH,), threshold=(SIZE,)),
    ),
    "llama scope": (
        {"d_model": WIDTH, "d_sae": SIZE, "jump_relu_threshold": 0.1, "dataset_average_activation_norm": {"in": 2.0},
         "hook_point_in": "blocks.1.hook_resid_post", "act_fn": "jumprelu"},
        "hyperparams.json", "checkpoints/final.safetensors",
        {"encoder.weight": torch.ones(SIZE, WIDTH), "decoder.weight": torch.ones(WIDTH, SIZE),
         "encoder.bias": torch.zeros(SIZE), "decoder.bias": torch.zeros(WIDTH)},
    ),
}  # fmt: skip


@st.composite
def other_arrays(draw, whole):
    """The arrays with one of another shape or type, not finite, renamed or left out."""
    found = dict(whole)
    name = draw(st.sampled_from(sorted(found)))
    how = draw(st.sampled_from(["shape", "dtype", "nan", "drop", "name", "empty"]))
    if how == "shape":
        found[name] = torch.zeros(draw(st.lists(st.integers(0, 7), max_size=3)))
    elif how == "dtype":
        found[name] = found[name].to(draw(st.sampled_from(TYPES)))
    elif how == "nan":
        found[name] = torch.full_like(found[name], draw(st.sampled_from([math.nan, math.inf, 1e38, 0.0])))
    elif how == "drop":
        del found[name]
    elif how == "name":
        found[draw(texts.filter(lambda text: text != "__metadata__"))] = found.pop(name)
    else:
        found = {}
    return found


def dictionaries_are_loaded_or_refused(folder, data):
    layout = data.draw(st.sampled_from(sorted(LAYOUTS)))
    config, config_name, weights_name, whole = LAYOUTS[layout]
    place = folder / layout
    (place / weights_name).parent.mkdir(parents=True, exist_ok=True)
    what = data.draw(st.sampled_from(["nothing", "config", "raw config", "arrays", "file"]))
    written = json.dumps(config).encode()
    if what == "config":
        changed = data.draw(spoilt(st.just(config)))
        written = json.dumps(changed).encode()
    elif what == "raw config":
        written = data.draw(raw_json.map(str.encode) | mangled(st.just(written)) | as_json)
    held = tensors_saved(data.draw(other_arrays(whole)) if what == "arrays" else dict(whole))
    if what == "file":
        held = data.draw(mangled(st.just(held)) | st.binary(max_size=30))
    (place / config_name).write_bytes(written)
    (place / weights_name).write_bytes(held)
    found = accepted(lambda: load_dictionary(place), place)
    if what == "nothing":
        assert found is not None
    if found is not None:
        # What is taken is usable.
        features = found.encode(torch.ones(2, found.width))
        assert features.shape == (2, found.n_features)
        assert found.decode(features, torch.ones(2, found.width)).shape == (2, found.out_width)


# Sweep files

words = st.sampled_from(
    ["ga", "npo", "rmu", "grad_diff", "in_context", "evaluate", "layers", "nothing", "os:getcwd", "./absent"]
)
KEYS = (
    "steps lr batch_size seed limit layer beta retain_weight coefficient alpha set method model forget measure device "
    "dtype parameters generate keep out id max_length zork rows"
)
keys = st.sampled_from(KEYS.split())


def toml(value):
    """A value as TOML writes it; JSON's texts are TOML's, but for what TOML does not allow in them."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml(str(key))} = {toml(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, float):
        return {"inf": "inf", "-inf": "-inf", "nan": "nan"}.get(str(value), repr(value))
    return json.dumps("" if value is None else value, ensure_ascii=False).replace("\x7f", "\\u007f")


counts = st.lists(st.integers(0, 5), min_size=1, max_size=3)
entries = st.tuples(keys, values | words | st.lists(values | words, max_size=3) | counts)


@st.composite
def sweep_files(draw):
    def table(most):
        found = dict(draw(st.lists(entries, max_size=most)))
        return "".join(f"{name} = {toml(value)}\n" for name, value in found.items())

    runs = ["unlearn", "evaluate", "layers", "g-effect", "verdict", "json:dumps", "absent:f", "zork"]
    run = draw(st.sampled_from(runs))
    text = f'run = "{run}"\nout = "never"\n[fixed]\n{table(3)}'
    if draw(st.booleans()):
        text += "lr = 1e-3\nbatch_size = 2\nsteps = 1\nretain_weight = 1\n"
    text += f'[grid]\nmethod = ["ga"]\n{table(3)}' if draw(st.booleans()) else f"[grid]\n{table(3)}"
    return text


def sweeps_are_listed_or_refused(folder, data):
    path = folder / "night.toml"
    raw = data.draw(sweep_files().map(str.encode) | mangled(sweep_files().map(str.encode)))
    path.write_bytes(raw)
    text = accepted(lambda: run_file(path, jobs(), out=folder / "never", dry_run=True)[0], path)
    assert not (folder / "never").exists()
    if text is not None:
        grids = tomllib.loads(raw.decode())["grid"]
        wanted = sum(math.prod(map(len, grid.values())) for grid in ([grids] if isinstance(grids, dict) else grids))
        assert len(read_sweep(path, jobs()).cells) == wanted
        assert f"{wanted} cell" in text


def sweeps_hold_every_cell(folder, data):
    path = folder / "night.toml"
    kinds = {"seed": st.integers(0, 99), "layer": st.integers(0, 9), "prompt": texts, "lr": st.floats(1e-9, 1)}
    axes = {name: data.draw(st.lists(of, min_size=1, max_size=3, unique=True)) for name, of in kinds.items()}
    axes["prompt"] = [f"{text}{{question}}" for text in axes["prompt"]]
    table = "".join(f"{name} = {toml(value)}\n" for name, value in axes.items())
    path.write_text(f'run = "unlearn"\n[fixed]\nmethod = "rmu"\n[grid]\n{table}', encoding="utf-8")
    found = read_sweep(path, jobs()).cells
    assert len(found) == math.prod(map(len, axes.values()))
    for name, wanted in axes.items():
        assert {cell[name] for cell in found} == set(wanted)


# The shell

FLAGS = {
    ("unlearn",): "setting set steps lr batch-size seed parameters refusals labels sae sae-layer prompt answer "
    "max-length device dtype unlearned alternatives",
    ("evaluate",): "tofu split retrained holdout mcq mcq-form limit template prompt answer batch-size max-length "
    "max-new-tokens device dtype tokenizer",
    ("layers",): "spans parts into limit prompt answer batch-size",
    ("g-effect",): "objective retain-objective unlearned limit prompt device max-length",
    ("verdict",): "retrained tokenizer prompt answer max-length device fitted",
    ("sae", "rank"): "sae sae-id sae-layer rules top view seed limit prompt",
    ("sae", "suppress"): "sae sae-layer rules counts scales pushes budget most retrained",
    ("sae", "audit"): "sae unlearned features steps lr sae-layer limit",
    ("sae", "train"): "layer architecture active n-features steps lr least-variance text",
    ("report",): "unlearned retrained sae sae-layer prompt max-length device threads methods sample sae-features "
    "steer-layer",
    ("figures",): "venue only",
    ("doctor",): "device dtype",
    ("methods",): "zork",
}
FIXED = {
    "unlearn": ["--original", "./absent"],
    "evaluate": ["./absent"],
    "layers": ["--original", "./absent", "--unlearned", "./absent2"],
    "g-effect": ["--original", "./absent"],
    "verdict": ["./absent", "--original", "./absent2"],
    "sae": ["--original", "./absent"],
    "report": ["--original", "./absent"],
    "figures": ["."],
    "doctor": ["./absent"],
    "methods": [],
}
WORDS = (
    "-1 0 1 3 1e-3 nan inf -inf 1e400 true None none [ ( {question} {answer} {0} { beta=0.1 beta= = beta npo "
    "npo:beta=nan wga:beta=1 frequency:x frequency:nan crisp:0 : . .. / /dev/null rows.jsonl ./absent ~ cpu cuda:77 "
    "tpu meta float16 single - -- --help=3"
)
ODD_WORDS = ["", " ", "\\", "9" * 30, "9" * 5000, "é", "🦊", "\udcff", "a" * 3000, "\n", "\x00"]
given_words = st.text(max_size=5) | st.sampled_from([*WORDS.split(), *ODD_WORDS])


def ended(arguments):
    """The exit code."""
    try:
        main(arguments)
    except SystemExit as stopped:
        return stopped.code or 0
    return 0


def shell_words_run_or_are_refused(folder, data):
    command = data.draw(st.sampled_from(sorted(FLAGS)))
    arguments = [*command, *FIXED[command[0]]]
    if command == ("unlearn",):
        arguments.append(data.draw(st.sampled_from([method.name for method in methods()]) | given_words))
    if command[0] not in ("figures", "doctor", "methods"):
        arguments += ["--forget", "rows.jsonl", "--retain", "rows.jsonl"]
        if command[0] != "report":
            arguments += ["--out", "out"]
    for flag in data.draw(st.lists(st.sampled_from(FLAGS[command].split()), max_size=3, unique=True)):
        arguments = [*arguments, f"--{flag}", *data.draw(st.lists(given_words, min_size=1, max_size=2))]
    out, err = io.StringIO(), io.StringIO()
    shutil.rmtree(folder / "results", ignore_errors=True)
    before = Path.cwd()
    os.chdir(folder)
    try:
        Path("rows.jsonl").write_text('{"question": "Who is it?", "answer": "It is A.", "group": "A"}\n')
        with redirect_stdout(out), redirect_stderr(err), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            code = ended(arguments)
        left = {path.name for path in Path().iterdir()}
    finally:
        os.chdir(before)
    said = err.getvalue()
    assert "Traceback" not in said
    if code != 0:
        assert code == 2, (code, said)
        ours = [line for line in said.splitlines() if line.startswith("probe: ")]
        assert ours, said
        assert all(len(line) < 400 for line in ours), said
        assert said.rstrip().endswith(ours[-1]), said
    # A report that was never finished may be continued.
    assert left <= {"rows.jsonl", *(["results"] if command == ("report",) else [])}, left


SUBJECTS = {
    "rows come back": (rows_come_back, 40),
    "rows are read or refused": (rows_are_read_or_refused, 60),
    "logs are read whole": (logs_are_read_whole, 25),
    "logs are read or refused": (logs_are_read_or_refused, 60),
    "dictionaries are loaded or refused": (dictionaries_are_loaded_or_refused, 50),
    "sweeps are listed or refused": (sweeps_are_listed_or_refused, 40),
    "sweeps hold every cell": (sweeps_hold_every_cell, 15),
    "shell words run or are refused": (shell_words_run_or_are_refused, 20),
}


def tried(check, folder, examples, start=None):
    """Run a check on made-up cases: the same ones each time, or those that a number gives."""
    quiet = settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=start is None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )

    def one(data):
        check(folder, data)

    case = quiet(given(st.data())(one))
    (case if start is None else seed(start)(case))()


@pytest.mark.parametrize("subject", SUBJECTS)
def test_what_is_read_comes_back_whole_or_is_refused_in_a_line(subject, tmp_path):
    check, examples = SUBJECTS[subject]
    tried(check, tmp_path, examples)


@pytest.mark.slow
@pytest.mark.parametrize("subject", SUBJECTS)
def test_new_cases_for_some_minutes(subject, tmp_path):
    check, _ = SUBJECTS[subject]
    end, start = time.monotonic() + 60 * MINUTES / len(SUBJECTS), SEED
    while time.monotonic() < end:
        tried(check, tmp_path, 100, start)
        start += 1
    print(f"{subject}: {100 * (start - SEED)} cases")
