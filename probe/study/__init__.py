"""One value for what is studied: models by role, tokenizer, rows, dictionary; loaded and checked in one place."""
