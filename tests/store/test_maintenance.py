"""Whole stores: what they have, whether it is sound, put together and taken out."""

import json
import shutil
import struct

import numpy as np
import pytest
import xxhash

from edl.errors import ConfigError, StoreError
from edl.store import LabelStore
from edl.store.exporting import export
from edl.store.maintenance import compact, holdings, merge, verify
from edl.store.records import Labels, id_of
from tests.store.test_store import KIND, TOKENS, added, assert_has, rows
from tests.support.processes import edl


def filled(directory, numbers, **options):
    with LabelStore(directory, **options) as store:
        added(store, numbers)
        store.flush()
    return directory


def tokens(store, count=3):
    lengths = np.arange(count)
    keys = TOKENS.keys([bytes([row]) * 16 for row in range(count)], 0)
    columns = {
        "logits.values": np.full((count, count, 3), 2, "float16"),
        "logits.indices": np.tile(np.arange(3, dtype="int32"), (count, count, 1)),
        "logits.logsumexp": np.ones((count, count), "float32"),
    }
    store.add(Labels(TOKENS, keys, columns, lengths))


def damage(directory, number):
    label = rows([number])[1].tobytes()
    for path in directory.glob("*/data.mdb"):
        path.write_bytes(path.read_bytes().replace(label, label[:-1] + b"?"))


def test_what_a_store_has(tmp_path):
    with LabelStore(tmp_path) as store:
        added(store, range(7))
        tokens(store)
    found = {each.kind: each.rows for each in holdings(tmp_path)}
    assert found == {KIND: 7, TOKENS: 3}


def test_verify_names_what_is_damaged_and_removes_it(tmp_path):
    filled(tmp_path, range(1, 50))
    assert verify(tmp_path).bad == 0
    damage(tmp_path, 7)
    verdict = verify(tmp_path)
    assert (verdict.records, verdict.bad) == (49, 1)
    assert verdict.damaged == {"shared": [rows([7])[0][0]]}
    verify(tmp_path, remove=True)
    assert (verify(tmp_path).records, verify(tmp_path).bad) == (48, 0)


def test_compacting_keeps_what_is_sound_and_takes_less(tmp_path):
    order = np.random.default_rng(0).permutation(5000)
    for some in np.split(order, 10):
        filled(tmp_path, some + 1)
    damage(tmp_path, 7)
    before, after = compact(tmp_path)
    assert after < before
    kinds = [path.suffix for path in tmp_path.iterdir() if path.is_dir()]
    assert kinds == [".sealed"]
    with LabelStore(tmp_path) as store:
        keys = rows(range(1, 5001))[0]
        assert store.recall(KIND, keys).missing == [6]
        added(store, [7])
        store.flush()
        assert_has(store, range(1, 5001))
    assert verify(tmp_path).bad == 0


def test_what_is_damaged_of_a_kind_is_no_other_kind_and_costs_no_labels(tmp_path):
    filled(tmp_path, range(1, 50))
    for path in tmp_path.glob("*/data.mdb"):
        path.write_bytes(path.read_bytes().replace(b"model:a", b"model:b"))
    assert holdings(tmp_path) == []
    assert verify(tmp_path, remove=True).bad == 0
    compact(tmp_path)
    with LabelStore(tmp_path) as store:
        assert_has(store, range(1, 50))


def test_labels_of_a_later_edl_are_kept(tmp_path):
    text = KIND.text.replace("{", '{"invented": 1, ', 1).encode()
    record = struct.pack("<Q", xxhash.xxh3_64_intdigest(id_of(text) + b"row" + b"label")) + b"label"
    with LabelStore(tmp_path / "one") as store:
        store.write([(id_of(text) + b"row", record)], {id_of(text): text})
    assert verify(tmp_path / "one", remove=True).bad == 0
    compact(tmp_path / "one")
    assert merge(tmp_path / "two", [tmp_path / "one"]) == 1
    with LabelStore(tmp_path / "two") as store:
        (environment,) = store.environments()
        assert environment.texts() == {id_of(text): text}
        assert list(environment.records()) == [(id_of(text) + b"row", record)]


def test_verify_names_what_cannot_be_read(tmp_path):
    filled(tmp_path, range(3000))
    path = tmp_path / "shared" / "data.mdb"
    pages = bytearray(path.read_bytes())
    for start in range(4096 * 4, len(pages), 4096):
        pages[start + 12 : start + 16] = b"\xff" * 4  # where its free space begins and ends
    path.write_bytes(pages)
    assert verify(tmp_path).unreadable.keys() == {"shared"}


def test_a_page_that_is_lost_ends_no_process_of_ours(tmp_path):
    filled(tmp_path, range(3000))
    path = tmp_path / "shared" / "data.mdb"
    pages = path.read_bytes()
    lost = [start for start in range(8192, len(pages), 4096) if pages[start + 10] & 2][5:-5]
    for start in lost:  # leaves
        pages = pages[:start] + bytes(4096) + pages[start + 4096 :]
    path.write_bytes(pages)
    said = edl("labels", "verify", tmp_path)
    assert said.returncode == 1
    assert "shared is damaged: reading it ends with SIGABRT" in said.stdout
    for command in ("ls", "compact"):
        assert "ends with SIGABRT" in edl("labels", command, tmp_path).stderr
    with LabelStore(tmp_path) as store:
        assert_has(store, [n for n in range(3000) if not store.recall(KIND, rows([n])[0]).missing])


def test_compacting_puts_the_stores_of_machines_together(tmp_path):
    for number in range(5):
        filled(tmp_path, range(number * 10, number * 10 + 15), local=False)
    compact(tmp_path)
    assert len(list(tmp_path.glob("*.sealed"))) == 1
    assert [each.rows for each in holdings(tmp_path)] == [55]
    with LabelStore(tmp_path, local=False) as store:
        assert_has(store, range(55))


def test_compacting_takes_in_what_machines_have_left_that_are_gone(tmp_path):
    filled(tmp_path, range(10), local=False)
    (sealed,) = tmp_path.glob("*.sealed")
    sealed.rename(tmp_path / "a-pod-that-is-gone-7-0a1b2c3d.live")
    (tmp_path / "killed-while-compacting.new").mkdir()
    compact(tmp_path)
    assert [each.rows for each in holdings(tmp_path)] == [10]
    assert {path.suffix for path in tmp_path.iterdir() if path.is_dir()} == {".sealed"}


def test_what_cannot_be_opened_is_not_compacted_away(tmp_path):
    filled(tmp_path, range(10))
    (tmp_path / "empty.sealed").mkdir()
    with pytest.raises(StoreError, match=r"empty\.sealed is no label store"):
        compact(tmp_path)
    with LabelStore(tmp_path) as store:
        assert_has(store, range(10))


def test_a_store_in_use_is_not_compacted(tmp_path):
    with LabelStore(tmp_path) as store:
        added(store, [1])
        with pytest.raises(StoreError, match="is in use"):
            compact(tmp_path)
        assert_has(store, [1])


def test_merging_adds_what_is_missing(tmp_path):
    one, two = filled(tmp_path / "one", range(10)), filled(tmp_path / "two", range(5, 20))
    assert merge(one, [two]) == 10
    assert merge(one, [two]) == 0
    assert merge(tmp_path / "new", [one, two]) == 20
    for directory in (one, tmp_path / "new"):
        with LabelStore(directory) as store:
            assert_has(store, range(20))
    with pytest.raises(StoreError, match="into itself"):
        merge(one, [one])


def test_exported_arrays_are_what_was_added(tmp_path):
    filled(tmp_path / "labels", range(20))
    assert export(tmp_path / "labels", tmp_path / "out.npz") == 20
    with np.load(tmp_path / "out.npz") as arrays:
        got = {key.tobytes(): label for key, label in zip(arrays["key"], arrays["logits"])}
    keys, labels = rows(range(20))
    np.testing.assert_array_equal(np.stack([got[key] for key in keys]), labels)


def test_exported_sequences_have_their_lengths(tmp_path):
    with LabelStore(tmp_path / "labels") as store:
        added(store, range(2))
        tokens(store)
    with pytest.raises(ConfigError, match="2 kinds of labels are meant"):
        export(tmp_path / "labels", tmp_path / "out.npz")
    kind = TOKENS.id.hex()[:6]
    assert export(tmp_path / "labels", tmp_path / "out.npz", kind) == 3
    with np.load(tmp_path / "out.npz") as arrays:
        assert arrays["logits.values.lengths"].tolist() == [0, 1, 2]
        assert arrays["logits.values"].shape == (3, 3)
        assert arrays["logits.logsumexp"].tolist() == [1, 1, 1]


def test_what_cannot_be_exported_is_said(tmp_path):
    with pytest.raises(ConfigError, match=r"exported as \.npz"):
        export(tmp_path, tmp_path / "out.csv")
    with pytest.raises(StoreError, match="there is no label store at"):
        export(tmp_path, tmp_path / "out.npz")
    assert not list(tmp_path.iterdir())
    filled(tmp_path, range(10))
    with pytest.raises(StoreError, match=r"none/out.npz cannot be written"):
        export(tmp_path, tmp_path / "none" / "out.npz")


# --- the command --------------------------------------------------------------------------------


def test_edl_labels(tmp_path):
    store = filled(tmp_path / "labels", range(1, 31))
    said = edl("labels", "ls", store, "--json")
    (holding,) = json.loads(said.stdout)
    assert (holding["model"], holding["rows"]) == ("model:a", 30)
    assert "model:a" in edl("labels", "ls", store).stdout
    assert edl("labels", "verify", store).stdout == "30 records, 0 damaged\n"
    assert edl("labels", "merge", tmp_path / "second", store).stdout == "30 records added\n"
    shutil.rmtree(tmp_path / "second")
    assert "MiB now" in edl("labels", "compact", store).stdout
    assert edl("labels", "export", store, tmp_path / "o.npz").stdout.startswith("30 rows in")
    damage(store, 7)
    verdict = edl("labels", "verify", store)
    assert verdict.returncode == 1
    assert "30 records, 1 damaged" in verdict.stdout
    assert "is damaged" in verdict.stderr


def test_edl_labels_of_nothing(tmp_path):
    said = edl("labels", "ls", tmp_path / "none")
    assert said.returncode == 1
    assert said.stderr.startswith("edl: there is no label store at")
