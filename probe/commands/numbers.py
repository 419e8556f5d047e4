"""From the rows of one run to the flat numbers of one cell."""

from collections.abc import Iterable

from probe.rows import Row


def flat(rows: Iterable[Row]) -> dict[str, float | None]:
    """Names are made of what the row is on, its quantity, its block or span of blocks, and its dose.

    What was done to the model is part of the name only where the rows differ in it.

    Raises:
        ValueError: two rows would have the same name.
    """
    rows = list(rows)
    several = len({row.intervention for row in rows}) > 1
    found: dict[str, float | None] = {}
    for row in rows:
        layer = None if row.layer is None else f"L{row.layer}"
        item = None
        if row.item is not None and row.item != row.layer:
            item = f"L{row.item}" if row.layer is not None else str(row.item)
        dose = None if row.dose is None else f"at {row.dose:g}"
        on = None if row.quantity.startswith(f"{row.on}_") else row.on or None
        parts = [row.intervention if several else None, on, row.quantity, layer, item, dose]
        name = "_".join(part for part in parts if part is not None).replace(", ", "_").replace(" ", "_")
        if name in found:
            raise ValueError(f"two rows would be called {name}")
        found[name] = row.value
    return found
