"""What lasts: the artifact store, the Zarr layouts, the distilled set."""
