"""Pictures of a registration, from gray volumes on one grid; numpy and VTK only, no torch.

- `compose`: two gray arrays of the same shape to one picture in colors, volumes and slices alike.
- `slices`: axial, coronal and sagittal slices of any grid, with the letters of their directions.
- `panels`: the pictures before and after that a report shows.
- `color_maps`: colors of scalar maps (Jacobian, uncertainty, error).
- `jacobian`: the Jacobian determinant of a displacement given in millimetres.
- `error`: the picture of a checked registration, with the plots of `histogram`.
- `text`: lines of text.
- `png`: PNG files in memory.
"""
