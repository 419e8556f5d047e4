"""`probe doctor`: check on a model what is promised of every model."""

from dataclasses import dataclass

from probe.commands.command import Command, OneModel
from probe.options import Machine
from probe.ranges import Count


@dataclass(frozen=True, kw_only=True)
class Doctor(OneModel, Command, Machine):
    """Check that this package works on a model: sites, edits, generation, padding, restoring, refusals.

    Prints one line a check, then special tokens, whether there is a chat template, and the median norm of what leaves
    each block. The exit code is 1 if a check failed.

    Example: probe doctor my-model --dtype bfloat16
    """

    largest: Count = 5_000_000
    """Gradients are checked on a copy in float64 of models of no more parameters than this."""

    def run(self) -> str:
        """Every check; ends the program with 1 if one failed."""
        import torch

        from probe.checkpoints import check_device, load_model, load_tokenizer
        from probe.modes import threads
        from probe.study.loading import has_tokenizer
        from probe.testing import check_model

        check_device(self.device)
        model = load_model(self.model, dtype=getattr(torch, self.dtype), device=self.device)
        # A folder of weights alone is a model too; a tokenizer that is there must load.
        tokenizer = load_tokenizer(self.model) if has_tokenizer(self.model) else None
        with threads(self.threads or torch.get_num_threads()):
            report = check_model(model, tokenizer, largest=self.largest)
        if report.failed:
            print(report.table())
            raise SystemExit(1)
        return report.table()
