"""Batches of cells in, logits and masks out: TabNet, the classifier around it, pretraining, and their files."""

from sims_kit.model.classifier import SIMSClassifier
from sims_kit.model.contributions import explain_batch
from sims_kit.model.file import load_model, save_model
from sims_kit.model.network import TabNet, sparsemax
from sims_kit.model.pretraining import MaskedPretraining

__all__ = ["MaskedPretraining", "SIMSClassifier", "TabNet", "explain_batch", "load_model", "save_model", "sparsemax"]
