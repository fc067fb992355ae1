"""Room `trainer/`, the losses: log-probs and relations in, one value per relation out. Pure functions, no reduction:
the one division, by the relations of the whole optimizer step, happens in `step.py`.

table.py              every loss by name: function, arguments, needs, paper
method.py             a row of the table: kind, function, needs, arguments with their defaults
table_others.py       the rows of all losses over groups, singles and whole steps
batch.py              what a loss is given
primitives.py         shared arithmetic
contrastive.py        losses over the difference of both log-ratios (DPO and kin)
likelihood.py         losses over a response's own likelihood
listwise.py           losses over groups of ranked or scored responses (Plackett-Luce, InfoNCA and kin)
singles.py            losses over single responses with a label or a score (NPO, DRO, Nash-MD and kin)
stepwise.py           losses with a statistic of the whole optimizer step (KTO, BCO, β-DPO, AOT)
moving.py             a loss whose reference follows the policy (TR-DPO)
"""
