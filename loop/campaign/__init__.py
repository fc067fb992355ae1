"""The campaign: the order of its iterations and the stages of one iteration."""
