"""Columns of whole numbers of a trace's tables, as joins take them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from tracekit.diagnose.data import I8

if TYPE_CHECKING:
    import pyarrow as pa


def int_columns(table: pa.Table, names: tuple[str, ...]) -> dict[str, I8]:
    """Return the named columns as int64, null as -1."""
    filled = {name: pc.fill_null(table.column(name).cast("int64"), -1) for name in names}
    return {name: values.to_numpy() for name, values in filled.items()}


def list_column(table: pa.Table, name: str) -> list[npt.NDArray[np.uint32]]:
    """Return the lists of token ids of a column, one for each row, as parts of one array; a null is an empty one."""
    column = table.column(name)
    ends = np.cumsum(pc.fill_null(pc.list_value_length(column), 0).to_numpy())
    ids = pc.list_flatten(column).to_numpy().astype(np.uint32)
    return np.split(ids, ends[:-1]) if len(ends) else []
