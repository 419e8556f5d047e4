"""The studies: their data and their caches. What they measure is tested where it is made."""

from conftest import tiny_llama

from analyses.stories import cached, tofu_rows
from probe.checkpoints import load_tokenizer, weights_hash


def test_tofu_rows_are_the_last_ten_authors(shared):
    forget, retain = tofu_rows(shared / "data" / "tofu")
    assert (len(forget), len(retain)) == (40, 160)
    assert len({row.group for row in forget}) == 2
    assert len({row.group for row in retain}) == 8
    assert not {row.group for row in forget} & {row.group for row in retain}
    assert all(len(row.perturbed_answer) == 5 for row in forget)


def test_a_model_is_made_once_per_recipe(shared, tmp_path):
    tokenizer, made = load_tokenizer(shared / "models" / "stories260K"), []

    def make():
        made.append(1)
        return tiny_llama(len(made))

    first = cached(tmp_path, {"lr": 1e-3}, make, tokenizer)
    assert weights_hash(cached(tmp_path, {"lr": 1e-3}, make, tokenizer)) == weights_hash(first)
    assert len(made) == 1
    other = cached(tmp_path, {"lr": 2e-3}, make, tokenizer)
    assert len(made) == 2
    assert weights_hash(other) != weights_hash(first)
