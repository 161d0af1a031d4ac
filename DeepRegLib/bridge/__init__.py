"""What stands between the library and the 3D Slicer scene; the only package that knows MRML.

Nothing here imports torch, `slicer.app` or Qt: the panel uses it inside Slicer's own process.
"""
