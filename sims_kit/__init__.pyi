"""The face as type checkers and editors see it; `__init__.py` loads each name when it is first used."""

from sims_kit import calibration as calibration
from sims_kit import datasets as datasets
from sims_kit import lessons as lessons
from sims_kit import metrics as metrics
from sims_kit import plotting as plotting
from sims_kit import studies as studies
from sims_kit import widgets as widgets
from sims_kit.annotation import annotate as annotate
from sims_kit.annotation import calibrate as calibrate
from sims_kit.annotation import embed as embed
from sims_kit.annotation import gene_coverage as gene_coverage
from sims_kit.annotation import prediction_sets as prediction_sets
from sims_kit.cells.datamodule import DataModule as DataModule
from sims_kit.cells.splits import stratified_split as stratified_split
from sims_kit.datasets import load as load
from sims_kit.datasets import read as read
from sims_kit.estimator import SIMS as SIMS
from sims_kit.explanation import explain as explain
from sims_kit.explanation import explain_cell as explain_cell
from sims_kit.model.classifier import SIMSClassifier as SIMSClassifier
from sims_kit.model.file import load_model as load_model
from sims_kit.model.file import save_model as save_model
from sims_kit.model.recipe import RECIPES as RECIPES
from sims_kit.model.recipe import Recipe as Recipe
from sims_kit.training import fit as fit
from sims_kit.training import generate_trainer as generate_trainer
from sims_kit.training import pretrain as pretrain

__version__: str
