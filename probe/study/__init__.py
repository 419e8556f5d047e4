"""One value for what is studied: models by role, tokenizer, rows, dictionary; loaded and checked in one place."""

from probe.exports import export

export(__name__)
