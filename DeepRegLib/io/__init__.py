"""Files: images, transforms, landmarks, and the checks of what was read."""
