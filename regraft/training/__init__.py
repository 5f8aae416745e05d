"""From a recipe to a run folder. What needs torch is one import further: `regraft.fit`, `regraft.load`, ..."""

from regraft.training.recipe import Recipe, load_recipe, override
from regraft.training.study import Study, load_study, train_study

__all__ = ["Recipe", "Study", "load_recipe", "load_study", "override", "train_study"]
