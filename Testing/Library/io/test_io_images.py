"""Images survive reading and writing, and unfit files are refused in a sentence."""

from __future__ import annotations

import gzip

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from DeepRegLib.errors import FileFormatError, InputError
from DeepRegLib.geometry.grid import Grid
from DeepRegLib.io.files import WRITABLE, check_writable
from DeepRegLib.io.images import from_sitk, read_image, read_labels, to_sitk, write_image
from DeepRegLib.registration.base import Image

SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha")


def array_image(array: np.ndarray, spacing=(1.0, 1.0, 1.0)) -> sitk.Image:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    return image


def save(path, array, spacing=(1.0, 1.0, 1.0)):
    sitk.WriteImage(array_image(array, spacing), str(path))
    return path


@pytest.fixture
def noise():
    return (np.random.default_rng(0).random((12, 15, 19)) * 1000).astype(np.int16)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_round_trip_keeps_grid_values_and_type(tmp_path, scene, grid, suffix):
    image = scene.smooth_image(grid, "int16")
    write_image(image, tmp_path / f"image{suffix}")
    again = read_image(tmp_path / f"image{suffix}")
    assert again.grid.matches(grid, 1e-3)
    assert again.pixel_type == "int16" and again.data.dtype == torch.float32
    torch.testing.assert_close(again.data, image.data.round())


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_positions_are_those_of_nibabel(tmp_path, scene, grid, suffix):
    image = scene.smooth_image(grid)
    write_image(image, tmp_path / f"image{suffix}")
    if suffix == ".nrrd":
        sitk.WriteImage(
            sitk.ReadImage(str(tmp_path / "image.nrrd")), str(tmp_path / "image.nii.gz")
        )
    loaded = nibabel.load(tmp_path / "image.nii.gz")
    array = np.asarray(loaded.dataobj)
    for voxel in ((0, 0, 0), (3, 5, 7), (16, 2, 9)):
        position = image.grid.to_ras(voxel)
        index = np.linalg.inv(loaded.affine) @ [*position, 1.0]
        ijk = tuple(np.rint(index[:3]).astype(int))
        np.testing.assert_allclose(index[:3], ijk, atol=1e-3)
        assert array[ijk] == pytest.approx(float(image.data[0, 0][voxel]), abs=1e-3)


@pytest.mark.parametrize(
    "kind", ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float64"]
)
def test_every_pixel_type_is_kept(tmp_path, kind):
    values = np.arange(60).reshape(3, 4, 5).astype(kind)
    path = save(tmp_path / "image.nrrd", values)
    image = read_image(path)
    assert image.pixel_type == kind
    write_image(image, tmp_path / "out.nrrd")
    again = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out.nrrd")))
    assert again.dtype == kind
    np.testing.assert_array_equal(again, values)


def test_writing_rounds_and_clips_to_the_pixel_type():
    data = torch.tensor([[-40000.0, -1.6], [2.5, 40000.0]]).reshape(1, 1, 1, 2, 2)
    grid = Grid((1, 2, 2), np.eye(4))
    assert sitk.GetArrayFromImage(to_sitk(Image(data, grid, "int16"))).ravel().tolist() == [
        -32768, -2, 2, 32767]  # fmt: skip
    large = torch.tensor([-1e30, 1e30, 0.0, 1.0]).reshape(1, 1, 1, 2, 2)
    found = sitk.GetArrayFromImage(to_sitk(Image(large, grid, "int64"))).ravel()
    assert found[0] == np.iinfo(np.int64).min and found[1] > 9.2e18
    assert sitk.GetArrayFromImage(to_sitk(Image(large, grid, "uint8"))).ravel().tolist() == [
        0, 255, 0, 1]  # fmt: skip


def test_labels_keep_their_integers(tmp_path):
    labels = np.zeros((4, 5, 6), np.uint16)
    labels[1, 2, 3], labels[2, 2, 2] = 60000, 7
    image = read_labels(save(tmp_path / "labels.nii.gz", labels))
    assert not image.data.is_floating_point() and image.pixel_type == "uint16"
    write_image(image, tmp_path / "out.nii.gz")
    again = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out.nii.gz")))
    assert again.dtype == np.uint16
    np.testing.assert_array_equal(again, labels)


def test_float_labels_are_taken_if_whole(tmp_path):
    labels = np.zeros((4, 5, 6), np.float32)
    labels[1, 2, 3] = 3.0
    assert read_labels(save(tmp_path / "whole.nrrd", labels)).data.dtype == torch.int16
    labels[0, 0, 0] = 0.5
    with pytest.raises(InputError, match=r"'p.nrrd'.*whole numbers.*0.5.*threshold"):
        read_labels(save(tmp_path / "p.nrrd", labels))
    labels[0, 0, 0] = np.nan
    with pytest.raises(InputError, match="NaN"):
        read_labels(save(tmp_path / "p.nrrd", labels))


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".vtk", ".gipl", ".tif"])
def test_cut_files_are_refused(tmp_path, noise, suffix):
    path = save(tmp_path / f"image{suffix}", noise)
    content = path.read_bytes()
    for share in (0.3, 0.6, 0.97):
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(FileFormatError, match=r"cut short|damaged"):
            read_image(path)


def test_whole_stream_around_half_a_volume_is_refused(tmp_path, noise):
    content = save(tmp_path / "image.nii", noise).read_bytes()
    path = tmp_path / "half.nii.gz"
    path.write_bytes(gzip.compress(content[: len(content) // 2]))
    with pytest.raises(FileFormatError, match=r"cut short: .* bytes are expected"):
        read_image(path)


def test_damaged_stream_is_refused(tmp_path, noise):
    path = save(tmp_path / "image.nii.gz", noise)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match="damaged"):
        read_image(path)


def test_nii_gz_beside_nii_gives_its_own_voxels(tmp_path, noise):
    save(tmp_path / "image.nii", noise + 500)
    path = save(tmp_path / "image.nii.gz", noise)
    np.testing.assert_array_equal(read_image(path).numpy(), noise)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("missing.nii.gz", None, "There is no file"),
        ("empty.nrrd", b"", "empty file"),
        ("text.nrrd", b"hello " * 100, "not an image that can be read"),
        ("text.nii.gz", b"hello " * 100, "cut short or damaged"),
        ("image.xyz", b"hello " * 100, "not an image that can be read"),
    ],
)
def test_files_that_are_no_images(tmp_path, name, content, sentence):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(FileFormatError, match=sentence):
        read_image(tmp_path / name)


def test_other_kinds_of_images_are_refused(tmp_path, noise):
    series = sitk.JoinSeries([array_image(noise), array_image(noise)])
    sitk.WriteImage(series, str(tmp_path / "series.nii.gz"))
    with pytest.raises(InputError, match=r"4 dimensions \(2 time points.*extract one"):
        read_image(tmp_path / "series.nii.gz")
    color = sitk.GetImageFromArray(np.zeros((4, 5, 6, 3), np.uint8), isVector=True)
    sitk.WriteImage(color, str(tmp_path / "color.nrrd"))
    for reader in (read_image, read_labels):
        with pytest.raises(InputError, match="3 components in each voxel"):
            reader(tmp_path / "color.nrrd")


@pytest.mark.parametrize(
    ("value", "spacing", "sentence"),
    [
        (np.nan, 1.0, "1 voxels that are NaN or infinite"),
        (np.inf, 1.0, "NaN or infinite"),
        (5.0, 0.001, r"meters.*by 1000"),
        (5.0, 1000.0, r"micrometers.*by 1000"),
    ],
)
def test_unfit_values_and_units(tmp_path, noise, value, spacing, sentence):
    array = noise.astype(np.float32)
    array[1, 2, 3] = value
    with pytest.raises(InputError, match=sentence):
        read_image(save(tmp_path / "image.nrrd", array, (spacing,) * 3))


def test_constant_image_is_refused_but_constant_labels_are_not(tmp_path):
    path = save(tmp_path / "image.nrrd", np.full((4, 5, 6), 3, np.int16))
    with pytest.raises(InputError, match="value 3 everywhere"):
        read_image(path)
    assert int(read_labels(path).data.sum()) == 360


def test_unusual_but_sound_images_work(tmp_path, noise):
    assert read_image(save(tmp_path / "ct.nrrd", noise, (0.14, 0.14, 0.14))).grid.shape == (
        12,
        15,
        19,
    )
    slice_ = read_image(save(tmp_path / "slice.nii.gz", noise[:1]))
    assert slice_.grid.shape == (1, 15, 19)
    flat = read_image(save(tmp_path / "flat.png", (noise[0] % 255).astype(np.uint8), (1.0, 1.0)))
    assert flat.grid.shape == (1, 15, 19) and flat.pixel_type == "uint8"
    one = sitk.JoinSeries([array_image(noise)])
    sitk.WriteImage(one, str(tmp_path / "one.nrrd"))
    np.testing.assert_array_equal(read_image(tmp_path / "one.nrrd").numpy(), noise)
    umlaut = save(tmp_path / "Größe mit Leerzeichen.nii.gz", noise)
    np.testing.assert_array_equal(read_image(umlaut).numpy(), noise)


def write_dicom(folder, volume, skip=(), series="1.2.3"):
    folder.mkdir(exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for k in range(volume.shape[0]):
        if k in skip:
            continue
        image = sitk.GetImageFromArray(volume[k])
        tags = {"0020|000e": series, "0020|000d": "1.2", "0008|0018": f"{series}.{k + 1}",
                "0020|0032": f"10\\20\\{3 * k}", "0020|0037": "1\\0\\0\\0\\1\\0",
                "0020|0013": str(k), "0008|0060": "CT", "0028|0030": "1\\1"}  # fmt: skip
        for tag, value in tags.items():
            image.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{series}_{k}.dcm"))
        writer.Execute(image)


def test_dicom_folder(tmp_path, noise):
    volume = noise[:6]
    write_dicom(tmp_path / "series", volume)
    image = read_image(tmp_path / "series")
    np.testing.assert_array_equal(image.numpy(), volume)
    np.testing.assert_allclose(image.grid.spacing_mm, (3, 1, 1))
    np.testing.assert_allclose(image.grid.to_ras((0, 0, 0)), (-10, -20, 0))
    write_dicom(tmp_path / "gap", volume, skip=(3,))
    with pytest.raises(InputError, match="slices are missing"):
        read_image(tmp_path / "gap")
    write_dicom(tmp_path / "series", volume, series="1.2.4")
    with pytest.raises(FileFormatError, match="holds 2 DICOM series"):
        read_image(tmp_path / "series")
    (tmp_path / "none").mkdir()
    with pytest.raises(FileFormatError, match="no DICOM"):
        read_image(tmp_path / "none")


def test_from_sitk_does_not_share_memory(noise):
    source = array_image(noise.astype(np.float32))
    image = from_sitk(source)
    image.data.zero_()
    np.testing.assert_array_equal(sitk.GetArrayFromImage(source), noise)


def test_sheared_grid_is_not_written_as_nifti(tmp_path, scene):
    matrix = np.eye(4)
    matrix[0, 1] = 0.2
    image = scene.smooth_image(Grid((5, 6, 7), matrix))
    with pytest.raises(FileFormatError, match=r"right angles.*\.nrrd"):
        write_image(image, tmp_path / "image.nii.gz")
    write_image(image, tmp_path / "image.nrrd")
    assert read_image(tmp_path / "image.nrrd").grid.matches(image.grid)


def test_failed_writing_leaves_the_old_file_and_nothing_else(tmp_path, scene, monkeypatch):
    image = scene.smooth_image(scene.make_grid())
    path = tmp_path / "image.nrrd"
    path.write_text("old")

    def fail(_, name, *args):
        with open(name, "w") as stream:
            stream.write("half")
        raise RuntimeError("ITK ERROR: No space left on device")

    monkeypatch.setattr(sitk, "WriteImage", fail)
    with pytest.raises(FileFormatError, match="could not be written: No space left"):
        write_image(image, path)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["image.nrrd"]


@pytest.mark.parametrize(
    ("name", "kind", "sentence"),
    [
        ("image.jpg", "image", r"'.jpg'.*not one of .nii.gz"),
        ("image", "image", "rename it"),
        ("warp.tfm", "deformable", r"huge list.*\.h5"),
        ("nowhere/image.nrrd", "image", "does not exist"),
        ("folder.nrrd", "image", "is a folder"),
        ("points.mrk", "landmarks", "not one of .mrk.json"),
    ],
)
def test_outputs_are_checked_before_a_run(tmp_path, name, kind, sentence):
    (tmp_path / "folder.nrrd").mkdir()
    with pytest.raises(FileFormatError, match=sentence):
        check_writable(tmp_path / name, kind)


def test_fit_outputs_pass_and_leave_no_trace(tmp_path):
    for kind, suffixes in WRITABLE.items():
        for suffix in suffixes:
            check_writable(tmp_path / f"out{suffix}", kind)
            check_writable(tmp_path / f"OUT{suffix.upper()}", [kind, "image"])
    assert not list(tmp_path.iterdir())


def test_upper_case_suffixes_and_links(tmp_path, scene):
    image = scene.smooth_image(scene.make_grid())
    for suffix in (".NRRD", ".NII.GZ", ".Mha"):
        write_image(image, tmp_path / f"IMAGE{suffix}")
        torch.testing.assert_close(read_image(tmp_path / f"IMAGE{suffix}").data, image.data)
    (tmp_path / "there").mkdir()
    (tmp_path / "link.nrrd").symlink_to(tmp_path / "there" / "image.nrrd")
    write_image(image, tmp_path / "link.nrrd")
    assert (tmp_path / "link.nrrd").is_symlink() and (tmp_path / "there" / "image.nrrd").is_file()
