"""Columns of whole numbers of a trace's tables, as joins take them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow.compute as pc

from tracekit.diagnose.data import I8

if TYPE_CHECKING:
    import pyarrow as pa


def int_columns(table: pa.Table, names: tuple[str, ...]) -> dict[str, I8]:
    """Return the named columns as int64, null as -1."""
    filled = {name: pc.fill_null(table.column(name).cast("int64"), -1) for name in names}
    return {name: values.to_numpy() for name, values in filled.items()}
