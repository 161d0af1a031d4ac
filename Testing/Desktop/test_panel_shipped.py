"""A click on Apply with each model that comes with DeepReg: a brain that was bent is bent back."""

import numpy as np
import panel_support as desk
import pytest
import shipped

from DeepRegLib import models

pytestmark = pytest.mark.skipif(not shipped.MODELS, reason="no models in this copy")


@pytest.fixture
def panel(scene):
    yield from desk.opened(scene)


def _add(image, name):
    matrix = image.grid.voxel_to_ras[:, [2, 1, 0, 3]]
    return desk.add_volume(image.data[0, 0].numpy(), name, matrix)


def _choose(panel, path, stages=""):
    """Chooses the pair of a model, the model, and the preset Fast."""
    card = models.read_card(path)
    pair, *_ = shipped.pair_for(card.algorithm)
    panel.ui.fixedSelector.setCurrentNode(_add(pair.fixed, "Fixed brain"))
    panel.ui.movingSelector.setCurrentNode(_add(pair.moving, "Moving brain"))
    desk.choose(panel.ui.algorithmCombo, card.algorithm)
    desk.choose(panel.ui.modelCombo, card.name)
    desk.choose(panel.ui.presetCombo, "Fast")
    if stages:
        panel.ui.stagesCombo.setCurrentIndex(panel.ui.stagesCombo.findData(stages))
    if "rigid" in panel._parameterNode.stages:
        desk.choose(panel.parts.algorithm.form.editor("rigid.initialization"), "geometry")
    desk.until(lambda: panel.ui.applyButton.enabled, 5, "an enabled button")


def _share_left(panel, system):
    """Share of the error that the shown result leaves."""
    _, points, goal = shipped.pair_for(system)
    found = desk.to_moving(panel.ui.transformSelector.currentNode(), points)
    before = np.linalg.norm(points - goal, axis=1).mean()
    return np.linalg.norm(found - goal, axis=1).mean() / before


@pytest.mark.parametrize("path", shipped.MODELS, ids=lambda path: path.stem)
def test_a_model_brings_a_volume_onto_another(panel, path):
    card = models.read_card(path)
    _choose(panel, path)
    said = desk.run(panel)
    assert "✖" not in said, said
    assert f"The model is '{card.name}'" in panel.ui.logText.plainText
    left = _share_left(panel, card.algorithm)
    assert left < shipped.LEFT_BY.get(card.algorithm, shipped.LEFT)


def test_what_a_model_found_can_be_refined(panel):
    """By the button after the run; or by a further stage of the same run."""
    path = next(path for path in shipped.MODELS if shipped.system_of(path) == "vxm")
    _choose(panel, path)
    button = panel.ui.refineButton
    desk.settle()
    assert not button.visible
    desk.run(panel)
    assert button.visible and button.text == "Refine by optimization"
    transform, alone = panel.ui.transformSelector.currentNode(), _share_left(panel, "vxm")
    button.click()
    assert panel.parts.run.running and not button.visible
    said = desk.finish(panel)
    assert "✖" not in said, said
    assert panel.ui.transformSelector.currentNode() is transform
    refined = _share_left(panel, "vxm")
    assert refined < 0.5 * alone, (refined, alone)
    assert not button.visible, "it is refined already"
    _choose(panel, path, "rigid+affine+vxm+greedy")
    desk.run(panel)
    assert _share_left(panel, "vxm") == pytest.approx(refined, abs=0.05)
    assert not button.visible
