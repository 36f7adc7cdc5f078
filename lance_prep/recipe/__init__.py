"""Recipe stage: a name, a YAML file and overrides in, a `Recipe` out."""

from typing import TYPE_CHECKING

from lance_prep.process import lazy_exports

if TYPE_CHECKING:
    from lance_prep.recipe.load import (
        Source,
        builtin_collections,
        builtin_recipe,
        builtin_recipes,
        load_recipe,
        make_recipe,
        refuse_unread,
        resolve_beside,
        source_names,
    )
    from lance_prep.recipe.model import (
        DEFAULT_TOKENIZER,
        TOOLS_COLUMN,
        Maximum,
        Recipe,
        RecipeFields,
        SourceNames,
        TextUnit,
        parse_size,
    )
    from lance_prep.recipe.portion import Limit, validation_bound
    from lance_prep.recipe.yaml_text import parse_yaml, read_yaml

__getattr__, __dir__, __all__ = lazy_exports(__name__)
