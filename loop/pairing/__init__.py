"""Pairing: turn the judged responses to each prompt into pairs, singles or groups to train on.

Every response gets a named reason and every prompt an outcome, so that the counts add up to the input. Only io.py and
data_answers.py know of files and text; everything else is pure and sees ids, tokens, scores and finish reasons.
"""
