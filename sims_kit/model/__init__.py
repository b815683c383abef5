"""Batches of cells in, logits and masks out: TabNet, the classifier around it, and its file."""

from sims_kit.model.checkpoints import where_to_resume
from sims_kit.model.classifier import SIMSClassifier
from sims_kit.model.file import load_model, save_model
from sims_kit.model.recipes import RECIPES, Recipe
from sims_kit.model.sparsemax import sparsemax
from sims_kit.model.tabnet import TabNet

__all__ = ["RECIPES", "Recipe", "SIMSClassifier", "TabNet", "load_model", "save_model", "sparsemax", "where_to_resume"]
