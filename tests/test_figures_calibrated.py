"""Figures of calibrated comparisons, from made-up rows: what is plotted equals the rows."""

import math

import pytest

from probe.figures import new_figure, paper_style, save_figure
from probe.figures.calibrated import calibration_arrows, choice_against_open, strength_over_alpha
from probe.figures.reliability import metric_reliability
from probe.rows import Row

METHODS = ("ga", "grad_diff", "npo", "rmu")


def rows():
    found = [Row("original", "raw", "extraction_strength", 1.0, on) for on in ("forget", "retain")]
    found += [Row("retrained", "raw", "extraction_strength", v, on) for v, on in ((0.3, "forget"), (1.0, "retain"))]
    for k, name in enumerate(METHODS):
        for state, forget, retain in (("raw", 0.0, 0.2 * k), ("calibrated", 0.9 - 0.2 * k, 0.95)):
            for value, on in ((forget, "forget"), (retain, "retain")):
                found.append(Row(name, state, "extraction_strength", value, on, low=value - 0.1, high=value + 0.1))
        found.append(Row(name, "calibrated", "alpha", 0.1 * k + 0.05))
        for alpha in (1.0, 0.5, 0.0):
            found.append(Row(name, "path", "extraction_strength", 1 - alpha, "forget", dose=alpha))
            found.append(Row(name, "path", "extraction_strength", 1 - alpha / 2, "retain", dose=alpha))
    for name in ("original", *METHODS):
        for on in ("forget", "retain"):
            for quantity, value in (("choice_accuracy", 0.25), ("open_right", 0.5), ("at_chance", float(name == "ga"))):
                found.append(Row(name, "raw", quantity, value, on))
    return found


def drawn(draw, width=5.5, height=3.4):
    with paper_style():
        figure = new_figure(width, height)
        return figure, draw(figure)


def test_arrows_lead_from_raw_to_calibrated_and_nothing_finite_is_left_out():
    figure, data = drawn(lambda f: calibration_arrows(rows(), f.subplots()))
    assert set(data["arrows"]) == set(METHODS)
    rmu = data["arrows"]["rmu"]
    assert rmu["raw"] == [0.0, pytest.approx(0.6)]
    assert rmu["calibrated"] == [pytest.approx(0.3), 0.95]
    assert rmu["alpha"] == pytest.approx(0.35)
    assert rmu["intervals"] == [pytest.approx((0.2, 0.4)), pytest.approx((0.85, 1.05))]
    assert data["references"] == {"original": [1.0, 1.0], "retrained": [0.3, 1.0]}
    ax = figure.axes[0]
    points = [tuple(line.get_xydata()[0]) for line in ax.lines if len(line.get_xydata()) == 1]
    whiskers = [line.get_xydata().tolist() for line in ax.lines if len(line.get_xydata()) == 2]
    assert [[rmu["calibrated"][0], pytest.approx(0.85)], [rmu["calibrated"][0], pytest.approx(1.05)]] in whiskers
    for arrow in data["arrows"].values():
        assert tuple(arrow["raw"]) in points
        assert tuple(arrow["calibrated"]) in points
    assert any("(0.35)" in text.get_text() for text in ax.texts)


def test_a_method_without_a_calibrated_value_is_counted_not_drawn():
    broken = [r for r in rows() if (r.intervention, r.diagnostic) != ("npo", "calibrated")]
    _, data = drawn(lambda f: calibration_arrows(broken, f.subplots()))
    assert data["not_finite"] == 1
    assert "npo" not in data["arrows"]


def test_strength_over_alpha_is_sorted_by_alpha():
    figure, data = drawn(lambda f: strength_over_alpha(rows(), f, columns=2))
    assert data["ga"]["forget"] == [[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]]
    assert len([ax for ax in figure.axes if ax.get_visible()]) == len(METHODS)


def test_models_at_chance_are_hollow_and_the_guess_line_is_drawn():
    figure, data = drawn(lambda f: choice_against_open(rows(), f, state="raw", guess=0.25))
    assert {n for n, p in data["forget"].items() if p["hollow"]} == {"ga"}
    assert set(data["retain"]) == {"original", *METHODS}
    for ax in figure.axes:
        fills = [line.get_fillstyle() for line in ax.lines if line.get_marker() not in ("None", "", None)]
        assert fills.count("none") == 1
        assert any(list(line.get_xdata()) == [0.25, 0.25] for line in ax.lines)


def test_reliability_is_sorted_by_mean_and_names_what_has_no_r():
    found = [
        Row("all", "reliability", metric, r, attack, low=r - 0.1, high=min(r + 0.1, 1.0), n=9)
        for metric, values in {"rouge": (0.2, 0.4), "extraction_strength": (0.9, 0.7)}.items()
        for attack, r in zip(("relearning", "noise"), values, strict=True)
    ]
    found += [Row("all", "reliability", "entropy", math.nan, a) for a in ("relearning", "noise")]
    figure, data = drawn(lambda f: metric_reliability(found, f.subplots()))
    assert list(data) == ["extraction_strength", "rouge", "entropy"]
    assert data["rouge"]["noise"] == pytest.approx([0.4, 0.3, 0.5])
    assert "2 points not finite" in [figure.axes[0].get_title(loc="right")]


def test_files_are_the_same_byte_for_byte(tmp_path):
    written = []
    for folder in ("one", "two"):
        with paper_style():
            figure = new_figure(5.5, 3.4)
            data = calibration_arrows(rows(), figure.subplots())
            written.append(save_figure(figure, tmp_path / folder, "figure", data, metadata={"run": "r"}).read_bytes())
    assert written[0] == written[1]


@pytest.mark.parametrize(
    "draw",
    [
        lambda f: calibration_arrows([], f.subplots()),
        lambda f: strength_over_alpha([], f),
        lambda f: choice_against_open([], f, state="raw", guess=0.25),
        lambda f: metric_reliability([], f.subplots()),
    ],
)
def test_without_rows_there_is_no_figure(draw):
    with pytest.raises(ValueError, match="no rows"):
        drawn(draw)
