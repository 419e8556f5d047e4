"""One model asked what TOFU and OpenUnlearning ask: numbers, a log that others can read, and a table."""
