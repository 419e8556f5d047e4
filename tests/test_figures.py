"""Figures from made-up rows: what is plotted equals the rows, files are stable, bad points are counted."""

import csv
import io
import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest

from probe.figures import VENUES, draw_all, main_table, new_figure, paper_style, save, svg_text
from probe.figures import labels, layers, logits, states, style, tables, tradeoff
from probe.figures.doses import CONTROL, dose_response
from probe.rows import Row

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
                    Row(name, "performance", quantity, mean, on, low=max(mean - half, 0), high=min(mean + half, 1), n=n)
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
                Row(name, "separability", "auc", auc, layer=layer, low=auc - 0.04, high=min(auc + 0.04, 1), n=5)
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
