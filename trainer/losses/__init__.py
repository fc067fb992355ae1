"""Room `trainer/`, the losses: log-probs and relations in, one value per relation out. Pure functions, no reduction:
the one division, by the relations of the whole optimizer step, happens in `step.py`.

table.py        every loss by name: function, arguments, needs, paper
batch.py        what a loss is given
primitives.py   shared arithmetic
contrastive.py  losses over the difference of both log-ratios (DPO and kin)
likelihood.py   losses over a response's own likelihood
"""
