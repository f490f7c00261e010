"""A reader stands in for the loader that it wraps."""

import numpy as np
import pytest

from edl.distill import DistillReader

paddle = pytest.importorskip("paddle")


class Numbers(paddle.io.Dataset):
    def __len__(self):
        return 10

    def __getitem__(self, index):
        return np.full(3, index, "f4"), index


def collate(samples):
    return [np.stack(column) for column in zip(*samples)]


def reader_of(source, teachers="127.0.0.1:1", **options):
    return DistillReader(["img", "label"], ["prob"], source=source, teachers=teachers, **options)


def test_the_loaders_attributes_are_the_readers():
    loader = paddle.io.DataLoader(
        Numbers(), batch_size=4, drop_last=True, collate_fn=collate, num_workers=2
    )
    reader = reader_of(loader)
    for name in ("batch_sampler", "dataset", "collate_fn", "batch_size", "num_workers"):
        assert getattr(reader, name) is getattr(loader, name), name
    assert reader.drop_last is True
    assert len(reader) == len(loader) == 2


def test_a_dataset_with_a_batch_sampler_has_those_of_the_loader_that_is_made_of_them():
    dataset = Numbers()
    sampler = paddle.io.BatchSampler(dataset, batch_size=4)
    reader = reader_of(dataset, batch_sampler=sampler)
    assert reader.dataset is dataset
    assert reader.batch_sampler is sampler
    assert len(reader) == 3


def test_set_epoch_decides_the_order_as_it_does_without_a_reader(sums_teacher):
    def sampler():
        return paddle.io.DistributedBatchSampler(Numbers(), batch_size=4, shuffle=True)

    expected = sampler()
    expected.set_epoch(7)
    loader = paddle.io.DataLoader(Numbers(), batch_sampler=sampler())
    with reader_of(loader, sums_teacher.endpoint) as reader:
        reader.set_epoch(7)
        labels = [label.flatten().tolist() for _, label, _ in reader]
        reader.batch_sampler.set_epoch(7)
        again = [label.flatten().tolist() for _, label, _ in reader]
    assert labels == again == list(expected)


def test_a_sources_own_set_epoch_comes_first():
    class Source(list):
        batch_sampler = None

        def set_epoch(self, epoch):
            self.epoch = epoch

    source = Source()
    reader_of(source).set_epoch(3)
    assert source.epoch == 3


@pytest.mark.parametrize("name", ["batch_sampler", "num_workers", "set_epoch"])
def test_what_the_source_lacks_the_reader_lacks_and_says_whose_it_is(name):
    with pytest.raises(AttributeError, match=f"'list' object has no attribute '{name}'"):
        getattr(reader_of([]), name)


def test_without_a_source_there_is_nothing_to_stand_for():
    assert not hasattr(reader_of(None), "batch_size")
    with pytest.raises(AttributeError, match="no source yet"):
        reader_of(None).set_epoch(1)
