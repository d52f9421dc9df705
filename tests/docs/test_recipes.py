"""The page of every key of a recipe is what the classes say."""

from tests.docs.documents import ROOT

from s2ap_train.recipe.reference import document


def test_the_page_of_all_keys_is_what_the_code_says() -> None:
    written = (ROOT / "docs/recipes.md").read_text()
    assert written == document(), "write it again: python -m s2ap_train.recipe.reference"
