"""prefect.yaml and the presets, shipped so that an installed vidistill finds them."""
