"""Draw the UMAP of README, before and after the annotation, by running README's quickstart; `make figure` runs it."""

import re
from pathlib import Path

import matplotlib.pyplot as plt
import scanpy as sc
from PIL import Image

HERE = Path(__file__).resolve().parent
FIGURE = HERE / "before_after.png"

plt.style.use("sims_kit.lessons.figures")
variables = {}
exec(re.search(r"```python\n(.*?)```", (HERE.parents[1] / "README.md").read_text(), re.DOTALL)[1], variables)
query = variables["query"]  # the bundled cells come with a UMAP
colours = dict(zip(query.obs["sims_label"].cat.categories, query.uns["sims_label_colors"], strict=True))
query.obs["sims_label"] = query.obs["sims_label"].cat.remove_unused_categories()
_, (before, after) = plt.subplots(1, 2, figsize=(9, 3.4))
sc.pl.umap(query, ax=before, show=False, size=40, title=f"{query.n_obs} cells without labels", na_color="#bdbdbd")
sc.pl.umap(query, ax=after, show=False, size=40, color="sims_label", palette=colours, title="their labels")
plt.savefig(FIGURE, dpi=120, bbox_inches="tight")
with Image.open(FIGURE) as image:
    few = image.convert("RGB").quantize(256, method=Image.Quantize.FASTOCTREE)  # keeps hues that few pixels have
few.save(FIGURE, optimize=True)
