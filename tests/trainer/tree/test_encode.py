"""A row of two prompts, written out by hand."""

import numpy as np

from trainer.tree.encode import encode_plain_row, encode_tree_row, tree_tokens

#        prompt     responses
TREES = [([1, 2], [[3, 4], [3, 5], [6]]), ([1, 7], [[8]])]


def test_every_distinct_prefix_is_one_token() -> None:
    row = encode_tree_row(TREES)
    # 1, 1-2, 1-2-3, 1-7: last tokens are predicted, never read
    assert row.tokens_BT.tolist() == [[1, 2, 3, 7]]
    assert row.depth_T is not None
    assert row.depth_T.tolist() == [0, 1, 2, 1]
    assert row.encoded == tree_tokens(TREES) == 4


def test_a_token_sees_exactly_its_own_prefix() -> None:
    row = encode_tree_row(TREES)
    assert row.sees_TT is not None
    assert row.sees_TT.astype(int).tolist() == [
        [1, 0, 0, 0],
        [1, 1, 0, 0],
        [1, 1, 1, 0],
        [1, 0, 0, 1],  # 7 follows 1 and does not see the other prompt
    ]


def test_what_predicts_what() -> None:
    row = encode_tree_row(TREES)
    # after 1-2: 3 (twice, scored once) and 6; after 1-2-3: 4 and 5; after 1-7: 8
    assert row.keep_U.tolist() == [1, 2, 3]
    assert list(zip(row.from_K.tolist(), row.target_K.tolist(), strict=True)) == [
        (0, 3),
        (1, 4),
        (1, 5),
        (0, 6),
        (2, 8),
    ]
    assert row.path_RL.tolist() == [[0, 1], [0, 2], [3, -1], [4, -1]]
    assert row.length_R.tolist() == [2, 2, 1, 1]


def test_plain_rows_hold_each_sequence_by_itself() -> None:
    row = encode_plain_row(TREES)
    assert row.tokens_BT.tolist() == [[1, 2, 3], [1, 2, 3], [1, 2, 0], [1, 7, 0]]
    assert row.mask_BT is not None
    assert row.mask_BT.tolist() == [[1, 1, 1], [1, 1, 1], [1, 1, 0], [1, 1, 0]]
    assert row.keep_U.tolist() == [1, 2]
    assert row.from_K.tolist() == [0, 1, 2, 3, 4, 6]
    assert row.target_K.tolist() == [3, 4, 3, 5, 6, 8]
    assert row.encoded == 10


def test_numpy_ids_are_as_good_as_lists() -> None:
    arrays = [(np.array(prompt), [np.array(ids) for ids in responses]) for prompt, responses in TREES]
    for encode in (encode_tree_row, encode_plain_row):
        lists, numpy = encode(TREES), encode(arrays)
        assert lists.tokens_BT.tolist() == numpy.tokens_BT.tolist()
        assert lists.path_RL.tolist() == numpy.path_RL.tolist()
