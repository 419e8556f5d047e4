"""One intervention after another, each with its diagnostics: rows, figures, tables and one page."""

from probe.exports import export

export(__name__)
