"""The table of losses: every row by its name in the config. No torch here: a row's function is imported when a round
starts. Adding a loss is one function, one row, one test."""

from trainer.losses.method import Method
from trainer.losses.table_others import ROWS as OTHER_ROWS
from trainer.losses.table_pairs import ROWS as PAIR_ROWS

METHODS: dict[str, Method] = {**PAIR_ROWS, **OTHER_ROWS}
