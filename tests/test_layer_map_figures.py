"""Pictures of layer maps, marked texts and coloured tokens, and the verdicts, all from made numbers."""

import json
import math
import re

import pytest
import torch

from analyses.layer_maps.claims import in_thirds, judged, less_others, thirds
from analyses.layer_maps.pictures import draw
from probe.diagnostics.layer_maps import every_span
from probe.figures.spans import growing_spans, part_lines, span_map
from probe.figures.style import FORGET, new_figure, paper_style
from probe.figures.texts import _changed_words, changed_texts
from probe.figures.tokens import token_heat_map, token_texts
from probe.rows import span_row

DEPTH = 6


def value(first, last, on):
    """Forgetting grows with the span; utility dips in the middle."""
    share = (last - first + 1) / DEPTH
    return 0.9 - 0.8 * share if on == "forget" else 0.9 - 0.1 * share * math.sin(math.pi * (first + last) / 2 / DEPTH)


def rows(name="GradDiff", into=("original",)):
    found = []
    for way in into:
        for on in ("forget", "retain"):
            for i, j in every_span(DEPTH):
                found.append(span_row(name, "probability", value(i, j, on), on, first=i, last=j, into=way))
            for part in ("attention", "mlp"):
                for i in range(DEPTH):
                    half = value(i, i, on) / 2
                    found.append(span_row(name, "probability", half, on, first=i, last=i, part=part, into=way))
    for model, level in (("original", 0.9), ("unlearned", 0.1)):
        found += [span_row(name, "probability", level, on, into=model) for on in ("forget", "retain")]
    return found


def test_the_map_over_spans_draws_every_span_where_it_belongs():
    with paper_style():
        figure = new_figure(5.5, 5.0)
        drawn = span_map(rows(into=("original", "unlearned")), figure, metric="probability", label="p",
                         into=("original", "unlearned"))  # fmt: skip
    images = [ax.images[0].get_array() for ax in figure.axes if ax.images]
    assert len(images) == 4
    for image, (way, on) in zip(images, [(w, o) for w in ("original", "unlearned") for o in ("forget", "retain")],
                                strict=True):  # fmt: skip
        for i in range(DEPTH):
            for j in range(DEPTH):
                if i <= j:
                    assert image[i, j] == pytest.approx(value(i, j, on))
                    assert drawn[way][on][i][j] == pytest.approx(value(i, j, on))
                else:
                    assert image.mask[i, j]
    # The scale holds the models themselves, which are marked on its bar.
    for ax in (ax for ax in figure.axes if ax.images):
        assert ax.images[0].get_clim() == pytest.approx((0.1, 0.9))
    ends = {"original": 0.9, "unlearned": 0.1}
    assert drawn["whole"] == {"forget": ends, "retain": ends}
    written = [t.get_text() for t in figure.axes[0].texts]
    assert len(written) == DEPTH * (DEPTH + 1) // 2
    assert f"{value(0, 0, 'forget'):.2f}"[1:] in written


def test_lost_numbers_are_counted_and_two_methods_are_refused():
    holes = [span_row("A", "probability", None if (i, j) == (0, 1) else 0.5, on, first=i, last=j)
             for i, j in every_span(3) for on in ("forget", "retain")]  # fmt: skip
    with paper_style():
        figure = new_figure(5.5, 3.0)
        span_map(holes, figure, metric="probability", label="p")
    assert sum(t.get_text() == "1 point not finite" for ax in figure.axes for t in ax.texts) == 2
    with pytest.raises(ValueError, match="one method, got rows of A, B"):
        span_map([*holes, span_row("B", "probability", 1.0, "forget", first=0, last=0)], figure,
                 metric="probability", label="p")  # fmt: skip
    with pytest.raises(ValueError, match="no layer-map rows"):
        span_map(holes, figure, metric="loss", label="p")


def test_lines_by_part_and_by_size_are_the_rows():
    both = [*rows("GradDiff"), *rows("NPO")]
    with paper_style():
        parts = part_lines(both, new_figure(5.5, 3.0), metric="probability", label="p")
        figure = new_figure(5.5, 3.0)
        growing = growing_spans(both, figure, metric="probability", label="p")
    assert list(parts) == list(growing) == ["GradDiff", "NPO"]
    for on in ("forget", "retain"):
        single = [value(i, i, on) for i in range(DEPTH)]
        assert parts["NPO"][on]["block"] == pytest.approx(single)
        assert parts["NPO"][on]["mlp"] == pytest.approx([v / 2 for v in single])
        up = growing["GradDiff"][on]["from the embeddings up"]
        assert up == pytest.approx([value(0, j, on) for j in range(DEPTH)])
        down = growing["GradDiff"][on]["from the head down"]
        assert down == pytest.approx([value(i, DEPTH - 1, on) for i in reversed(range(DEPTH))])
    lines = [list(line.get_xdata()) for line in figure.axes[0].lines if len(line.get_xdata()) == DEPTH]
    assert lines == [list(range(1, DEPTH + 1))] * 2


def test_changed_words_are_marked():
    assert _changed_words("the cat sat", "the dog sat sat") == [
        ("the", False),
        ("dog", True),
        ("sat", False),
        ("sat", True),
    ]
    texts = {"original": "a 5 % share", "layer 0": "a 7 % share", "layer 1": "", "deep": "x " * 50}
    table = changed_texts([("Why_?", texts)], against="original")
    assert "  layer 0   a [7] % share" in table.text
    assert "  original  a 5 % share" in table.text
    assert "  layer 1   (nothing)" in table.text
    assert table.text.count("x") == 40
    assert r"layer 0 & a \textcolor{changed}{\underline{7}} \% share \\" in table.latex
    assert r"\textit{Why\_?}" in table.latex
    assert r"\dots" in table.latex
    assert table.latex.count("{") == table.latex.count("}")
    with pytest.raises(ValueError, match="lack 'retrained'"):
        changed_texts([("Why?", texts)], against="retrained")


def test_tokens_are_coloured_by_their_numbers():
    found = token_heat_map(["<b>", " a", "\n", "x"], torch.tensor([1.0, -2.0, 0.0, float("nan")]), label="effect")
    page = found._repr_html_()
    assert found.limit == 2.0
    assert "&lt;b&gt;" in page
    assert "&nbsp;a" in page
    assert "↵" in page
    assert re.findall(r'title="([^"]*)"', page) == ["1", "-2", "0"]
    # Blue below, red above, no colour for what is no number; nothing is fetched.
    ground = dict(re.findall(r'title="([^"]*)" style="background:#(\w{6})', page))
    red, blue = (tuple(int(ground[k][i : i + 2], 16) for i in (0, 2, 4)) for k in ("1", "-2"))
    assert red[0] > red[2]
    assert blue[2] > blue[0]
    assert '<span style="color:#8C8C8C">x</span>' in page
    assert "http" not in page
    assert "<script" not in page
    two = token_heat_map([["a"], ["b", "c"]], [[1.0], [None, 3.0]], names=["r:", "s:"], limit=6.0)
    assert two.html.count("<div style") == 4
    assert two.limit == 6
    for tokens, values, message in (
        (["a"], [1.0, 2.0], "one number for each"),
        ([], [], "one number for each"),
    ):
        with pytest.raises(ValueError, match=message):
            token_heat_map(tokens, values)
    with pytest.raises(ValueError, match="limit must be positive"):
        token_heat_map(["a"], [1.0], limit=0.0)


def test_token_texts_join_to_the_text(bed):
    text = "The home town was Rivenna."
    ids = bed.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert "".join(token_texts(bed.tokenizer, torch.tensor(ids))).strip() == text


# --- verdicts -------------------------------------------------------------------------------------------------


def record(method, seed, *, dip=0.3, spelling=0.2, changed=tuple(range(DEPTH))):
    noise = 0.01 * seed
    found = {"method": method, "seed": seed, "status": "ok", "depth": DEPTH, "changed": ",".join(map(str, changed))}
    for way in ("original", "unlearned"):
        for i, j in every_span(DEPTH):
            middle = thirds(DEPTH)["middle"]
            cost = dip + noise if set(range(i, j + 1)) & set(middle) else 0.05
            shallow = i == j and i in thirds(DEPTH)["shallow"]
            found[f"{way}/block/{i}-{j}/retain/probability"] = 0.9 - cost
            found[f"{way}/block/{i}-{j}/forget/probability"] = 0.9 - 0.1 * (j - i + 1)
            found[f"{way}/block/{i}-{j}/forget/forget_quality"] = -5.0 if shallow else -20.0 + noise + i
        for part in ("attention", "mlp"):
            for i in range(DEPTH):
                found |= {f"{way}/{part}/{i}-{i}/{on}/probability": 0.8 for on in ("forget", "retain")}
    for model, level in (("original", 0.9), ("unlearned", 0.3), ("retrained", 0.2)):
        found |= {f"whole/{model}/{on}/probability": level for on in ("forget", "retain")}
        found[f"whole/{model}/forget/forget_quality"] = -30.0
        found |= {f"cru/{model}/{key}": -3.0 for key in ("forget/forget_quality", "retain/probability")}
        texts = {"misspelt": 0.1, "distinct_2": 0.9, "repeated": 0.0, "same_as_original": 1.0}
        found |= {f"text/{model}/{name}": v for name, v in texts.items()}
    for where, (misspelt, same, distinct) in {
        "shallow": (0.1 + spelling + noise, 0.8, 0.85),
        "middle": (0.1, 0.3 - noise, 0.85),
        "deep": (0.1, 0.8 + noise, 0.9),
    }.items():
        found |= {f"text/{where}/misspelt": misspelt, f"text/{where}/same_as_original": same}
        found |= {f"text/{where}/distinct_2": distinct, f"text/{where}/repeated": 0.0}
    found |= {f"screening/{on}/spearman": s for on, s in (("forget", 0.9), ("retain", None))}
    found |= {"cru/rank_sum/2/layers": "0,1", "cru/rank_sum/2/forget/forget_quality": -4.0}
    found |= {"cru/rank_sum/2/retain/probability": 0.8}
    found["shown/0/question"] = "Who?"
    for name in ("original", "unlearned", *(f"layer {i}" for i in range(DEPTH))):
        found[f"shown/0/{name}"] = f"It was {name}."
    return found


def text_of(records):
    return "\n".join(judged(records, "made"))


def test_thirds():
    assert [list(r) for r in thirds(8).values()] == [[0, 1, 2], [3, 4], [5, 6, 7]]
    assert [list(r) for r in thirds(5).values()] == [[0, 1], [2], [3, 4]]
    means = in_thirds(torch.arange(6.0).double().numpy())
    assert means == {"shallow": 0.5, "middle": 2.5, "deep": 4.5}
    assert less_others(means, "middle") == 0.0
    assert less_others(means, "deep") == 3.0


def test_claims_are_judged_by_their_intervals():
    text = text_of([record(m, s) for m in ("GA", "NPO") for s in range(3)])
    assert "L1 shallow layers change the spelling of words: holds here" in text
    assert "L2 middle layers change the whole sentence: holds here" in text
    # Three seeds that agree to the last digit have no interval to judge by.
    assert "L3 deep layers give repeated tokens: cannot be told" in text
    assert "GA: of the original's blocks in the unlearned model, forgetting is undone most by 0 (3 of 3 seeds)" in text
    assert "middle layers cost most: holds here" in text
    assert "so they are the ones to take: holds here" in text
    assert "forget rows: GA 0.9 [0.9, 0.9]; NPO" in text
    contrary = text_of([record("GA", s, dip=-0.2, spelling=-0.05) for s in range(3)])
    assert "middle layers cost most: does not hold here" in contrary
    assert "spelling of words: does not hold here" in contrary
    mixed = text_of([record(m, s, dip=d) for m, d in (("GA", 0.3), ("NPO", -0.2)) for s in range(3)])
    assert "middle layers cost most: holds for 1 of 2 methods, the contrary for 1" in mixed
    # One seed has no interval, so nothing is claimed.
    assert "middle layers cost most: cannot be told" in text_of([record("GA", 0)])


def test_methods_that_change_few_blocks_are_left_out_of_the_verdicts():
    records = [record("GA", s) for s in range(3)] + [record("RMU", s, dip=-0.3, changed=(1, 2)) for s in range(3)]
    text = text_of(records)
    assert "RMU changes blocks 1, 2 alone" in text
    assert "middle layers cost most: holds here" in text
    assert "RMU, 2 by rank-sum" in text
    only = text_of([r for r in records if r["method"] == "RMU"])
    assert "nothing can be judged" in only


def test_everything_is_drawn_from_the_records(tmp_path):
    draw([record(m, s) for m in ("GA", "NPO") for s in range(3)], tmp_path, "made")
    names = {p.stem for p in (tmp_path / "figures").glob("*.pdf")}
    assert names == {"u_shape", "forget_quality", "spans_GA", "spans_NPO", "parts", "growing"}
    shape = json.loads((tmp_path / "figures" / "u_shape.json").read_text())["data"]
    assert shape["retain"]["values"]["GA"] == pytest.approx([0.85, 0.85, 0.59, 0.59, 0.85, 0.85])
    assert shape["retain"]["retrained"] == 0.2
    assert shape["forget"]["all"]["NPO"] == pytest.approx(0.7)
    quality = json.loads((tmp_path / "figures" / "forget_quality.json").read_text())["data"]["values"]
    assert quality["GA"][0] == -5.0
    assert quality["original"] == [-30.0] * DEPTH
    assert "[layer 3.]" in (tmp_path / "tables" / "texts_GA.txt").read_text()
    assert FORGET.strip("#") in (tmp_path / "tables" / "texts_GA.tex").read_text()
