"""`probe methods`: the catalogue."""

from dataclasses import dataclass

import tyro

from probe.commands.command import Command


@dataclass(frozen=True, kw_only=True)
class Methods(Command):
    """List every unlearning method, a line each; of those named all that is known: source, settings, what it needs.

    Example: probe methods npo rmu
    """

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Only these, as whole entries."""

    def run(self) -> str:
        """The list, or the entries."""
        from probe.commands.unlearning.files import shell_facts
        from probe.methods.catalogue import details, overview

        return details(self.names, shell_facts) if self.names else overview()
