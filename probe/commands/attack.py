"""`probe attack`: try to get forgotten rows back."""

from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Annotated, Any

import tyro

from probe.commands.command import Measurement
from probe.options import DictionaryOptions, Original, Retrained, Seeded, SetOptions, TrainingOptions, Unlearned


@dataclass(frozen=True, kw_only=True)
class Attack(SetOptions, Original, Unlearned, Retrained, DictionaryOptions, TrainingOptions, Seeded, Measurement):
    """Try to get forgotten rows back from an unlearned model, beside a model that never knew them.

    One half of the forget rows is shown to the attacker, the other is asked. Attacks: relearn, finetune, prompted,
    soft_prompt, gcg, latent, latent_each, steer_back, reactivate (with --sae), quantise, mix_back; the reference says
    what each takes. Without --original and rows the testbed is attacked, or --unlearned, made of it. Writes
    rows.jsonl, table.txt, figures and manifest.json.

    Example: probe attack relearn --unlearned by-npo --steps 20 --lr 5e-4 --batch-size 16
    """

    attack: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="ATTACK")]
    """Name of the attack."""

    def folder(self, name: str = "") -> Path:
        """Where results go."""
        return super().folder(f"attack/{self.attack}")

    def run(self) -> str:
        """Attack the unlearned model, or the original where none is named."""
        import probe.attacks
        from probe.commands.arguments.calling import call_arguments, called, function_named

        self.check()
        function = function_named(self.attack, called(probe.attacks, ("model", "study")), "attack")
        with self.writing("") as (run, study):
            name, model = next(iter(study.unlearned.items()), ("original", study.original))
            given: dict[str, Any] = {"model": model, "study": study, "sae": study.sae, "progress": True}
            seed = self.seed or None
            options: dict[str, Any] = {"steps": self.steps, "lr": self.lr, "batch_size": self.batch_size}
            # Some attacks are run for several seeds.
            options |= {"seeds": seed and (seed,)} if "seeds" in signature(function).parameters else {"seed": seed}
            found = function(**call_arguments(function, given, options, self.set))
            table = self.write(run, study.notes, found.rows(name), str(found), ("relearning", "quantisation"))
        return f"{table}\n{self.folder()}"
