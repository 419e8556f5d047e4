"""probe: find out what LLM unlearning really does inside a model."""
