"""Whether the package's promises hold on a model of one's own."""

import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor, nn

from probe import checkpoints
from probe.hooks import captured, edited, foreign_hooks
from probe.interventions.projection import Project
from probe.interventions.replacement import Noise, Scale
from probe.interventions.steering import Steer
from probe.modes import evaluating
from probe.positions import At, From, Positions, generated
from probe.sites import Part, Side, Site, check_hookable, n_layers, place_of, unwrapped
from probe.testing import paths
from probe.testing.checks import Answer, Check, CheckReport, TokenRows, ask, hooks_of
from probe.weights import blended, one_layer

PROMPTS = ("The capital of", "Long before the first of them had come, she")


def check_model(model: nn.Module, tokenizer: Any = None, *, largest: int = 5_000_000) -> CheckReport:
    """Check on a model what is promised of every model: sites, edits, generation, padding, restoring, refusals.

    Args:
        model: any Hugging Face decoder; left as it was.
        tokenizer: makes the rows from two short texts; None draws token ids instead.
        largest: models of more parameters are not copied to float64 for the check of gradients.

    Returns:
        one check a promise, and what one has to know of a model before choosing settings: special tokens, the chat
        template, norms by block; see ``Report.raise_for_failure``.

    Raises:
        ValueError: the model has no decoder blocks, its weights are not loaded, or it is compiled.

    >>> report = probe.check_model(s.original, s.tokenizer)
    >>> report.failed
    ()
    """
    check_hookable(model)
    with evaluating(model), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # hooks of others are a check of their own
        rows, before, modes = rows_for(model, tokenizer), _state(model), [m.training for m in model.modules()]
        located = _sites_found(model)
        sites = _readable(rows, [found[len(found) // 2] for found in located.values() if not isinstance(found, str)])
        middle = Site(n_layers(model) // 2)
        steer = partial(partial, _steered, rows, middle)
        checks = [
            ask("weights and tokenizer", partial(_weights, model, tokenizer)),
            ask("hooks of others", partial(_foreign, model)),
            *(ask(f"site: {name}", partial(_site, rows, found)) for name, found in located.items()),
            ask("captured equals hidden_states", partial(paths.check_hidden_states, rows)),
            ask("attention and mlp sum to the block", partial(paths.check_parts, rows, middle)),
            ask("edits of strength zero", partial(_zero, rows, sites)),
            ask("edits reach every row", partial(_reach, rows, sites)),
            ask("gradients", partial(paths.check_gradients, rows, middle, largest)),
            ask("generation with a cache", partial(paths.check_generation, rows, dict, dict)),
            ask("generation with a cache, edited", partial(paths.check_generation, rows, steer(None), steer(None))),
            ask(
                "generated tokens only, edited",
                partial(paths.check_generation, rows, steer(generated), steer(From(rows.lengths))),
            ),
            ask("padding", partial(paths.check_padding, rows, dict)),
            ask("padding, edited", partial(paths.check_padding, rows, steer(From(1)))),
            ask("hooks equal nnsight", partial(paths.check_nnsight, rows, steer(None))),
            ask("an exception leaves no hook", partial(_exception, rows, sites, before)),
            ask("weights come back", partial(_blend, model, before)),
            ask("a compiled copy is refused", partial(paths.check_compiled, model, middle)),
            ask("a copy without weights is refused", partial(paths.check_meta, model, middle)),
            ask("edits that checkpointing replays are refused", partial(paths.check_checkpointing, rows, middle)),
        ]
        same = _state(model) == before and [m.training for m in model.modules()] == modes
        checks.append(Check("left as it was", "passed" if same else "failed", "weights, hooks and modes"))
        facts = (_special_tokens(model, tokenizer), _norms_by_block(rows))
    subject = f"{type(unwrapped(model)).__name__}, {n_layers(model)} layers, {_dtype(model)}"
    return CheckReport(subject, tuple(checks), facts)


def rows_for(model: nn.Module, tokenizer: Any) -> TokenRows:
    """Two rows of unlike length: short texts, or token ids drawn from the whole vocabulary."""
    inner: Any = unwrapped(model)
    config = inner.config.get_text_config()
    special = {i for name in ("bos", "eos", "pad") for i in _ids(getattr(config, f"{name}_token_id", None))}
    pad = next(iter(_ids(getattr(config, "pad_token_id", None))), 0)
    if tokenizer is not None:
        rows = [torch.tensor(tokenizer(text)["input_ids"]) for text in PROMPTS]
        return TokenRows(model, tuple(rows), pad if tokenizer.pad_token_id is None else tokenizer.pad_token_id)
    size = inner.get_input_embeddings().weight.shape[0]
    usual = torch.tensor([i for i in range(min(size, 50_000)) if i not in special])
    drawn = usual[torch.randint(len(usual), (11,), generator=torch.Generator().manual_seed(0))]
    return TokenRows(model, (drawn[:4], drawn[4:]), pad)


def _steered(rows: TokenRows, site: Site, positions: Positions | None) -> dict[Site, Any]:
    """A random direction, as long as the hidden states at the site usually are, added at the chosen positions."""
    with captured(rows.model, [site]) as states:
        rows.logits()
    hidden_BTD = states[site].float()
    drawn_D = torch.randn(hidden_BTD.shape[-1], generator=torch.Generator().manual_seed(1))
    length = hidden_BTD.norm(dim=-1).median().item() or 1.0
    steer = Steer(drawn_D / drawn_D.norm() * length, scale=1.0)
    return {site: steer if positions is None else At(steer, positions)}


def _sites_found(model: nn.Module) -> dict[str, list[Site] | str]:
    """Part and side -> where the model has it, layer by layer; or why it has it nowhere."""
    found: dict[str, list[Site] | str] = {}
    for part in get_args(Part):
        for side in get_args(Side):
            if side == "in" and part in ("embedding", "heads"):
                continue
            heads = (None, 0) if part == "heads" else (None,)
            for head in heads:
                reason, sites = "", []
                for layer in range(1 if part in ("embedding", "norm") else n_layers(model)):
                    try:
                        place_of(model, site := Site(layer, part, side, head))
                        sites.append(site)
                    except ValueError as error:
                        reason = str(error)
                found[f"{part} {side}" if head is None else f"{part}, one"] = sites or reason
    return found


def _special_tokens(model: nn.Module, tokenizer: Any) -> str:
    """Ids and texts of bos, eos and pad, and whether there is a chat template: the tokenizer's, or the config's ids."""
    config: Any = unwrapped(model).config
    told = []
    for name in ("bos", "eos", "pad"):
        ids = _ids(getattr(config.get_text_config() if tokenizer is None else tokenizer, f"{name}_token_id", None))
        shown = [f"{i}" if tokenizer is None else f"{i} {tokenizer.convert_ids_to_tokens(i)!r}" for i in ids]
        told.append(f"{name} {', '.join(shown) or 'none'}")
    template = "no tokenizer was given"
    if tokenizer is not None:
        template = "a chat template" if getattr(tokenizer, "chat_template", None) else "no chat template"
    return f"tokens: {'; '.join(told)}; {template}"


def _norms_by_block(rows: TokenRows) -> str:
    """Median norm of what leaves each block, over the rows' real tokens but the first, which may be far larger."""
    sites = [Site(layer) for layer in range(n_layers(rows.model))]
    try:
        with captured(rows.model, sites) as states:
            rows.logits()
    except (ValueError, RuntimeError) as error:
        return f"hidden-state norms by block: cannot be read: {error}"
    mask_BT = rows.batch("right")["attention_mask"].bool()
    mask_BT[:, 0] = False
    norms = [f"{states[site][mask_BT].float().norm(dim=-1).median().item():.3g}" for site in sites]
    return f"hidden-state norms after blocks 0 to {len(norms) - 1}: {' '.join(norms)}"


def _readable(rows: TokenRows, sites: Sequence[Site]) -> list[Site]:
    """Those whose hidden states have three axes: the others are refused, which ``_site`` says."""
    return [site for site in sites if _site(rows, [site])[0] != "refused"]


def _site(rows: TokenRows, found: list[Site] | str) -> Answer:
    if isinstance(found, str):
        return "absent", found
    try:
        with captured(rows.model, found) as states:
            rows.logits()
    except ValueError as error:
        return "refused", str(error)
    unseen = [site for site in found if site not in states]
    if unseen:
        return "failed", f"{place_of(rows.model, unseen[0]).name} is there but a forward does not run it"
    shape = rows.batch("right")["input_ids"].shape
    odd = [site for site in found if states[site].shape[:2] != shape]
    if odd:
        return "failed", f"{odd[0]} gives {tuple(states[odd[0]].shape)} for {tuple(shape)} tokens"
    depth = "" if found[0].part in ("embedding", "norm") else f"{len(found)} of {n_layers(rows.model)} layers, "
    return "passed", f"{depth}{place_of(rows.model, found[0]).name}, width {states[found[0]].shape[-1]}"


def _zero(rows: TokenRows, sites: Sequence[Site]) -> Answer:
    bare_BTV, widths = rows.logits(), _widths(rows, sites)
    for site in sites:
        ones = torch.ones(widths[site])
        nothing = (Steer(ones, scale=0.0), Project(ones, strength=0.0), Scale(1.0), Noise(0.0, seed=0))
        with edited(rows.model, {site: nothing}):
            if not torch.equal(rows.logits(), bare_BTV):
                return "failed", f"an edit of strength zero at {site} changes the logits"
    return "passed", f"change no bit of the logits at {len(sites)} sites"


def _reach(rows: TokenRows, sites: Sequence[Site]) -> Answer:
    bare = rows.real(rows.logits(), "right", rows.rows)
    for site in sites:
        # Another direction, not another length: a norm that follows would scale that back.
        with edited(rows.model, _steered(rows, site, None)):
            found = rows.real(rows.logits(), "right", rows.rows)
        still = [i for i, (ours, theirs) in enumerate(zip(found, bare, strict=True)) if torch.equal(ours, theirs)]
        if still:
            return "failed", f"an edit at {site} does not reach row {still[0]}"
    return "passed", f"at {len(sites)} sites"


def _widths(rows: TokenRows, sites: Sequence[Site]) -> dict[Site, int]:
    with captured(rows.model, sites) as states:
        rows.logits()
    return {site: states[site].shape[-1] for site in sites}


def _exception(rows: TokenRows, sites: Sequence[Site], before: tuple[str, list[int]]) -> Answer:
    def fail(hidden_BTD: Tensor) -> Tensor:
        raise RuntimeError("raised on purpose")

    for site in sites:
        try:
            with edited(rows.model, {site: fail}):
                rows.logits()
            return "failed", f"the edit at {site} did not run"
        except RuntimeError as error:
            if "raised on purpose" not in str(error):
                raise
        if hooks_of(rows.model) != before[1]:
            return "failed", f"after an exception at {site} hooks are not what they were"
    if _state(rows.model) != before:
        return "failed", "after an exception weights are not what they were"
    return "passed", f"raised inside edits at {len(sites)} sites; hooks and weights are what they were"


def _blend(model: nn.Module, before: tuple[str, list[int]]) -> Answer:
    depth = n_layers(model)
    pointers = [p.data_ptr() for p in model.parameters()]
    try:
        with blended(model, model, one_layer(0, depth)):
            if [p.data_ptr() for p in model.parameters()] == pointers:
                return "failed", "a blend replaced no tensor"
            raise RuntimeError("raised on purpose")
    except ValueError as error:
        return "refused", str(error)
    except RuntimeError as error:
        if "raised on purpose" not in str(error):
            raise
    if [p.data_ptr() for p in model.parameters()] != pointers or _state(model) != before:
        return "failed", "after an exception inside a blend the weights are not the very same tensors"
    return "passed", "the very same tensors, bit for bit, after an exception inside a blend"


def _weights(model: nn.Module, tokenizer: Any) -> Answer:
    if tokenizer is not None:
        checkpoints.check_usable(model, tokenizer)
        return "passed", "finite; every token id has an embedding"
    odd = [name for name, p in model.named_parameters() if not bool(torch.isfinite(p).all())]
    return ("failed", f"{odd[0]} holds NaN or infinity") if odd else ("passed", "finite; no tokenizer was given")


def _foreign(model: nn.Module) -> Answer:
    found = foreign_hooks(model)
    if found:
        return "failed", f"at {', '.join(found[:3])}: they act on whatever is measured; remove them"
    return "passed", "none"


def _state(model: nn.Module) -> tuple[str, list[int]]:
    return checkpoints.weights_hash(model), hooks_of(model)


def _ids(found: Any) -> list[int]:
    return [] if found is None else list(found) if isinstance(found, list | tuple) else [int(found)]


def _dtype(model: nn.Module) -> str:
    return str(next(model.parameters()).dtype).removeprefix("torch.")
