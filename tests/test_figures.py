"""Figures from made-up rows: what is plotted equals the rows, files are stable, bad points are counted."""

import csv
import io
import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.text import Text

from probe.figures import (
    FIGURES,
    VENUES,
    draw_all,
    labels,
    layers,
    logits,
    main_table,
    new_figure,
    paper_style,
    save_figure,
    separability_by_layer,
    separability_panels,
    states,
    style,
    svg_text,
    tables,
    tradeoff,
)
from probe.figures.doses import CONTROL, dose_curves
from probe.rows import Row

# What the rows of a report draw; the whole set is in test_figure_set.py.
REPORTED = ("tradeoff", "g_effect", "separability", "u_shape", "logit_collapse", "hidden_states", "dose_response")
NAMES = ("original", "GA", "GradDiff", "WGA", "NPO", "RMU", "CRU", "Steer", "Project", "SAE clamp", "retrained")
FORGET = dict(zip(NAMES, (0.92, 0.00, 0.02, 0.03, 0.05, 0.04, 0.10, 0.55, 0.61, 0.33, 0.08), strict=True))
RETAIN = dict(zip(NAMES, (0.93, 0.00, 0.71, 0.83, 0.74, 0.86, 0.88, 0.64, 0.80, 0.89, 0.93), strict=True))


def performance(names=NAMES, n=40):
    rows = []
    for name in names:
        for on, score in (("forget", FORGET), ("retain", RETAIN), ("world", RETAIN)):
            value = score[name] * (0.97 if on == "world" else 1)
            half = 0.02 + 0.05 * value * (1 - value)
            for quantity, factor in (("probability", 1), ("extraction_strength", 0.8), ("truth_ratio", 0.7)):
                mean = value * factor
                rows.append(
                    Row(
                        name,
                        "performance",
                        quantity,
                        mean,
                        on,
                        low=max(mean - half, 0.0),
                        high=min(mean + half, 1.0),
                        n=n,
                    )
                )
        rows.append(Row(name, "performance", "forget_quality_ln_p", -30 * FORGET[name], "forget", n=n))
    return rows


def g_effect_rows(names=NAMES[1:7], depth=8):
    rows = []
    for i, name in enumerate(names):
        for on, sign in (("forget", -1), ("retain", -0.4 if i % 2 else 0.2)):
            scale = 10 ** (3 - i)
            values = [sign * scale * (0.3 + math.sin(layer / 2.5 + i) ** 2) for layer in range(depth)]
            rows += [Row(name, "g_effect", "effect", v, on, layer=layer) for layer, v in enumerate(values)]
            rows.append(Row(name, "g_effect", "total", sum(values), on))
    return rows


def fragility_rows(names=("GradDiff", "NPO", "RMU", "CRU"), depth=8):
    rows = [Row("original", "fragility", "probability", s["original"], on) for on, s in SIDES]
    for i, name in enumerate(names):
        for on, score in SIDES:
            rows.append(Row(name, "fragility", "probability", score[name], on))
            for layer in range(depth):
                dip = math.exp(-(((layer - 3.5 - 0.5 * i) / 1.6) ** 2)) * (0.5 if on == "retain" else 0.8)
                value = score["original"] - dip * (score["original"] - score[name]) - 0.01 * i
                rows.append(Row(name, "fragility", "probability", value, on, layer=layer))
    return rows


SIDES = (("forget", FORGET), ("retain", RETAIN))


def separability_rows(names=NAMES, depth=8):
    rows = []
    for i, name in enumerate(names):
        for layer in range(depth):
            auc = 0.55 + 0.42 * (1 - math.exp(-(layer + 0.3) / (1 + 0.25 * (i % 5))))
            rows.append(
                Row(name, "separability", "auc", auc, layer=layer, low=auc - 0.04, high=min(auc + 0.04, 1.0), n=5)
            )
            control = 0.5 + 0.03 * math.sin(3 * layer + i)
            rows.append(Row(name, "separability", "control", control, layer=layer, n=5))
    return rows


def collapse_rows(names=NAMES, n=200):
    generator = np.random.default_rng(0)
    rows = []
    for name in names:
        for on, score in SIDES:
            known = score[name]
            top = generator.normal(9 + 6 * known, 1.5, n) if name != "GA" else generator.normal(41, 0.7, n)
            entropy = generator.gamma(1.0 + 2 * (1 - known), 0.8, n) if name != "GA" else generator.gamma(0.2, 0.05, n)
            for quantity, value_N in (("max_logit", top), ("entropy", entropy)):
                rows += [Row(name, "logit_collapse", quantity, v, on, item=i) for i, v in enumerate(value_N.tolist())]
            rows.append(Row(name, "logit_collapse", "collapsed", float(name == "GA"), on))
    return rows


def pca_rows(names=NAMES, shown=(0, 2, 5, 7), n=40):
    generator = np.random.default_rng(1)
    rows = [
        Row("original", "pca", f"explained{k}", share, layer=layer)
        for layer in shown
        for k, share in ((1, 0.41 - 0.02 * layer), (2, 0.17))
    ]
    for place, name in enumerate(names):
        for layer in shown:
            for on, centre in (("forget", -1.0), ("retain", 1.0)):
                far = 14.0 if name == "RMU" and layer >= 5 and on == "forget" else 0.0
                xy_N2 = generator.normal((centre * layer / 3 + far, 0.1 * place), 0.8, (n, 2))
                for item, (x, y) in enumerate(xy_N2.tolist()):
                    rows.append(Row(name, "pca", "pc1", x, on, layer=layer, item=item))
                    rows.append(Row(name, "pca", "pc2", y, on, layer=layer, item=item))
    return rows


def dose_rows():
    rows = []
    for on, score in SIDES:
        start = score["original"]
        fall = 0.9 if on == "forget" else 0.35
        for edit, counts, slope in (("SAE clamp", (4, 16, 64), 1.0), ("SAE clamp" + CONTROL, (64,), 0.15)):
            for count in counts:
                for dose in (0.0, 0.25, 0.5, 1.0, 2.0, 4.0):
                    value = start * math.exp(-slope * fall * dose * math.log2(count) / 6)
                    rows.append(Row(edit, "dose", "probability", value, on, dose=dose, item=count))
        for dose in (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0):
            value = start * math.exp(-fall * (abs(dose) if dose > 0 else 0.3 * abs(dose)))
            rows.append(Row("Steer", "dose", "probability", value, on, dose=dose, item=1))
        for dose in (0.0, 1.0):
            rows.append(Row("Project", "dose", "probability", start - 0.3 * fall * dose, on, dose=dose, item=1))
    return rows


def everything():
    return [
        *performance(),
        *g_effect_rows(),
        *fragility_rows(),
        *separability_rows(),
        *collapse_rows(),
        *pca_rows(),
        *dose_rows(),
    ]


def blank(panels=1, size=(5.5, 2.6)):
    figure = new_figure(*size)
    return figure, figure.subplots(1, panels) if panels > 1 else figure.subplots()


# What is drawn is what the rows say.


def test_g_effect_data_equal_the_rows():
    rows = g_effect_rows(("NPO", "RMU"))
    with paper_style():
        drawn = layers.g_effects_by_layer(rows, blank(2)[1])
    for row in rows:
        side = drawn[row.on]
        if row.quantity == "total":
            assert side["total"][row.intervention] == row.value
        else:
            assert side["values"][row.intervention][side["layer"].index(row.layer)] == row.value


def test_lines_draw_the_layers_that_were_measured():
    rows = [Row("GA", "g_effect", "effect", float(layer), on, layer=layer) for layer in (2, 5) for on in FORGET_RETAIN]
    with paper_style():
        _, axes = blank(2)
        layers.g_effects_by_layer(rows, axes)
    line = next(line for line in axes[0].lines if len(line.get_xdata()) == 2 and line.get_marker() == "v")
    assert list(line.get_xdata()) == [2, 5]
    assert list(line.get_ydata()) == [2.0, 5.0]


FORGET_RETAIN = ("forget", "retain")


def test_lines_without_axes_take_tensors():
    torch = pytest.importorskip("torch")
    drawn = layers.lines({"GA": torch.tensor([1.0, -2.0, 3.0]), "mine": [0.0, 1.0, 2.0]}, ylabel="retain G-effect")
    assert drawn["values"]["GA"] == [1.0, -2.0, 3.0]
    with pytest.raises(ValueError, match="one value a layer"):
        layers.lines({"GA": torch.zeros(2, 3)}, ylabel="x")
    from matplotlib import pyplot

    pyplot.close("all")


def test_u_shape_is_one_minus_the_score_on_forget():
    rows = fragility_rows(("CRU",))
    with paper_style():
        drawn = layers.u_shape(rows, blank(2)[1])
    by = {(r.intervention, r.on, r.layer): r.value for r in rows}
    assert drawn["forget"]["original"] == 1 - by["original", "forget", None]
    assert drawn["retain"]["all"]["CRU"] == by["CRU", "retain", None]
    assert drawn["forget"]["values"]["CRU"] == [1 - by["CRU", "forget", layer] for layer in range(8)]


def test_separability_data_equal_the_rows():
    rows = separability_rows(("original", "RMU"))
    with paper_style():
        drawn = separability_by_layer(rows, blank()[1])
    for row in rows:
        key = "auc" if row.quantity == "auc" else "control"
        assert drawn[key][row.intervention][row.layer] == row.value
    assert drawn["low"]["RMU"] == [r.low for r in rows if r.intervention == "RMU" and r.quantity == "auc"]


def test_histograms_have_area_one_and_lose_no_value():
    rows = collapse_rows(("original", "GA"), n=60)
    with paper_style():
        drawn = logits.collapse(rows, new_figure(5.5, 2))
    width = np.diff(drawn["max_logit"]["edges"])
    for sides in drawn["max_logit"]["density"].values():
        for density in sides.values():
            assert width @ np.array(density) == pytest.approx(1)
    assert drawn["verdict"]["GA"] == {"forget": True, "retain": True}
    assert drawn["verdict"]["original"] == {"forget": False, "retain": False}


def test_an_exploded_model_does_not_flatten_the_others():
    rows = [
        Row(name, "logit_collapse", "max_logit", scale * (1 + i / 50), "forget", item=i)
        for name, scale in (("original", 10.0), ("NPO", 9.0), ("GA", 5000.0))
        for i in range(50)
    ]
    with paper_style():
        drawn = logits.collapse(rows, new_figure(5.5, 2), quantities=("max_logit",))
    used = sum(value > 0 for value in drawn["max_logit"]["density"]["original"]["forget"])
    assert used > 5
    assert drawn["max_logit"]["edges"][-1] == pytest.approx(5000 * (1 + 49 / 50))


def test_states_share_limits_and_far_ones_are_zoomed_out():
    rows = pca_rows(("original", "NPO", "RMU"), shown=(0, 7))
    with paper_style():
        figure = new_figure(5.5, 3)
        drawn = states.states_pca(rows, figure)
    assert drawn["zoom"]["NPO"] == {0: 1.0, 7: 1.0}
    assert drawn["zoom"]["RMU"][7] > 2
    grid = np.array(figure.axes).reshape(3, 2)
    assert grid[0, 1].get_xlim() == grid[1, 1].get_xlim() != grid[2, 1].get_xlim()
    first = [r.value for r in rows if (r.intervention, r.layer, r.on, r.item) == ("RMU", 7, "forget", 3)]
    assert drawn["points"]["RMU"][7]["forget"][3] == first
    assert drawn["explained"][0] == [0.41, 0.17]


def test_dose_data_equal_the_rows_and_zero_is_on_the_axis():
    rows = dose_rows()
    with paper_style():
        figure = new_figure(5.5, 3)
        drawn = dose_curves(rows, figure)
    n = sum(
        len(line["dose"])
        for edit in ("Steer", "Project", "SAE clamp")
        for on in FORGET_RETAIN
        for line in drawn[edit][on]
    )
    assert n == len(rows)
    line = next(line for line in drawn["SAE clamp"]["forget"] if line["features"] == 16)
    own = [r for r in rows if (r.intervention, r.item, r.on) == ("SAE clamp", 16, "forget")]
    assert (line["dose"], line["value"]) == ([r.dose for r in own], [r.value for r in own])
    assert any(line["edit"].endswith(CONTROL) for line in drawn["SAE clamp"]["retain"])
    for ax in figure.axes:
        assert 0 in ax.get_xticks()
    with pytest.raises(ValueError, match="hold no dose"):
        dose_curves([replace(rows[0], dose=None)], new_figure(3, 3))


def test_tradeoff_points_and_front():
    with paper_style():
        drawn = tradeoff.utility_against_forgetting(performance(), blank(size=(3.6, 2.7))[1])
    assert drawn["points"]["NPO"]["x"] == 1 - FORGET["NPO"]
    assert drawn["points"]["NPO"]["y"] == RETAIN["NPO"]
    assert drawn["front"] == ["SAE clamp", "CRU", "RMU", "WGA", "GradDiff", "GA"]


def test_front_against_brute_force():
    generator = np.random.default_rng(3)
    points = {str(i): tuple(map(float, xy)) for i, xy in enumerate(generator.integers(0, 6, (30, 2)))}
    beaten = {a for a, (x, y) in points.items() for u, v in points.values() if (u > x and v >= y) or (u >= x and v > y)}
    assert set(tradeoff.pareto(points)) == set(points) - beaten


# Labels.


@pytest.mark.parametrize("seed", range(5))
def test_spread_against_a_quadratic_programme(seed):
    from scipy.optimize import minimize

    generator = np.random.default_rng(seed)
    wanted = generator.random(6)
    placed = labels._spread_out(wanted.tolist(), 0.12, 0.0, 1.0)
    order = np.argsort(wanted, kind="stable")
    limits = [{"type": "ineq", "fun": lambda p, i=i: p[order[i + 1]] - p[order[i]] - 0.12} for i in range(5)]
    start = np.empty(6)
    start[order] = np.linspace(0, 1, 6)
    best = minimize(lambda p: ((p - wanted) ** 2).sum(), start, bounds=[(0, 1)] * 6, constraints=limits)
    assert best.success
    np.testing.assert_allclose(placed, best.x, atol=2e-3)


def test_spread_when_there_is_no_room():
    placed = labels._spread_out([0.5] * 5, 1.0, 0.0, 1.0)
    np.testing.assert_allclose(sorted(placed), [0, 0.25, 0.5, 0.75, 1])


def texts(ax, names):
    # An annotation's own extent would take in its leader.
    return [Text.get_window_extent(text) for text in ax.texts if text.get_text() in names]


def test_names_of_points_do_not_overlap_and_stay_inside():
    with paper_style():
        figure, ax = blank(size=(3.25, 2.7))
        tradeoff.utility_against_forgetting(performance(), ax)
        figure.draw_without_rendering()
        boxes = texts(ax, NAMES)
        frame = figure.bbox
    assert len(boxes) == len(NAMES)
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i])
        assert frame.x0 <= box.x0 < box.x1 <= frame.x1
        assert frame.y0 <= box.y0 < box.y1 <= frame.y1


def test_names_of_lines_do_not_overlap_and_stay_on_the_page():
    rows = [replace(row, value=(row.value or 0) * 1e-9) for row in g_effect_rows(NAMES[1:-1])]
    with paper_style():
        figure = new_figure(5.5, 3.6)
        axes = figure.subplots(2, sharex=True)
        layers.g_effects_by_layer(rows, axes)
        figure.draw_without_rendering()
        for ax in axes:
            boxes = sorted(texts(ax, NAMES), key=lambda box: box.y0)
            assert len(boxes) == len(NAMES) - 2
            middles = [(box.y0 + box.y1) / 2 for box in boxes]
            assert min(np.diff(middles)) > 0.9 * labels.small_text() / 72 * figure.dpi
            assert max(box.x1 for box in boxes) <= figure.bbox.x1 + 1


# Looks.


def test_one_look_a_name_whatever_the_company():
    assert style.look("RMU") == style.look("rmu")
    assert style.look("SAE clamp") == style.look("sae_clamp")
    assert style.look("my method") == style.look("my method") != style.look("their method")
    assert style.look("RMU (layer 5)").colour == style.look("RMU").colour
    assert style.ordered(["CRU", "RMU (layer 5)", "GA", "RMU"]) == ["GA", "RMU", "RMU (layer 5)", "CRU"]
    names = [*NAMES, "zeta", "alpha"]
    assert style.ordered(names) == style.ordered(reversed(names))
    assert style.ordered(names)[0] == "original"
    assert style.ordered(names)[-3:] == ["alpha", "zeta", "retrained"]
    assert len({(look.colour, look.marker, str(look.dash)) for look in style.LOOKS.values()}) == len(style.LOOKS)
    assert len({look.colour for name, look in style.LOOKS.items()}) == len(style.LOOKS)


def test_the_line_of_a_method_keeps_its_colour():
    for names in (("GA", "RMU"), ("RMU", "NPO", "GA")):
        with paper_style():
            _, axes = blank(2)
            layers.g_effects_by_layer(g_effect_rows(names), axes)
        colours = {line.get_color() for line in axes[0].lines}
        assert style.look("RMU").colour in colours


def test_venue_must_be_known():
    assert VENUES["icml"].column == 3.25
    with pytest.raises(ValueError, match="neurips"), paper_style("nips"):
        pass


def test_style_ignores_the_users_settings_and_gives_them_back():
    import matplotlib

    with matplotlib.rc_context({"font.size": 31.0, "lines.linewidth": 9.0}):
        with paper_style():
            assert matplotlib.rcParams["font.size"] == 8
            assert matplotlib.rcParams["lines.linewidth"] == 1.1
        assert matplotlib.rcParams["font.size"] == 31


# Points that cannot be drawn.


def said(figure):
    found = [text.get_text() for text in figure.findobj(Text)]
    return sum(int(match[1]) for text in found if (match := re.fullmatch(r"(\d+) points? not finite", text)))


def broken(rows, count):
    """Rows with every (len/count)-th value not finite."""
    places = {round(i * (len(rows) - 1) / count) for i in range(count)}
    return [replace(row, value=math.inf) if i in places else row for i, row in enumerate(rows)]


def test_points_not_finite_are_counted_on_the_figure():
    with paper_style():
        figure, axes = blank(2)
        rows = broken([r for r in g_effect_rows() if r.quantity == "effect"], 3)
        drawn = layers.g_effects_by_layer(rows, axes)
        assert said(figure) == 3 == drawn["forget"]["not_finite"] + drawn["retain"]["not_finite"]

        figure, axes = blank(2)
        drawn = layers.u_shape(broken([r for r in fragility_rows() if r.layer is not None], 4), axes)
        assert said(figure) == 4

        figure = new_figure(5.5, 3)
        separability_panels(broken(separability_rows(("RMU", "NPO")), 5), figure)
        assert said(figure) == 5

        figure = new_figure(5.5, 3)
        logits.collapse(broken([r for r in collapse_rows(("original", "GA"), 30) if r.item is not None], 6), figure)
        assert said(figure) == 6

        figure = new_figure(5.5, 3)
        states.states_pca(broken([r for r in pca_rows(("original",)) if r.item is not None], 7), figure)
        assert said(figure) == 7

        figure = new_figure(5.5, 3)
        assert dose_curves(broken(dose_rows(), 8), figure)["not_finite"] == 8 == said(figure)

        figure, ax = blank()
        rows = [replace(r, value=math.nan) if r.intervention == "GA" else r for r in performance()]
        assert tradeoff.utility_against_forgetting(rows, ax)["not_finite"] == 1 == said(figure)


def test_all_points_not_finite_still_draws():
    names = ("original", "NPO", "CRU")
    rows = [row for row in everything() if row.intervention in names and row.item in (None, 0, 1)]
    rows = [replace(row, value=math.nan, low=None, high=None) for row in rows]
    with paper_style():
        for draw in (separability_panels, logits.collapse, states.states_pca):
            figure = new_figure(5.5, 4)
            draw(rows, figure)
            figure.draw_without_rendering()
            assert said(figure) > 0
        for draw in (layers.g_effects_by_layer, layers.u_shape):
            figure, axes = blank(2)
            draw(rows, axes)
            assert said(figure) > 0
        figure, ax = blank()
        tradeoff.utility_against_forgetting(rows, ax)
        assert said(figure) == len(names)


# Few rows.


def test_every_figure_runs_on_the_fewest_rows(tmp_path):
    rows = [
        *(Row("GA", "performance", "probability", 0.5, on) for on in FORGET_RETAIN),
        *(Row("GA", "g_effect", "effect", 0.0, on, layer=0) for on in FORGET_RETAIN),
        *(Row("GA", "fragility", "probability", 0.5, on, layer=0) for on in FORGET_RETAIN),
        Row("GA", "separability", "auc", 0.5, layer=0),
        Row("GA", "logit_collapse", "entropy", 0.5, "forget", item=0),
        Row("GA", "logit_collapse", "max_logit", 0.5, "forget", item=0),
        Row("GA", "pca", "pc1", 0.5, "forget", layer=0, item=0),
        Row("GA", "pca", "pc2", 0.5, "forget", layer=0, item=0),
        Row("Steer", "dose", "probability", 0.5, "forget", dose=0.0),
    ]
    drawn = draw_all(rows, tmp_path, only=REPORTED)
    assert drawn.missing == {}
    assert main_table(rows).data[0]["value"] == 0.5


def test_missing_figures_are_listed_with_the_reason(tmp_path):
    drawn = draw_all(performance(("original", "GA")), tmp_path)
    assert list(drawn.paths) == ["tradeoff", "dashboard"]
    assert "no rows of 'g_effect'" in drawn.missing["g_effect"]
    assert len(drawn.missing) == len(FIGURES) - 2


def test_two_panels_are_needed():
    with paper_style(), pytest.raises(ValueError, match="two panels"):
        layers.g_effects_by_layer(g_effect_rows(), [blank()[1]])


# Files.


@pytest.fixture(scope="module")
def drawn_twice(tmp_path_factory):
    few = ("original", "GA", "CRU", "SAE clamp", "SAE clamp" + CONTROL)
    rows = [r for r in everything() if r.intervention in few and (r.diagnostic != "pca" or r.layer in (0, 7))]
    rows = [r for r in rows if r.item is None or r.diagnostic == "dose" or r.item < 20]
    folders = [tmp_path_factory.mktemp(name) for name in ("first", "second")]
    return [(folder, draw_all(rows, folder, venue="icml", only=REPORTED, metadata={"run": "r1"})) for folder in folders]


def test_files_are_the_same_byte_for_byte(drawn_twice):
    (first, drawn), (second, _) = drawn_twice
    assert drawn.missing == {}
    names = sorted(path.name for path in first.iterdir())
    assert len(names) == 4 * len(drawn.paths)
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_pdf_has_no_type_3_font_and_keeps_its_width(drawn_twice):
    _, drawn = drawn_twice[0]
    for path in drawn.paths.values():
        data = path.read_bytes()
        assert b"/Type3" not in data.replace(b" ", b"")
        assert b"/Type42" in data or b"/TrueType" in data or b"/CIDFontType2" in data
        width = float(re.search(rb"/MediaBox \[ ?0 0 ([\d.]+)", data)[1])
        assert width == pytest.approx(72 * VENUES["icml"].page) or width == pytest.approx(72 * VENUES["icml"].column)
        assert b"CreationDate" not in data


def test_json_holds_the_plotted_numbers(drawn_twice):
    _, drawn = drawn_twice[0]
    record = json.loads(drawn.paths["g_effect"].with_suffix(".json").read_text())
    expected = [r.value for r in g_effect_rows() if (r.intervention, r.on, r.quantity) == ("GA", "forget", "effect")]
    assert record["data"]["forget"]["values"]["GA"] == expected
    assert record["metadata"] == {"run": "r1"}
    assert record["caption"] == drawn.captions["g_effect"]


def test_svg_is_one_element_without_a_date(drawn_twice):
    from xml.etree import ElementTree

    _, drawn = drawn_twice[0]
    text = drawn.paths["u_shape"].with_suffix(".svg").read_text()
    assert text.startswith("<svg")
    assert ElementTree.fromstring(text).tag.endswith("svg")
    assert "<dc:date>" not in text


def test_save_keeps_non_latin_names_and_nan(tmp_path):
    with paper_style():
        figure, ax = blank(size=(3, 2))
        layers.lines({"a_b $5 & 5%": [1.0, math.nan]}, ylabel="cost in $", ax=ax)
        path = save_figure(figure, tmp_path / "new", "x", {"é": [math.nan, 1.0]}, metadata={})
        assert svg_text(figure) == svg_text(figure)
    assert json.loads(path.with_suffix(".json").read_text())["data"] == {"é": [None, 1.0]}


# Tables.


def cell(latex, name, column):
    line = next(line for line in latex.splitlines() if line.startswith(name + " &"))
    return line.removesuffix(r" \\").split(" & ")[column]


def scores(values, quantity="probability", on="retain", **more):
    return [Row(name, "performance", quantity, value, on, **more) for name, value in values.items()]


def test_best_is_bold_and_second_underlined_among_methods_only():
    latex = main_table(scores({"original": 0.99, "A": 0.5, "B": 0.7, "C": 0.6, "retrained": 0.98})).latex
    assert cell(latex, "B", 1) == r"\textbf{0.700}"
    assert cell(latex, "C", 1) == r"\underline{0.600}"
    assert [cell(latex, name, 1) for name in ("original", "A", "retrained")] == ["0.990", "0.500", "0.980"]
    assert latex.count(r"\midrule") == 3


def test_ties_as_printed_share_the_mark():
    latex = main_table(scores({"A": 0.70001, "B": 0.70002, "C": 0.6, "D": 0.6, "E": 0.1})).latex
    assert [cell(latex, name, 1) for name in "ABCDE"] == [
        r"\textbf{0.700}",
        r"\textbf{0.700}",
        r"\underline{0.600}",
        r"\underline{0.600}",
        "0.100",
    ]


def test_less_is_better_on_forget_data_and_a_missing_cell_is_a_dash():
    rows = [*scores({"A": 0.2, "B": 0.1, "C": None}, on="forget"), *scores({"A": 0.5, "C": 0.4})]
    latex = main_table(rows).latex
    assert cell(latex, "B", 1) == r"\textbf{0.100}"
    assert cell(latex, "B", 2) == "--"
    assert cell(latex, "C", 1) == "n/f"
    assert r"Prob. $\downarrow$ & Prob. $\uparrow$" in latex


def test_equal_methods_are_not_marked():
    assert tables.marks(["0.5", "0.5", None], 1) == ["", "", ""]
    assert tables.marks(["-3.0", "-10.0", "-5.0"], 1) == ["best", "", "second"]
    assert tables.marks(["1", "2"], 0) == ["", ""]


@pytest.mark.parametrize(("half", "shown"), [(0.08, "0.12"), (0.004, "0.123"), (0.0001, "0.1235"), (None, "0.123")])
def test_digits_follow_the_interval(half, shown):
    bounds = {} if half is None else {"low": 0.12346 - half, "high": 0.12346 + half}
    assert cell(main_table(scores({"A": 0.12346}, **bounds)).latex, "A", 1) == shown


def test_latex_escapes():
    latex = main_table(scores({r"a_b & 50% #1 {x} \y ~ ^ $": 0.5})).latex
    assert r"a\_b \& 50\% \#1 \{x\} \textbackslash{}y \textasciitilde{} \textasciicircum{} \$ &" in latex


def test_csv_reads_back(tmp_path):
    rows = performance()
    table = main_table(rows)
    paths = table.write(tmp_path / "tables")
    with paths["csv"].open(newline="") as handle:
        records = {record["intervention"]: record for record in csv.DictReader(handle)}
    assert paths["csv"].read_text() == table.csv == io.StringIO(table.csv).read()
    for row in rows:
        head = f"{row.on}_{row.quantity}"
        assert float(records[row.intervention][head]) == row.value
        assert int(records[row.intervention][head + "_n"]) == row.n
    assert paths["tex"].read_text() == table.latex


def test_families_are_told_apart_and_ranked_at_matched_retention(tmp_path):
    from probe.figures.families import FAMILY_LOOKS, family_figure

    rows = []
    for name, forget, retain in (
        ("original", 0.99, 1.0),
        ("retrained", 0.4, 1.0),
        ("npo", 0.2, 0.9),
        ("rmu", 0.1, 0.98),
    ):
        for on in ("raw", "calibrated"):
            for quantity, value in (("forget", forget), ("retain", retain)):
                rows.append(Row(name, "family", quantity, value, on, low=value - 0.05, high=value + 0.01, n=3))
    with paper_style():
        figure = new_figure(5.5, 3.0)
        drawn = family_figure(rows, figure, {"npo": "divergence", "rmu": "representation"})
    assert drawn["calibrated"]["rmu"]["forget"] == [0.1, 0.1 - 0.05, 0.1 + 0.01]
    left, right = figure.axes
    assert [label.get_text() for label in right.get_yticklabels()] == ["rmu", "npo"]
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["divergence", "representation"]
    assert (
        len({look for look, _ in FAMILY_LOOKS.values()})
        == len({mark for _, mark in FAMILY_LOOKS.values()})
        == len(FAMILY_LOOKS)
    )
