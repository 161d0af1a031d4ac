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


@pytest.mark.parametrize("path", shipped.MODELS, ids=lambda path: path.stem)
def test_a_model_brings_a_volume_onto_another(panel, path):
    card = models.read_card(path)
    pair, points, goal = shipped.pair_for(card.algorithm)
    fixed, moving = _add(pair.fixed, "Fixed brain"), _add(pair.moving, "Moving brain")
    panel.ui.fixedSelector.setCurrentNode(fixed)
    panel.ui.movingSelector.setCurrentNode(moving)
    desk.choose(panel.ui.algorithmCombo, card.algorithm)
    desk.choose(panel.ui.modelCombo, card.name)
    desk.choose(panel.ui.presetCombo, "Fast")
    desk.choose(panel.parts.algorithm.form.editor("rigid.initialization"), "geometry")
    desk.until(lambda: panel.ui.applyButton.enabled, 5, "an enabled button")
    said = desk.run(panel)
    assert "✖" not in said, said
    assert f"The model is '{card.name}'" in panel.ui.logText.plainText
    found = desk.to_moving(panel.ui.transformSelector.currentNode(), points)
    before = np.linalg.norm(points - goal, axis=1).mean()
    left = np.linalg.norm(found - goal, axis=1).mean() / before
    assert left < shipped.LEFT_BY.get(card.algorithm, shipped.LEFT)
