"""Labels in one written form, names that mean the same cell, and names for messages."""

import sys
import unicodedata
import warnings
from collections.abc import Iterable
from reprlib import repr as short

import numpy as np
import pandas as pd

MISSING = {"", "nan", "-nan", "na", "<na>", "n/a", "#na", "#n/a", "none", "<none>", "null", "<null>", "nat"}  # any case
CLEARLY_MORE = 0.1  # of the names that could agree; barcodes of unrelated 10x samples agree for some 1 %
BARCODE = "[ACGTN]{8}"
SUFFIX = rf"(?<={BARCODE})(x|x?\.(?!{BARCODE}).*)$|\.\d{{1,3}}$"  # of names with "." for all punctuation
PREFIX = rf"^(?!{BARCODE})(.*?\.(?={BARCODE})|[^.]+\.)"
BETWEEN = {"sims_kit", "contextlib", "sklearn", "joblib", "pytorch_lightning"}  # the user's line and a warning
LEFT_OUT = ("blanks and punctuation", "suffix", "prefix", "prefix and suffix")


def label_text(labels: Iterable) -> pd.Series:
    """Labels of any type as text: single blanks, Unicode NFC, 3.0 as "3", and None where missing.

    >>> label_text([" B  cell", 3.0, "N/A"]).tolist()
    ['B cell', '3', None]
    """
    return _written(labels)[0]


def class_labels(column: Iterable, name: str) -> pd.Series:
    """`label_text` of labels to learn; warns of spellings that become one class and of numbers that may be measured."""
    labels, found = _written(column)
    if len(twins := found[found["text"].duplicated(keep=False)].groupby("text")["value"].agg(list)):
        alike = f"labels that differ only in blanks, Unicode form or type are one class: {'; '.join(map(ascii, twins))}"
        warn(f"{name!r}: {alike}.")
    is_measured = any(isinstance(value, float | np.floating) and not value.is_integer() for value in found["value"])
    most = min(20, max(5, len(labels) / 2)) if is_measured else max(50, 3 * len(labels) ** 0.5)
    if len(found) > most and pd.to_numeric(found["text"], errors="coerce").notna().all():
        numbers = f"{len(found):,} different numbers in {len(labels):,} cells (such as {examples(found['text'])})"
        warn(f"{name!r} holds {numbers}. It may be a measurement: expected labels.")
    return labels


def best_match(names: pd.Index, others: pd.Index) -> tuple[float, str, pd.Index, pd.Index]:
    """The form in which most names of two lists agree: their share, what was left out, and both lists in that form.

    >>> best_match(pd.Index(["s1_AAACCCGG-1", "s1_TTTGGGCC-1"]), pd.Index(["AAACCCGG", "TTTGGGCC"]))[:2]
    (1.0, 'prefix and suffix')
    """
    best = _share(names, others), "", names, others
    if best[0] > 1 - CLEARLY_MORE or not (names.is_unique and others.is_unique):
        return best
    forms = []
    for side in (names, others):
        plain = side.str.replace(r"[\W_]+", ".", regex=True).str.strip(".").str.replace(r"^X(?=\d)", "", regex=True)
        short = plain.str.replace(SUFFIX, "", regex=True)
        forms.append([plain, short, *(form.str.replace(PREFIX, "", regex=True) for form in (plain, short))])
    has_barcodes = names.str.contains(BARCODE).all()  # other names keep more on one side: p1_A1 is not p2_A1
    for i, j in sorted(np.ndindex(4, 4), key=sum):
        a, b = forms[0][i], forms[1][j]
        is_allowed = best[0] < 0.9 and (has_barcodes or not (i and j)) and a.is_unique and b.is_unique
        if is_allowed and (share := _share(a, b)) > max(0.5, best[0] + CLEARLY_MORE):
            best = share, LEFT_OUT[i | j], a, b
    return best


def examples(names: Iterable, n: int = 3) -> str:
    """The first `n` names as a message shows them: ``'a', 'b', 'c', ...``."""
    names = [repr(str(name)) for name in names]
    return ", ".join(names[:n] + ["..."] * (len(names) > n))


def printable(value: object, keep: str = "", most: int | None = None) -> str:
    """A text whose control characters are written out, but for those to `keep`; a short text of anything else."""
    text = value if isinstance(value, str) else short(value)
    text = text if most is None or len(text) <= most else f"{text[: most // 2]} [...] {text[-most // 2 :]}"
    return "".join(one if one.isprintable() or one in keep else ascii(one)[1:-1] for one in text)


def warn(message: str) -> None:
    """Warn at the user's line, however many functions of this package, and of those that call it, lie between."""
    frame, level = sys._getframe(), 1
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in BETWEEN:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


def _written(labels: Iterable) -> tuple[pd.Series, pd.DataFrame]:
    """The text of every label, and a table of the distinct values and their texts; each value is written once."""
    labels = pd.Series(labels)
    labels = labels.map(str) if labels.dtype == object and not labels.map(pd.api.types.is_hashable).all() else labels
    codes, values = pd.factorize(labels)  # of a category, its codes only
    texts = np.array([*map(_text, values := np.asarray(values)), None], dtype=object)  # None has the code -1
    found = pd.DataFrame({"value": values, "text": texts[:-1]}, dtype=object).dropna()
    return pd.Series(texts[codes], labels.index, dtype=object, name=labels.name), found


def _text(value: object) -> str | None:
    value = int(value) if isinstance(value, float | np.floating) and value.is_integer() else value
    value = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    text = unicodedata.normalize("NFC", " ".join(value.split()))
    return None if text.casefold() in MISSING else text


def _share(names: pd.Index, others: pd.Index) -> float:
    return min(1.0, others.isin(names).sum() / (min(len(names), len(others)) or 1))
