"""Recipe stage: a name, a YAML file and overrides in, a `Recipe` out."""

from lance_prep.recipe.model import DEFAULT_TOKENIZER, Recipe

__all__ = ["DEFAULT_TOKENIZER", "Recipe"]
