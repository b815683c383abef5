"""Batches of cells in, logits and masks out: TabNet, the classifier around it, pretraining, and their files."""

from sims_kit.model.checkpoints import where_to_resume
from sims_kit.model.classifier import SIMSClassifier
from sims_kit.model.file import load_model, save_model
from sims_kit.model.pretraining import MaskedPretraining
from sims_kit.model.pretraining_file import load_pretrained, save_pretrained
from sims_kit.model.recipes import RECIPES, Recipe
from sims_kit.model.sparse import sparsemax
from sims_kit.model.network import TabNet

__all__ = [
    "RECIPES",
    "MaskedPretraining",
    "Recipe",
    "SIMSClassifier",
    "TabNet",
    "load_model",
    "load_pretrained",
    "save_model",
    "save_pretrained",
    "sparsemax",
    "where_to_resume",
]
