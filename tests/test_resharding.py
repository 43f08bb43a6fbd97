"""Final shards: which split, which order, which shard, and that every byte is the pool's."""

import bisect
import hashlib
import io
import itertools
import json
import shutil
import tarfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from conftest import SMALL, data_digests, killed_until_done
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import synthgen
from synthgen import claims, pools, recipe, resharding, shards, storage, tars
from synthgen.errors import FolderError, RecipeError, SynthgenError, WorkError
from synthgen.intake import bring
from synthgen.resharding import Output, Part, Settings, cut_parts, splitting
from synthgen.resharding.choosing import Codes, choose
from synthgen.resharding.cutting import default_shards, mixed, repeats, shard_ends
from synthgen.uids import sort_uids, uid_array, uid_strings

pytestmark = pytest.mark.filterwarnings(
    "ignore:unclosed file:ResourceWarning"
)  # webdataset leaves files to the GC

Members = dict[str, bytes]


def uid_of(number: int) -> str:
    return hashlib.md5(str(number).encode()).hexdigest()


def make_pool(
    root: Path, samples: Mapping[str, Members], *, per_shard: int = 7, **columns: Sequence[object]
) -> list[str]:
    """A pool of our own: archives and rows; the second row of each shard failed."""
    stems = []
    for first in range(0, len(samples), per_shard):
        stem, path = shards.shard_name(first // per_shard), root / "pool" / f"{first // per_shard:08d}.tar"
        path.parent.mkdir(parents=True, exist_ok=True)
        part = dict(itertools.islice(samples.items(), first, first + per_shard))
        uids, offsets = list(part), list[int | None]()
        with path.open("wb") as tar:
            for uid, members in part.items():
                offsets.append(next(iter(tars.add_sample(tar, uid, members).values())).offset)
            tars.finish(tar)
        rows = {name: list(values[first : first + per_shard]) for name, values in columns.items()}
        uids.insert(1, uid_of(-1 - first))
        offsets.insert(1, None)
        table = {"uid": uids, "error": [None, "black", *[None] * (len(part) - 1)], "image_offset": offsets}
        table |= {name: [*values[:1], values[0], *values[1:]] for name, values in rows.items()}
        storage.write(path.with_suffix(".parquet"), shards.to_parquet([pa.table(table)]))
        stems.append(stem)
    return stems


def members_of(number: int) -> Members:
    """Of all sizes around a block, and bytes that look like nothing in particular."""
    data = hashlib.sha256(str(number).encode()).digest() * 40
    return {
        "jpg": data[: (number * 97) % 1280],
        "txt": b"a" * (508 + number % 9),
        "cls": str(number % 3).encode(),
        "json": json.dumps({"uid": uid_of(number), "seed": number}).encode(),
    }


def write(output: Output, root: Path) -> None:
    for shard in output.shards:
        with claims.claim(root, f"final/{shard.split}/{shard.stem}") as claim:
            assert claim
            resharding.write_shard(
                root, root / "final", shard, output.chosen, output.added, record={}, claim=claim
            )
    written = resharding.check_written(
        output, lambda shard: shards.read_record(root / "final" / shard.split, shard.stem)
    )
    assert len(written) == sum(len(shard.rows) for shard in output.shards)


def read_tars(folder: Path) -> list[tuple[str, Members]]:
    """Key and members of every sample, in order, read with bare tarfile."""
    found: list[tuple[str, Members]] = []
    for path in sorted(folder.rglob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, suffix = member.name.partition(".")
                if not found or found[-1][0] != key:
                    found.append((key, {}))
                found[-1][1][suffix] = tar.extractfile(member).read()  # type: ignore[union-attr]
    return found


# --- which split -------------------------------------------------------------------------------------------


def test_a_split_by_hash_never_changes() -> None:
    """As it was before there was any other way; and the same for one and for many."""
    parts = {"train": 0.7, "val": 0.2, "test": 0.1}
    keys = [f"{k:032x}" for k in range(2000)]
    hashed = splitting.by_hash(splitting.hash_keys(keys), parts).tolist()
    for key, found in zip(keys, hashed, strict=True):
        at = int.from_bytes(hashlib.sha256(f"split {key}".encode()).digest()[:8], "big") / 2**64
        assert found == sum(at >= end for end in (0.7, 0.7 + 0.2))
        assert splitting.split_of(key, parts) == list(parts)[found]
    assert Counter(hashed).most_common()[0][0] == 0


def brute_force(sizes: list[int], targets: list[float]) -> float:
    """The least sum of squared differences that whole groups can have, all splits in use where possible."""
    best = np.inf
    for chosen in itertools.product(range(len(targets)), repeat=len(sizes)):
        if len(set(chosen)) < min(len(targets), len(sizes)):
            continue
        have = [
            sum(size for size, k in zip(sizes, chosen, strict=True) if k == s) for s in range(len(targets))
        ]
        best = min(best, sum((a - b) ** 2 for a, b in zip(have, targets, strict=True)))
    return best


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 9), parts=st.sampled_from([(0.7, 0.2, 0.1), (0.5, 0.5), (0.9, 0.1), (1 / 3,) * 3])
)
def test_a_class_of_single_images_is_split_as_well_as_can_be(count: int, parts: tuple[float, ...]) -> None:
    split = {f"s{k}": part for k, part in enumerate(parts)}
    every = np.arange(count)
    hashes = splitting.hash_keys([str(k) for k in range(count)])
    found = splitting.stratified(np.zeros(count, np.intp), every, hashes, split)
    have = np.bincount(found, minlength=len(parts))
    targets = [count * part for part in parts]
    assert sum((have - targets) ** 2) == pytest.approx(brute_force([1] * count, targets))


cases = st.lists(st.tuples(st.integers(0, 4), st.integers(1, 4)), min_size=1, max_size=80)


@settings(max_examples=150, deadline=None)
@given(
    groups=cases,
    parts=st.sampled_from([(0.7, 0.2, 0.1), (0.8, 0.2), (0.98, 0.01, 0.01)]),
    seed=st.integers(0, 9),
)
def test_stratified_splits_keep_their_promises(
    groups: list[tuple[int, int]], parts: tuple[float, ...], seed: int
) -> None:
    """Groups whole; at least one of each in each split if there are as many; near the parts; the order of the
    samples is no matter."""
    split = {f"s{k}": part for k, part in enumerate(parts)}
    cells = np.array([cell for cell, size in groups for _ in range(size)])
    numbers = np.array([k for k, (_, size) in enumerate(groups) for _ in range(size)])
    cells = np.unique(cells, return_inverse=True)[1]
    hashes = splitting.hash_keys([str(k) for k in range(len(groups))])
    found = splitting.stratified(cells, numbers, hashes, split)
    order = np.random.default_rng(seed).permutation(len(cells))
    assert (splitting.stratified(cells[order], numbers[order], hashes, split) == found).all()
    for cell in np.unique(cells).tolist():
        mine = found[numbers[cells == cell]]
        have = np.bincount(mine, minlength=len(parts))
        own = np.unique(numbers[cells == cell])
        if len(own) >= len(parts):
            assert have.all()
        largest = int(np.bincount(numbers)[own].max())
        # one more group than its part at most, the carried half, or the one that each is to have
        assert (abs(have - len(mine) * np.array(parts)) < len(parts) * largest + 0.51).all()


def test_stratified_splits_of_many_classes_meet_parts_in_each_and_in_all() -> None:
    dice = np.random.default_rng(1)
    sizes = dice.integers(10, 200, 150)
    cells = np.repeat(np.arange(150), sizes)
    every = np.arange(len(cells))
    hashes = splitting.hash_keys([str(k) for k in range(len(cells))])
    for parts in ((0.7, 0.2, 0.1), (0.9, 0.1)):
        found = splitting.stratified(cells, every, hashes, {f"s{k}": p for k, p in enumerate(parts)})
        table = np.zeros((150, len(parts)))
        np.add.at(table, (cells, found), 1)
        assert (abs(table - sizes[:, None] * np.array(parts)) < 1.5).all()
        assert (abs(table.sum(axis=0) - len(cells) * np.array(parts)) <= 1).all()


def test_counts_are_of_each_class_and_the_parts_share_the_rest() -> None:
    cells = np.repeat([0, 1, 2], [100, 30, 4])
    hashes = splitting.hash_keys([str(k) for k in range(134)])
    found = splitting.stratified(cells, np.arange(134), hashes, {"train": 0.5, "test": 10, "val": 0.5})
    table = [np.bincount(found[cells == cell], minlength=3).tolist() for cell in range(3)]
    assert table[:2] == [[45, 10, 45], [10, 10, 10]]
    assert min(table[2]) == 1  # 4 images, of which 10 are wanted: at least one each


def test_groups_over_several_cells_stay_whole() -> None:
    """Counterfactuals: each group has an image at each of two places."""
    groups = np.repeat(np.arange(200), 2)
    cells = np.tile([0, 1], 200)
    hashes = splitting.hash_keys([str(k) for k in range(200)])
    found = splitting.stratified(cells, groups, hashes, {"train": 0.8, "val": 0.2})
    assert Counter(found.tolist()) == {0: 160, 1: 40}


# --- which order, which shard ------------------------------------------------------------------------------


def test_the_order_is_a_hash_of_seed_uid_and_copy() -> None:
    """Against whole numbers, one at a time; ties fall to the smaller uid; more samples move none."""

    def mix(value: int) -> int:
        value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        value = (value ^ (value >> 27)) * 0x94D049BB133111EB % 2**64
        return value ^ (value >> 31)

    uids = [uid_of(k) for k in range(300)]
    for seed in (0, 1, 2**62):
        slow = []
        for copy, uid in enumerate(uids):
            value = mix((seed * 0x9E3779B97F4A7C15 + copy) % 2**64)
            value = mix((int(uid[16:], 16) + value) % 2**64)
            slow.append(mix((int(uid[:16], 16) + value) % 2**64))
        assert mixed(uid_array(uids), np.arange(300), seed).tolist() == slow
    orders = [np.argsort(mixed(uid_array(uids[:n]), np.zeros(n, np.int64), 0)) for n in (200, 300)]
    assert [k for k in orders[1].tolist() if k < 200] == orders[0].tolist()


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 60), max_size=60),
    shard_size=st.one_of(st.none(), st.integers(1, 20)),
    blocks=st.one_of(st.none(), st.integers(40, 200)),
)
def test_shards_end_where_a_slow_look_says(
    sizes: list[int], shard_size: int | None, blocks: int | None
) -> None:
    most = blocks * 512 if blocks else None
    ends = shard_ends(np.array(sizes, np.int64) * 512, shard_size, most)
    assert (ends[-1] if ends else 0) == len(sizes)
    if shard_size is None and most is None:
        lengths = np.diff([0, *ends])
        assert len(ends) == default_shards(len(sizes)) if sizes else not ends
        assert not sizes or lengths.max() - lengths.min() <= 1
        return
    slow, count, used = list[int](), 0, 0
    for k, size in enumerate(sizes):
        total = -(-(used + size * 512 + 1024) // 10240) * 10240  # a whole number of records
        if count and ((shard_size and count >= shard_size) or (most and total > most)):
            slow.append(k)
            count = used = 0
        count, used = count + 1, used + size * 512
    assert ends == [*slow, *([len(sizes)] if sizes else [])]


@pytest.mark.parametrize(
    ("samples", "number"), [(1, 1), (100, 1), (101, 2), (3199, 32), (3200, 32), (320_000, 32), (320_001, 64)]
)
def test_each_of_32_readers_has_a_shard(samples: int, number: int) -> None:
    assert default_shards(samples) == number
    assert -(-samples // number) <= 10_000


def test_repeats_fill_classes_up() -> None:
    uids = uid_array([uid_of(k) for k in range(10)])
    codes = Codes(np.array([0] * 7 + [1] * 2 + [2]), ["cat", "dog", "owl"])
    added = repeats(np.arange(10), uids, codes, 5, seed=3)
    every = Counter([*range(10), *added.tolist()])
    assert [sum(every[k] for k in rows) for rows in (range(7), (7, 8), (9,))] == [7, 5, 5]
    assert {every[7], every[8]} == {2, 3}  # in turn


# --- the bytes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [1, 5_000, 2**22])
@pytest.mark.parametrize("order", ["shuffle", "blocks"])
def test_members_are_the_pool_s_byte_for_byte(
    order: str, window: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the window; with repeats, and the last samples of archives, whose end no row tells."""
    monkeypatch.setattr("synthgen.resharding.copying.WINDOW", window)
    samples = {uid_of(k): members_of(k) for k in range(40)}
    stems = make_pool(tmp_path, samples)
    wanted = [uid for k, uid in enumerate(samples) if k % 4]
    wanted += wanted[:5] + wanted[:1]
    subset = sort_uids(uid_array(wanted))
    output = cut_parts(
        [Part("p", tmp_path, stems, [], subset)],
        {},
        Settings({"train": 1.0}, order=order, shard_size=11),  # type: ignore[arg-type]
    )
    write(output, tmp_path)
    found = read_tars(tmp_path / "final")
    assert [len(shard.rows) for shard in output.shards] == [11, 11, 11, 3]
    assert Counter(key.partition("-")[0] for key, _ in found) == Counter(wanted)
    assert len(dict(found)) == len(wanted)
    for key, members in found:
        assert list(members.items()) == list(samples[key.partition("-")[0]].items())
    own = [key.partition("-")[0] for key, _ in found]
    if order == "blocks":
        assert own == sorted(own, key=list(samples).index)
    else:
        keys = {
            key: int(mixed(uid_array([key[:32]]), np.array([int(key[33:] or 0)]), 0)[0]) for key, _ in found
        }
        assert [key for key, _ in found] == sorted(keys, key=keys.__getitem__)
    for path in (tmp_path / "final").rglob("*.tar"):  # as our own writer would have made them
        again = io.BytesIO()
        tars.write(again, read_tars_of(path))
        assert again.getvalue() == path.read_bytes()


def read_tars_of(path: Path) -> list[tuple[str, Members]]:
    return list(tars.samples(path.read_bytes()))


def test_datacomp_s_resharder_would_give_the_same_samples(tmp_path: Path) -> None:
    """Its reading and selection: all shards by `sizes.json` or `_stats.json`, a binary search of each json's
    uid in the sorted subset, one copy for each time that it is listed, keys `uid-0`, `uid-1`, ...
    """
    import webdataset

    samples = {uid_of(k): members_of(k) for k in range(60)}
    stems = make_pool(tmp_path, samples)
    wanted = sorted(itertools.chain.from_iterable([uid] * (k % 4) for k, uid in enumerate(samples)))
    subset = sort_uids(uid_array(wanted))
    theirs = Counter[tuple[str, tuple[tuple[str, bytes], ...]]]()
    pairs = [tuple(pair) for pair in subset.tolist()]
    urls = [str(tmp_path / "pool" / f"{stem}.tar") for stem in stems]
    for sample in webdataset.WebDataset(urls, shardshuffle=False):
        uid = json.loads(sample["json"])["uid"]
        pair = int(uid[:16], 16), int(uid[16:], 16)
        members = tuple(sorted((name, data) for name, data in sample.items() if not name.startswith("__")))
        for _ in range(bisect.bisect_right(pairs, pair) - bisect.bisect_left(pairs, pair)):
            theirs[uid, members] += 1
    part = Part("p", tmp_path, stems, [], subset)
    write(cut_parts([part], {}, Settings({"train": 0.6, "val": 0.4})), tmp_path)
    ours = Counter(
        (key.partition("-")[0], tuple(sorted(members.items())))
        for key, members in read_tars(tmp_path / "final")
    )
    assert ours == theirs
    assert ours.total() == len(wanted) == 90


def picture(number: int, kind: str) -> bytes:
    sink = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(sink, kind)
    return sink.getvalue()


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sources: PAX archives with owners, times and folders in their names, and a folder a class."""
    folder = tmp_path_factory.mktemp("others")
    for number in range(2):
        with tarfile.open(folder / f"{number}.tar", "w", format=tarfile.PAX_FORMAT) as tar:
            for k in range(10 * number, 10 * number + 10):
                members = {"txt": f"a thing {k}".encode(), "jpg": picture(k, "JPEG"), "cls": b"%d" % (k % 2)}
                members["json"] = json.dumps({"uid": f"{7:016x}{k:016x}", "n": k}).encode()
                for suffix, data in members.items():
                    entry = tarfile.TarInfo(f"folder/\u00e4{k}.{suffix}")
                    entry.size, entry.mtime, entry.uname = len(data), 1.5, "somebody"  # type: ignore[assignment]
                    tar.addfile(entry, io.BytesIO(data))
    for k in range(20, 30):
        path = folder / "photos" / str(k % 2) / f"{k}.{'png' if k % 3 else 'webp'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(k, "PNG" if k % 3 else "WEBP"))
    root = folder / "pool"
    (folder / "web").mkdir()
    for number in range(2):
        (folder / f"{number}.tar").rename(folder / "web" / f"{number}.tar")
    bring([folder / "web"], root, workers=1)
    bring([folder / "photos"], root, workers=1)
    return root


def part_of(root: Path, source: str = "") -> Part:
    stems = [stem for one in shards.imported(root) if source in one.name for stem in one.stems]
    tables = [shards.read_table(root / "pool" / f"{stem}.parquet") for stem in stems]
    uids = [uid for table in tables for uid in table["uid"].to_pylist()]
    return Part("p", root, stems, [], sort_uids(uid_array(uids)))


@pytest.mark.parametrize("window", [1, 2**22])
def test_other_people_s_archives_are_copied_too(
    imported: Path, window: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their uids share the first half; each sample keeps its own members and gets none, as it has all."""
    monkeypatch.setattr("synthgen.resharding.copying.WINDOW", window)
    part = part_of(imported, "web")
    again = part.subset[:3]
    part = part._replace(subset=np.sort(np.concatenate([part.subset, again]), order=["f0", "f1"]))
    for order in ("shuffle", "blocks"):
        root = tmp_path / order
        write(cut_parts([part], {}, Settings({"all": 1.0}, order=order, shard_size=9)), root)  # type: ignore[arg-type]
        found = read_tars(root / "final")
        assert Counter(key[:32] for key, _ in found) == Counter(uid_strings(part.subset))
        for key, members in found:
            k = int(key[16:32], 16)
            assert members == {
                "txt": f"a thing {k}".encode(),
                "jpg": picture(k, "JPEG"),
                "cls": b"%d" % (k % 2),
                "json": json.dumps({"uid": key[:32], "n": k}).encode(),
            }


def test_images_of_several_kinds_get_one_ending_if_asked(imported: Path, tmp_path: Path) -> None:
    photos = part_of(imported, "photos")
    with pytest.raises(FolderError) as error:
        cut_parts([photos], {}, Settings({"all": 1.0}))
    assert 'set reshard.image = "jpg" to give all images one ending' in str(error.value)
    write(cut_parts([photos], {}, Settings({"all": 1.0}, image="png", repeat={"class_name": 7})), tmp_path)
    found = read_tars(tmp_path / "final")
    every = {hashlib.sha256(picture(k, "PNG" if k % 3 else "WEBP")).hexdigest() for k in range(20, 30)}
    assert {hashlib.sha256(members["png"]).hexdigest() for _, members in found} == every
    assert {tuple(sorted(members)) for _, members in found} == {("cls", "json", "png")}
    assert len(found) == 14
    ours = joinable(tmp_path / "ours", range(9))
    write(cut_parts([ours], {}, Settings({"all": 1.0}, image="webp")), tmp_path / "renamed")
    for key, members in read_tars(tmp_path / "renamed"):
        number = next(k for k in range(9) if uid_of(k) == key)
        assert members.pop("webp") == members_of(number)["jpg"]


def test_sources_that_do_not_go_together(imported: Path, tmp_path: Path) -> None:
    with pytest.raises(
        FolderError, match=r"7 of p \(source photos\) have cls, jpg, json; all samples"
    ) as error:
        cut_parts([part_of(imported)], {}, Settings({"all": 1.0}, image="jpg"))
    assert 'select those that do, or set reshard.leave_out = ["txt"]' in str(error.value)
    output = cut_parts(
        [part_of(imported)],
        {},
        Settings({"all": 1.0}, image="jpg", leave_out=["txt"], json_keys="common", shard_bytes=30_000),
    )
    write(output, tmp_path)
    found = read_tars(tmp_path / "final")
    assert Counter(tuple(sorted(members)) for _, members in found) == {("cls", "jpg", "json"): 30}
    keys = {tuple(json.loads(members["json"])) for _, members in found}
    assert len(keys) == 1
    assert "uid" in keys.pop()
    for path in (tmp_path / "final").rglob("*.tar"):
        assert path.stat().st_size <= 30_000


def test_members_of_many_names(tmp_path: Path) -> None:
    """More than a machine word has bits."""
    samples = [(f"{k:03d}", {"jpg": picture(k, "JPEG")}) for k in range(80)]
    samples = [(key, own | ({f"{int(key) % 70}.txt": b"x"} if key != "000" else {})) for key, own in samples]
    (tmp_path / "web").mkdir()
    with tarfile.open(tmp_path / "web" / "0.tar", "w") as tar:
        for key, members in samples:
            for suffix, data in members.items():
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    root = bring([tmp_path / "web"], tmp_path / "out", workers=1)
    part = part_of(root)
    chosen = choose(root, part.stems, part.subset, [], [])
    assert [chosen.kinds[k].members for k in chosen.kind.tolist()] == [
        tuple(sorted({*own, "json"})) for _, own in samples
    ]


def test_a_source_that_has_changed_is_an_error(imported: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(imported, tmp_path / "pool"))
    folder = Path(shutil.copytree(imported.parent / "web", tmp_path / "web"))
    part = part_of(root, "web")._replace(sources={"web": folder})
    output = cut_parts([part], {}, Settings({"all": 1.0}))
    path = folder / "1.tar"
    whole = path.read_bytes()
    at = whole.index(picture(13, "JPEG")) + 200
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises(FolderError, match=r"the image .*1\.tar: .*13 has other bytes than at the import"):
        write(output, tmp_path)
    path.write_bytes(whole[:4000])
    with pytest.raises(FolderError, match=r"1\.tar: cut: .*; --set sources\.NAME\.path=FOLDER"):
        write(output, tmp_path)
    path.unlink()
    with pytest.raises(FolderError, match=r"1\.tar: missing; put it back; --set sources"):
        write(output, tmp_path)
    with pytest.raises(FolderError, match=r'source "web": 1\.tar is not in .*; --set sources\.web\.path='):
        cut_parts([part], {}, Settings({"all": 1.0}))


def test_a_sample_that_is_not_where_its_row_says_is_an_error(tmp_path: Path) -> None:
    samples = {uid_of(k): members_of(k) for k in range(20)}
    stems = make_pool(tmp_path, samples)
    part = Part("p", tmp_path, stems, [], sort_uids(uid_array(list(samples))))
    output = cut_parts([part], {}, Settings({"train": 1.0}))
    path = tmp_path / "pool" / "00000001.tar"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(uid_of(9).encode(), uid_of(99).encode()))
    with pytest.raises(WorkError, match=rf"00000001\.tar: {uid_of(9)} is not at byte"):
        write(output, tmp_path)
    path.write_bytes(whole.replace(uid_of(13).encode(), uid_of(99).encode()))  # the last one of its archive
    with pytest.raises(WorkError, match=rf"{uid_of(13)} is not at byte"):
        write(output, tmp_path)
    path.write_bytes(whole[:3000])
    with pytest.raises(WorkError, match="cut"):
        write(output, tmp_path)
    assert not list((tmp_path / "final").rglob("*.tar"))
    stray = Part("p", tmp_path, stems, [], sort_uids(uid_array([uid_of(-1)])))
    with pytest.raises(WorkError, match="is no written sample of the pool; select again"):
        cut_parts([stray], {}, Settings({"train": 1.0}))


def test_the_arithmetic_is_checked(tmp_path: Path) -> None:
    samples = {uid_of(k): members_of(k) for k in range(20)}
    stems = make_pool(tmp_path, samples)
    uids = sort_uids(uid_array([*samples, uid_of(3)]))
    output = cut_parts([Part("p", tmp_path, stems, [], uids)], {}, Settings({"train": 1.0}, shard_size=8))
    write(output, tmp_path)

    def record(shard: resharding.OutputShard) -> dict[str, object]:
        return shards.read_record(tmp_path / "final" / shard.split, shard.stem)

    fewer = cut_parts([Part("p", tmp_path, stems, [], uids[:-1])], {}, Settings({"train": 1.0}, shard_size=8))
    with pytest.raises(WorkError, match=r"that are not the .* of the subset as it is now"):
        resharding.check_written(fewer, record)
    lost = output._replace(shards=output.shards[:-1])
    with pytest.raises(WorkError, match="is not there as often as the subset wants it"):
        resharding.check_written(lost, record)
    twice = output._replace(shards=[*output.shards, output.shards[0]])
    with pytest.raises(WorkError, match="is not there as often"):
        resharding.check_written(twice, record)


# --- from a recipe -----------------------------------------------------------------------------------------


def reshard(run: Path, *more: str, subset: str = "main", **keys: object) -> Path:
    """Selects and writes final/ of the small run; `more` are settings."""
    synthgen.run(
        "emoji",
        run,
        settings=[*SMALL, *more],
        stages=("select", "reshard"),
        subset=subset,
        **keys,  # type: ignore[arg-type]
    )
    return run / "final" / subset


@pytest.fixture(scope="module")
def run(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the small run, to which tests add subsets of their own names."""
    return Path(shutil.copytree(small_run, tmp_path_factory.mktemp("reshard") / "run"))


CUT = ("reshard.shard_size=14", "reshard.split={ train = 0.5, val = 0.5 }", "select=[]")


def test_kills_and_workers_change_no_byte(run: Path, tmp_path: Path) -> None:
    """Killed after each file that is linked, in turn; and three workers in place of one."""
    undisturbed = data_digests(reshard(run, *CUT, subset="k"))
    assert len(undisturbed) == 4
    for name in ("killed", "three"):
        root = Path(shutil.copytree(run, tmp_path / name))
        for path in [*root.glob("final/k/*/*"), root / "final" / "k" / "_stats.json"]:
            path.unlink()
        if name == "killed":
            work = "synthgen.run('emoji', sys.argv[1], settings=json.loads(sys.argv[2]), "
            work += "stages=('reshard',), subset='k')"
            assert killed_until_done(work, str(root), json.dumps([*SMALL, *CUT]), period=3) >= 4
        else:
            synthgen.run("emoji", root, settings=[*SMALL, *CUT], stages=("reshard",), subset="k", workers=3)
        assert data_digests(root / "final" / "k") == undisturbed
        assert storage.names(root / ".work" / "tmp") == []


def test_annotations_as_members_open_everywhere(run: Path, tmp_path: Path) -> None:
    import datasets
    import webdataset
    from timm.data import create_dataset

    wanted = ["clip_img", "clip_margin", "clip_rank", "image_near_constant", "hashes_pixels"]
    final = reshard(run, f"reshard.members={json.dumps(wanted)}", "reshard.repeat={ class = 2 }", subset="m")
    columns = pools.PoolColumns(run, shards.pool_stems(run), ["clip", "image", "hashes"])
    row_of = {uid: row for row, uid in enumerate(columns["uid"].tolist())}
    found = read_tars(final)
    assert {tuple(members) for _, members in found} == {
        ("webp", "txt", "cls", "json", "clip_img.npy", "scores.json")
    }
    assert any("-1" in key for key, _ in found)
    for key, members in found:
        row = row_of[key[:32]]
        feature = np.load(io.BytesIO(members["clip_img.npy"]), allow_pickle=False)
        assert feature.dtype == np.float16
        assert (feature == columns["clip_img"][row]).all()
        plain = io.BytesIO()
        np.save(plain, feature)
        assert plain.getvalue() == members["clip_img.npy"]
        scores = json.loads(members["scores.json"])
        assert scores == {name: columns[name][row] for name in wanted[1:]}
        assert [type(value) for value in scores.values()] == [float, int, bool, str]
    files = {"train": str(final / "train" / "*.tar")}
    loaded = datasets.load_dataset("webdataset", data_files=files, split="train", cache_dir=str(tmp_path))
    theirs = {sample["__key__"]: sample for sample in loaded}
    samples = webdataset.WebDataset(str(final / "train" / "00000000.tar"), shardshuffle=False).decode()
    for sample in samples:
        other, row = theirs[sample["__key__"]], row_of[sample["__key__"][:32]]
        assert other["scores.json"] == sample["scores.json"]
        assert (np.asarray(other["clip_img.npy"], np.float16) == columns["clip_img"][row]).all()
    labels = [label for _, label in create_dataset("wds/emoji", root=str(final), split="train")]
    assert len(labels) == len(theirs) == sum(storage.read_json(final / "train" / "sizes.json").values())
    counts = Counter(labels)
    assert set(counts.values()) == {2}  # repeated up to two of each class
    assert synthgen.verify(run) == []


def test_what_no_sample_can_do_without(run: Path) -> None:
    """A chosen sample that was not scored, and names that nothing has."""
    root = run
    reshard(root, subset="q")
    for setting, message in (
        ('reshard.members=["clip_im"]', r'has no feature "clip_im"; known: clip_img, clip_txt'),
        ('reshard.members=["error"]', r"error: \d+ chosen samples have none, first [0-9a-f]{32}"),
    ):
        with pytest.raises(SynthgenError, match=message):
            reshard(root, setting, subset="q", replace=True)
        assert (root / "final" / "q" / "_stats.json").exists()  # looked at before anything is replaced


def test_a_sample_that_was_not_annotated_is_an_error(run: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(run, tmp_path / "run"))
    path = root / "annotations" / "clip" / "00000001.npz"
    features = shards.read_npz(path)
    uids = uid_strings(np.load(root / "subsets" / "main.npy"))
    rows = shards.read_table(root / "pool" / "00000001.parquet", ["uid"])["uid"].to_pylist()
    row = next(k for k, uid in enumerate(rows) if uid in uids)
    features["clip_img"][row] = np.nan
    path.write_bytes(shards.to_npz(features))
    with pytest.raises(FolderError, match=rf"clip_img: {rows[row]} has none"):
        reshard(root, 'reshard.members=["clip_img"]', replace=True)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("split={ train = 0.9, val = 0.08 }", "reshard.split: the parts add up to 0.98; 1.0 is wanted"),
        ("split={ train = 1.0, val = 5 }", "reshard.split.val: 5 is a count of images (a part has a dot"),
        ("split={ train = 1.0, val = 1 }", "reshard.split.val: 1 is a count of images (a part has a dot"),
        ("split={ val = 5 }", "reshard.split.val: 5 is a count of images (a part has a dot, 1.0), and needs"),
        ("split={ train = 0.5, val = 1.5 }", "reshard.split.val: a part above 0 and up to 1.0, or a"),
        ("split={ train = 1.0, val = 0 }", "or a count of images such as 50, is wanted, got 0"),
        ("split={ train = true }", "or a count of images such as 50, is wanted, got true"),
        ("split={ train = nan }", "or a count of images such as 50, is wanted, got NaN"),
        ("split={ 0 = 1.0 }", "reshard.split.0: string should match pattern"),
        ("split={}", "reshard.split: dictionary should have at least 1 item"),
        ("stratify=clas", 'reshard.stratify: unknown "clas"; did you mean "class"'),
        ("repeat={ class = 3, model = 4 }", "reshard.repeat: 2 columns; one is wanted"),
        ("repeat={ kind = 3 }", 'reshard.repeat: unknown "kind"'),
        ("order=random", "reshard.order: input should be 'shuffle' or 'blocks'"),
        ("shard_bytes=100", "reshard.shard_bytes: input should be greater than or equal to 20480"),
        ('members=["clp_img"]', 'reshard.members: unknown column or feature "clp_img"'),
        ('members=["hashes_phash"]', "reshard.members: hashes_phash is uint64, which readers of json"),
        ('members=["text", "text"]', "each may be there once"),
    ],
)
def test_recipes_that_cannot_be_cut(setting: str, message: str) -> None:
    with pytest.raises(RecipeError) as error:
        recipe.load(recipe.find("emoji"), [f"reshard.{setting}"])
    assert message in str(error.value)


def test_recipes_that_can() -> None:
    for setting in ("split={ a = 0.7, b = 0.2, c = 0.1 }", "split={ a = 0.33, b = 0.33, c = 0.33 }"):
        loaded = recipe.load(recipe.find("emoji"), [f"reshard.{setting}"])
        assert sum(splitting.parts_of(loaded.reshard.split).values()) == pytest.approx(1)


@pytest.mark.parametrize("count", [1, 7])
def test_a_whole_number_is_a_count(run: Path, count: int) -> None:
    """One image too: 1.0 would be a part."""
    settings = ("select=[]", "reshard.stratify=[]", "reshard.split.train=1.0", f"reshard.split.val={count}")
    final = reshard(run, *settings, subset=f"strat{count}")
    assert len(read_tars(final / "val")) == count
    assert len(read_tars(final / "train")) == 48 - count
    loaded = recipe.load(recipe.find("emoji"), settings)
    with pytest.raises(RecipeError, match=r"the parts add up to 0; 1\.0 is wanted"):
        recipe.load(recipe.find("emoji"), [*settings, "reshard.split={ train = 1 }"])
    assert [type(value) for value in loaded.reshard.split.values()] == [float, int]


# --- joined ------------------------------------------------------------------------------------------------


def joinable(root: Path, numbers: Sequence[int], **more: Sequence[object]) -> Part:
    samples = {uid_of(k): members_of(k) for k in numbers}
    columns: dict[str, Sequence[object]] = {
        "class_id": [k % 3 for k in numbers],
        "class_name": [("cat", "dog", "owl")[k % 3] for k in numbers],
        "group": [f"g{k // 2}" for k in numbers],
        "license": ["mit" for _ in numbers],
        "sha256": [hashlib.sha256(members_of(k)["jpg"]).hexdigest() for k in numbers],
    } | more
    stems = make_pool(root, samples, **columns)
    return Part(root.name, root, stems, [], sort_uids(uid_array(list(samples))))


def test_pools_are_joined(tmp_path: Path) -> None:
    """A sample of both is there once; a group is on one side, whichever pool its samples are from."""
    one, two = joinable(tmp_path / "one", range(30)), joinable(tmp_path / "two", range(20, 50))
    output = cut_parts([one, two], {"cat": 0, "bat": 9}, Settings({"a": 0.5, "b": 0.5}, shard_size=9))
    write(output, tmp_path)
    found = read_tars(tmp_path / "final")
    assert Counter(key for key, _ in found) == Counter(uid_of(k) for k in range(50))
    for key, members in found:
        number = next(k for k in range(50) if uid_of(k) == key)
        assert members == members_of(number)
    sides = [{key for key, _ in read_tars(tmp_path / "final" / name)} for name in ("a", "b")]
    for k in range(0, 50, 2):
        assert (uid_of(k) in sides[0]) == (uid_of(k + 1) in sides[0])
    assert output.classes == {"cat": 0, "bat": 9, "dog": 1, "owl": 2}
    assert [(part["name"], part["samples"], part["license"]) for part in output.parts] == [
        ("one", 30, ["mit"]), ("two", 20, ["mit"]),
    ]  # fmt: skip
    info = resharding.info("x", output)
    assert sum(split["num_samples"] for split in info["splits"].values()) == 50


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"class_id": [7] * 6}, 'the class "cat" has id 0 in one and 7 in two; give it one id in both'),
        (
            {"class_name": ["bird"] * 6, "class_id": [0] * 6},
            'id 0 is the class "cat" in one and "bird" in two',
        ),
        ({"sha256": ["0" * 64] * 6}, f"one and two hold different images under the uid {uid_of(2)}"),
    ],
)
def test_pools_that_do_not_go_together(
    columns: dict[str, Sequence[object]], message: str, tmp_path: Path
) -> None:
    one, two = joinable(tmp_path / "one", range(3)), joinable(tmp_path / "two", range(2, 8), **columns)
    with pytest.raises(FolderError) as error:
        cut_parts([one, two], {}, Settings({"train": 1.0}))
    assert message in str(error.value)


def test_joined_columns_of_other_types(tmp_path: Path) -> None:
    one = joinable(tmp_path / "one", range(8), rating=list(range(8)))
    two = joinable(tmp_path / "two", range(6, 12), rating=["good"] * 5 + ["3"])
    cells = Settings({"a": 0.5, "b": 0.5}, ["rating"])
    chosen = cut_parts([one, two], {}, cells).chosen
    codes = chosen.columns["rating"]
    assert [codes.values[k] for k in codes.numbers.tolist()] == [*"01234567", "good", "good", "good", "3"]
    with pytest.raises(FolderError, match=r'rating is "good" in two and 0 elsewhere; readers want one type'):
        cut_parts([one, two], {}, Settings({"train": 1.0}, members=["rating"]))
    lists = joinable(tmp_path / "three", range(3), tags=[["x"]] * 3)
    with pytest.raises(RecipeError, match='three: column "tags" holds lists, which are no cells'):
        cut_parts([lists], {}, Settings({"a": 0.5, "b": 0.5}, ["tags"]))


def test_json_of_joined_pools(tmp_path: Path) -> None:
    one, two = joinable(tmp_path / "one", range(8)), joinable(tmp_path / "two", [])
    said = {"seed": 0.5, "place": "sea", "n": 1}
    samples = {
        uid_of(k): members_of(k) | {"json": json.dumps({"uid": uid_of(k), **said}).encode()}
        for k in range(10, 14)
    }
    stems = make_pool(tmp_path / "two", samples, class_id=[0] * 4, class_name=["cat"] * 4)
    two = two._replace(stems=stems, subset=sort_uids(uid_array(list(samples))))
    with pytest.raises(FolderError) as error:
        cut_parts([one, two], {}, Settings({"train": 1.0}))
    assert "seed (a whole number in one, a number in two), place (absent in one, text in two)" in str(
        error.value
    )
    output = cut_parts([one, two], {}, Settings({"train": 1.0}, json_keys="common"))
    write(output, tmp_path)
    for key, members in read_tars(tmp_path / "final"):
        number = next(k for k in range(50) if uid_of(k) == key)
        place = "sea" if number >= 10 else ""
        assert json.loads(members["json"]) == {"uid": key, "place": place}
        assert members | {"json": b""} == members_of(number) | {"json": b""}
    lacking = make_pool(tmp_path / "three", {uid_of(k): members_of(k) | {"jpeg": b""} for k in range(60, 63)})
    three = Part("three", tmp_path / "three", lacking, [], sort_uids(uid_array([uid_of(60)])))
    with pytest.raises(
        FolderError, match="8 samples of one have the members cls, jpg, json, txt, 1 of three"
    ):
        cut_parts([one, three], {}, Settings({"train": 1.0}))


def test_runs_are_joined_by_command(run: Path, tmp_path: Path) -> None:
    """Another subset of another run; a changed one, and one that is left out, are errors that name it."""
    from synthgen.cli import main

    other = Path(shutil.copytree(run, tmp_path / "other"))
    reshard(other, "select.0.column=clip_similarity", "select.2.fraction=0.5", subset="few")
    few = np.load(other / "subsets" / "few.npy")
    assert len(few)
    synthgen.run("emoji", run, settings=[*SMALL, "select=[]"], stages=("select",), subset="all")
    command = ["reshard", "emoji", "-o", str(run), "--subset", "joined"]
    command += [part for setting in [*SMALL, "select.0.minimum=0.1"] for part in ("--set", setting)]
    assert main(["select", *command[1:]]) == 0
    assert main([*command, "--add", f"{other}:few", "--add", f"{run}:all"]) == 0
    own = np.load(run / "subsets" / "joined.npy")
    final = run / "final" / "joined"
    assert {key for key, _ in read_tars(final)} == set(uid_strings(np.load(run / "subsets" / "all.npy")))
    sources = storage.read_json(final / "_info.json")["sources"]
    both = len(np.union1d(own, few))
    assert [(one["name"], one["samples"]) for one in sources] == [
        ("run:joined", len(own)),
        ("other:few", both - len(own)),
        ("run:all", 48 - both),
    ]
    assert "| other:few |" in (final / "README.md").read_text()
    assert synthgen.verify(run) == []
    synthgen.run("emoji", run, settings=[*SMALL, "select.0.minimum=0.1"], stages=("select",), subset="joined")
    keys = {"settings": [*SMALL, "select.0.minimum=0.1"], "stages": ("reshard",), "subset": "joined"}
    with pytest.raises(FolderError, match=r"was made with --add other:few; give that again"):
        synthgen.run("emoji", run, **keys)  # type: ignore[arg-type]
    np.save(other / "subsets" / "few.npy", few[1:])
    with pytest.raises(FolderError, match=r"made with reshard\.add\.other:few = .*, now it would be"):
        synthgen.run("emoji", run, add=[f"{other}:few", f"{run}:all"], **keys)  # type: ignore[arg-type]
    with pytest.raises(FolderError, match=r"--add nowhere: no run there with a subset; RUN\[:SUBSET\]"):
        synthgen.run("emoji", run, add=["nowhere"], **keys)  # type: ignore[arg-type]
    with pytest.raises(FolderError, match=r"no subset none; known: few, .*main"):
        synthgen.run("emoji", run, add=[f"{other}:none"], **keys)  # type: ignore[arg-type]
