"""The losses: pure functions from log-probs and relations to one value per relation. They do not reduce: the one
division, by the relations of the whole optimizer step, happens in `step.py`.

table.py              every loss by its name in the config
method.py             a row of the table: kind, function, needs, arguments with their defaults
terms.py              the loss of a config as a weighted sum of rows
table_contrastive.py  the rows of contrastive.py
table_pairs.py        the rows of all losses over pairs
methods_page.py       writes docs/methods.md from the table
batch.py              the inputs of a loss
primitives.py         shared arithmetic
contrastive.py        losses over the difference of both log-ratios (DPO, TR-DPO and kin)
log_ratios.py         losses over each log-ratio by itself (SPPO, APO, NCA and kin)
token_level.py        losses over single tokens or whole next-token distributions (TDPO, WPO, LD-DPO)
reference_free.py     losses over log-probs without a reference (SimPO, ORPO, NLL and kin)
table_others.py       the rows of all losses over groups, singles and whole steps
listwise.py           losses over groups of ranked or scored responses (Plackett-Luce, InfoNCA and kin)
singles.py            losses over single responses with a label or a score (NPO, DRO, Nash-MD and kin)
stepwise.py           losses with a statistic of the whole optimizer step (KTO, BCO, β-DPO, AOT)
"""
