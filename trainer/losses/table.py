"""The table of losses by their names in the config. To add one: a function, a row, a test. No torch here."""

from trainer.losses.method import Method
from trainer.losses.table_others import ROWS as OTHER_ROWS
from trainer.losses.table_pairs import ROWS as PAIR_ROWS

METHODS: dict[str, Method] = {**PAIR_ROWS, **OTHER_ROWS}
