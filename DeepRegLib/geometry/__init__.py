"""The only place that knows coordinates: grids, sampling, fields, transforms."""
