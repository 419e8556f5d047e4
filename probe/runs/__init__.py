"""Folders of results: one writer, continued after a kill, complete when they appear; the manifest of what made them."""
