"""What is studied, as one value: models by role, their tokenizer, rows on both sides, a dictionary with its place."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from probe.checkpoints import check_different, check_usable, weights_hash
from probe.context import check_rows
from probe.data import QA, Split
from probe.datasets import rows_hash
from probe.questions import repeated
from probe.sites import Site
from probe.study.templates import Chosen
from probe.weights import check_same_architecture


@dataclass(frozen=True, eq=False)
class Study:
    """Models, rows and a dictionary that belong together; made by ``probe.testbed`` or ``probe.open``.

    Diagnostics and attacks take its models and rows, and leave them bit for bit as they are.

    Args:
        original: the model before unlearning.
        tokenizer: of all models.
        split: forget and retain rows, as text and as tokens.
        retrained: a model trained without the forget rows: what perfect unlearning would give.
        unlearned: models after unlearning, by name.
        world: rows of common knowledge, which belong to neither side.
        sae: a dictionary of features of the original.
        sae_site: where it reads.
        sae_fvu: the fraction of variance it leaves unexplained there and one block before and after, by block.
        template: how rows became texts, and where that is from.
        notes: what every result must say of itself, such as that it is a trial run.
        files: sha256 of the files of rows, by side.

    >>> study.unlearned
    {}
    >>> study.split.forget_rows[0].question
    'In which town was ... born?'
    """

    original: nn.Module = field(repr=False)
    tokenizer: Any = field(repr=False)
    split: Split
    retrained: nn.Module | None = field(default=None, repr=False)
    unlearned: Mapping[str, nn.Module] = field(default_factory=dict, repr=False)
    world: tuple[QA, ...] = field(default=(), repr=False)
    sae: Any = field(default=None, repr=False)
    sae_site: Site | None = None
    sae_fvu: Mapping[int, float] = field(default_factory=dict, repr=False)
    template: Chosen | None = field(default=None, repr=False)
    notes: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __repr__(self) -> str:
        config = getattr(self.original, "config", None)
        depth = getattr(config, "num_hidden_layers", "?")
        models = ["original", *(["retrained"] if self.retrained is not None else []), *self.unlearned]
        sae = "" if self.sae is None else f", SAE at {self.sae_site}"
        sides = f"{len(self.split.forget)} forget and {len(self.split.retain)} retain rows"
        return f"Study({type(self.original).__name__} of {depth} blocks: {', '.join(models)}; {sides}{sae})"

    @property
    def models(self) -> dict[str, nn.Module]:
        """Every model by its role or name, the original first."""
        retrained = {} if self.retrained is None else {"retrained": self.retrained}
        return {"original": self.original, **retrained, **self.unlearned}

    @property
    def special_ids(self) -> tuple[int, ...]:
        """Tokens that no text consists of, such as bos and padding."""
        return tuple(self.tokenizer.all_special_ids)

    @property
    def dictionary_site(self) -> Site:
        """Where the dictionary reads.

        Raises:
            ValueError: no dictionary.
        """
        if self.sae_site is None:
            raise ValueError("the study has no dictionary of features; open it with sae=")
        return self.sae_site

    @property
    def supplies(self) -> dict[str, Any]:
        """What methods may need besides rows and tokenizer (``probe.methods.supplies``), where it is there."""
        return {"environment": self.world or None, "sae": self.sae, "site": self.sae_site}

    def unlearn(self, method: str, *, setting: str | None = None, **hyperparameters: Any) -> Any:
        """Unlearn a copy of the original with a method of the catalogue; the study itself stays as it is.

        Args:
            method: its name, as ``probe.methods`` lists it.
            setting: start from published hyper-parameters, by name; those given here take precedence.
            hyperparameters: of the method and of its training loop, such as beta, steps, lr, batch_size.

        Returns:
            The unlearned model. Methods that act while a text is read or written leave none: they return the wrapped
            model, the ``Template`` or the edits by site that they make.

        Raises:
            ValueError: no such method or hyper-parameter, one without a value, or rows that do not allow the method.

        >>> unlearned = study.unlearn("grad_diff", retain_weight=3, lr=3e-4, steps=2, batch_size=8)
        >>> unlearned is study.original
        False
        """
        from probe.methods.catalogue import method_named
        from probe.methods.running import run_method

        model = copy.deepcopy(self.original)
        makes = method_named(method).makes
        bar = {"progress": method} if makes == "model" else {}
        made = run_method(
            method, model, self.split, self.tokenizer, setting=setting, supplies=self.supplies, **bar, **hyperparameters
        )
        return model if makes in ("model", "mixture") else made

    def check(self, *, distinct: bool = True) -> None:
        """Refuse what could only give nonsense.

        Args:
            distinct: whether two models may not have the same weights.

        Raises:
            ValueError: broken weights, a tokenizer of another model, rows beyond the context, models of different
                architecture, or two that are identical.
        """
        check_rows(self.original, self.split.forget, self.split.retain)
        for model in self.models.values():
            check_usable(model, self.tokenizer)
        for name, model in list(self.models.items())[1:]:
            try:
                check_same_architecture(self.original, model)
            except ValueError as error:
                raise ValueError(f"the {name} model cannot be compared with the original: {error}") from None
            if distinct:
                check_different(self.original, model, ("original", name))
            if distinct and self.retrained is not None and name != "retrained":
                check_different(self.retrained, model, ("retrained", name))

    def described(self) -> dict[str, Any]:
        """What a manifest says of models, rows and dictionary."""
        sides = {"forget": self.split.forget_rows, "retain": self.split.retain_rows, "world": self.world}
        template = self.template or Chosen(self.split.template, "plain")
        found: dict[str, Any] = {
            "template": template.described(),
            "data": {
                on: {"rows": len(rows), "sha256": rows_hash(rows), "repeated": repeated(rows)}
                for on, rows in sides.items()
                if rows
            },
            "files": dict(self.files),
            "weights": {name: weights_hash(model) for name, model in self.models.items()},
            "notes": list(self.notes),
        }
        if self.sae is not None:
            found["sae"] = {
                "site": str(self.sae_site),
                "features": self.sae.n_features,
                "metadata": {key: str(value) for key, value in self.sae.metadata.items()},
                "fvu by layer": {str(layer): value for layer, value in self.sae_fvu.items()},
            }
        return found
