"""Pairing: turn the judged responses to each prompt into pairs, singles or groups to train on. Every response gets a
named reason and every prompt an outcome, so that the counts add up. Only io.py and data_answers.py know files and
text."""
