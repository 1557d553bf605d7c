"""Tables as plain text."""

import io
from collections.abc import Iterable, Sequence


def render_text_table(head: Sequence[str], rows: Iterable[Sequence[str]], text_columns: int = 1) -> str:
    """Aligned columns without borders: the first are texts, the others numbers. One line for each row."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for number_, name in enumerate(head):
        table.add_column(name, justify="left" if number_ < text_columns else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    file = io.StringIO()
    Console(file=file, width=1000, markup=False, highlight=False, emoji=False, color_system=None).print(table)
    return "".join(line.rstrip() + "\n" for line in file.getvalue().splitlines())
