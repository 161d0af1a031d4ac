"""The parts of the benchmarks that compute without running anything: measures, tables, the plan."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from DeepRegLib.geometry.field import Field
from DeepRegLib.geometry.grid import Grid
from DeepRegLib.geometry.transform import Transform
from DeepRegLib.io.itk_transform import grid_to_itk, write_displacement
from DeepRegLib.registration.base import Image

BENCHMARKS = Path(__file__).resolve().parents[2] / "Benchmarks"
sys.path[:0] = [str(BENCHMARKS), str(BENCHMARKS / "peers")]

import compare
import compare_table
import protocol
import readme_table
from peers import environments, evaluate


def oblique_grid() -> Grid:
    """A non-cubic, anisotropic, oblique grid."""
    angle = 0.3
    turn = np.array(
        [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    )
    matrix = np.eye(4)
    matrix[:3, :3] = turn @ np.diag([1.5, -2.0, 1.2])
    matrix[:3, 3] = (12, -30, 5)
    return Grid((14, 11, 17), matrix)


def itk_image(grid: Grid) -> sitk.Image:
    size, origin, spacing, direction = grid_to_itk(grid)
    image = sitk.Image([int(n) for n in size], sitk.sitkFloat32)
    image.SetOrigin(origin)
    image.SetSpacing(spacing)
    image.SetDirection(direction)
    return image


def smooth_field(grid: Grid, scale: float) -> Field:
    where = np.indices(grid.shape).astype(float)
    waves = [scale * np.sin(where[c] / 3 + where[(c + 1) % 3] / 4 + c) for c in range(3)]
    return Field(torch.from_numpy(np.stack(waves)[None]).float(), grid)


def image_of(array: np.ndarray, grid: Grid) -> Image:
    return Image.from_array(array, grid)


class TestProtocol:
    def test_chain_applies_the_first_transform_first(self):
        # T(p) = linear(p + u(p)): the field comes first, as greedy and ANTs give theirs.
        grid = oblique_grid()
        linear = np.eye(4)
        linear[:3, :3] += [[0.05, 0.1, 0], [-0.08, 0, 0.02], [0, 0.03, -0.04]]
        linear[:3, 3] = (4, -3, 2)
        truth = Transform(linear, smooth_field(grid, 0.8))
        flip = np.diag([-1.0, -1.0, 1.0, 1.0])
        fixed = itk_image(grid)
        vectors = np.moveaxis(truth.field.to_ras_mm()[0].numpy(), 0, -1) * [-1, -1, 1]
        field = sitk.GetImageFromArray(vectors, isVector=True)
        field.CopyInformation(fixed)
        parts = (protocol.field_transform(field), protocol.affine_transform(flip @ linear @ flip))
        total = sitk.GetArrayFromImage(protocol.dense(protocol.chain(*parts), fixed))
        expected = truth.displacement_ras_mm(grid)[0].numpy()
        inside = (slice(1, -1),) * 3
        found = np.moveaxis(total * [-1, -1, 1], -1, 0)
        assert np.abs(found - expected)[(slice(None), *inside)].max() < 1e-3
        swapped = sitk.GetArrayFromImage(protocol.dense(protocol.chain(*parts[::-1]), fixed))
        assert np.abs(swapped - total)[inside].max() > 0.05

    def test_matrix_of_a_linear_transform(self):
        matrix = np.eye(4)
        matrix[:3] = np.random.default_rng(1).normal(size=(3, 4))
        found = protocol.lps_matrix(protocol.affine_transform(matrix))
        np.testing.assert_allclose(found, matrix, atol=1e-12)

    def test_an_error_is_reported_and_not_hidden(self, tmp_path, monkeypatch):
        job = tmp_path / "job.json"
        job.write_text(json.dumps({"fixed": "", "moving": "", "variant": "", "threads": 1,
                                   "folder": str(tmp_path)}))  # fmt: skip
        monkeypatch.setattr(sys, "argv", ["runner", str(job)])
        monkeypatch.setattr(protocol, "set_threads", lambda threads: None)

        def run(job):
            raise RuntimeError("no overlap")

        with pytest.raises(SystemExit) as ended:
            protocol.main(run)
        assert ended.value.code == 1
        assert json.loads((tmp_path / "report.json").read_text()) == {
            "error": "RuntimeError: no overlap"
        }


class TestEvaluation:
    def test_field_on_another_grid_is_refused(self, tmp_path):
        grid = oblique_grid()
        path = tmp_path / "forward.nrrd"
        write_displacement(Transform(np.eye(4), smooth_field(grid, 0.5)), path, grid)
        image = image_of(np.zeros(grid.shape, np.float32), grid)
        assert evaluate.read_field(path, image).field.grid.matches(grid)
        other = Grid(grid.shape, np.diag([2.0, 2.0, 2.0, 1.0]))
        with pytest.raises(ValueError, match=r"forward\.nrrd"):
            evaluate.read_field(path, image_of(np.zeros(grid.shape, np.float32), other))

    def test_overlap_counts_only_labels_that_both_have(self):
        grid = oblique_grid()
        fixed = np.zeros(grid.shape, np.int16)
        fixed[2:6, 2:6, 2:6] = 1
        fixed[8:12, 2:6, 2:6] = 7
        moving = fixed.copy()
        moving[moving == 7] = 0
        moving[8:12, 2:6, 10:14] = 9
        figures = evaluate.overlap(Transform(), image_of(fixed, grid), image_of(moving, grid))
        assert figures == {"dice": 1.0, "hd95_mm": 0.0, "labels": 1, "labels_lost": 0}

    def test_a_lost_label_has_no_overlap_and_is_counted(self):
        grid = oblique_grid()
        labels = np.zeros(grid.shape, np.int16)
        labels[5:8, 4:7, 5:9] = 3
        away = np.eye(4)
        away[:3, 3] = 500
        image = image_of(labels, grid)
        figures = evaluate.overlap(Transform(away), image, image)
        assert figures["dice"] == 0.0 and figures["labels_lost"] == 1

    def test_regularity_of_total_displacement_ignores_a_linear_part(self):
        grid = oblique_grid()
        inside = torch.ones(1, 1, *grid.shape, dtype=torch.bool)
        inside[:, :, [0, -1]] = inside[:, :, :, [0, -1]] = inside[..., [0, -1]] = False
        linear = np.diag([1.2, 0.9, 1.1, 1.0])
        field = smooth_field(grid, 0.7)
        alone = evaluate.regularity(Transform(np.eye(4), field), inside)
        both = Transform(linear, field).displacement_ras_mm(grid)
        together = evaluate.regularity(Transform.from_displacement_ras_mm(both, grid), inside)
        assert together["sdlogj"] == pytest.approx(alone["sdlogj"], rel=1e-4)
        assert alone["sdlogj"] > 0.05
        folded = evaluate.regularity(Transform(np.eye(4), smooth_field(grid, 12.0)), inside)
        assert folded["folds_percent"] > 1

    def test_round_trip_is_small_for_the_inverse_and_large_for_the_negation(self):
        from DeepRegLib.geometry.inverse import invert

        grid = oblique_grid()
        image = image_of(np.zeros(grid.shape, np.float32), grid)
        transform = Transform(np.eye(4), smooth_field(grid, 0.9).faded(3))
        inside = torch.ones(1, 1, *grid.shape, dtype=torch.bool)
        good = evaluate.round_trip(transform, invert(transform, grid)[0], image, image, inside)
        negated = Transform(np.eye(4), Field(-transform.field.displacement, grid))
        bad = evaluate.round_trip(transform, negated, image, image, inside)
        assert good["round_trip_voxel"] < 0.05 < bad["round_trip_voxel"]
        assert bad["round_trip_p99_voxel"] > bad["round_trip_voxel"]

    def test_distance_from_the_answer(self):
        grid = oblique_grid()
        inside = torch.ones(1, 1, *grid.shape, dtype=torch.bool)
        answer = Transform(np.eye(4), smooth_field(grid, 1.0))
        half = Transform(np.eye(4), Field(answer.field.displacement * 0.5, grid))
        assert evaluate.distance_from(half, answer, inside)["error_ratio"] == pytest.approx(0.5)

    def test_likeness_of_an_image_with_itself(self):
        grid = oblique_grid()
        values = np.random.default_rng(3).normal(100, 20, grid.shape).astype(np.float32)
        image = image_of(values, grid)
        inside = torch.ones(1, 1, *grid.shape, dtype=torch.bool)
        figures = evaluate.likeness(Transform(), image, image, inside)
        assert figures["ncc"] == pytest.approx(1) and figures["lncc"] == pytest.approx(1, abs=1e-3)


class TestPlan:
    def test_pairs_take_turns_and_what_is_there_is_skipped(self):
        entries = [{"pair": "a", "method": "x"}, {"pair": "b", "method": "y", "error": "crashed"}]
        plan = compare.missing(entries, ["a", "b"], ["x", "y"])
        assert plan == [("a", "y"), ("b", "x")]
        assert compare.missing([], ["a", "b"], ["x", "y"]) == [
            ("a", "x"), ("a", "y"), ("b", "x"), ("b", "y"),
        ]  # fmt: skip

    def test_methods_by_peer_and_by_name(self):
        assert compare.chosen_methods("brains", None) == list(compare.METHODS["brains"])
        assert compare.chosen_methods("flair", ["greedy"]) == ["greedy:nmi-sv"]
        assert compare.chosen_methods("brains", ["deepreg:rigid+affine:fast"]) == [
            "deepreg:rigid+affine:fast"
        ]
        with pytest.raises(SystemExit, match="nothing"):
            compare.chosen_methods("brains", ["nothing"])

    def test_every_method_has_a_runner_that_knows_its_variant(self):
        for methods in compare.METHODS.values():
            for method in methods:
                name, _, variant = method.partition(":")
                runner = environments.PEERS[name].runner.read_text(encoding="utf-8")
                assert name == "deepreg" or f'"{variant}"' in runner or f"``{variant}``" in runner

    def test_kept_entries_are_replaced_not_repeated(self, tmp_path, monkeypatch):
        monkeypatch.setattr(compare, "FOLDER", tmp_path)
        compare.keep("brains", {"pair": "a", "method": "x", "dice": 0.123456789})
        compare.keep("brains", {"pair": "a", "method": "y", "error": "crashed"})
        compare.keep("brains", {"pair": "a", "method": "x", "dice": 0.5})
        assert compare.read_entries("brains") == [
            {"pair": "a", "method": "y", "error": "crashed"},
            {"pair": "a", "method": "x", "dice": 0.5},
        ]

    def test_a_crash_without_a_report_is_an_error(self, tmp_path):
        runner = tmp_path / "run_crash.py"
        runner.write_text("import sys; print('out of luck'); sys.exit(3)")
        job = tmp_path / "job.json"
        job.write_text('{"threads": 1}')
        report = compare._run(Path(sys.executable), runner, job, 60)
        assert (
            report["error"].startswith("ended with status 3") and "out of luck" in report["error"]
        )


class TestTable:
    entries = (
        {"pair": "a", "method": "greedy:ncc", "dice": 0.5, "seconds": 100.0},
        {"pair": "b", "method": "greedy:ncc", "dice": 0.7, "seconds": 300.0},
        {"pair": "a", "method": "ants:syn-cc", "dice": 0.9, "seconds": 50.0},
        {"pair": "a", "method": "elastix:brain-mi", "error": "crashed"},
    )

    def test_means_are_over_the_pairs_that_all_have(self):
        pairs = compare_table.common_pairs(self.entries)
        assert pairs == ["a"]
        means = compare_table.means(self.entries, pairs)
        assert means["greedy:ncc"]["dice"] == 0.5 and means["ants:syn-cc"]["seconds"] == 50.0
        assert "elastix:brain-mi" not in means

    def test_failures_are_told(self):
        text = compare_table.section("brains", self.entries)
        assert "elastix" in text and "crashed" in text and "n = 1" in text

    def test_labels_keep_apart(self):
        points = [(0.5, 0.5)] * 4 + [(0.52, 0.5)]
        boxes = compare_table.place_labels(points, [(0.2, 0.04)] * 5)
        for i, a in enumerate(boxes):
            for b in boxes[i + 1 :]:
                assert not compare_table.overlapping(a, b)

    def test_the_table_of_the_readme_is_written_between_its_marks(self):
        rows = {"**ours**": {"dice": 0.71, "sdlogj": 0.31, "seconds": 8.4, "unsteady": 1.0}}
        text = f"Title\n{readme_table.BEGIN}\nold\n{readme_table.END}\nrest"
        once = readme_table.written(text, rows, 12)
        assert "| **ours** | 0.710 | 0.31 | ~8 |" in once and "old" not in once
        assert once.startswith("Title\n") and once.endswith("\nrest") and "12 pairs" in once
        assert readme_table.written(once, rows, 12) == once
        with pytest.raises(ValueError, match="README"):
            readme_table.written("no marks", rows, 12)
