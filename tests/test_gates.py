"""Gates: what they compute, that they never look ahead, that a cache changes nothing, and what they are worth."""

from typing import get_args, get_type_hints

import pytest
import torch
from conftest import tiny_llama

from probe.commands.sae_suppress import SaeSuppress
from probe.data import Batch, Split
from probe.dictionaries.autoencoder import Autoencoder
from probe.dictionaries.coding import JumpRelu, Linear
from probe.features.gating import dilution_curve, gate_rates, open_share
from probe.hooks import captured, edited, our_hooks
from probe.interventions.calibration import Firing, by_quantile, conformal, firing
from probe.interventions.gates import Cusum, Gated, Open, Rate, Window, open_tokens
from probe.interventions.plan import compile_plan
from probe.interventions.prompt_rate import PromptRate
from probe.interventions.suppression import Suppress
from probe.interventions.targets import Constant, Resample, Zero
from probe.positions import At, NotIds, everywhere
from probe.sae.gates import GATES as NAMED
from probe.sae.gates import gated
from probe.sites import Site

WIDTH, SITE, BOS = 16, Site(1), 1
TRIGGERS = (40, 41, 42, 43)
CONTENT = NotIds((0, BOS, 2))
GATES = {
    "open": Open(),
    "rate": Rate(0.3),
    "rate, from three on, held": Rate(0.2, least=3, hold=True),
    "window": Window(4, 0.3),
    "window, held": Window(3, 0.5, hold=True),
    "cusum": Cusum(0.3, 1.2),
    "cusum, not held": Cusum(0.3, 1.2, hold=False),
}


def bits(*shape: int, p: float = 0.4, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < p


def concept(**changes) -> tuple[torch.nn.Module, Autoencoder]:
    """A random Llama whose stream carries one direction exactly: triggers write it, feature 3 reads it."""
    model = tiny_llama(max_position_embeddings=512, **changes)
    rows_FD = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(1))).Q
    v_D = rows_FD[3]
    with torch.no_grad():
        embedding = model.model.embed_tokens.weight
        embedding -= (embedding @ v_D)[:, None] * v_D
        for layer in model.model.layers:
            for weight in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight):
                weight -= v_D[:, None] * (v_D @ weight)
        embedding[list(TRIGGERS)] += 1.5 * v_D
    threshold_F = torch.full((WIDTH,), 1e-3)
    threshold_F[3] = 0.5
    encoder = Linear(rows_FD.T.contiguous(), torch.zeros(WIDTH), JumpRelu(torch.zeros(WIDTH), threshold_F))
    return model, Autoencoder(encoder, rows_FD, torch.zeros(WIDTH))


def texts(n: int, length: int, p: float, seed: int) -> Batch:
    """Rows that begin with bos, each later token a trigger with probability p."""
    generator = torch.Generator().manual_seed(seed)
    tokens_BT = torch.randint(3, 40, (n, length), generator=generator)
    trigger_BT = torch.randint(TRIGGERS[0], TRIGGERS[-1] + 1, (n, length), generator=generator)
    tokens_BT = torch.where(torch.rand(n, length, generator=generator) < p, trigger_BT, tokens_BT)
    tokens_BT[:, 0] = BOS
    real_BT = torch.ones_like(tokens_BT, dtype=torch.bool)
    return Batch(tokens_BT, real_BT, real_BT, torch.arange(n), torch.ones(n, dtype=torch.long))


def simulated(n: int, length: int, p: float, seed: int) -> Firing:
    fired_BT = bits(n, length, p=p, seed=seed)
    return Firing(fired_BT, torch.ones_like(fired_BT), tuple((seed, i) for i in range(n)))


# What they compute


def by_hand(gate, fired_T, counted_T) -> list[bool]:
    """Token by token, as the definitions read."""
    seen, sum_, is_open, found = [], 0.0, False, []
    for fired, counted in zip(fired_T.tolist(), counted_T.tolist(), strict=True):
        if counted:
            seen.append(fired)
            if isinstance(gate, Cusum):
                sum_ = max(0.0, sum_ + fired - gate.drift)
        value = 1.0
        if isinstance(gate, Rate):
            value = sum(seen) / len(seen) if len(seen) >= gate.least else 0.0
        elif isinstance(gate, Window):
            value = sum(seen[-gate.length :]) / gate.length
        elif isinstance(gate, Cusum):
            value = round(sum_, 9)
        is_open = value > gate.threshold or (gate.hold and is_open)
        found.append(is_open)
    return found


@pytest.mark.parametrize("name", GATES)
def test_gates_are_what_their_definitions_say(name):
    gate, fired_BT, counted_BT = GATES[name], bits(40, 25), bits(40, 25, p=0.7, seed=1)
    expected = [by_hand(gate, f_T, c_T) for f_T, c_T in zip(fired_BT & counted_BT, counted_BT, strict=True)]
    found = open_tokens(gate, fired_BT, counted_BT)
    assert found.tolist() == expected
    assert name == "open" or (bool(found.any()) and not bool(found.all()))
    statistic = gate.statistic(fired_BT, counted_BT)
    assert bool((statistic >= 0).all())
    assert bool((statistic <= gate.ceiling).all())


@pytest.mark.parametrize("name", GATES)
def test_no_gate_looks_ahead_and_uncounted_tokens_change_nothing(name):
    gate, fired_BT, counted_BT = GATES[name], bits(30, 20), bits(30, 20, p=0.7, seed=1)
    whole = open_tokens(gate, fired_BT, counted_BT)
    for end in range(1, 21):
        # The very bits: a cache shows the gate a start of the row, a forward all of it.
        start = (fired_BT[:, :end], counted_BT[:, :end])
        assert torch.equal(gate.statistic(*start), gate.statistic(fired_BT, counted_BT)[:, :end])
        assert torch.equal(open_tokens(gate, *start), whole[:, :end])
    left = torch.zeros(30, 6, dtype=torch.bool)
    padded = open_tokens(gate, torch.cat([left | True, fired_BT], 1), torch.cat([left, counted_BT], 1))
    assert torch.equal(padded[:, 6:], whole)


# In a model


def padded(ids: list[list[int]], side: str) -> dict[str, torch.Tensor]:
    longest = max(map(len, ids))
    filled = [([0] * (longest - len(row)), row) for row in ids]
    rows = [pad + row if side == "left" else row + pad for pad, row in filled]
    mask_BT = torch.tensor([[t != 0 for t in row] for row in rows]).long()
    return {
        "input_ids": torch.tensor(rows),
        "attention_mask": mask_BT,
        "position_ids": (mask_BT.cumsum(1) - 1).clamp(min=0),
    }


IDS = [[BOS, 5, 9, 40, 17, 41, 41, 8], [BOS, 40, 8], [BOS, 22, 11, 6, 43]]


def plain(inputs: dict) -> dict:
    return {name: inputs[name] for name in ("input_ids", "attention_mask")}


def trigger_happy() -> tuple[torch.nn.Module, Autoencoder]:
    """The concept model, its head leaning towards triggers so that generation fires as well."""
    model, found = concept()
    with torch.no_grad():
        model.lm_head.weight[list(TRIGGERS)] *= 2.0
    return model, found


@pytest.mark.parametrize("name", GATES)
def test_a_cache_and_padding_change_nothing(name):
    model, found = trigger_happy()
    edits = {SITE: Gated(Suppress(found, (3,), Constant(-8.0)), GATES[name], CONTENT)}
    settings = {"max_new_tokens": 14, "min_new_tokens": 14, "do_sample": False}
    with torch.no_grad():
        unedited = model.generate(**plain(padded(IDS, "left")), **settings)
        with edited(model, edits):
            cached, uncached = (
                model.generate(**plain(padded(IDS, "left")), **settings, use_cache=use) for use in (True, False)
            )
            sampled = []
            for use in (True, False):
                torch.manual_seed(5)
                drawing = {**settings, "do_sample": True, "top_k": 0, "temperature": 3.0}
                sampled.append(model.generate(**plain(padded(IDS, "left")), **drawing, use_cache=use))
            left, right = (model(**padded(IDS, side), use_cache=False).logits for side in ("left", "right"))
            for row, ids in enumerate(IDS):
                alone = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
                torch.testing.assert_close(left[row, -len(ids) :], alone, rtol=0, atol=1e-5)
                torch.testing.assert_close(right[row, : len(ids)], alone, rtol=0, atol=1e-5)
    assert torch.equal(cached, uncached)
    assert torch.equal(*sampled)
    assert not torch.equal(cached, unedited)
    assert not our_hooks(model)


def test_p14_the_published_gate_decides_once_on_the_whole_prompt():
    model, found = trigger_happy()
    # 3 of the first row's 7 tokens fire, 1 of the second's 2, 1 of the third's 4; bos counts in none of them.
    shares = {False: [3 / 7, 1 / 2, 1 / 4], True: [3 / 8, 1 / 8, 1 / 8]}
    fires = firing(model, Batch(*right(IDS)), SITE, found, (3,), positions=CONTENT)
    for columns, expected in shares.items():
        gate = PromptRate(0.3, columns=columns)
        assert fires.scores(gate).tolist() == pytest.approx(expected)
        edit = {SITE: Gated(Suppress(found, (3,), Constant(-8.0)), gate, CONTENT)}
        inputs = padded(IDS, "right")
        given = {"attention_mask": inputs["attention_mask"], "position_ids": inputs["position_ids"]}
        changed_BTD = states(model, edit, inputs["input_ids"], **given) - states(
            model, {}, inputs["input_ids"], **given
        )
        # From the first token that fires on, though no share was reached by then.
        assert changed_BTD.abs().amax((1, 2)).gt(0).tolist() == [share > 0.3 for share in expected]
        assert bool(changed_BTD[0, 3].abs().max() > 0)
    running = {SITE: Gated(Suppress(found, (3,), Constant(-8.0)), Rate(0.34), CONTENT)}
    early = states(model, running, torch.tensor(IDS[:1])) - states(model, {}, torch.tensor(IDS[:1]))
    assert not bool(early[0, 3].any())  # 1 of 3 so far


def test_p14_what_is_generated_neither_opens_nor_closes_the_published_gate():
    model, found = trigger_happy()
    settings = {"max_new_tokens": 14, "min_new_tokens": 14, "do_sample": False}
    given = plain(padded(IDS, "left"))
    with torch.no_grad():
        bare = model.generate(**given, **settings)
        for threshold, rows in ((0.3, [0, 1]), (0.6, [])):
            with edited(model, {SITE: Gated(Suppress(found, (3,), Constant(-8.0)), PromptRate(threshold), CONTENT)}):
                cached, uncached = (model.generate(**given, **settings, use_cache=use) for use in (True, False))
            assert torch.equal(cached, uncached)
            assert [i for i in range(3) if not torch.equal(cached[i], bare[i])] == rows


def test_p14_gates_are_reached_by_name_and_calibrated_on_retain_rows():
    assert set(get_args(get_type_hints(SaeSuppress)["gate"])) == {"none", *NAMED}
    model, found = concept()
    split = Split(texts(12, 14, 0.5, seed=1), texts(30, 14, 0.1, seed=2))
    edit = Suppress(found, (3,), Constant(-8.0))
    given = {"positions": CONTENT, "batch_size": 8}
    retain = firing(model, split.retain, SITE, found, (3,), **given)
    for name, gate in NAMED.items():
        behind = gated(model, SITE, split, found, (3,), gate, **given)(edit)
        assert isinstance(behind, Gated)
        assert behind.gate.threshold == pytest.approx(float(torch.quantile(retain.scores(gate), 0.95))), name
        assert behind.edit is edit
    assert gated(model, SITE, split, found, (3,), None, **given)(edit) is edit
    always = Split(split.forget, texts(30, 14, 1.0, seed=3))
    with pytest.warns(UserWarning, match="their gate would never open"):
        assert gated(model, SITE, always, found, (3,), NAMED["dsg-tokens"], **given) is None


def right(ids: list[list[int]]) -> tuple[torch.Tensor, ...]:
    inputs = padded(ids, "right")
    real_BT = inputs["attention_mask"].bool()
    return inputs["input_ids"], real_BT, real_BT, torch.arange(len(ids)), torch.ones(len(ids), dtype=torch.long)


def test_beams_keep_their_own_histories():
    model, found = trigger_happy()
    edits = {SITE: Gated(Suppress(found, (3,), Constant(-8.0)), Rate(0.25), CONTENT)}
    settings = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False, "num_beams": 4}
    with torch.no_grad(), edited(model, edits):
        found_with, without = (
            model.generate(**plain(padded(IDS, "left")), **settings, use_cache=use) for use in (True, False)
        )
    assert torch.equal(found_with, without)


def states(model, edits, ids_BT, **given):
    with torch.no_grad(), edited(model, edits), captured(model, [SITE]) as there:
        model(input_ids=ids_BT, use_cache=False, **given)
    return there[SITE]


def test_an_edit_acts_from_where_the_gate_opens_and_nowhere_else():
    model, found = concept()
    edit = Suppress(found, (3,), Constant(-8.0))
    ids_BT = torch.tensor([[BOS, 40, 5, 41, 42, 7, 40, 43], [BOS, 5, 6, 7, 8, 9, 10, 11]])
    bare = states(model, {}, ids_BT)
    for gate, first in ((Rate(0.6, least=2), 3), (Cusum(0.3, 1.0), 3), (Cusum(0.3, 100.0), 99), (Open(), 1)):
        after = states(model, {SITE: Gated(edit, gate, CONTENT)}, ids_BT)
        changed = (after != bare).any(-1)
        fires = torch.isin(ids_BT, torch.tensor(TRIGGERS))
        assert changed.tolist() == (fires & (torch.arange(8) >= first)).tolist()
        assert not changed[1].any()
    always, at = (states(model, {SITE: one}, ids_BT) for one in (Gated(edit, Open(), CONTENT), At(edit, CONTENT)))
    assert torch.equal(always, at)
    # Closed, or with nothing to edit, it leaves every bit of the logits.
    for closed in (Gated(edit, Window(5, 1.0), CONTENT), Gated(Suppress(found, (), Zero()), Open(), CONTENT)):
        with torch.no_grad(), edited(model, {SITE: closed}):
            under = model(input_ids=ids_BT, use_cache=False).logits
        with torch.no_grad():
            assert torch.equal(under, model(input_ids=ids_BT, use_cache=False).logits)


def test_one_list_of_features_opens_and_another_is_edited():
    model, found = concept()
    ids_BT = torch.tensor([[BOS, 5, 9, 40, 17, 30, 8]])
    bare = states(model, {}, ids_BT)
    on_TK = found.encode(bare)[0] > 0
    other = int(((on_TK[4:].sum(0) > 0) & (on_TK[1:3].sum(0) > 0)).nonzero()[0])
    edit = Suppress(found, (other,), Zero())
    changed_T = (states(model, {SITE: Gated(edit, Cusum(0.5, 0.4), CONTENT, detect=(3,))}, ids_BT) != bare).any(-1)[0]
    assert changed_T.tolist() == (on_TK[:, other] & (torch.arange(7) >= 3)).tolist()
    assert changed_T.any()
    # The mode may ask where tokens stand, too.
    drawing = Gated(Suppress(found, (3,), Resample(torch.ones(5, 1), 0)), Open(), CONTENT)
    torch.testing.assert_close(found.encode(states(model, {SITE: drawing}, ids_BT))[0, 3, 3], torch.tensor(1.0))


def test_each_block_and_each_prompt_starts_anew():
    model, found = concept()
    edit = Gated(Suppress(found, (3,), Constant(-8.0)), Cusum(0.3, 0.5), CONTENT)
    quiet, loud = torch.tensor([[BOS, 5, 40, 6, 7]]), torch.tensor([[BOS, 40, 40, 41, 7]])
    alone = states(model, {SITE: edit}, quiet)
    with torch.no_grad(), edited(model, {SITE: edit, Site(2): edit}), captured(model, [SITE]) as there:
        for ids_BT in (loud, quiet, loud, quiet):
            model(input_ids=ids_BT, use_cache=True)
        assert torch.equal(there[SITE], alone)


def test_a_cache_that_the_gate_did_not_see_filled_is_refused():
    model, found = concept()
    edits = {SITE: Gated(Suppress(found, (3,), Zero()), Rate(0.3), CONTENT)}
    ids_BT = torch.tensor(IDS[:1])
    with torch.no_grad():
        cache = model(input_ids=ids_BT, use_cache=True).past_key_values
        with edited(model, edits):
            with pytest.raises(ValueError, match="holds 8 tokens, of which the gate has seen 0"):
                model(input_ids=torch.tensor([[5]]), past_key_values=cache)
            whole = model(input_ids=torch.cat([ids_BT, torch.tensor([[40, 41, 5]])], 1), use_cache=False).logits
            first = model(input_ids=ids_BT, use_cache=True)
            second = model(input_ids=torch.tensor([[40, 41]]), past_key_values=first.past_key_values)
            third = model(input_ids=torch.tensor([[5]]), past_key_values=second.past_key_values)
            pieces = torch.cat([first.logits, second.logits, third.logits], 1)
            torch.testing.assert_close(pieces, whole, rtol=0, atol=1e-5)
            third.past_key_values.crop(-3) if hasattr(third.past_key_values, "crop") else None
            with pytest.raises(ValueError, match="rows were changed"):
                model(input_ids=torch.tensor([[5]]), past_key_values=third.past_key_values)


def test_gates_that_cannot_work_are_refused():
    model, found = concept()
    edit = Suppress(found, (3,), Zero())
    with pytest.raises(ValueError, match="no threshold; give one, or calibrate it"):
        Gated(edit, Rate(), CONTENT)
    with pytest.raises(ValueError, match="feature 99 does not exist"):
        Gated(edit, Open(), CONTENT, detect=(99,))
    with pytest.raises(TypeError, match="inside"):
        Gated(edit, Open(), CONTENT)(torch.zeros(1, 2, WIDTH))
    with pytest.raises(ValueError, match=r"Gated at .* cannot be written down as a plan"):
        compile_plan(model, {SITE: Gated(edit, Open(), CONTENT)})
    for wrong, message in (
        (lambda: Rate(1.5), "share of tokens"),
        (lambda: Rate(0.5, least=0), "at least 1"),
        (lambda: Window(0, 0.5), "at least 1"),
        (lambda: Window(3, -0.1), "share of tokens"),
        (lambda: Cusum(0.0, 1.0), "between 0 and 1"),
        (lambda: Cusum(0.5, -1.0), "at least 0"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()


# What they are worth


@pytest.mark.parametrize(
    "gate", [Rate(least=10), Rate(least=10, hold=True), Window(20), Cusum(0.15), Window(30, hold=True)]
)
@pytest.mark.parametrize("alpha", [0.05, 0.2])
def test_a_conformal_threshold_holds_its_rate_of_false_alarms(gate, alpha):
    forget = simulated(50, 60, 0.6, 9)
    opens = []
    for seed in range(4):
        calibrated = conformal(gate, simulated(999, 60, 0.07, 2 * seed), forget=forget, alpha=alpha)
        found = gate_rates(calibrated, simulated(1000, 60, 0.07, 2 * seed + 1), forget)
        assert found.alpha == alpha
        assert found.false_positive.low <= alpha
        assert found.true_positive.share > 0.95
        opens.append(found.false_positive)
    # Statistics that take few values stay below alpha; a sum with a drift of its own comes close.
    if isinstance(gate, Cusum):
        assert sum(one.low <= alpha <= one.high for one in opens) >= 3


def test_a_quantile_is_that_of_the_retain_scores():
    retain, forget = simulated(400, 50, 0.1, 1), simulated(50, 50, 0.6, 2)
    found = by_quantile(Rate(), retain, forget=forget)
    expected = torch.quantile(retain.fired_BT.double().mean(1), 0.95).item()
    assert found.gate.threshold == pytest.approx(expected)
    assert found.alpha == pytest.approx(0.05)
    rates = gate_rates(found, simulated(400, 50, 0.1, 3), forget)
    assert rates.false_positive.share < 0.1
    assert rates.true_positive.share == 1.0


def test_a_planted_trigger_is_found_at_its_rate_and_behind_filler_but_by_a_rate():
    model, found = concept()
    sides = {
        "calibration": texts(199, 61, 0.15, 0),
        "held out": texts(200, 61, 0.15, 1),
        "forget": texts(40, 11, 0.85, 2),
        "filler": texts(60, 61, 0.15, 3),
    }
    seen = {
        name: firing(model, batch, SITE, found, (3,), positions=CONTENT, batch_size=64) for name, batch in sides.items()
    }
    triggers = torch.isin(sides["forget"].tokens_BT, torch.tensor(TRIGGERS))
    assert torch.equal(seen["forget"].fired_BT, triggers)
    assert not seen["forget"].counted_BT[:, 0].any()
    gates = []
    for gate in (Rate(least=10), Cusum(0.43), Window(12, hold=True)):
        calibrated = conformal(gate, seen["calibration"], forget=seen["forget"], alpha=0.05)
        rates = gate_rates(calibrated, seen["held out"], seen["forget"])
        assert rates.false_positive.low <= 0.05
        assert rates.false_positive.high >= 0.05 or not isinstance(gate, Cusum)
        assert rates.true_positive.share > 0.9
        gates.append(calibrated.gate)
    lengths = [10 * times for times in (0, 1, 5, 20, 50)]
    rate, cusum, window = dilution_curve(
        model, gates, sides["forget"], sides["filler"], SITE, found, (3,),
        positions=CONTENT, lengths=lengths, seed=0, batch_size=20,
    )  # fmt: skip
    assert [point.filler for point in cusum] == lengths
    assert rate[0].true_positive.share > 0.9
    assert rate[3].true_positive.share < 0.6
    assert rate[-1].true_positive.share < 0.1
    for point in (*cusum, *window):
        assert point.true_positive.share > 0.9
        # It is the forget text that opens them, not what lies before it.
        assert point.before.share < 0.5
    assert rate[-1].true_positive.high < cusum[-1].true_positive.low
    assert cusum[0].before.n_open == 0


def test_firing_counts_what_the_gate_counts():
    model, found = concept()
    batch = texts(6, 12, 0.4, 0)
    real_BT = torch.arange(12)[None] < torch.arange(7, 13)[:, None]
    shorter = Batch(batch.tokens_BT, batch.target_BT, real_BT, batch.group_B, batch.prompt_B)
    seen = firing(model, shorter, SITE, found, (3,), positions=CONTENT, batch_size=4)
    assert torch.equal(seen.counted_BT, shorter.attention_BT & (batch.tokens_BT != BOS))
    assert [len(row) for row in seen.rows] == list(range(6, 12))
    for gate in (Cusum(0.3, 0.8), Rate(0.4), Window(3, 0.5)):
        with torch.no_grad(), edited(model, {SITE: Gated(Suppress(found, (3,), Constant(-8.0)), gate, CONTENT)}):
            with captured(model, [SITE]) as there:
                model(**shorter.inputs, use_cache=False)
        with torch.no_grad(), captured(model, [SITE]) as plain_states:
            model(**shorter.inputs, use_cache=False)
        changed = (there[SITE] != plain_states[SITE]).any(-1)
        assert torch.equal(changed, open_tokens(gate, seen.fired_BT, seen.counted_BT) & seen.fired_BT)
        shares = open_share(gate, seen)
        at_end = [by_hand(gate, f_T, c_T)[-1] for f_T, c_T in zip(seen.fired_BT, seen.counted_BT, strict=True)]
        assert shares.n_open == sum(at_end)
        assert shares.low <= shares.share <= shares.high


# Bad input


def test_leaks_are_refused():
    model, found = concept()
    retain, forget = texts(40, 10, 0.1, 0), texts(10, 10, 0.6, 1)
    of = {
        name: firing(model, batch, SITE, found, (3,), positions=CONTENT)
        for name, batch in (("retain", retain), ("forget", forget), ("held out", texts(40, 10, 0.1, 2)))
    }
    for calibrate in (
        lambda rows: conformal(Cusum(0.3), rows, forget=of["forget"], alpha=0.2),
        lambda rows: by_quantile(Cusum(0.3), rows, forget=of["forget"]),
    ):
        with pytest.raises(ValueError, match="10 of the 10 rows for calibration are rows of the forget set"):
            calibrate(of["forget"])
    parts = ("fired_BT", "counted_BT")
    mixed = Firing(
        *(torch.cat([getattr(of["retain"], part), getattr(of["forget"], part)[:1]]) for part in parts),
        (*of["retain"].rows, of["forget"].rows[0]),
    )
    with pytest.raises(ValueError, match="1 of the 41 rows"):
        conformal(Cusum(0.3), mixed, forget=of["forget"], alpha=0.2)
    calibrated = conformal(Cusum(0.3), of["retain"], forget=of["forget"], alpha=0.2)
    with pytest.raises(ValueError, match="40 of the 40 retain rows were used to set the threshold"):
        gate_rates(calibrated, of["retain"], of["forget"])
    with pytest.raises(ValueError, match="both retain and forget"):
        gate_rates(calibrated, of["held out"], of["retain"])


def test_thresholds_that_promise_nothing_are_refused():
    forget = simulated(5, 30, 0.6, 9)
    with pytest.raises(ValueError, match=r"10 retain rows cannot hold a rate of false alarms of 0\.05; it takes 19"):
        conformal(Cusum(0.3), simulated(10, 30, 0.1, 0), forget=forget, alpha=0.05)
    # The largest value in a row of a short window is its ceiling in most rows: such a gate would never open.
    with pytest.raises(ValueError, match="would never open"):
        conformal(Window(2, hold=True), simulated(200, 60, 0.3, 0), forget=forget, alpha=0.05)
    with pytest.raises(ValueError, match="between 0 and 1"):
        conformal(Cusum(0.3), simulated(10, 30, 0.1, 0), forget=forget, alpha=0.0)
    with pytest.raises(ValueError, match="between 0 and 1"):
        by_quantile(Cusum(0.3), simulated(10, 30, 0.1, 0), forget=forget, level=95.0)


def test_texts_in_which_nothing_counts_or_fits_are_refused():
    model, found = concept()
    batch = texts(3, 6, 0.5, 0)
    with pytest.raises(ValueError, match="no token that counts"):
        firing(model, batch, SITE, found, (3,), positions=NotIds(tuple(range(48))))
    with pytest.raises(ValueError, match="nothing can fire"):
        firing(model, batch, SITE, found, (), positions=everywhere)
    sides = (batch, texts(3, 6, 0.0, 1), SITE, found, (3,))
    with pytest.raises(ValueError, match="512 positions"):
        dilution_curve(model, [Rate(0.5)], *sides, positions=CONTENT, lengths=[600], seed=0)
    with pytest.raises(ValueError, match="at least one gate"):
        dilution_curve(model, [Rate(0.5)], *sides, positions=CONTENT, lengths=[-1], seed=0)
