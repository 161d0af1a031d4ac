"""Subjects come from folders, tables and BIDS data sets; people are never on both sides."""

import pytest

from DeepRegLib.errors import FileFormatError, InputError
from DeepRegLib.training.subjects import (
    Subject,
    find_subjects,
    from_bids,
    from_csv,
    from_folder,
    split_subjects,
)


def make(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return folder


def told(subjects):
    return {
        s.name: (s.image.name, None if s.labels is None else s.labels.name, s.group)
        for s in subjects
    }


def test_images_beside_their_label_maps(tmp_path):
    make(tmp_path, "10_t1.nii.gz", "10_seg.nii.gz", "1_t1.nii.gz", "1_seg.nii.gz", "2_t1.nrrd",
         "notes.txt", ".hidden.nii")  # fmt: skip
    assert told(find_subjects(tmp_path)) == {
        "1": ("1_t1.nii.gz", "1_seg.nii.gz", "1"),
        "10": ("10_t1.nii.gz", "10_seg.nii.gz", "10"),
        "2_t1": ("2_t1.nrrd", None, "2_t1"),
    }


def test_images_and_labels_in_folders(tmp_path):
    make(tmp_path, "images/a.mha", "images/b.mha", "labels/a.mha", "labels/b_seg.nii")
    assert told(find_subjects(tmp_path)) == {
        "a": ("a.mha", "a.mha", "a"),
        "b": ("b.mha", "b_seg.nii", "b"),
    }


def test_a_folder_of_label_maps_only(tmp_path):
    make(tmp_path, "1_seg.nii.gz", "2_seg.nii.gz")
    assert told(find_subjects(tmp_path)) == {
        "1_seg": ("1_seg.nii.gz", None, "1_seg"),
        "2_seg": ("2_seg.nii.gz", None, "2_seg"),
    }


def test_patterns_choose_one_kind(tmp_path):
    make(tmp_path, "01_t1.nii.gz", "01_flair.nii.gz", "01_seg.nii.gz", "02_t1.nii.gz")
    with pytest.raises(InputError, match=r"several images.*'\*_t1\.nii\.gz'"):
        find_subjects(tmp_path)
    assert told(from_folder(tmp_path, "*_t1.nii.gz", "*_seg.nii.gz")) == {
        "01": ("01_t1.nii.gz", "01_seg.nii.gz", "01"),
        "02": ("02_t1.nii.gz", None, "02"),
    }
    make(tmp_path, "scans/ann/v1.dcm", "scans/bob/v1.dcm")  # DICOM folders
    assert set(told(from_folder(tmp_path, "scans/*"))) == {"ann", "bob"}


def test_persons_by_an_expression(tmp_path):
    make(tmp_path, "ann_v1.nii", "ann_v2.nii", "bob_v1.nii")
    groups = [s.group for s in from_folder(tmp_path, person=r"(.+)_v\d")]
    assert groups == ["ann", "ann", "bob"]
    with pytest.raises(InputError, match="regular expression"):
        from_folder(tmp_path, person="(")
    with pytest.raises(InputError, match="regular expression"):
        from_folder(tmp_path, person="ann")


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_table(tmp_path, separator):
    make(tmp_path, "data/a.nii.gz", "data/a_s.nii.gz", "data/b.nii.gz")
    lines = [
        ["image", "Labels", "name", "group", "split"],
        ["data/a.nii.gz", "data/a_s.nii.gz", "first", "ann", "val"],
        ["data/b.nii.gz", "", "", "", "training"],
        ["", "", "", "", ""],
    ]
    table = tmp_path / "list.csv"
    table.write_text("\ufeff" + "\n".join(separator.join(line) for line in lines), "utf-8")
    first, second = find_subjects(table)
    assert (first.name, first.group, first.split) == ("first", "ann", "validation")
    assert first.labels == tmp_path / "data" / "a_s.nii.gz"
    assert (second.name, second.group, second.split, second.labels) == ("b", "b", "train", None)


@pytest.mark.parametrize(
    ("text", "error", "sentence"),
    [
        ("picture\na.nii", FileFormatError, "columns: image"),
        ("image,sex\na.nii,f", FileFormatError, "columns: image"),
        ("image\nmissing.nii", InputError, r"line 2.*missing\.nii"),
        ("image,split\na.nii,maybe", InputError, "line 2.*maybe"),
        ("image,name\na.nii,x\n,y", InputError, "line 3 has no image"),
        ("image\na.nii\na.nii", InputError, "Two images have the name 'a'"),
        ("image\n", InputError, "no subjects"),
        ("", FileFormatError, "columns: image"),
    ],
)
def test_tables_that_do_not_fit(tmp_path, text, error, sentence):
    make(tmp_path, "a.nii")
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(error, match=sentence):
        from_csv(tmp_path / "list.csv")


def test_a_table_that_is_an_image(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"\x1f\x8b\xff\xfe\x00")
    with pytest.raises(FileFormatError, match="CSV table"):
        find_subjects(tmp_path / "a.csv")
    with pytest.raises(FileFormatError, match="There is no"):
        find_subjects(tmp_path / "nothing")


def test_bids(tmp_path):
    make(
        tmp_path,
        "sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz",
        "sub-01/ses-1/anat/sub-01_ses-1_T2w.nii.gz",
        "sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz",
        "sub-02/anat/sub-02_acq-fast_T1w.nii.gz",
        "derivatives/fs/sub-01/ses-1/anat/sub-01_ses-1_desc-aseg_dseg.nii.gz",
        "derivatives/fs/sub-01/ses-1/anat/sub-01_ses-1_space-MNI_dseg.nii.gz",
        "derivatives/fs/sub-02/anat/sub-02_acq-fast_dseg.nii.gz",
        "derivatives/fs/sub-02/anat/sub-02_acq-fast_desc-aseg_dseg.nii.gz",
    )
    found = told(find_subjects(tmp_path))
    assert found == {
        "sub-01_ses-1": (
            "sub-01_ses-1_T1w.nii.gz",
            "sub-01_ses-1_desc-aseg_dseg.nii.gz",
            "sub-01",
        ),
        "sub-01_ses-2": ("sub-01_ses-2_T1w.nii.gz", None, "sub-01"),
        "sub-02_acq-fast": (
            "sub-02_acq-fast_T1w.nii.gz",
            "sub-02_acq-fast_dseg.nii.gz",
            "sub-02",
        ),
    }
    assert [s.image.name for s in from_bids(tmp_path, "T2w")] == ["sub-01_ses-1_T2w.nii.gz"]
    with pytest.raises(InputError, match="FLAIR"):
        from_bids(tmp_path, "FLAIR")
    make(tmp_path, "derivatives/other/sub-02/anat/sub-02_acq-fast_dseg.nii.gz")
    with pytest.raises(InputError, match="Several segmentations"):
        from_bids(tmp_path)


@pytest.mark.parametrize(
    ("names", "arguments", "sentence"),
    [
        ((), {}, "no images"),
        (("a.nii",), {"images": "b*.nii"}, r"no file fits 'b\*\.nii'"),
        (("a.nii",), {"images": "a.nii"}, r"one '\*'"),
        (("a.nii", "a.nii.gz"), {}, "same name"),
        (("a.nii", "b_seg.nii"), {}, "no label map"),
    ],
)
def test_folders_that_do_not_fit(tmp_path, names, arguments, sentence):
    make(tmp_path, *names)
    with pytest.raises(InputError, match=sentence):
        from_folder(tmp_path, **arguments)


def people(count, scans=2, **more):
    return [
        Subject(f"p{i}_{j}", f"p{i}_{j}.nii", group=f"p{i}", **more)
        for i in range(count)
        for j in range(scans)
    ]


def test_people_are_never_on_both_sides():
    subjects = people(10)
    train, validation = split_subjects(subjects, 0.3, seed=4)
    assert len({s.group for s in validation}) == 3 and len(validation) == 6 and len(train) == 14
    assert {s.group for s in train}.isdisjoint(s.group for s in validation)
    again = split_subjects(subjects, 0.3, seed=4)
    assert [s.name for s in again[1]] == [s.name for s in validation]
    others = [split_subjects(subjects, 0.3, seed=k)[1] for k in range(5, 9)]
    assert any({s.group for s in o} != {s.group for s in validation} for o in others)
    # The order of the list says nothing of who validates.
    shuffled = split_subjects(subjects[::-1], 0.3, seed=4)[1]
    assert {s.group for s in shuffled} == {s.group for s in validation}


def test_given_splits_are_kept():
    subjects = people(1, split="train") + [
        Subject("v", "v.nii", split="validation"),
        Subject("t", "t.nii", split="test"),
        Subject("n", "n.nii"),
    ]
    train, validation = split_subjects(subjects, 0.5)
    assert [s.name for s in train] == ["p0_0", "p0_1", "n"]
    assert [s.name for s in validation] == ["v"]


def test_splits_that_cannot_be():
    with pytest.raises(InputError, match="'p0'"):
        split_subjects([*people(1, split="train"), Subject("x", "x", group="p0", split="test")])
    with pytest.raises(InputError, match="1 in all"):
        split_subjects(people(1))
    with pytest.raises(InputError, match="No subject is left"):
        split_subjects(people(1, split="validation"))
    train, validation = split_subjects(people(1), share=0.0)
    assert len(train) == 2 and validation == []
