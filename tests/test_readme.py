"""What the README leads to is there; its blocks of code run with the guides' (test_docs.py)."""

import re
from pathlib import Path

from probe.datasets import read_rows

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", README):
        assert (ROOT / target).exists(), target


def test_make_has_what_is_named():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", README, re.M))
    assert named <= targets
    assert {"report", "dev"} <= named


def test_the_rows_shown_are_rows(tmp_path):
    (tmp_path / "rows.jsonl").write_text(re.search(r"```json\n(.*?)```", README, re.S)[1], encoding="utf-8")
    rows = read_rows(tmp_path / "rows.jsonl")
    assert len({row.group for row in rows}) == 2


def test_notebooks_are_listed_in_the_order_to_read_them():
    listed = re.findall(r"^\d\. \[(\w+)\]", README, re.M)
    assert set(listed) == {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert listed[0] == "first_look"
