"""A shuffled epoch, shared between ranks whose number may change in the middle."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edl.errors import ConfigError

paddle = pytest.importorskip("paddle")
from edl.elastic import ElasticBatchSampler  # noqa: E402


def samplers(samples, batch_size, ranks, **options):
    return [
        ElasticBatchSampler(range(samples), batch_size, ranks, rank, **options)
        for rank in range(ranks)
    ]


@given(
    batch_size=st.integers(1, 16),
    ranks=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    spare=st.integers(0, 300),
    stops=st.lists(st.integers(0, 9), min_size=4, max_size=4),
    shuffle=st.booleans(),
)
def test_every_sample_is_seen_once_however_often_the_number_of_ranks_changes(
    batch_size, ranks, spare, stops, shuffle
):
    samples, seen = batch_size * max(ranks) + spare, []
    for count, stop in zip(ranks, [*stops[: len(ranks) - 1], samples]):
        shares = samplers(samples, batch_size, count, seed=5, shuffle=shuffle)
        for share in shares:
            share.first = len(seen)
            assert len(list(share)) == len(share) == len(shares[0])
        taken = [index for share in shares for batch in list(share)[:stop] for index in batch]
        assert len(taken) == min(stop, len(shares[0])) * shares[0].rows_per_step
        seen += taken
    assert len(set(seen)) == len(seen)
    assert samples - len(seen) < batch_size * ranks[-1]


def test_epochs_and_seeds_shuffle_differently_and_reproducibly():
    def order(seed, epoch):
        (share,) = samplers(64, 8, 1, seed=seed)
        share.set_epoch(epoch)
        return list(share)

    assert order(1, 1) == order(1, 1)
    assert order(1, 1) != order(1, 2) != order(2, 1)


def test_without_shuffling_it_is_the_datasets_order():
    (share,) = samplers(7, 3, 1, shuffle=False)
    assert list(share) == [[0, 1, 2], [3, 4, 5]]


def test_a_dataloader_loads_what_it_draws():
    class Squares(paddle.io.Dataset):
        def __len__(self):
            return 8

        def __getitem__(self, index):
            return index * index

    sampler = ElasticBatchSampler(Squares(), 4, shuffle=False)
    loader = paddle.io.DataLoader(Squares(), batch_sampler=sampler)
    assert len(loader) == sampler.steps_per_epoch == 2
    assert [batch.tolist() for batch in loader] == [[0, 1, 4, 9], [16, 25, 36, 49]]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((range(7), 4, 2, 0), "7 samples are not a batch of 4 for each of 2 ranks"),
        ((range(8), 4, 2, 2), "rank 2 is not one of 2"),
    ],
)
def test_what_cannot_be_shared_is_refused(arguments, words):
    with pytest.raises(ConfigError, match=words):
        ElasticBatchSampler(*arguments)
