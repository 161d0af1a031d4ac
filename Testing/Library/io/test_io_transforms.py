"""What DeepReg writes, ITK (and Slicer) apply alike; what ITK writes, DeepReg applies alike."""

from __future__ import annotations

import itertools

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from DeepRegLib.errors import FileFormatError, InputError
from DeepRegLib.geometry.bspline import BSpline, BSplineLattice
from DeepRegLib.geometry.field import Field
from DeepRegLib.geometry.grid import Grid
from DeepRegLib.geometry.transform import Transform
from DeepRegLib.io.images import write_image
from DeepRegLib.io.itk_transform import (
    flip_points,
    grid_from_itk,
    grid_to_itk,
    read_transform,
    transform_from_sitk,
    transform_to_sitk,
    write_transform,
)

IMAGES = (".nrrd", ".nii.gz", ".nii", ".mha")
TRANSFORMS = (".h5", ".hdf5")
LINEAR = (".tfm", ".txt", ".mat")


def points_in(grid: Grid, count: int = 200) -> np.ndarray:
    """Random points between the outermost voxel centers."""
    random = np.random.default_rng(1).random((count, 3))
    return grid.to_ras(random * (np.array(grid.shape) - 1))


def map_by_itk(transform: sitk.Transform, points_ras: np.ndarray) -> np.ndarray:
    points = (points_ras * (-1, -1, 1)).tolist()
    return np.array([transform.TransformPoint(p) for p in points]) * (-1, -1, 1)


def load_in_itk(path) -> sitk.Transform:
    if path.suffix in (".nrrd", ".gz", ".nii", ".mha"):
        return sitk.DisplacementFieldTransform(sitk.ReadImage(str(path), sitk.sitkVectorFloat64))
    return sitk.ReadTransform(str(path))


def test_grid_there_and_back(grid):
    geometry = grid_to_itk(grid)
    assert list(geometry.size) == list(grid.shape[::-1])
    again = grid_from_itk(geometry)
    assert again.shape == grid.shape
    np.testing.assert_allclose(again.voxel_to_ras, grid.voxel_to_ras, atol=1e-12)


def test_flip_leaves_its_input():
    points = np.array([[1.0, 2.0, 3.0]])
    assert flip_points(points).tolist() == [[-1.0, -2.0, 3.0]]
    assert points.tolist() == [[1.0, 2.0, 3.0]]


@pytest.mark.parametrize(
    "vector", [(0.1, 0.2, -0.15), (np.pi / 2, 0, 0), (0, 0, 3.1), (-1.5, 1, 2)]
)
@pytest.mark.parametrize("suffix", [*TRANSFORMS, *LINEAR])
def test_rigid_map_is_exact(tmp_path, scene, vector, suffix):
    fixed = scene.make_grid("lps")
    transform = Transform(scene.rigid_matrix(vector))
    write_transform(transform, tmp_path / f"rigid{suffix}", fixed)
    points = points_in(fixed) * 3
    found = map_by_itk(load_in_itk(tmp_path / f"rigid{suffix}"), points)
    np.testing.assert_allclose(found, transform.map_points_ras(points), atol=1e-5)
    again = read_transform(tmp_path / f"rigid{suffix}")
    np.testing.assert_allclose(again.linear, transform.linear, atol=1e-7)


def test_rigid_map_is_written_as_euler(scene):
    fixed = scene.make_grid()
    assert transform_to_sitk(Transform(scene.rigid_matrix()), fixed).GetName() == "Euler3DTransform"
    assert transform_to_sitk(Transform(scene.affine_matrix()), fixed).GetName() == "AffineTransform"
    mirror = Transform(np.diag([-1.0, 1.0, 1.0, 1.0]))
    assert transform_to_sitk(mirror, fixed).GetName() == "AffineTransform"


@pytest.mark.parametrize("suffix", [*TRANSFORMS, *IMAGES])
def test_itk_maps_points_alike(tmp_path, grid, deformable, suffix):
    path = tmp_path / f"warp{suffix}"
    write_transform(deformable, path, grid)
    expected = deformable.map_points_ras(points_in(grid))
    # Well below the 0.02 voxel (0.016 mm) that are asked for.
    np.testing.assert_allclose(map_by_itk(load_in_itk(path), points_in(grid)), expected, atol=1e-4)
    again = read_transform(path)
    np.testing.assert_allclose(again.map_points_ras(points_in(grid)), expected, atol=1e-4)


def test_parts_of_a_composite_stay_apart(tmp_path, scene, grid, deformable):
    write_transform(deformable, tmp_path / "warp.h5", grid)
    again = read_transform(tmp_path / "warp.h5")
    np.testing.assert_allclose(again.linear, deformable.linear, atol=1e-10)
    assert again.field.grid.matches(grid)
    torch.testing.assert_close(again.field.displacement, deformable.field.displacement, atol=1e-5,
                               rtol=0)  # fmt: skip
    far = grid.corners_ras() + [500.0, 400.0, -300.0]
    np.testing.assert_allclose(again.map_points_ras(far), deformable.map_points_ras(far), atol=1e-3)


@pytest.mark.parametrize("suffix", [".h5", ".nrrd", ".nii.gz"])
@pytest.mark.parametrize("kind", ["linear", "deformable"])
def test_itk_resamples_images_alike(tmp_path, scene, grid, deformable, kind, suffix):
    transform = deformable if kind == "deformable" else Transform(deformable.linear)
    moving = scene.smooth_image(scene.moving_grid(grid))
    ours = transform.warp(moving.data, moving.grid, grid, fill=-1000.0)[0, 0].numpy()
    write_image(scene.smooth_image(grid), tmp_path / "fixed.nrrd")
    write_image(moving, tmp_path / "moving.nii.gz")
    write_transform(transform, tmp_path / f"t{suffix}", grid)
    theirs = sitk.Resample(
        sitk.ReadImage(str(tmp_path / "moving.nii.gz")),
        sitk.ReadImage(str(tmp_path / "fixed.nrrd")),
        load_in_itk(tmp_path / f"t{suffix}"),
        sitk.sitkLinear,
        -1000.0,
    )
    theirs = sitk.GetArrayFromImage(theirs)
    both = (ours > -900) & (theirs > -900)
    assert both.mean() > 0.9 and ((ours > -900) ^ (theirs > -900)).mean() < 0.01
    # Gray values change by at most this much over one voxel.
    known = np.where(both, ours, np.nan)
    steepest = max(np.nanmax(np.abs(np.diff(known, axis=axis))) for axis in range(3))
    assert np.abs(ours - theirs)[both].max() < 0.02 * steepest


def test_field_on_a_coarser_grid_is_written_on_the_fixed_grid(tmp_path, scene):
    fixed = scene.make_grid()
    coarse = scene.smooth_field(fixed.resized((9, 11, 14)), 1.0)
    transform = Transform(scene.affine_matrix(), coarse)
    write_transform(transform, tmp_path / "warp.h5", fixed)
    voxels = np.indices(fixed.shape).reshape(3, -1).T[::97]
    points = fixed.to_ras(voxels)
    found = map_by_itk(load_in_itk(tmp_path / "warp.h5"), points)
    np.testing.assert_allclose(found, transform.map_points_ras(points), atol=1e-4)


def test_writing_and_reading_leave_arrays_alone(tmp_path, grid, deformable):
    before = deformable.field.displacement.clone()
    for suffix in (".h5", ".nrrd"):
        write_transform(deformable, tmp_path / f"warp{suffix}", grid)
    assert torch.equal(deformable.field.displacement, before)
    image = sitk.ReadImage(str(tmp_path / "warp.nrrd"), sitk.sitkVectorFloat64)
    held = sitk.GetArrayFromImage(image)
    itk = sitk.DisplacementFieldTransform(sitk.Image(image))
    read = transform_from_sitk(itk)
    read.field.displacement.zero_()
    np.testing.assert_array_equal(sitk.GetArrayFromImage(itk.GetDisplacementField()), held)


def test_nifti_vectors_are_lps_with_the_code_that_all_read_alike(tmp_path, grid):
    shift = np.eye(4)
    shift[:3, 3] = (1.5, -2.5, 4.0)
    write_transform(Transform(shift), tmp_path / "warp.nii.gz", grid)
    loaded = nibabel.load(tmp_path / "warp.nii.gz")
    assert loaded.header["intent_code"] == 1007 and loaded.shape[3:] == (1, 3)
    np.testing.assert_allclose(loaded.dataobj[2, 3, 4, 0], (-1.5, 2.5, 4.0), atol=1e-5)
    # Slicer writes the code "displacement" (1006), whose vectors are RAS in the file.
    vectors = np.asarray(loaded.dataobj) * (-1, -1, 1)
    header = loaded.header.copy()
    header.set_intent(1006)
    nibabel.save(nibabel.Nifti1Image(vectors, loaded.affine, header), tmp_path / "slicer.nii.gz")
    for name in ("warp.nii.gz", "slicer.nii.gz"):
        mapped = read_transform(tmp_path / name).map_points_ras(points_in(grid))
        np.testing.assert_allclose(mapped - points_in(grid), np.tile(shift[:3, 3], (200, 1)),
                                   atol=1e-4)  # fmt: skip


def linear_types() -> dict[str, sitk.Transform]:
    euler = sitk.Euler3DTransform((10, 20, 30), 0.1, -0.2, 0.3, (1, 2, 3))
    euler_zyx = sitk.Euler3DTransform(euler)
    euler_zyx.SetComputeZYX(True)
    affine = sitk.AffineTransform((1, 0.1, 0, 0, 1.1, 0.2, 0, 0, 0.9), (1, 2, 3), (10, 20, 30))
    similarity = sitk.Similarity3DTransform(1.2, (0, 0, 1), 0.3, (1, 2, 3), (10, 20, 30))
    skew = sitk.ScaleSkewVersor3DTransform()
    skew.SetParameters([0.1, 0.1, 0, 1, 2, 3, 1.1, 1.0, 0.9, 0.01, 0, 0, 0.02, 0, 0])
    return {
        "euler": euler,
        "euler_zyx": euler_zyx,
        "versor": sitk.VersorRigid3DTransform((0, 1, 0), 0.4, (1, 2, 3), (10, 20, 30)),
        "similarity": similarity,
        "scale_skew": skew,
        "scale": sitk.ScaleTransform(3, (1.1, 0.9, 1.3)),
        "affine": affine,
        "translation": sitk.TranslationTransform(3, (1, 2, 3)),
        "identity": sitk.Transform(3, sitk.sitkIdentity),
        "composite": sitk.CompositeTransform([euler, affine, similarity]),
    }


@pytest.mark.parametrize("name", list(linear_types()))
@pytest.mark.parametrize("suffix", [".h5", ".tfm"])
def test_every_linear_type_is_read(tmp_path, scene, name, suffix):
    source = linear_types()[name]
    sitk.WriteTransform(source, str(tmp_path / f"t{suffix}"))
    found = read_transform(tmp_path / f"t{suffix}")
    points = points_in(scene.make_grid())
    assert found.is_linear
    np.testing.assert_allclose(found.map_points_ras(points), map_by_itk(source, points), atol=1e-9)


def test_single_precision_and_base_class_files_are_read(tmp_path):
    for number, name in enumerate(
        ("AffineTransform_float_3_3", "MatrixOffsetTransformBase_double_3_3")
    ):
        path = tmp_path / f"{number}.tfm"
        path.write_text(
            f"#Insight Transform File V1.0\n#Transform 0\nTransform: {name}\n"
            "Parameters: 1 0 0 0 1 0 0 0 1 1 2 3\nFixedParameters: 0 0 0\n"
        )
        np.testing.assert_allclose(read_transform(path).linear[:3, 3], (-1, -2, 3))


def test_field_between_linear_maps_is_exact(tmp_path, grid, deformable):
    field = transform_to_sitk(Transform(np.eye(4), deformable.field), grid)
    types = linear_types()
    first = sitk.AffineTransform((1, 0.02, 0, 0, 1.01, 0.03, 0, 0, 0.99), (0.5, -0.4, 0.3))
    chain = sitk.CompositeTransform([types["similarity"], field, first])
    sitk.WriteTransform(chain, str(tmp_path / "chain.h5"))
    found = read_transform(tmp_path / "chain.h5")
    points = grid.to_ras(np.random.default_rng(2).random((200, 3)) * 0.6 * np.array(grid.shape) + 3)
    np.testing.assert_allclose(found.map_points_ras(points), map_by_itk(chain, points), atol=1e-4)


def bspline(grid: Grid) -> sitk.Transform:
    geometry = grid_to_itk(grid)
    image = sitk.Image(list(geometry.size), sitk.sitkFloat32)
    image.SetOrigin(geometry.origin)
    image.SetSpacing(geometry.spacing)
    image.SetDirection(geometry.direction)
    transform = sitk.BSplineTransformInitializer(image, [4, 3, 5])
    count = len(transform.GetParameters())
    transform.SetParameters((np.random.default_rng(3).random(count) * 4 - 2).tolist())
    return transform


@pytest.mark.parametrize("kind", ["bspline", "bspline_and_affine", "two_fields"])
def test_other_transforms_are_evaluated_on_the_fixed_grid(tmp_path, grid, deformable, kind):
    field = transform_to_sitk(Transform(np.eye(4), deformable.field), grid)
    affine = linear_types()["affine"]
    chains = {
        "bspline": bspline(grid),
        "two_fields": sitk.CompositeTransform([field, field]),
        "bspline_and_affine": sitk.CompositeTransform([affine, bspline(grid)]),
    }
    chain = chains[kind]
    sitk.WriteTransform(chain, str(tmp_path / "t.h5"))
    with pytest.raises(FileFormatError, match=r"'t.h5'.*give the fixed image"):
        read_transform(tmp_path / "t.h5")
    found = read_transform(tmp_path / "t.h5", grid)
    points = grid.to_ras(np.indices(grid.shape).reshape(3, -1).T[::53])
    np.testing.assert_allclose(found.map_points_ras(points), map_by_itk(chain, points), atol=1e-3)
    expected = map_by_itk(affine, np.eye(3)) if "affine" in kind else np.eye(3)
    np.testing.assert_allclose(
        Transform(found.linear).map_points_ras(np.eye(3)), expected, atol=1e-9
    )


def spline_result(grid: Grid, mesh=(6, 7, 5), linear=None) -> Transform:
    """A transform that is held by control points, at rest at its rim."""
    lattice = BSplineLattice.between_centers(grid, mesh)
    generator = torch.Generator().manual_seed(5)
    shape = lattice.control_grid.shape
    coefficients = torch.zeros(1, 3, *shape, dtype=torch.float64)
    inner = (slice(None), slice(None), *[slice(3, -3)] * 3)
    coefficients[inner] = 3.0 * torch.randn(coefficients[inner].shape, generator=generator,
                                            dtype=torch.float64)  # fmt: skip
    spline = BSpline(lattice, coefficients)
    matrix = np.eye(4) if linear is None else linear
    return Transform(matrix, spline.field(grid), spline)


@pytest.mark.parametrize("suffix", [".h5", ".tfm", ".txt"])
@pytest.mark.parametrize("with_linear", [False, True])
def test_a_spline_is_written_with_its_control_points(tmp_path, grid, suffix, with_linear):
    """ITK reads a B-spline of order 3 that maps voxel centers as the library does."""
    linear = _product_of("affine") if with_linear else None
    transform = spline_result(grid, linear=linear)
    path = tmp_path / f"warp{suffix}"
    write_transform(transform, path, grid)
    found = sitk.ReadTransform(str(path)).Downcast()
    parts = [found]
    if with_linear:
        parts = [found.GetNthTransform(i).Downcast() for i in range(found.GetNumberOfTransforms())]
        assert len(parts) == 2 and parts[0].IsLinear()
    assert isinstance(parts[-1], sitk.BSplineTransform) and parts[-1].GetOrder() == 3
    assert parts[-1].GetTransformDomainMeshSize() == (5, 7, 6)
    between = points_in(grid)
    np.testing.assert_allclose(
        transform.map_points_ras(between), map_by_itk(found, between), atol=1e-6
    )
    points = grid.to_ras(np.indices(grid.shape).reshape(3, -1).T[::7])
    np.testing.assert_allclose(
        transform.map_points_ras(points), map_by_itk(found, points), atol=1e-3
    )
    assert np.abs(map_by_itk(found, points) - Transform(transform.linear).map_points_ras(points)
                  ).max() > 0.5  # fmt: skip
    again = read_transform(path, grid)
    np.testing.assert_allclose(
        again.map_points_ras(points), transform.map_points_ras(points), atol=1e-3
    )


def test_a_spline_is_refused_where_composites_cannot_be(tmp_path, grid):
    with pytest.raises(FileFormatError, match="cannot hold a deformation"):
        write_transform(spline_result(grid), tmp_path / "warp.mat", grid)


def test_a_sheared_grid_gets_a_displacement_field(tmp_path, grid):
    matrix = grid.voxel_to_ras.copy()
    matrix[:3, 0] += 0.2 * matrix[:3, 1]
    sheared = Grid(grid.shape, matrix)
    transform = spline_result(sheared)
    with pytest.raises(FileFormatError, match="cannot hold a deformation"):
        write_transform(transform, tmp_path / "warp.tfm", sheared)
    assert isinstance(transform_to_sitk(transform, sheared), sitk.DisplacementFieldTransform)


def _product_of(name: str) -> np.ndarray:
    return transform_from_sitk(linear_types()[name]).linear


def test_deformation_is_refused_as_text(tmp_path, grid, deformable):
    for suffix in LINEAR:
        with pytest.raises(FileFormatError, match=r"cannot hold a deformation.*\.h5"):
            write_transform(deformable, tmp_path / f"warp{suffix}", grid)
    assert not list(tmp_path.iterdir())


def test_files_that_are_no_transforms(tmp_path, scene):
    with pytest.raises(FileFormatError, match="There is no file"):
        read_transform(tmp_path / "missing.h5")
    (tmp_path / "text.tfm").write_text("hello")
    with pytest.raises(FileFormatError, match="not a transform that ITK can read"):
        read_transform(tmp_path / "text.tfm")
    write_image(scene.smooth_image(scene.make_grid()), tmp_path / "scalar.nrrd")
    with pytest.raises(InputError, match=r"1 component\(s\).*displacement image has 3"):
        read_transform(tmp_path / "scalar.nrrd")
    two = sitk.GetImageFromArray(np.zeros((4, 5, 6, 2)), isVector=True)
    sitk.WriteImage(two, str(tmp_path / "two.mha"))
    with pytest.raises(InputError, match="2 component"):
        read_transform(tmp_path / "two.mha")
    four = nibabel.Nifti1Image(np.zeros((4, 5, 6, 3), np.float32), np.eye(4))
    nibabel.save(four, tmp_path / "four.nii.gz")
    with pytest.raises(InputError, match="4 dimensions"):
        read_transform(tmp_path / "four.nii.gz")
    bad = sitk.GetImageFromArray(np.full((4, 5, 6, 3), np.nan), isVector=True)
    sitk.WriteImage(bad, str(tmp_path / "nan.nrrd"))
    with pytest.raises(InputError, match="NaN"):
        read_transform(tmp_path / "nan.nrrd")


def test_transforms_that_do_not_fit(tmp_path):
    sitk.WriteTransform(sitk.Euler2DTransform(), str(tmp_path / "flat.tfm"))
    with pytest.raises(FileFormatError, match="2-D"):
        read_transform(tmp_path / "flat.tfm")
    flat = sitk.ScaleTransform(3, (1, 1, 0))
    sitk.WriteTransform(flat, str(tmp_path / "singular.tfm"))
    with pytest.raises(FileFormatError, match="not invertible"):
        read_transform(tmp_path / "singular.tfm")


@pytest.mark.parametrize("suffix", [".h5", ".mat", ".tfm"])
def test_cut_transforms_are_refused(tmp_path, grid, suffix):
    path = tmp_path / f"t{suffix}"
    sitk.WriteTransform(linear_types()["affine"] if suffix == ".mat" else bspline(grid), str(path))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(FileFormatError, match=r"damaged|cut short"):
        read_transform(path)


def test_loose_transforms_in_one_file_are_refused(tmp_path):
    part = "Transform: AffineTransform_double_3_3\nParameters: 1 0 0 0 1 0 0 0 1 1 2 3\n" \
           "FixedParameters: 0 0 0\n"  # fmt: skip
    path = tmp_path / "two.tfm"
    path.write_text(f"#Insight Transform File V1.0\n#Transform 0\n{part}#Transform 1\n{part}")
    with pytest.raises(FileFormatError, match="2 separate transforms"):
        read_transform(path)


def test_failed_writing_leaves_nothing(tmp_path, grid, deformable, monkeypatch):
    def fail(_, name, *args):
        with open(name, "w") as stream:
            stream.write("half")
        raise RuntimeError("ITK ERROR: disk full")

    monkeypatch.setattr(sitk, "WriteTransform", fail)
    with pytest.raises(FileFormatError, match="disk full"):
        write_transform(deformable, tmp_path / "warp.h5", grid)
    assert not list(tmp_path.iterdir())


def test_half_written_displacement_is_refused(tmp_path, grid, deformable):
    for suffix in (".nii.gz", ".nrrd"):
        path = tmp_path / f"warp{suffix}"
        write_transform(deformable, path, grid)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises(FileFormatError, match=r"cut short|damaged"):
            read_transform(path)


def test_slicer_reads_what_is_written(tmp_path, scene):
    slicer = pytest.importorskip("slicer", reason="slicer-core is not installed")
    vtk = pytest.importorskip("vtk")
    fixed = scene.make_grid("left_handed")
    transform = Transform(scene.affine_matrix(), scene.smooth_field(fixed))
    nodes = slicer.vtkMRMLScene()

    def load(path, write=False):
        storage, node = slicer.vtkMRMLTransformStorageNode(), slicer.vtkMRMLTransformNode()
        for item in (storage, node):
            nodes.AddNode(item)
        storage.SetFileName(str(path))
        assert (storage.WriteData(node) if write else storage.ReadData(node)) == 1
        return node

    load(tmp_path / "factories.h5", write=True)  # Slicer registers ITK's factories on first use
    # At voxel centers: between them Slicer interpolates fields by cubic splines.
    points = fixed.to_ras(np.indices(fixed.shape).reshape(3, -1).T[::83])
    for suffix in (".nrrd", ".nii.gz", ".h5"):
        write_transform(transform, tmp_path / f"warp{suffix}", fixed)
        general = vtk.vtkGeneralTransform()
        load(tmp_path / f"warp{suffix}").GetTransformFromWorld(general)
        found = np.array([general.TransformPoint(p) for p in points.tolist()])
        np.testing.assert_allclose(found, transform.map_points_ras(points), atol=2e-3)


def test_shifted_voxel_arrives_where_it_should(tmp_path):
    """A field along one axis of a non-cubic grid moves one bright voxel, axis by axis."""
    grid = Grid((7, 9, 11), np.diag([3.0, 2.0, 1.0, 1.0]))
    for axis, step in itertools.product(range(3), (-1, 2)):
        image = torch.zeros(1, 1, *grid.shape)
        image[0, 0, 3, 4, 5] = 1.0
        displacement = torch.zeros(1, 3, *grid.shape)
        displacement[:, axis] = step
        transform = Transform(np.eye(4), Field(displacement, grid))
        write_transform(transform, tmp_path / "shift.nrrd", grid)
        found = read_transform(tmp_path / "shift.nrrd").warp(image, grid, grid)
        expected = [3, 4, 5]
        expected[axis] -= step
        assert found[0, 0].round().nonzero().tolist() == [expected]


@pytest.mark.parametrize("suffix", [".H5", ".TFM", ".NRRD"])
def test_upper_case_suffixes(tmp_path, scene, suffix):
    transform = Transform(scene.affine_matrix())
    write_transform(transform, tmp_path / f"T{suffix}", scene.make_grid())
    points = points_in(scene.make_grid())
    found = read_transform(tmp_path / f"T{suffix}").map_points_ras(points)
    np.testing.assert_allclose(found, transform.map_points_ras(points), atol=1e-4)
