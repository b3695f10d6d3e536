"""`lightningrl model show`: what a model is, as tables."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lightningrl_verl.pretrained.describe import facts, load_tokenizer, renderings
from lightningrl_verl.pretrained.prepare import Prepared


def print_model(console: Console, prepared: Prepared) -> None:
    """Print a model's facts, and what its chat template makes of each kind of message."""
    tokenizer = load_tokenizer(prepared.path)
    told = Table(show_header=False, box=None)
    for name, fact in facts(prepared, tokenizer).items():
        told.add_row(Text(name, style="bold"), Text(fact, overflow="fold"))
    console.print(told)
    if tokenizer.chat_template is None:
        console.print("It has no chat template; a recipe gives it one by 'chat_template'.")
        return
    table = Table(title="What the chat template makes of it", title_justify="left", show_lines=True)
    for column in ("given", "reaches the model", "as"):
        table.add_column(column, overflow="fold")
    for one in renderings(tokenizer):
        style = "" if one.verdict == "written" else "red"
        table.add_row(one.kind, Text(one.verdict, style=style), Text(one.text))
    console.print(table)
