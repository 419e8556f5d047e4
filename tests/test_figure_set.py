"""The whole figure set from made-up rows: everything draws, what is missing is listed, files and widths hold."""

import json
import math
import re
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from matplotlib.text import Text

from probe.figures import FIGURES, NAMES, TABLES, VENUES, draw_all, paper_style, write_tables
from probe.figures.catalogue import EVERY
from probe.figures.dynamics import _in_columns, _pairs_of
from probe.figures.folder import draw_folder, drawing_summary, rows_of
from probe.figures.lens import _visible
from probe.figures.paper_tables import Block, Column, _blocked, paper_table, size_table
from probe.figures.quality import LOG10_P, with_log10
from probe.figures.replaced import _text_rows
from probe.figures.robustness import _pearson
from probe.rows import Row, append, span_row

SIDES = ("forget", "retain")
METHODS = ("GA", "NPO", "RMU")
MODELS = ("original", *METHODS, "retrained")
# Figures beside the set may need rows of their own.
SET = tuple(entry for entry in EVERY if entry.number)
DEPTH = 4


def noise():
    """Seeded numbers in (0, 1): these rows are test data, nothing was measured."""
    return np.random.default_rng(0)


def row(name, diagnostic, quantity, value, on="", *, half=0.05, **where):
    value = float(value)
    return Row(name, diagnostic, quantity, value, on, low=value - half, high=value + half, n=3, **where)


def gradient_rows(draw):
    names = ("GA", "WGA", "NPO", "TNPO", "NLL retain", "KL retain")
    rows = [
        row(m, "g_effect", "effect over steps", draw.normal(), on, item=s)
        for m in names
        for on in SIDES
        for s in (0, 10)
    ]
    cube = "effect by layer over steps"
    rows += [
        row(m, "g_effect", quantity, draw.normal(), on, layer=layer, **where)
        for m in METHODS
        for on in SIDES
        for layer in range(DEPTH)
        for quantity, where in (("effect", {}), *((cube, {"item": s}) for s in (0, 10)))
    ]
    rows += [row("NPO", "npo_weight", "weight over steps", 1 - s / 20, "forget", item=s) for s in (0, 10)]
    rows += [row("NPO", "npo_weight", "rise", draw.normal(), on, item=q) for on in SIDES for q in range(4)]
    return rows


def score_rows(draw):
    rows = []
    for name in MODELS:
        for on in SIDES:
            rows.append(row(name, "performance", "probability", draw.random(), on))
            rows.append(row(name, "performance", "extraction_strength", draw.random(), on))
            rows.append(row(name, "performance", "perturbed_strength", draw.random(), on))
            rows += [row(name, "quantisation", "probability", draw.random(), on, item=bits) for bits in (16, 8, 4)]
            rows.append(row(name, "fragility", "probability", draw.random(), on))
            rows += [
                Row(name, "logit_collapse", quantity, float(draw.gamma(2.0)), on, item=i)
                for quantity in ("entropy", "max_logit")
                for i in range(20)
            ]
            rows += [
                Row(name, "pca", pc, float(draw.normal()), on, layer=layer, item=i)
                for layer in (0, 3)
                for pc in ("pc1", "pc2")
                for i in range(8)
            ]
        rows.append(Row(name, "performance", "forget_quality_ln_p", -20 * draw.random(), "forget", n=30))
        rows.append(Row(name, "evaluation", "model_utility", float(draw.random())))
        rows.append(Row(name, "fragility", "forget_quality_ln_p", -20 * draw.random(), "forget"))
        for layer in range(DEPTH):
            rows.append(row(name, "separability", "auc", 0.5 + draw.random() / 2, layer=layer))
            rows.append(Row(name, "separability", "control", 0.5, layer=layer))
        for attack in ("relearning", "jailbreak"):
            rows.append(row(name, "robustness", attack, draw.random(), "forget"))
        for quantity in ("utility", "forgetting"):
            rows += [row(name, "continual", quantity, draw.random(), item=task) for task in (1, 2, 3)]
        for kind in ("in-domain", "out-of-domain"):
            rows += [row(name, "relearning", "probability", draw.random(), kind, item=s) for s in (0, 5)]
        for item, token in enumerate((" Mina", " Ko", "rr")):
            rows += [
                Row(name, "logit_lens", "probability", float(draw.random()), token, layer=layer, item=item)
                for layer in range(DEPTH)
            ]
    return rows


def layer_rows(draw):
    rows = [
        row(m, "fragility", quantity, scale * draw.random(), on, layer=layer)
        for m in METHODS
        for quantity, on, scale in (
            ("probability", "forget", 1), ("probability", "retain", 1), ("forget_quality_ln_p", "forget", -20),
        )
        for layer in range(DEPTH)
    ]  # fmt: skip
    for on in SIDES:
        for into in ("original", "unlearned"):
            rows.append(span_row("GA", "probability", float(draw.random()), on, into=into))
            for i in range(DEPTH):
                rows += [
                    span_row("GA", "probability", float(draw.random()), on, first=i, last=j, into=into)
                    for j in range(i, DEPTH)
                ]
    return rows


def other_rows(draw):
    rows = [Row("", "raw", "guess", 0.25), Row("", "fragility", "forget_quality_floor", 1e-9, "forget")]
    for name in MODELS:
        for state in ("raw", "calibrated"):
            for on in SIDES:
                rows.append(row(name, state, "extraction_strength", draw.random(), on))
                for quantity in ("choice_accuracy", "open_right"):
                    rows.append(Row(name, state, quantity, float(draw.random()), on))
                rows.append(Row(name, state, "at_chance", float(name == "GA"), on))
        rows.append(Row(name, "calibrated", "alpha", 0.5))
        rows += [
            Row(name, "path", "extraction_strength", float(draw.random()), on, dose=a)
            for on in SIDES
            for a in (0.0, 1.0)
        ]
        rows += [
            Row(name, "aggregate", q, float(draw.random()), split, item=10**9)
            for q in ("aggregate", "memorisation", "utility")
            for split in ("forget 5 %", "forget 10 %")
        ]
    for name in ("NPO", "BS-T"):
        rows += [
            row(name, "squeezing", band, -9 * draw.random(), "forget", item=s)
            for band in ("target", "high", "mid", "low")
            for s in (0, 10)
        ]
        rows += [
            Row(name, "checkpoint", q, -abs(float(draw.normal())), item=s)
            for q in ("model_utility", LOG10_P)
            for s in (0, 5)
        ]
    rows += [
        row("all", "reliability", metric, 2 * draw.random() - 1, attack)
        for metric in ("probability", "rouge")
        for attack in ("noise", "relearning")
    ]
    for feature in range(30):
        rows += [
            Row("original", "sae_activity", "mean_activation", max(0.0, float(draw.normal())), on, item=feature)
            for on in SIDES
        ]
    rows += [Row("original", "sae_activity", "selected", 1.0, item=feature) for feature in (1, 2)]
    for name in ("SAE", "SAE (random features)"):
        rows += [
            row(name, "sae_dose", "probability", draw.random(), on, dose=d) for on in SIDES for d in (0.0, 1.0, 4.0)
        ]
    rows += [Row("Steer", "dose", "probability", float(draw.random()), on, dose=d) for on in SIDES for d in (0.0, 1.0)]
    texts = {"question": "Who is she?", "original": "She is a poet.", "GA": "She is is."}
    return rows + [Row(name, "replaced_text", "text", None, text, item=0) for name, text in texts.items()]


@cache
def everything():
    draw = noise()
    return [*gradient_rows(draw), *score_rows(draw), *layer_rows(draw), *other_rows(draw)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One folder of rows, drawn at a venue with columns."""
    folder = tmp_path_factory.mktemp("set")
    append(folder / "rows.jsonl", everything())
    return folder, draw_folder(folder, venue="icml")


def test_every_figure_and_table_of_the_set_is_drawn(run):
    _, drawn = run
    assert {entry.name for entry in SET} <= set(drawn.paths)
    assert len(set(NAMES)) == len(NAMES)
    assert {str(n) for n in range(1, 21)} <= {entry.number for entry in FIGURES}
    assert {"T1", "T2", "T3"} <= {entry.number for entry in TABLES}


def test_widths_are_the_venues_and_fonts_are_true_type(run):
    _, drawn = run
    sizes = VENUES["icml"]
    for entry in (entry for entry in FIGURES if entry.number):
        data = drawn.paths[entry.name].read_bytes()
        assert b"/Type3" not in data.replace(b" ", b""), entry.name
        assert b"CreationDate" not in data
        width = float(re.search(rb"/MediaBox \[ ?0 0 ([\d.]+)", data)[1]) / 72
        assert any(width == pytest.approx(wanted) for wanted in (sizes.column, sizes.page)), entry.name


def test_a_venue_without_columns_draws_single_panels_narrower():
    assert VENUES["neurips"].narrow == pytest.approx(5.5 * 2 / 3, abs=0.01)
    assert VENUES["acl"].narrow == VENUES["acl"].column


def test_numbers_and_captions_lie_beside_each_figure(run):
    _, drawn = run
    for entry in (entry for entry in FIGURES if entry.number):
        record = json.loads(drawn.paths[entry.name].with_suffix(".json").read_text())
        assert record["data"], entry.name
        assert record["caption"] == drawn.captions[entry.name]
        assert set(record["metadata"]) == {"run", "probe"}
    assert "n = 3" in drawn.captions["relearning"]
    assert "no intervals" in drawn.captions["logit_lens"]


@pytest.mark.slow  # test_figures.py holds it of seven others
def test_pdfs_are_the_same_byte_for_byte(run, tmp_path):
    _, drawn = run
    few = ("squeezing", "logit_lens", "relearning", "sae_features", "dashboard", "g_effect_map", "robustness")
    append(tmp_path / "rows.jsonl", everything())
    again = draw_folder(tmp_path, venue="icml", only=few)
    assert set(again.paths) == set(few)
    for name in few:
        for suffix in (".pdf", ".svg", ".png", ".json"):
            assert (
                again.paths[name].with_suffix(suffix).read_bytes() == drawn.paths[name].with_suffix(suffix).read_bytes()
            )
    assert not (tmp_path / "figures" / "index.html").exists()
    assert not (tmp_path / "tables").exists()


def test_what_is_missing_is_listed_not_fatal(tmp_path):
    append(tmp_path / "rows.jsonl", [r for r in everything() if r.diagnostic == "relearning"])
    drawn = draw_folder(tmp_path)
    assert set(drawn.paths) == {"relearning"}
    assert set(drawn.missing) == set(NAMES) - {"relearning"}
    page = (tmp_path / "figures" / "index.html").read_text()
    assert page.count("<img") == 1
    assert page.count("<li>") == len(NAMES) - 1
    assert "not drawn: squeezing (no rows of 'squeezing'" in drawing_summary(drawn)


def test_the_contents_name_every_figure(run):
    folder, _ = run
    page = (folder / "figures" / "index.html").read_text()
    assert page.count("<img") >= sum(bool(entry.number) for entry in FIGURES)
    assert all(f"{entry.name} (#{entry.number})" in page for entry in SET)
    assert "http" not in page


def said(figure):
    found = [text.get_text() for text in figure.findobj(Text)]
    return sum(int(match[1]) for text in found if (match := re.fullmatch(r"(\d+) points? not finite", text)))


LINES = (
    *("g_effect_steps", "g_effect_pairs", "g_effect", "g_effect_map", "npo_weights", "u_shape", "u_shape_quality"),
    *("squeezing", "relearning", "quantisation", "robustness", "attack_correlation", "sae_features", "logit_lens"),
    *("continual", "dose_response", "reliability", "utility_quality", "separability"),
)


@pytest.mark.parametrize("name", LINES)
def test_dropped_points_are_counted_on_the_figure(name):
    entry = next(entry for entry in FIGURES if entry.name == name)
    diagnostics = dict.fromkeys(entry.diagnostics, 0)
    rows = []
    for one in everything():
        # The second row of each quantity of its diagnostics is broken.
        key = (one.diagnostic, one.quantity)
        broken = one.diagnostic in diagnostics and one.quantity not in ("selected", "forget_quality_floor")
        diagnostics[key] = diagnostics.get(key, -1) + 1 if broken else -1
        rows.append(replace(one, value=math.inf) if diagnostics[key] == 1 else one)
    with paper_style("icml") as sizes:
        figure, _ = entry.draw(rows, sizes)
        figure.draw_without_rendering()
        assert said(figure) >= 1, name


def test_unknown_names_and_venues_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no figure or table 'u-shape'.*u_shape"):
        draw_all([], tmp_path, only=["u-shape"])
    with pytest.raises(ValueError, match="neurips"):
        draw_all([], tmp_path, venue="nips")


def test_rows_below_a_folder_are_joined_once(tmp_path):
    for name in ("a", "b", ".c.part"):
        (tmp_path / name).mkdir()
        append(tmp_path / name / "rows.jsonl", [Row("GA", "x", "y", 1.0), Row(name, "x", "y", 2.0)])
    assert [r.intervention for r in rows_of(tmp_path)] == ["GA", "a", "b"]
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "journal.jsonl").write_text("")
    with pytest.raises(FileNotFoundError, match="holds a sweep"):
        rows_of(tmp_path / "sweep")


def test_the_shell_draws_one_figure_of_any_folder(tmp_path, capsys):
    from probe.cli import main

    append(tmp_path / "rows.jsonl", [r for r in everything() if r.diagnostic in ("relearning", "evaluation")])
    main(["figures", str(tmp_path), "--venue", "acl", "--only", "relearning", "squeezing"])
    said_there = capsys.readouterr().out
    assert "relearning: " in said_there
    assert "not drawn: squeezing" in said_there
    assert {p.name for p in (tmp_path / "figures").iterdir()} == {
        f"relearning.{e}" for e in ("pdf", "png", "svg", "json")
    }


# What is drawn is what the rows say.


def drawn_data(name, rows):
    entry = next(entry for entry in FIGURES if entry.name == name)
    with paper_style() as sizes:
        return entry.draw(rows, sizes)


def test_lines_equal_the_rows():
    rows = everything()
    for name, diagnostic, path in (
        ("relearning", "relearning", lambda r: ("in-domain", r.intervention)),
        ("quantisation", "quantisation", lambda r: (r.on, r.intervention)),
        ("squeezing", "squeezing", lambda r: (r.intervention, r.quantity)),
        ("continual", "continual", lambda r: (r.quantity, r.intervention)),
    ):
        data = drawn_data(name, rows)[1]
        for one in rows:
            if one.diagnostic == diagnostic and (diagnostic != "relearning" or one.on == "in-domain"):
                first, second = path(one)
                line = data[first][second]
                k = line["x"].index(one.item)
                assert (line["value"][k], line["low"][k], line["high"][k]) == (one.value, one.low, one.high)


def test_lens_difference_and_dashboard_choose_the_same_tokens():
    rows = everything()
    figure, data = drawn_data("logit_lens", rows)
    lowest = {
        m: np.mean([r.value for r in rows if (r.diagnostic, r.intervention, r.layer) == ("logit_lens", m, 3)])
        for m in METHODS
    }
    after = min(lowest, key=lowest.get)
    assert data["after"] == after
    assert data["tokens"] == ["␣Mina", "␣Ko", "rr"]
    first = next(r for r in rows if (r.diagnostic, r.intervention, r.layer, r.item) == ("logit_lens", after, 2, 1))
    assert data["changed"][1][2] == first.value
    image = figure.axes[2].images[0].get_array()
    np.testing.assert_allclose(image, np.array(data["changed"]) - np.array(data["original"]))
    assert _visible("a\n$b") == r"a↵\$b"


def test_the_dashboard_shows_the_method_that_was_measured_most():
    rows = [r for r in everything() if r.intervention != "GA" or r.diagnostic != "logit_lens"]
    data = drawn_data("dashboard", rows)[1]
    assert data["model"] in ("NPO", "RMU")
    assert None not in data.values()
    only = [r for r in everything() if r.diagnostic == "separability"]
    some = drawn_data("dashboard", only)[1]
    assert some["Logit lens: change of p"] is None
    with pytest.raises(ValueError, match="no rows of a method"):
        drawn_data("dashboard", [r for r in everything() if r.intervention == "original"])


def test_thirds_are_sums_over_layers():
    rows = [
        Row("GA", "g_effect", "effect by layer over steps", float(2**layer), "forget", layer=layer, item=0)
        for layer in range(6)
    ]
    data = drawn_data("g_effect_thirds", rows)[1]["forget"]["GA"]
    assert data == {"shallow": [3.0], "middle": [12.0], "deep": [48.0]}


def test_pairs_and_columns():
    names = ["GA + NLL", "WGA + NLL", "NPO", "TNPO", "NLL retain", "KL retain"]
    assert _pairs_of(names) == [("GA + NLL", "WGA + NLL"), ("NPO", "TNPO"), ("NLL retain", "KL retain")]
    assert _pairs_of(["GA", "NPO"]) == []
    assert [len(g) for g in _in_columns([str(i) for i in range(9)])] == [3, 3, 3]
    with pytest.raises(ValueError, match="measure one of"):
        drawn_data("g_effect_pairs", [Row("GA", "g_effect", "effect over steps", 0.1, "forget", item=0)])


def test_weights_become_boxes_where_answers_are_rows():
    rows = [Row("NPO", "npo_weight", "weight over steps", 1.0, "forget", item=0)]
    rows += [Row("NPO", "npo_weight", "rise", float(k), on, item=q) for on in SIDES for q in range(4) for k in range(5)]
    figure, _ = drawn_data("npo_weights", rows)
    assert figure.axes[1].get_xticklabels()[0].get_text() == "lightest\nn = 5"


def test_forget_quality_is_drawn_in_decimal_logarithms():
    rows = [
        Row("GA", "performance", "forget_quality_ln_p", -math.log(1000), "forget"),
        Row("GA", "evaluation", "model_utility", 0.5),
    ]
    assert with_log10(rows)[0].value == pytest.approx(-3)
    both = [*rows, Row("GA", "performance", LOG10_P, -3.0, "forget", status="floor")]
    assert [r.quantity for r in with_log10(both)] == ["model_utility", LOG10_P]
    data = drawn_data("utility_quality", both)[1]
    assert data["points"] == {"GA": (0.5, -3.0)}
    assert data["floor"] == ["GA"]


def test_u_shape_is_drawn_from_a_layer_map_too():
    rows = [r for r in layer_rows(noise()) if r.diagnostic == "layer_map"]
    data = drawn_data("u_shape", rows)[1]
    single = next(
        r for r in rows if (r.quantity, r.on, r.layer, r.item) == ("probability, block into original", "retain", 2, 2)
    )
    assert data["retain"]["values"]["GA"][2] == single.value


def test_silent_features_are_left_out_and_counted():
    rows = [
        Row("m", "sae_activity", "mean_activation", v, on, item=i)
        for on in SIDES
        for i, v in enumerate((0.0, 1.0, 2.0))
    ]
    data = drawn_data("sae_features", rows)[1]["sae_activity"]
    assert (data["feature"], data["silent"]) == ([2, 1], 1)


def test_correlation_against_scipy():
    from scipy.stats import pearsonr

    point_N2 = noise().random((12, 2))
    r, low, high = _pearson(point_N2)
    found = pearsonr(*point_N2.T)
    interval = found.confidence_interval()
    assert r == pytest.approx(found.statistic)
    assert (low, high) == pytest.approx((interval.low, interval.high), abs=1e-6)
    assert all(map(math.isnan, _pearson(np.ones((9, 2)))))


# Tables.


def lines_of(latex, name):
    return [line.removesuffix(r" \\").split(" & ")[1:] for line in latex.splitlines() if line.startswith(name + " &")]


def test_marks_are_given_within_a_block_and_never_to_references():
    def block(title, values):
        return Block(title, {(n, "", "x"): Row(n, "d", "x", v) for n, v in values.items()})

    blocks = [
        block("one", {"original": 0.9, "A": 0.5, "B": 0.5, "C": 0.4, "retrained": 0.8}),
        block("two", {"A": 0.1, "B": 0.2, "C": None}),
    ]
    latex = _blocked(blocks, [Column("X", 1, "x"), Column("Y", 1, "y")], "note").latex
    assert lines_of(latex, "A") == [[r"\textbf{0.500}"], [r"\underline{0.100}"]]
    assert lines_of(latex, "B") == [[r"\textbf{0.500}"], [r"\textbf{0.200}"]]
    assert lines_of(latex, "C") == [[r"\underline{0.400}"], ["n/f"]]
    assert lines_of(latex, "original") == [["0.900"]]
    assert lines_of(latex, "retrained") == [["0.800"]]
    assert latex.count(r"\cmidrule(lr){1-2}") == 2
    assert r"X $\uparrow$ \\" in latex


def test_the_main_table_has_a_block_a_state_or_none():
    rows = everything()
    table = paper_table(rows)
    assert [block in table.latex for block in (r"\emph{as trained}", r"\emph{calibrated}")] == [True, True]
    plain = paper_table([r for r in rows if r.diagnostic in ("performance", "evaluation")])
    assert "emph" not in plain.latex
    assert r"FQ ($\log_{10} p$) $\uparrow$" in plain.latex
    value = next(
        r.value
        for r in rows
        if (r.intervention, r.diagnostic, r.quantity) == ("GA", "performance", "forget_quality_ln_p")
    )
    shown = re.sub(r"[^-.\d]", "", lines_of(plain.latex, "GA")[0][-1].replace("$-$", "-"))
    assert shown == f"{value / math.log(10):.1f}"
    with pytest.raises(ValueError, match="no rows"):
        paper_table([])


def test_sizes_and_splits_are_blocks_and_an_evaluation_is_one():
    latex = size_table(everything()).latex
    assert r"\emph{1 B parameters, forget 10 \%}" in latex
    assert latex.count(r"\emph") == 2
    rows = [Row("GA", "evaluation", q, v) for q, v in (("agg_mem_utility", 0.5), ("mem", 0.6), ("model_utility", 0.4))]
    assert lines_of(size_table(rows).latex, "GA") == [["0.500", "0.600", "0.400"]]


def test_changed_words_are_coloured_and_underlined():
    latex = _text_rows(everything()).latex
    assert r"\textcolor{changed}{\underline{is.}}" in latex
    assert "Who is she?" in latex


def test_tables_without_rows_are_listed(tmp_path):
    drawn = write_tables([], tmp_path)
    assert set(drawn.missing) == {entry.name for entry in TABLES}
