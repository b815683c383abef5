"""From AnnData or files to mini-batches: gene alignment, normalisation, splits, batches.

Every step can be used alone; `sims_kit.cells.datamodule.DataModule` strings them together for
training and `sims_kit.cells.batches.query_batches` for prediction, through the same code.
"""
