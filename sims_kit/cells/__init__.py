"""From AnnData or files to mini-batches: gene names, scales, splits, loaders, and all of them in `DataModule`."""
